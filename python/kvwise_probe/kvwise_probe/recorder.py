"""The thread that turns events into lines, writes them, and watches what all of it costs.

It wakes about once a second and works in small pieces, between which it lets go of the interpreter lock: the engine's thread
never waits for more than one piece.
"""

import atexit
import os
import struct
import threading
import time

from .budget import Budget
from .encoder import Hashes, line
from .live import LOST_EVENTS, TIMED_EVERY, Live
from .sink import Sink

# A kill loses what waits for the next write, and no more than the last second of it.
FLUSH_INTERVAL_S = 0.9
EVENTS_AT_ONCE = 512
NUMBERS_AT_ONCE = 1 << 16
REQUESTS_AT_ONCE = 8
# Without these the rest cannot be read: they wait until they can be written.
ALWAYS = ("p", "S", "B", "m", "k")
# Blocks without content that no allocation asked for: a hook that was taken off would let them pile up.
MOST_EVICTED = 1 << 20


class Recorder(object):
    """One for each process; begins again after a fork."""

    def __init__(self, settings):
        self.settings = settings
        self.live = Live()
        self.put_on = self.take_off = lambda: None  # set by the owner of the hooks
        self._reset()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)
        atexit.register(self.close)

    def _reset(self):
        self.thread = None
        self._room = max(1, int(self.settings.records_per_s * FLUSH_INTERVAL_S))
        self.live.room = self._room
        self._hashes = Hashes(self.settings.hash_key)
        self._lost_before = False
        self._sink = Sink(self.settings)
        self._budget = Budget(self.settings.max_percent)
        self._written_totals = None
        self._writer_ns = 0
        self._closed = False
        self._lock = threading.Lock()
        self._wake = threading.Event()

    def _after_fork(self):
        off = self._budget.every == -1
        self.live.reset()
        self._reset()
        if off:
            self.put_on()

    # -- called from the engine's thread -------------------------------------------------------------------------

    def keep(self, event):
        """An event that is rare and always kept; the first one starts the writer."""
        if self.thread is None:
            self.begin()
        if not self._closed:
            self.live.rare.append(event)

    def begin(self):
        """Starts the writer's thread, once."""
        with self._lock:
            if self.thread is not None or self._closed:
                return
            thread = threading.Thread(target=self._run, name="kvwise-probe", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # a process that may not start threads goes on without being recorded
                self._closed = True
                self.live.room = 0
                self.live.open = False
                self.settings.say("no thread can be started: %s" % error)
                return
            self.thread = thread
        try:  # children of multiprocessing end without atexit
            from multiprocessing import util

            util.Finalize(None, self.close, exitpriority=1000)
        except Exception:
            pass

    # -- the writer ----------------------------------------------------------------------------------------------

    def _run(self):
        while not self._closed:
            self._wake.wait(FLUSH_INTERVAL_S)
            try:
                self._look_at_the_cost()
                self._queue_totals()
                self._write()
            except Exception:
                self.live.errors += 1

    def _look_at_the_cost(self):
        """Less is recorded where the probe takes too much, and each change is recorded."""
        live, budget = self.live, self._budget
        self._writer_ns = _thread_ns()
        cost = live.hook_ns * TIMED_EVERY + self._writer_ns
        before = budget.every
        if not budget.look(time.monotonic_ns(), cost, live.step_ns):
            return
        every = budget.every
        if every == -1:
            self.take_off()
        if before == -1:
            live.last_end = 0
            self.put_on()
        if every <= 0:
            live.close()
        live.room = self._room if every > 0 else 0
        live.every = max(1, every)
        live.mask = live.every - 1  # a power of two
        share = -1 if budget.share is None else int(budget.share * 1e6)
        live.rare.append(("B", time.monotonic_ns(), every, share, int(budget.limit * 1e6)))
        self.settings.say("%.2f %% of step time: now recording %s" % (share / 1e4, every))

    def _queue_totals(self):
        totals = self.live.totals()
        # an idle server is not written about: only the writer's own time has grown
        if totals != self._written_totals:
            self._written_totals = dict(totals)
            totals["writer_ns"] = self._writer_ns
            self.live.rare.append(("T", time.monotonic_ns(), totals))

    def _write(self):
        """Writes everything that waits now."""
        live, sink = self.live, self._sink
        for pool in live.pools:
            if len(pool.evicted) > MOST_EVICTED:
                del pool.evicted[:]
        rare, events, ended = live.take()
        if self._lost_before and events:
            events.insert(0, (LOST_EVENTS, time.monotonic_ns()))
        if not sink.paused():
            if self._write_rare(rare) and self._write_events(events) and self._write_ended(ended):
                if not live.open and live.room > 0 and not sink.full:
                    live.open = True
                elif sink.full:
                    live.close()
                return
        # nothing can be written: what waits is lost, but pools and settings are told again later
        live.rare.extendleft(reversed([event for event in rare if event[0] in ALWAYS]))
        live.lost += len(events) + len(ended)
        self._lost_before = True

    def _write_rare(self, rare):
        """Records with text; those that were written are taken from the list."""
        if rare and not self._sink.write(self._lines_of(rare)):
            return False
        del rare[:]
        return True

    def _lines_of(self, rare):
        try:
            return self._sink.line(rare)
        except (TypeError, ValueError):
            data = []
            for record in rare:  # one of them cannot be said in JSON: the others are kept
                try:
                    data.append(self._sink.line([record]))
                except (TypeError, ValueError):
                    self.live.errors += 1
            return b"".join(data)

    def _write_events(self, events):
        """Events, in pieces: those that were written are taken from the list."""
        sink = self._sink
        while events:
            count, numbers = 0, 0
            for event in events[:EVENTS_AT_ONCE]:
                numbers += len(event)
                count += 1
                if numbers > NUMBERS_AT_ONCE:
                    break
            piece = events[:count]
            try:
                data = line(piece)
            except (struct.error, TypeError, OverflowError):
                # one of them holds something that is no number of 64 bits: the others are kept
                good = [event for event in piece if _all_integers(event)]
                self.live.errors += len(piece) - len(good)
                data = line(good)
            if not sink.write(data):
                return False
            self._lost_before = False
            del events[:count]
            time.sleep(0)  # lets go of the interpreter lock
        return True

    def _write_ended(self, ended):
        """Finished requests, with their hashes made short."""
        while ended:
            piece = ended[:REQUESTS_AT_ONCE]
            rows = []
            for event in piece:
                try:
                    text = None if event[2] & self.live.mask else self._hashes.of(event[-1], event[-2])
                except Exception:
                    self.live.errors += 1
                    text = None
                rows.append(event[:-1] + (text,))
            if not self._sink.write(self._sink.line(rows)):
                return False
            del ended[:REQUESTS_AT_ONCE]
            time.sleep(0)
        return True

    def close(self):
        """Writes what is left; called at the end of the process."""
        with self._lock:
            if self._closed or self.thread is None:
                return
            self._closed = True
        self._wake.set()
        if threading.current_thread() is not self.thread:
            self.thread.join(2.0)
        try:
            self._queue_totals()
            self._write()
            self.live.rare.append(("end", time.monotonic_ns()))
            self._write()
        except Exception:
            pass


def _thread_ns():
    """CPU time of this thread, where the system tells it."""
    clock = getattr(time, "thread_time_ns", None)
    return 0 if clock is None else clock()


def _all_integers(event):
    try:
        struct.Struct("<%dq" % len(event)).pack(*event)
    except (struct.error, TypeError, OverflowError):
        return False
    return True
