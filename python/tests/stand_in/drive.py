"""Runs the stand-in engine and prints what it counted itself, as JSON."""

import json

from vllm.v1.core.sched.scheduler import Request, Scheduler


def main():
    scheduler = Scheduler(num_blocks=24)
    for number in range(40):
        hashes = [b"shared-prefix"] + [b"%d-%d" % (number % 11, i) for i in range(number % 4)]
        scheduler.add_request(Request(number, hashes, 4 * len(hashes) + 2))
        scheduler.schedule()
    while scheduler.running or scheduler.waiting:
        scheduler.schedule()
    counts = dict(scheduler.counts)
    counts.update(scheduler.kv_cache_manager.counts)
    counts.update(scheduler.kv_cache_manager.block_pool.counts)
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
