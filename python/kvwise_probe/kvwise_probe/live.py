"""What the hooks share with the writer's thread: totals, switches, and the queues of events.

The engine's thread does nothing but add to integers and append tuples of integers. Turning them into bytes is one call for
many events, made by the writer's thread (:mod:`kvwise_probe.recorder`); everything else (runs of blocks, lifetimes, text) is
left to the program that reads the file.
"""

import collections
import time

# Totals since the process began, written as `T` records. Exact also while single events are sampled or dropped.
TOTALS = (
    "allocated_blocks",
    "freed_blocks",
    "hit_blocks",
    "evicted_blocks",
    "query_tokens",
    "hit_tokens",
    "resumed_query_tokens",
    "resumed_hit_tokens",
    "preemptions",
    "finished_requests",
    "steps",
)
# Hooks read the clock for themselves in one step of this many. Block tables grow in multiples of 16 and the like: a
# prime does not fall into their rhythm.
TIMED_EVERY = 13

# Kinds of events (see :mod:`kvwise_probe.vllm_hooks`). The first number of an event is its kind plus 256 times the count of
# numbers that follow: a reader can pass over a kind that it does not know.
ALLOCATED, FREED, HIT, EVICTED, DROPPED, CLEARED, STEP, ARRIVED, LOOKED_UP, PREEMPTED, REPLAYED, LOST = range(1, 13)


def head(kind, numbers):
    """The first number of an event with so many further numbers."""
    return kind | numbers << 8


LOST_EVENTS = head(LOST, 1)


class Live(object):
    """One for each process. Attributes are read and written without a lock: each is one reference or one integer, and
    only the engine's thread adds to totals."""

    __slots__ = TOTALS + (
        "events",  # tuples of integers, appended by hooks and cut off in front by the writer: both are atomic
        "append",  # events.append
        "rare",  # events with text, always kept; written before the events that wait at the same time
        "ended",  # finished requests with their hashes; written after the events that wait at the same time
        "pools",  # the probe's own state of each block pool
        "open",  # whether hooks append events
        "room",  # events that may wait for the writer before `open` is closed
        "every",  # every n-th step is recorded
        "mask",  # blocks are recorded whose number has none of these bits
        "t",  # monotonic nanoseconds of the step that is being scheduled; 0 outside
        "timed",  # whether hooks measure themselves now
        "hook_ns",  # measured time in hooks, in one of TIMED_EVERY steps
        "step_ns",  # time from step to step, idle waits left out
        "last_end",  # when the last step was scheduled; 0 where the time since then is not a step's
        "lost",  # events that were not appended
        "errors",  # errors of hooks and writer
    )

    def __init__(self):
        self.events = []
        self.append = self.events.append
        self.rare = collections.deque()
        self.ended = collections.deque()
        self.pools = []
        self.reset()

    def reset(self):
        """Begins again: in a process made by a fork. The queues stay the same objects, hooks hold their methods."""
        for name in TOTALS:
            setattr(self, name, 0)
        del self.events[:]
        self.rare.clear()
        self.ended.clear()
        self.open = True
        self.room = 1 << 16
        self.every = 1
        self.mask = 0
        self.t = 0
        self.timed = False
        self.hook_ns = 0
        self.step_ns = 0
        self.last_end = 0
        self.lost = 0
        self.errors = 0

    def close(self):
        """Stops single events until the writer has caught up. The mark stands before everything that comes later: what a
        reader remembers of blocks is worth nothing after events that nobody saw."""
        if self.open:
            self.open = False
            self.append((LOST_EVENTS, time.monotonic_ns()))

    def take(self):
        """Everything that waits now: events with text, events, finished requests. In this order nothing is written before
        what it needs: a finished request after its arrival, an event after the name of what it counts."""
        count = len(self.ended)
        ended = [self.ended.popleft() for _ in range(count)]
        count = len(self.events)
        events = self.events[:count]
        del self.events[:count]
        count = len(self.rare)
        return [self.rare.popleft() for _ in range(count)], events, ended

    def totals(self):
        found = {name: getattr(self, name) for name in TOTALS}
        found["lost_records"] = self.lost
        found["errors"] = self.errors
        found["hook_ns"] = self.hook_ns * TIMED_EVERY
        found["step_ns"] = self.step_ns
        return found


class Pool(object):
    """What the hooks keep of one block pool: its number, and the blocks that lost their content since the last allocation."""

    __slots__ = ("number", "evicted")

    def __init__(self, number):
        self.number = number
        self.evicted = []
