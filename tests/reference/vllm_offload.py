#!/usr/bin/env python3
"""Performs offloading operations with vLLM's own manager of host memory, on the CPU.

Written against vLLM 0.32.0 (`vllm/v1/kv_offload/cpu/manager.py`). `crates/sim/src/simulate/tiers/store_tests.rs` runs it when
KVWISE_VLLM_PYTHON names an interpreter that has vLLM; by hand:

    python vllm_offload.py < jobs.jsonl > answers.jsonl

A job is one line: {"policy": "lru" | "arc", "capacity", "operations": [...]}. Operations:
    {"op": "begin", "request", "blocks": [[group, block, end token], ...]}    a request with these blocks
    {"op": "store", "request", "blocks": [...]}     offer blocks: [those taken, those evicted (sorted)], or null if refused
    {"op": "stored" | "load" | "loaded", "request", "blocks": [...]}
    {"op": "end", "request"}
    {"op": "look", "blocks": [...]}                 a letter a block: r ready, w on its way, - missing
The answer is one line: a list with the answer of each operation, null where there is none.
"""
import json
import os
import sys

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from vllm.v1.kv_offload.base import LookupResult, ReqContext, make_offload_key
from vllm.v1.kv_offload.cpu.manager import CPUOffloadingManager

LETTERS = {LookupResult.HIT: "r", LookupResult.HIT_PENDING: "w", LookupResult.MISS: "-"}


class Host:
    def __init__(self, job):
        self.manager = CPUOffloadingManager(job["capacity"], cache_policy=job["policy"])
        self.contexts, self.group = {}, {}

    def key(self, block):
        return make_offload_key(block.to_bytes(8, "big"), self.group.get(block, 0))

    def perform(self, op):
        return getattr(self, op["op"])(self.contexts.get(op.get("request")), op)

    def begin(self, _, op):
        context = self.contexts[op["request"]] = ReqContext(req_id=str(op["request"]))
        for group, block, end_token in op["blocks"]:
            self.group[block] = group
            context.set_offload_key_position(self.key(block), end_token)
        self.manager.on_new_request(context)

    def store(self, context, op):
        names = {self.key(b): b for b in range(1 + max(list(self.group) + op["blocks"]))}
        answer = self.manager.prepare_store([self.key(b) for b in op["blocks"]], context)
        if answer is None:
            return None
        return [[names[k] for k in answer.keys_to_store], sorted(names[k] for k in answer.evicted_keys)]

    def stored(self, context, op):
        self.manager.complete_store([self.key(b) for b in op["blocks"]], context)

    def load(self, context, op):
        self.manager.prepare_load([self.key(b) for b in op["blocks"]], context)

    def loaded(self, context, op):
        self.manager.complete_load([self.key(b) for b in op["blocks"]], context)

    def end(self, context, op):
        self.manager.on_request_finished(context)

    def look(self, _, op):
        context = ReqContext(req_id="nobody")
        return "".join(LETTERS[self.manager.lookup(self.key(b), context)] for b in op["blocks"])


def main():
    for line in sys.stdin:
        job = json.loads(line)
        host = Host(job)
        print(json.dumps([host.perform(op) for op in job["operations"]], separators=(",", ":")), flush=True)


if __name__ == "__main__":
    main()
