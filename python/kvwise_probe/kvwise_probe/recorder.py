"""The thread that turns raw events into records, writes them, and watches what all of it costs.

It wakes twice a second and works in small pieces, between which it lets go of the interpreter lock: the engine's thread
never waits for more than one piece.
"""

import atexit
import os
import threading
import time

from .budget import Budget
from .encoder import Encoder
from .live import Live
from .sink import Sink

FLUSH_INTERVAL_S = 0.5
EVENTS_AT_ONCE = 128
BYTES_AT_ONCE = 1 << 16
# Without these the rest cannot be read: they wait until they can be written.
ALWAYS = ("p", "S", "B", "m")


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
        self._encoder = Encoder(self.settings)
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
        self.live.append(event)
        if self.thread is None:
            self.begin()

    def begin(self):
        """Starts the writer's thread, once."""
        with self._lock:
            if self.thread is not None or self._closed:
                return
            self.thread = threading.Thread(target=self._run, name="kvwise-probe", daemon=True)
            self.thread.start()
        try:  # children of multiprocessing end without atexit
            from multiprocessing import util

            util.Finalize(None, self.close, exitpriority=1000)
        except Exception:
            pass

    # -- the writer ----------------------------------------------------------------------------------------------

    def _run(self):
        last_totals = 0.0
        while not self._closed:
            self._wake.wait(FLUSH_INTERVAL_S)
            try:
                self._look_at_the_cost()
                now = time.monotonic()
                if now - last_totals >= 1.0:
                    last_totals = now
                    self._queue_totals()
                self._write_events()
            except Exception:
                self.live.errors += 1

    def _look_at_the_cost(self):
        """Less is recorded where the probe takes too much, and each change is recorded."""
        live, budget, encoder = self.live, self._budget, self._encoder
        self._writer_ns = _thread_ns()
        totals = live.totals()
        cost = totals["hook_ns"] + self._writer_ns
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
        if every > 0:
            encoder.sample(every)
        share = -1 if budget.share is None else int(budget.share * 1e6)
        live.append(("B", time.monotonic_ns(), every, share, int(budget.limit * 1e6)))
        self.settings.say("%.2f %% of step time: now recording %s" % (share / 1e4, every))

    def _queue_totals(self):
        totals = self.live.totals()
        totals["writer_ns"] = self._writer_ns
        # an idle server is not written about: only the writer's own time has grown
        seen = {k: v for k, v in totals.items() if k != "writer_ns"}
        if seen != self._written_totals:
            self._written_totals = seen
            self.live.append(("T", time.monotonic_ns(), totals))

    def _write_events(self):
        live, sink, encoder = self.live, self._sink, self._encoder
        events = live.events
        if events and sink.paused():
            self._drop(events)
            return
        lines, size, rows = [], 0, []
        while events:
            for _ in range(min(EVENTS_AT_ONCE, len(events))):
                event = events.popleft()
                if event[0] == "L":
                    encoder.forget()
                    live.open = live.room > 0 and not sink.full
                    continue
                try:
                    encoder.add(event)
                except Exception:
                    live.errors += 1
            made = encoder.finish()
            if made:
                lines.append(sink.line(made))
                size += len(lines[-1])
                rows += made
            if lines and (size >= BYTES_AT_ONCE or not events):
                if not sink.write(b"".join(lines)):
                    encoder.rows = [row for row in rows if row[0] in ALWAYS]
                    live.lost += len(rows) - len(encoder.rows)
                    self._drop(events)
                    return
                lines, size, rows = [], 0, []
                if sink.full:
                    live.close()
            time.sleep(0)  # lets go of the interpreter lock
        if not live.open and live.room > 0 and not sink.full:
            live.append(("L",))

    def _drop(self, events):
        """Nothing can be written: what waits is lost, but pools and settings are told again later."""
        kept = []
        while events:
            event = events.popleft()
            if event[0] in ALWAYS:
                kept.append(event)
            else:
                self.live.lost += 1
        self._encoder.forget()
        self.live.events.extendleft(reversed(kept))

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
            self.live.append(("end", time.monotonic_ns()))
            self._write_events()
        except Exception:
            pass


def _thread_ns():
    """CPU time of this thread, where the system tells it."""
    clock = getattr(time, "thread_time_ns", None)
    return 0 if clock is None else clock()
