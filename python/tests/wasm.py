"""The probe's tests that need neither threads nor other processes, for a Python compiled to WebAssembly.

Run by `tests/e2e/probe_pythons.py`. A thread that cannot start is stood in for by one that does nothing: what waits is then
written when the recorder is closed. Prints one line of JSON: the Python's version, tests run and failed, and what the
stand-in engine counted beside what the probe counted.
"""

import json
import os
import runpy
import sys
import tempfile
import threading
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
# need a second process, or one that is timed
LEFT_OUT = ("EndToEnd", "OwnLimit", "Cost")


class NoThread(object):
    def __init__(self, target=None, name=None, daemon=None):
        pass

    def start(self):
        pass

    def join(self, timeout=None):
        pass


def suite_of(suite):
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from suite_of(item)
        elif type(item).__name__ not in LEFT_OUT:
            yield item


def engine(folder):
    """The stand-in engine under the probe, in this process."""
    import io

    import kvwise_probe
    import recordings
    from kvwise_probe import hooking, recorder

    made = []

    class Kept(recorder.Recorder):
        def __init__(self, settings):
            super(Kept, self).__init__(settings)
            made.append(self)

    hooking.Recorder = Kept
    os.environ.update(VLLM_PROFILING_DIR=folder, KVWISE_PROBE_MIN_FREE_MB="0", KVWISE_PROBE_MAX_PERCENT="0")
    os.environ.pop("KVWISE_SESSION_DIR", None)
    sys.path.insert(0, os.path.join(HERE, "stand_in"))
    kvwise_probe.start()
    out, sys.stdout = sys.stdout, io.StringIO()
    try:
        runpy.run_path(os.path.join(HERE, "stand_in", "drive.py"), run_name="__main__")
        own = json.loads(sys.stdout.getvalue())
    finally:
        sys.stdout = out
    for one in made:
        one.close()
    (process,) = recordings.of_folder(folder)
    return own, [r for r in process[1:] if r[0] == "T"][-1][2]


def main():
    threading.Thread = NoThread
    sys.path[:0] = [HERE, os.path.join(os.path.dirname(HERE), "kvwise_probe")]
    import test_probe

    tests = unittest.TestSuite(suite_of(unittest.defaultTestLoader.loadTestsFromModule(test_probe)))
    result = unittest.TextTestRunner(stream=sys.stderr, verbosity=0).run(tests)
    with tempfile.TemporaryDirectory() as folder:
        own, totals = engine(folder)
    pairs = {"allocated": "allocated_blocks", "evicted": "evicted_blocks", "hit_tokens": "hit_tokens", "steps": "steps"}
    differ = [name for name, ours in pairs.items() if own[name] != totals[ours]]
    failed = [str(test) for test, _ in result.failures + result.errors] + ["stand-in: " + name for name in differ]
    if totals["errors"]:
        failed.append("stand-in: %d errors of hooks" % totals["errors"])
    print(json.dumps({"python": sys.version.split()[0], "ran": result.testsRun, "failed": failed, "allocated": own["allocated"]}))


if __name__ == "__main__":
    main()
