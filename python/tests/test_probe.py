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

from kvwise_probe import budget, encoder, hooking, live, pool_hooks, settings  # noqa: E402


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
                    header = json.loads(next(lines))
                    found.append([header] + [unpacked(record) for line in lines for record in json.loads(line)])
    return found


def unpacked(record):
    """A record with the lists of numbers that its text stands for."""

    def numbers(text, digits=8):
        return [int.from_bytes(bytes.fromhex(text[i : i + digits]), "little") for i in range(0, len(text), digits)]

    record = list(record)
    if record[0] in ("a", "t", "f", "e"):
        record[3] = numbers(record[3])
    elif record[0] == "x":
        record[3:] = [numbers(text, 16 if i in (1, 2) else 8) for i, text in enumerate(record[3:])]
    return record


def totals_of(process):
    return [r for r in process[1:] if r[0] == "T"][-1][2]


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
        totals = totals_of(process)
        self.assertEqual(totals["allocated_blocks"], own["allocated"])
        self.assertEqual(totals["evicted_blocks"], own["evicted"])
        self.assertEqual(totals["hit_tokens"], own["hit_tokens"])
        self.assertEqual(totals["query_tokens"], own["query_tokens"])
        self.assertEqual(totals["preemptions"], own["preemptions"])
        self.assertGreater(own["preemptions"], 0)
        self.assertEqual(totals["steps"], own["steps"])
        self.assertEqual(totals["errors"], 0)
        for kind, total in (("a", "allocated"), ("e", "evicted")):
            self.assertEqual(sum(len(r[3]) for r in process[1:] if r[0] == kind), own[total])
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
        totals = totals_of(process)
        self.assertEqual(totals["allocated_blocks"], own["allocated"])
        self.assertGreater(totals["lost_records"], 0)

    def test_its_own_time_and_that_of_the_steps_are_recorded(self):
        done = run(self.DRIVE, self.folder)
        self.assertEqual(done.returncode, 0, done.stderr)
        (process,) = records(self.folder)
        totals = totals_of(process)
        self.assertGreater(totals["hook_ns"], 0)
        self.assertGreater(totals["step_ns"], 0)

    def test_no_prompt_and_no_hash_of_the_engine_is_written(self):
        run(self.DRIVE, self.folder)
        for root, _, names in os.walk(self.folder):
            for name in names:
                with open(os.path.join(root, name), "rb") as text:
                    self.assertNotIn(b"shared-prefix", text.read())


class Guards(unittest.TestCase):
    def probe(self, folder):
        environ = {"KVWISE_SESSION_DIR": folder, "KVWISE_PROBE_MIN_FREE_MB": "0"}
        return hooking.Probe(settings.load(environ))

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
            for _ in range(hooking.MAX_ERRORS + 5):
                self.assertEqual(Thing().work(), 42)
            self.assertIs(Thing.work, original)
            self.assertEqual(probe.live.errors, hooking.MAX_ERRORS)
            probe.recorder.close()

    def test_classes_and_methods_that_are_missing_are_noted(self):
        with tempfile.TemporaryDirectory() as folder:
            probe = self.probe(folder)
            module = types.ModuleType("vllm.v1.core.block_pool")
            pool_hooks.hook_block_pool(probe, module)
            probe.recorder.close()
            (process,) = records(folder)
            missing = [r[3] for r in process[1:] if r[0] == "n" and r[2] == "missing"]
            self.assertIn("vllm.v1.core.block_pool.BlockPool.get_new_blocks", missing)

    def test_blocks_of_several_groups_are_flattened(self):
        block = types.SimpleNamespace(block_id=3)
        self.assertEqual(list(pool_hooks._flat([block])), [block])
        self.assertEqual(list(pool_hooks._flat(([block], [block]))), [block, block])


class Signatures(unittest.TestCase):
    def test_only_a_method_of_exactly_this_shape_gets_the_short_hook(self):
        def same(self, block):
            pass

        def more(self, block, force=False):
            pass

        def other(self, *blocks):
            pass

        self.assertTrue(hooking.takes_only(same, "self", "block"))
        for function in (more, other, len):
            self.assertFalse(hooking.takes_only(function, "self", "block"))


