"""Keeps the probe below its share of the engine's step time.

The share is measured, not assumed: time in hooks (read by the hooks themselves in one step of thirteen) plus CPU time of the
writer's thread, over the time from step to step. Above the limit, less is recorded; with room again, more.
"""

# Every n-th step, block and hashed request; 0: totals only; -1: the hooks are taken off.
LEVELS = (1, 2, 4, 8, 16, 32, 64, 0, -1)

WINDOW_NS = 2000000000  # step time that a judgement needs
SHORT_WINDOW_NS = 250000000  # ... where the limit is passed by far
FAR = 4.0  # what "by far" is
PATIENCE_NS = 10000000000  # time below half of the limit before more is recorded again
MAX_PATIENCE_NS = 600000000000
OFF_NS = 60000000000  # how long hooks stay off before the next try


class Budget(object):
    """Judges windows of measured time and says which level is right."""

    def __init__(self, max_percent):
        self.limit = max_percent / 100.0
        self.level = 0
        self.share = None  # of the last judged window
        self._start = (0, 0)  # cost and step time at the window's start
        self._calm_since = None
        self._patience = PATIENCE_NS
        self._changed = 0
        self._attempt = False  # whether the last change was one to more records

    @property
    def every(self):
        return LEVELS[self.level]

    def restart(self, cost_ns, step_ns):
        """A new window begins."""
        self._start = (cost_ns, step_ns)

    def look(self, now, cost_ns, step_ns):
        """Takes the totals so far; returns whether the level changed."""
        if self.limit <= 0:
            return False
        if LEVELS[self.level] == -1:
            if now - self._changed < max(OFF_NS, self._patience):
                return False
            self.restart(cost_ns, step_ns)
            return self._go(now, self.level - 1)
        cost, steps = cost_ns - self._start[0], step_ns - self._start[1]
        if steps < SHORT_WINDOW_NS:
            return False
        share = cost / steps
        if steps < WINDOW_NS and share < FAR * self.limit:
            return False
        self.share = share
        self.restart(cost_ns, step_ns)
        if share > self.limit:
            self._calm_since = None
            jump = 1
            while share > self.limit * 2 ** jump and jump < len(LEVELS):
                jump += 1
            # a level that was an attempt to record more, left again: the next attempt waits longer
            if self._attempt:
                self._patience = min(2 * self._patience, MAX_PATIENCE_NS)
            last = len(LEVELS) - 1
            if self.level < last - 1:
                return self._go(now, min(self.level + jump, last - 1))
            return self._go(now, last)
        if self.level == 0 or share > self.limit / 2:
            self._calm_since = None
            return False
        if self._calm_since is None:
            self._calm_since = now
        if now - self._calm_since < self._patience:
            return False
        return self._go(now, self.level - 1)

    def _go(self, now, level):
        self._attempt = level < self.level
        self.level = level
        self._changed = now
        self._calm_since = None
        return True
