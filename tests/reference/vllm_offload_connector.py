#!/usr/bin/env python3
"""Offloads and loads with the scheduler's side of vLLM's own offloading connector, on the CPU.

Written against vLLM 0.32.0 (`distributed/kv_transfer/kv_connector/v1/offloading/scheduler.py` over
`v1/kv_offload/cpu/manager.py`): one group of full attention, chunks of one block, one worker.
`crates/sim/src/simulate/tiers/connector_tests.rs` runs it when KVWISE_VLLM_PYTHON names an interpreter that has vLLM; by hand:

    python vllm_offload_connector.py < jobs.jsonl > answers.jsonl

A job is one line: {"policy": "lru" | "arc", "capacity", "block", "operations": [...]}. Operations:
    {"op": "begin", "request", "keys", "prompt"}    a request with these names of its prompt's full blocks
    {"op": "ask", "request", "local"}               tokens that can be loaded after `local` ones; null: ask again later
    {"op": "load", "request", "local", "tokens"}    they are
    {"op": "step", "requests": [[request, computed, new, keys], ...]}    names that are stored, sorted
    {"op": "done"}                                  everything on its way has arrived
    {"op": "finish", "request", "tokens", "keys"}   names that are stored, sorted
    {"op": "look", "keys"}                          a letter a name: r ready, w on its way, - missing
The answer is one line: a list with the answer of each operation, null where there is none.
"""
import json
import os
import sys
from types import SimpleNamespace

os.environ.setdefault("VLLM_LOGGING_LEVEL", "CRITICAL")

from vllm.distributed.kv_transfer.kv_connector.v1.offloading import scheduler as offloading
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import OffloadingWorkerMetadata
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.kv_offload.base import LookupResult, ReqContext, make_offload_key
from vllm.v1.kv_offload.cpu.manager import CPUOffloadingManager
from vllm.v1.request import RequestStatus

LETTERS = {LookupResult.HIT: "r", LookupResult.HIT_PENDING: "w", LookupResult.MISS: "-"}
# The blocks of each request's tables are given with the step.
offloading.yield_req_data = lambda output: output.tables


def name(key):
    return key.to_bytes(8, "big")


class Host:
    def __init__(self, job):
        self.block = job["block"]
        group = offloading.GroupOffloadConfig(
            group_idx=0, tokens_per_block=self.block, tokens_per_chunk=self.block, hashes_per_chunk=1,
            kv_event_group_spec=None, sliding_window_size_in_chunks=None,
            kv_cache_spec=object.__new__(FullAttentionSpec), manager_cls=FullAttentionManager)
        s = self.s = object.__new__(offloading.OffloadingConnectorScheduler)
        s.config = offloading.SchedulerOffloadConfig(
            kv_group_configs=(group,), blocks_per_chunk=1, tokens_per_hash=self.block, num_workers=1,
            offload_prompt_only=False, supports_partial_tail=False)
        s.manager = CPUOffloadingManager(job["capacity"], cache_policy=job["policy"])
        s._connector_stats = OffloadingConnectorStats()
        s._full_attention_groups = s._lookup_groups = (0,)
        s._sliding_window_groups, s._mamba_align_size, s._partial_tail_block_size = (), None, 0
        s._cow_source_groups, s._req_status, s._current_batch_load_jobs = frozenset(), {}, {}
        s._current_batch_jobs_to_flush, s._current_batch_allocated_block_ids = set(), set()
        s._chunks_being_loaded, s._job_counter, s._stale_job_threshold, s._jobs = set(), 0, 0, {}
        s._block_id_to_pending_jobs = {}
        s._events_tracker = offloading.OffloadingEventsTracker(
            SimpleNamespace(enable_kv_cache_events=False, self_describing_kv_events=False))
        self.requests, self.tables, self.fresh = {}, {}, 0

    def perform(self, op):
        return getattr(self, op["op"])(op)

    def begin(self, op):
        number, prompt = op["request"], op["prompt"]
        state = SimpleNamespace(ended=False)
        self.requests[number] = SimpleNamespace(
            request_id=str(number), block_hashes=[name(k) for k in op["keys"]], num_prompt_tokens=prompt, num_tokens=prompt,
            num_computed_tokens=0, status=RequestStatus.RUNNING, skip_reading_prefix_cache=False, kv_transfer_params=None,
            kv_hints=None, shared_prefix_boundary=0, state=state, is_finished=lambda: state.ended)
        self.tables[number] = []
        self.s.on_new_request(self.requests[number])

    def ask(self, op):
        return self.s.get_num_new_matched_tokens(self.requests[op["request"]], op["local"])[0]

    def blocks(self, number, tokens):
        """New blocks of a table that is to hold so many tokens: none is ever used again."""
        table = self.tables[number]
        new = []
        while len(table) * self.block < tokens:
            self.fresh += 1
            table.append(self.fresh)
            new.append(self.fresh)
        return new

    def load(self, op):
        number, local = op["request"], op["local"]
        self.blocks(number, local + op["tokens"])
        blocks = [SimpleNamespace(block_id=b, is_null=False, block_hash=b"x" if i * self.block < local else None)
                  for i, b in enumerate(self.tables[number])]
        self.s.update_state_after_alloc(self.requests[number], SimpleNamespace(blocks=[blocks]), op["tokens"])
        self.seen = None

    def build(self, tables, scheduled, finished):
        before = set(self.s._jobs)
        self.s.build_connector_meta(SimpleNamespace(
            tables=tables, num_scheduled_tokens=scheduled, finished_req_ids=finished, preempted_req_ids=None,
            scheduled_new_reqs=[], kv_cache_block_copies=None, kv_connector_block_state=None))
        stored = [k for j, job in self.s._jobs.items() if j not in before and job.is_store for k in job.keys]
        return sorted(int.from_bytes(bytes(k)[:8], "big") for k in stored)

    def step(self, op):
        tables, scheduled = [], {}
        for number, computed, new, keys in op["requests"]:
            request = self.requests[number]
            request.block_hashes = [name(k) for k in keys]
            request.num_computed_tokens = computed
            request.num_tokens = max(request.num_tokens, computed + new)
            known = len(self.s._req_status[str(number)].group_states[0].block_ids)
            self.blocks(number, computed + new)
            tables.append((str(number), (self.tables[number][known:],), False))
            scheduled[str(number)] = new
        return self.build(tables, scheduled, set())

    def done(self, op):
        jobs = {j: 1 for j in list(self.s._jobs)}
        meta = OffloadingWorkerMetadata(completed_jobs=jobs)
        self.s.update_connector_output(SimpleNamespace(kv_connector_worker_meta=meta))

    def finish(self, op):
        request = self.requests[op["request"]]
        request.block_hashes = [name(k) for k in op["keys"]]
        request.num_tokens, request.state.ended = op["tokens"], True
        request.status = RequestStatus.FINISHED_LENGTH_CAPPED
        self.s.request_finished(request)
        return self.build([], {}, {str(op["request"])})

    def look(self, op):
        context = ReqContext(req_id="looker")
        return "".join(LETTERS[self.s.manager.lookup(make_offload_key(name(k), 0), context)] for k in op["keys"])


def main():
    for line in sys.stdin:
        job = json.loads(line)
        host = Host(job)
        print(json.dumps([host.perform(op) for op in job["operations"]], separators=(",", ":")), flush=True)


if __name__ == "__main__":
    main()
