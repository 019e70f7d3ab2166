"""Tests of the probe without vLLM: `python3 -m unittest discover python/tests` (3.9 to 3.14, standard library only)."""

import json
import os
import subprocess
import sys
import tempfile
import types
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
PROBE = os.path.join(os.path.dirname(HERE), "kvwise_probe")
STAND_IN = os.path.join(HERE, "stand_in")
sys.path.insert(0, PROBE)

from kvwise_probe import settings, vllm_hooks  # noqa: E402


def run(code, folder, **environ):
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([PROBE, STAND_IN]), KVWISE_PROBE_MIN_FREE_MB="0")
    env.pop("KVWISE_SESSION_DIR", None)
    env["VLLM_PROFILING_DIR"] = folder
    env.update(environ)
    return subprocess.run([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def records(folder):
    found = []
    for root, _, names in os.walk(folder):
        for name in names:
            if name.endswith(".jsonl"):
                with open(os.path.join(root, name)) as lines:
                    found.append([json.loads(line) for line in lines])
    return found


class EndToEnd(unittest.TestCase):
    DRIVE = "import runpy; runpy.run_path(%r, run_name='__main__')" % os.path.join(STAND_IN, "drive.py")

    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.folder = self.temporary.name

    def tearDown(self):
        self.temporary.cleanup()

    def test_totals_equal_the_engines_own_counts(self):
        done = run(self.DRIVE, self.folder)
        self.assertEqual(done.returncode, 0, done.stderr)
        own = json.loads(done.stdout)
        (process,) = records(self.folder)
        totals = [r for r in process[1:] if r[0] == "T"][-1][2]
        self.assertEqual(totals["allocated_blocks"], own["allocated"])
        self.assertEqual(totals["evicted_blocks"], own["evicted"])
        self.assertEqual(totals["hit_tokens"], own["hit_tokens"])
        self.assertEqual(totals["query_tokens"], own["query_tokens"])
        self.assertEqual(totals["preemptions"], own["preemptions"])
        self.assertGreater(own["preemptions"], 0)
        self.assertEqual(totals["steps"], own["steps"])
        self.assertEqual(totals["errors"], 0)
        # every block that is in use was allocated or hit, and is freed once: at the end nothing is in use
        used = set()
        for record in process[1:]:
            if record[0] in ("a", "t"):
                used.update(record[3])
            elif record[0] == "f":
                used.difference_update(record[3])
        self.assertEqual(used, set())
        self.assertEqual(process[-1][0], "end")

    def test_nothing_is_written_when_no_hooked_module_is_imported(self):
        done = run("print('hello')", self.folder)
        self.assertEqual(done.stdout.strip(), b"hello")
        self.assertEqual(os.listdir(self.folder), [])

    def test_children_write_files_of_their_own_into_one_session(self):
        code = (
            "import multiprocessing, runpy\n"
            "def work(): runpy.run_path(%r, run_name='__main__')\n"
            "if __name__ == '__main__':\n"
            "    c = multiprocessing.get_context('fork')\n"
            "    ps = [c.Process(target=work) for _ in range(2)]\n"
            "    [p.start() for p in ps]; [p.join() for p in ps]; work()\n"
        ) % os.path.join(STAND_IN, "drive.py")
        done = run(code, self.folder)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(len(os.listdir(self.folder)), 1, "one session")
        files = records(self.folder)
        self.assertEqual(len(files), 3)
        self.assertEqual(len({f[0]["pid"] for f in files}), 3)
        for process in files:
            self.assertEqual(process[-1][0], "end", "children of multiprocessing end without atexit")

    def test_a_folder_that_cannot_be_written_does_not_stop_the_engine(self):
        blocked = os.path.join(self.folder, "file")
        open(blocked, "w").close()
        done = run(self.DRIVE, os.path.join(blocked, "inside"))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertGreater(json.loads(done.stdout)["finished"], 0)

    def test_a_full_disk_stops_the_writing_not_the_engine(self):
        done = run(self.DRIVE, self.folder, KVWISE_PROBE_MIN_FREE_MB=str(1 << 40))
        self.assertEqual(done.returncode, 0, done.stderr)
        (process,) = records(self.folder)
        self.assertEqual(len(process), 1, "the header only")

    def test_a_hidden_sitecustomize_still_runs(self):
        other = os.path.join(self.folder, "other")
        os.mkdir(other)
        with open(os.path.join(other, "sitecustomize.py"), "w") as out:
            out.write("import builtins; builtins.other_was_here = 1\n")
        path = os.pathsep.join([PROBE, other])
        done = run("print(other_was_here)", self.folder, PYTHONPATH=path)
        self.assertEqual(done.stdout.strip(), b"1", done.stderr)

    def test_the_probe_can_be_switched_off(self):
        done = run(self.DRIVE, self.folder, KVWISE_PROBE="0")
        self.assertEqual(done.returncode, 0)
        self.assertEqual(os.listdir(self.folder), [])

    def test_the_record_limit_drops_details_and_counts_them_but_totals_stay_exact(self):
        done = run(self.DRIVE, self.folder, KVWISE_PROBE_RECORDS_PER_S="4")
        own = json.loads(done.stdout)
        (process,) = records(self.folder)
        totals = [r for r in process[1:] if r[0] == "T"][-1][2]
        self.assertEqual(totals["allocated_blocks"], own["allocated"])
        self.assertGreater(totals["lost_records"], 0)

    def test_its_own_time_can_be_measured(self):
        done = run(self.DRIVE, self.folder, KVWISE_PROBE_SELF_TIME="1")
        self.assertEqual(done.returncode, 0, done.stderr)
        (process,) = records(self.folder)
        totals = [r for r in process[1:] if r[0] == "T"][-1][2]
        self.assertEqual(totals["allocated_blocks"], json.loads(done.stdout)["allocated"])
        self.assertGreater(totals["hook_ns"], 0)

    def test_no_prompt_and_no_hash_of_the_engine_is_written(self):
        run(self.DRIVE, self.folder)
        for root, _, names in os.walk(self.folder):
            for name in names:
                with open(os.path.join(root, name), "rb") as text:
                    self.assertNotIn(b"shared-prefix", text.read())


class Guards(unittest.TestCase):
    def probe(self, folder):
        environ = {"KVWISE_SESSION_DIR": folder, "KVWISE_PROBE_MIN_FREE_MB": "0"}
        return vllm_hooks.Probe(settings.load(environ))

    def test_a_hook_that_fails_is_taken_off_and_the_method_goes_on_working(self):
        with tempfile.TemporaryDirectory() as folder:
            probe = self.probe(folder)
            module = types.ModuleType("engine")

            class Thing(object):
                def work(self):
                    return 42

            original = Thing.work
            module.Thing = Thing

            def make(original, guard):
                def hook(self):
                    result = original(self)
                    try:
                        raise KeyError("gone in this version")
                    except Exception as error:
                        guard.failed(error)
                    return result

                return hook

            self.assertTrue(probe.wrap(module, "Thing", "work", make))
            for _ in range(vllm_hooks.MAX_ERRORS + 5):
                self.assertEqual(Thing().work(), 42)
            self.assertIs(Thing.work, original)
            self.assertEqual(probe.recorder.errors, vllm_hooks.MAX_ERRORS)
            probe.recorder.close()

    def test_classes_and_methods_that_are_missing_are_noted(self):
        with tempfile.TemporaryDirectory() as folder:
            probe = self.probe(folder)
            module = types.ModuleType("vllm.v1.core.block_pool")
            vllm_hooks._hook_block_pool(probe, module)
            probe.recorder.close()
            (process,) = records(folder)
            missing = [r[3] for r in process[1:] if r[0] == "n" and r[2] == "missing"]
            self.assertIn("vllm.v1.core.block_pool.BlockPool.get_new_blocks", missing)

    def test_blocks_of_several_groups_are_flattened(self):
        block = types.SimpleNamespace(block_id=3)
        self.assertEqual(list(vllm_hooks._flat([block])), [block])
        self.assertEqual(list(vllm_hooks._flat(([block], [block]))), [block, block])


class Cost(unittest.TestCase):
    def test_a_step_costs_microseconds(self):
        """Not a benchmark, a bound: a hooked allocation and free of 16 blocks may add at most 100 microseconds."""
        code = (
            "import time\n"
            "from vllm.v1.core.block_pool import BlockPool\n"
            "pool = BlockPool(4096)\n"
            "best = 1.0\n"
            "for _ in range(20):\n"
            "    start = time.perf_counter()\n"
            "    for _ in range(50):\n"
            "        pool.free_blocks(pool.get_new_blocks(16))\n"
            "    best = min(best, (time.perf_counter() - start) / 50)\n"
            "print(best)\n"
        )
        with tempfile.TemporaryDirectory() as folder:
            with_probe = float(run(code, folder).stdout)
            without = float(run(code, folder, KVWISE_PROBE="0").stdout)
        self.assertLess(with_probe - without, 100e-6)


if __name__ == "__main__":
    unittest.main()
