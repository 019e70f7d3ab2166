"""What each hook of the probe, and the writer for each event, costs: `python3 python/tests/hook_table.py`.

Each hook is called in a loop on the stand-in's classes, whose own method is replaced by one that does nothing; the time of
that bare method is taken off. Best of many rounds: what the code takes, not what else the machine does. The second table
multiplies them with how often an engine of so many running requests calls them in a step (16 tokens a block, 500 steps a
request, 128 blocks of which 64 are hit, as in `hook_cost.py`, which measures whole steps).
"""

import gc
import json
import os
import shutil
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "kvwise_probe"), os.path.join(HERE, "stand_in")]
FOLDER = tempfile.mkdtemp()
os.environ.pop("KVWISE_SESSION_DIR", None)
os.environ.update(
    VLLM_PROFILING_DIR=FOLDER, KVWISE_PROBE_MAX_PERCENT="0", KVWISE_PROBE_RECORDS_PER_S="1000000000", KVWISE_PROBE="1"
)

import kvwise_probe  # noqa: E402

kvwise_probe.start()

from kvwise_probe import encoder, live  # noqa: E402
from vllm.v1.core.block_pool import Block, BlockPool  # noqa: E402
from vllm.v1.core.kv_cache_manager import KVCacheManager  # noqa: E402
from vllm.v1.core.sched.scheduler import Output, Request, Scheduler  # noqa: E402

BLOCKS, HITS, STEPS, TOKENS = 128, 64, 500, 16


def best(call, calls=200, rounds=60):
    """Nanoseconds of a call."""
    found = None
    for _ in range(rounds):
        start = time.perf_counter_ns()
        for _ in range(calls):
            call()
        took = (time.perf_counter_ns() - start) / calls
        found = took if found is None else min(found, took)
    return found


def added(cls, name, body, *arguments):
    """What the hook on a method adds to a body in its place."""
    hook = getattr(cls, name)
    original = hook.__wrapped__
    (cell,) = [c for c in hook.__closure__ if c.cell_contents is original]
    cell.cell_contents = body
    try:
        return best(lambda: hook(*arguments)) - best(lambda: body(*arguments))
    finally:
        cell.cell_contents = original


class Counter(object):
    """A pool whose count of free blocks grows by what was freed, as the hook on `free_blocks` expects."""

    def __init__(self, pool):
        self.free = 0
        pool.get_num_free_blocks = lambda: self.free

    def freed(self, pool, blocks):
        self.free += len(blocks)


def hooks():
    scheduler = Scheduler(4096)
    pool, manager = scheduler.kv_cache_manager.block_pool, scheduler.kv_cache_manager
    output = Output({str(i): 1 for i in range(64)})
    many, request = [Block(i) for i in range(1, BLOCKS + 1)], Request(0, [], 2048)
    request._kvwise_number = 0
    yield "schedule", 1, 0, added(Scheduler, "schedule", lambda self: output, scheduler)
    yield "get_new_blocks, one block", 1 / TOKENS, None, added(BlockPool, "get_new_blocks", lambda s, n: many[:1], pool, 1)
    yield "_maybe_evict_cached_block, no content", 0, None, added(
        BlockPool, "_maybe_evict_cached_block", lambda s, b: False, pool, many[0]
    )
    evict = added(BlockPool, "_maybe_evict_cached_block", lambda s, b: True, pool, many[0])
    pool._kvwise_state.evicted.clear()
    yield "_maybe_evict_cached_block, content lost", None, 0, evict
    yield "get_new_blocks, %d blocks" % HITS, None, 1, added(
        BlockPool, "get_new_blocks", lambda s, n: many[:HITS], pool, HITS
    )
    yield "touch, %d blocks" % HITS, None, 1, added(BlockPool, "touch", lambda s, b: None, pool, many[:HITS])
    counter = Counter(pool)
    yield "free_blocks, %d blocks" % BLOCKS, None, 1, added(BlockPool, "free_blocks", counter.freed, pool, many)
    yield "record_prefix_cache_stats", None, 1, added(
        KVCacheManager, "record_prefix_cache_stats", lambda s, r, n: None, manager, request, 9
    )
    yield "add_request", None, 1, added(Scheduler, "add_request", lambda s, r: None, scheduler, request)
    yield "_free_request", None, 1, added(Scheduler, "_free_request", lambda s, r: None, scheduler, request)


def writer():
    head = live.head
    t = time.monotonic_ns()
    step = [(head(live.STEP, 9), t, i, 64, 0, 64, 64, 0, 8000 + i, 300) for i in range(256)]
    one = [(head(live.ALLOCATED, 3), t, 0, i * 37 % 60000) for i in range(256)]
    many = [(head(live.FREED, 130), t, 0) + tuple(range(1000, 1000 + BLOCKS)) for _ in range(16)]
    row = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode
    hashes = encoder.Hashes(b"k" * 32)
    count = [0]

    def ended():
        new = [b"%032d" % (count[0] + i) for i in range(BLOCKS - HITS)]
        count[0] += len(new)
        text = hashes.text([b"%d" % i for i in range(HITS)] + new)
        row([("r", t, 5, 500, 0, "stopped", 16, text)]).encode("ascii")

    yield "a step's event", 1, None, best(lambda: encoder.line(step), 5) / len(step)
    yield "an event of one block", 1 / TOKENS, None, best(lambda: encoder.line(one), 5) / len(one)
    yield "an event of %d blocks" % BLOCKS, None, 2, best(lambda: encoder.line(many), 5) / len(many)
    yield "a finished request, %d new hashes" % (BLOCKS - HITS), None, 1, best(ended, 20)


def main():
    gc.collect()
    gc.freeze()
    print("Python %d.%d.%d, best of 60 rounds" % sys.version_info[:3])
    rows, per_step, per_token, per_request, per_block = [], 0.0, 0.0, 0.0, 0.0
    for where, found in (("hook", hooks()), ("writer", writer())):
        for name, steps, ends, ns in found:
            rows.append((where, name, ns))
            if name.startswith("_maybe_evict"):
                per_block = max(per_block, ns)  # a full pool: each block had content
            elif steps == 1:
                per_step += ns
            elif steps:
                per_token += ns * steps
            else:
                per_request += ns * ends
    print("\n| where | what | ns |\n| :-- | :-- | --: |")
    for row in rows:
        print("| %s | %s | %.0f |" % row)
    print("\n| running requests | us a step | of 10 ms | of 5 ms |\n| --: | --: | --: | --: |")
    for running in (1, 64, 256):
        ends = running / STEPS
        blocks = running / TOKENS + ends * (BLOCKS - HITS)
        us = (per_step + running * per_token + ends * per_request + blocks * per_block) / 1000
        print("| %d | %.1f | %.2f %% | %.2f %% |" % (running, us, us / 100, us / 50))
    shutil.rmtree(FOLDER, ignore_errors=True)  # the recording of this run is of no use to anyone


if __name__ == "__main__":
    main()
