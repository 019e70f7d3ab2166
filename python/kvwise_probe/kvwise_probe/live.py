"""What the hooks share with the writer's thread: totals, switches, and the queue of raw events.

The engine's thread does nothing but add to integers and append tuples. All else (ids of blocks, lifetimes, hashes,
text) is work of the writer's thread, see :mod:`kvwise_probe.encoder`.
"""

import collections

# Totals since the process began, written as `T` records. Exact also while single records are sampled or dropped.
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


class Live(object):
    """One for each process. Attributes are read and written without a lock: each is one reference or one integer, and
    only the engine's thread adds to totals."""

    __slots__ = TOTALS + (
        "events",  # raw events, appended by hooks and popped by the writer: both are atomic
        "append",  # events.append
        "open",  # whether hooks append single events
        "room",  # events that may wait for the writer before `open` is closed
        "every",  # every n-th step is recorded
        "t",  # monotonic nanoseconds of the step that is being scheduled; 0 outside
        "timed",  # whether hooks measure themselves now
        "hook_ns",  # measured time in hooks, in one of TIMED_EVERY steps
        "step_ns",  # time from step to step, idle waits left out
        "last_end",  # when the last step was scheduled; 0 where the time since then is not a step's
        "lost",  # events that were not appended
        "errors",  # errors of hooks and writer
    )

    def __init__(self):
        self.events = collections.deque()
        self.append = self.events.append
        self.reset()

    def reset(self):
        """Begins again: in a process made by a fork. The deque stays the same, hooks hold its `append`."""
        for name in TOTALS:
            setattr(self, name, 0)
        self.events.clear()
        self.open = True
        self.room = 1 << 16
        self.every = 1
        self.t = 0
        self.timed = False
        self.hook_ns = 0
        self.step_ns = 0
        self.last_end = 0
        self.lost = 0
        self.errors = 0

    def close(self):
        """Stops single events until the writer has taken this mark from the queue: what it remembers of blocks is worth
        nothing after events that it did not see."""
        if self.open:
            self.open = False
            self.append(("L",))

    def totals(self):
        found = {name: getattr(self, name) for name in TOTALS}
        found["lost_records"] = self.lost
        found["errors"] = self.errors
        found["hook_ns"] = self.hook_ns * TIMED_EVERY
        found["step_ns"] = self.step_ns
        return found
