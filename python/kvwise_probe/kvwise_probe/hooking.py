"""Putting hooks on methods, and taking them off.

Each hook wraps one method: it calls the original first, returns its result untouched, and notes what happened. A hook
that raises is counted; after a few errors the original method is put back. A class or method that this version of
vLLM does not have is noted and skipped.
"""

import functools
import inspect
import itertools
import time

from .recorder import Recorder

MAX_ERRORS = 20

now = time.monotonic_ns


class Probe(object):
    """What the hooks share in one process."""

    def __init__(self, settings):
        self.settings = settings
        self.recorder = Recorder(settings)
        self.live = self.recorder.live
        self.pools = itertools.count()
        self.requests = itertools.count()
        self.graphs = {}
        self.graph_written = 0
        self.graph_leader = None
        self.call_ns = _call_ns()
        self._guards = []
        self.recorder.put_on = self._put_on
        self.recorder.take_off = self._take_off

    def note(self, kind, text):
        self.settings.say("%s: %s" % (kind, text))
        self.recorder.keep(("n", now(), kind, text))

    def wrap(self, module, class_name, method, make, required=True, always=False):
        """Replaces `class_name.method` by `make(original, guard)`; notes what is missing. A hook that runs `always` is
        rare, and stays on when the others are taken off for what they cost."""
        name = "%s.%s.%s" % (module.__name__, class_name, method)
        cls = getattr(module, class_name, None)
        original = None if cls is None else cls.__dict__.get(method)
        if original is None or not callable(original):
            if required:
                self.note("missing", name)
            return False
        guard = Guard(self, cls, method, original, name)
        guard.hook = functools.wraps(original)(make(original, guard))
        setattr(cls, method, guard.hook)
        if not always:
            self._guards.append(guard)
        self.settings.say("hooked %s" % name)
        return True

    def _take_off(self):
        for guard in self._guards:
            guard.take_off()

    def _put_on(self):
        for guard in self._guards:
            guard.put_on()


class Guard(object):
    """One hook: counts its errors, and takes it off when there are too many."""

    def __init__(self, probe, cls, method, original, name):
        self.probe, self.cls, self.method, self.original, self.name = probe, cls, method, original, name
        self.hook = None
        self.errors = 0

    def failed(self, error):
        try:
            self.errors += 1
            self.probe.live.errors += 1
            if self.errors == 1:
                self.probe.note("error", "%s: %r" % (self.name, error))
            if self.errors == MAX_ERRORS:
                setattr(self.cls, self.method, self.original)
                self.probe.note("switched_off", "%s after %d errors" % (self.name, MAX_ERRORS))
        except Exception:
            pass

    def take_off(self):
        # what somebody else put on top stays
        if self.cls.__dict__.get(self.method) is self.hook:
            setattr(self.cls, self.method, self.original)

    def put_on(self):
        if self.errors < MAX_ERRORS and self.cls.__dict__.get(self.method) is self.original:
            setattr(self.cls, self.method, self.hook)


def takes_only(function, *names):
    """Whether a method's parameters are exactly these: then a hook of the same shape may stand for it, which costs a third
    of one that passes everything on. (`self` first.)"""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    plain = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return [p.name for p in parameters] == list(names) and all(
        p.kind is plain and p.default is inspect.Parameter.empty for p in parameters
    )


def _call_ns():
    """What the call of a hook costs before it can read the clock: added to what it measures of itself."""

    def original(self, one):
        return one

    def hook(self, one):
        return original(self, one)

    def spent(function):
        best = None
        for _ in range(5):
            start = now()
            for _ in range(100):
                function(None, 1)
            took = (now() - start) // 100
            best = took if best is None else min(best, took)
        return best

    return max(0, spent(hook) - spent(original)) + 50
