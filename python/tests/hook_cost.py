"""What the probe costs an engine's step, as CPU time: `python3 python/tests/hook_cost.py [--step-ms 10]`.

Drives the stand-in's classes as an engine at 1, 64 and 256 running requests would drive vLLM's: each request takes a new
block of 16 tokens every 16 steps, in calls for single blocks; every 500 steps of a request it ends (its 128 blocks are
freed), and the next one hits 64 cached blocks, allocates 64, and brings 128 block hashes. The same steps run in
processes with and without the probe, in turn; what is compared is the CPU time of the whole process, the writer's thread
included, so that what else the machine does hardly matters. Steps are paced: the writer wakes as often as in a server.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))

ENGINE = r"""
import sys, time
from vllm.v1.core.sched.scheduler import Output, Request, Scheduler
running, steps, step_s = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
scheduler = Scheduler(num_blocks=running * 200 + 1000)
pool, manager = scheduler.kv_cache_manager.block_pool, scheduler.kv_cache_manager
pool.free = None  # blocks are handed out in a ring instead: the cost of the stand-in's own lists is not the question
ring, at = pool.blocks[1:], [0]
original_schedule = Scheduler.schedule.__wrapped__ if hasattr(Scheduler.schedule, "__wrapped__") else Scheduler.schedule
hashes = [b"%032d" % i for i in range(64)]
held = []
def get_new_blocks(count):
    if at[0] + count > len(ring):
        at[0] = 0
    taken = ring[at[0]:at[0] + count]
    at[0] += count
    return taken
class Ring(list):
    def __getitem__(self, key):
        if isinstance(key, slice) and key.start is None:
            return get_new_blocks(key.stop)
        return self
    def __len__(self):
        return 1000
    def append(self, block):
        pass
    def remove(self, block):
        pass
pool.free = Ring()
number = 0
def admit():
    global number
    request = Request(number, hashes + [b"%d-%026d" % (number % 10, i) for i in range(64)], 2048)
    number += 1
    scheduler.add_request(request)
    scheduler.waiting.clear()
    pool.touch(ring[:64])
    blocks = pool.get_new_blocks(64)
    manager.record_prefix_cache_stats(request, 1024)
    scheduler.running.append(request)
    return [request, ring[:64] + blocks, number * 7 % 500]
class Step(object):
    pass
tokens = {str(i): 1 for i in range(running)}
def body(self):
    for i, one in enumerate(held):
        if (step + i) % 16 == 0:
            one[1] += pool.get_new_blocks(1)
    return Output(tokens)
# the scheduler's own work is replaced: hooks wrap what the class had, so the body goes in below them
import types
hook = Scheduler.schedule
cells = getattr(hook, "__closure__", None) or ()
if hasattr(hook, "__wrapped__"):
    for cell in cells:
        if cell.cell_contents is original_schedule:
            cell.cell_contents = body
else:
    Scheduler.schedule = body
step = 0
for _ in range(running):
    held.append(admit())
def run(count):
    global step
    for _ in range(count):
        began = time.monotonic()
        scheduler.schedule()
        for i, one in enumerate(held):
            one[2] += 1
            if one[2] >= 500:
                request, blocks, _ = one
                manager.held[request.request_id] = blocks
                scheduler.running.remove(request)
                for block in blocks:
                    block.ref_cnt = 1
                scheduler._free_request(request)
                held[i] = admit()
                held[i][2] = 0
        step += 1
        rest = step_s - (time.monotonic() - began)
        if rest > 0:
            time.sleep(rest)
import gc
gc.collect()
gc.freeze()  # as vLLM does in its engine process (vllm/utils/gc_utils.py)
run(50)
time.sleep(1.5)  # what the first requests left to write is not a part of the steps
start = time.process_time()
run(steps)
print((time.process_time() - start) * 1e6 / steps)
"""


def cost(running, steps, step_s, probe):
    with tempfile.TemporaryDirectory() as folder:
        environ = dict(os.environ)
        environ.pop("KVWISE_SESSION_DIR", None)
        environ["PYTHONPATH"] = os.pathsep.join([os.path.join(HERE, "..", "kvwise_probe"), os.path.join(HERE, "stand_in")])
        environ.update(VLLM_PROFILING_DIR=folder, KVWISE_PROBE="1" if probe else "0", KVWISE_PROBE_MAX_PERCENT="0")
        command = [sys.executable, "-c", ENGINE, str(running), str(steps), str(step_s)]
        return float(subprocess.run(command, env=environ, stdout=subprocess.PIPE, check=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--step-ms", type=float, default=10.0, help="length of a step")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print("CPU time the probe adds to a step, writer included (median of %d rounds; lowest and highest)" % arguments.rounds)
    for running in (1, 64, 256):
        added = []
        for _ in range(arguments.rounds):
            without = cost(running, arguments.steps, arguments.step_ms / 1000, False)
            added.append(cost(running, arguments.steps, arguments.step_ms / 1000, True) - without)
        middle = statistics.median(added)
        print(
            "%4d running: %6.1f us (%.1f to %.1f): %.2f %% of a step of %g ms"
            % (running, middle, min(added), max(added), middle / arguments.step_ms / 10, arguments.step_ms)
        )


if __name__ == "__main__":
    main()