class Block(object):
    def __init__(self, block_id):
        self.block_id = block_id


class Encoding(unittest.TestCase):
    def encoder(self, **environ):
        environ["KVWISE_SESSION_DIR"] = "unused"
        made = encoder.Encoder(settings.load(environ))
        self.pool = encoder.PoolState(0, 64, True)
        made.add(("p", 1, self.pool, 16))
        return made

    def rows(self, made, kind):
        return [unpacked(row) for row in made.finish() if row[0] == kind]

    def test_neighbours_of_one_kind_become_one_record_and_keep_their_order(self):
        made = self.encoder()
        a, b = Block(1), Block(2)
        for block in (a, b):
            made.add(("a", 5, self.pool, (block,), [block]))
        made.add(("s", 6, 0))
        made.add(("f", 7, self.pool, [b]))
        made.add(("f", 8, self.pool, [a]))
        rows = [unpacked(row) for row in made.finish()]
        self.assertEqual(rows[1:], [["e", 5, 0, [1, 2]], ["a", 5, 0, [1, 2]], ["s", 6, 0], ["f", 8, 0, [2, 1]]])

    def test_lifetimes_count_from_the_allocation_and_idle_times_from_the_last_hit(self):
        made = self.encoder()
        block = Block(3)
        made.add(("a", 1000, self.pool, (block,), []))
        made.add(("t", 5000, self.pool, [block]))
        made.add(("a", 9000, self.pool, (block,), [block]))
        self.assertEqual(self.rows(made, "x"), [["x", 9000, 0, [3], [8], [4], [1], [1]]])

    def test_a_sample_follows_every_nth_block_and_what_it_did_not_follow_has_no_lifetime(self):
        made = self.encoder()
        blocks = [Block(i) for i in range(8)]
        made.sample(4)
        made.add(("a", 1000, self.pool, tuple(blocks), []))
        self.assertEqual(self.rows(made, "a"), [["a", 1000, 0, [0, 4]]])
        made.sample(1)
        made.add(("a", 3000, self.pool, tuple(blocks), []))
        self.assertEqual(self.rows(made, "x"), [["x", 3000, 0, [0, 4], [2, 2], [2, 2], [0, 0], [0, 0]]])

    def test_after_lost_events_no_lifetime_is_made_up(self):
        made = self.encoder()
        made.add(("a", 1000, self.pool, (Block(1),), []))
        made.forget()
        made.add(("a", 9000, self.pool, (Block(1),), None))
        self.assertEqual(self.rows(made, "x"), [])

    def test_requests_outside_of_the_sample_have_no_hashes_and_equal_hashes_stay_equal(self):
        made = self.encoder()
        one, two = [b"a" * 32, b"b" * 32], [b"a" * 32, b"c" * 32]
        made.add(("r", 1, 0, 5, 0, "stopped", 16, one))
        made.add(("r", 1, 1, 5, 0, "stopped", 16, two))
        first, second = [row[-1] for row in self.rows(made, "r")]
        self.assertEqual((first[:8], len(first)), (second[:8], 16))
        self.assertNotEqual(first[8:], second[8:])
        made.sample(2)
        made.add(("r", 1, 2, 5, 0, "stopped", 16, one))
        made.add(("r", 1, 3, 5, 0, "stopped", 16, one))
        self.assertEqual([row[-1] for row in self.rows(made, "r")], [first, None])


class Loss(unittest.TestCase):
    def test_a_closed_queue_takes_nothing_until_the_writer_has_seen_the_mark(self):
        state = live.Live()
        state.close()
        state.close()
        self.assertFalse(state.open)
        self.assertEqual(list(state.events), [("L",)])


class BudgetJudgement(unittest.TestCase):
    """Time is simulated: `second` passes one second of steps, of which the probe takes a share."""

    def setUp(self):
        self.budget = budget.Budget(1.0)
        self.now = self.cost = self.steps = 0

    def second(self, share, seconds=1):
        changed = False
        for _ in range(seconds):
            self.now += 1000000000
            if self.budget.every != -1:
                self.steps += 1000000000
                self.cost += int(share * 1e9)
            changed = self.budget.look(self.now, self.cost, self.steps) or changed
        return changed

    def test_below_the_limit_everything_is_recorded(self):
        self.assertFalse(self.second(0.009, 100))
        self.assertEqual(self.budget.every, 1)

    def test_above_it_less_is_recorded_the_more_the_further(self):
        self.assertTrue(self.second(0.015, 2))
        self.assertEqual(self.budget.every, 2)
        self.assertTrue(self.second(0.07, 1))
        self.assertEqual(self.budget.every, 16)

    def test_with_room_again_more_is_recorded_step_by_step(self):
        self.second(0.035, 2)
        self.assertEqual(self.budget.every, 4)
        self.second(0.002, 60)
        self.assertEqual(self.budget.every, 1)

    def test_nearly_at_the_limit_it_stays_where_it_is(self):
        self.second(0.015, 2)
        self.second(0.007, 600)
        self.assertEqual(self.budget.every, 2, "twice as much would be above the limit")

    def test_where_even_totals_cost_too_much_the_hooks_come_off_and_are_tried_again_later(self):
        self.second(0.5, 3)
        self.assertEqual(self.budget.every, -1)
        self.second(0.0, 50)
        self.assertEqual(self.budget.every, -1)
        self.second(0.0, 13)
        self.assertEqual(self.budget.every, 0)

    def test_what_failed_is_not_tried_again_as_soon(self):
        tries = 0
        for _ in range(3600):
            before = self.budget.level
            self.second({1: 0.02, 2: 0.004}.get(self.budget.every, 0.001))
            tries += self.budget.level < before
        self.assertLess(tries, 20)

    def test_zero_is_no_limit(self):
        self.budget = budget.Budget(0.0)
        self.assertFalse(self.second(0.9, 30))


class OwnLimit(unittest.TestCase):
    # steps of 20 microseconds: no engine is as fast, and no probe written in Python takes less than a hundredth of them
    SPIN = (
        "import time\n"
        "from vllm.v1.core.sched.scheduler import Request, Scheduler\n"
        "scheduler = Scheduler(num_blocks=64)\n"
        "number, until = 0, time.monotonic() + float(%s)\n"
        "while time.monotonic() < until and hasattr(Scheduler.schedule, '__wrapped__'):\n"
        "    scheduler.add_request(Request(number, [b'%%d' %% number], 6))\n"
        "    scheduler.schedule()\n"
        "    number += 1\n"
        "for number in range(number, number + 9):\n"
        "    scheduler.add_request(Request(number, [b'%%d' %% number], 6))\n"
        "    scheduler.schedule()\n"
        "print(scheduler.kv_cache_manager.block_pool.counts['allocated'])\n"
    )

    def test_an_engine_with_very_short_steps_is_left_alone_and_the_records_say_so(self):
        with tempfile.TemporaryDirectory() as folder:
            done = run(self.SPIN % 60, folder)
            self.assertEqual(done.returncode, 0, done.stderr)
            (process,) = records(folder)
            changes = [r for r in process[1:] if r[0] == "B"]
            self.assertEqual([r[2] for r in changes][-1], -1, changes)
            self.assertTrue(all(r[3] > 10000 and r[4] == 10000 for r in changes), changes)
            totals = totals_of(process)
            self.assertLess(totals["allocated_blocks"], int(done.stdout), "what the totals leave out is real")
            self.assertEqual(totals["errors"], 0)

    def test_without_a_limit_it_records_on(self):
        with tempfile.TemporaryDirectory() as folder:
            done = run(self.SPIN % 1.0, folder, KVWISE_PROBE_MAX_PERCENT="0", KVWISE_PROBE_RECORDS_PER_S="100000")
            (process,) = records(folder)
            self.assertEqual([r for r in process[1:] if r[0] == "B"], [])
            self.assertEqual(totals_of(process)["allocated_blocks"], int(done.stdout))


class Language(unittest.TestCase):
    def test_every_file_is_python_3_9(self):
        import ast

        for root, _, names in os.walk(PROBE):
            for name in names:
                if name.endswith(".py"):
                    with open(os.path.join(root, name)) as text:
                        ast.parse(text.read(), name, feature_version=(3, 9))


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
