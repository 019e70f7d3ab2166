#!/usr/bin/env python3
"""Schedules requests with SGLang's own scheduler, on the CPU and without a model.

`get_next_batch_to_run` and all it calls (waiting queue, prefill gate, new-token ratio, chunks, decode memory, retraction)
are SGLang's, over its own radix tree, allocators and request rows; only what needs a GPU, a tokenizer or sockets is
replaced: tensors of a batch, the forward pass (every request gets its next known token) and what is measured or sent.

Written against sglang 0.5.23 (see `sglang_ops.py` for what must be installed).
`crates/sim/tests/sglang_scheduler.rs` runs it when KVWISE_SGLANG_PYTHON names such an interpreter; by hand:

    python sglang_scheduler.py < jobs.jsonl > answers.jsonl

A job is one line: {"capacity", "page", "schedule", "conservativeness", "chunk" (null: off), "max_prefill", "max_running",
"context", "radix", "overlap", "recv_interval", "steps", "requests": [{"prompt": [...], "output": n, "step", "priority"}]}. A
request arrives before its step, and is seen when the loop looks for new ones next.
The answer is one line: a list with, for each step that ran something (with overlap requests finish one step after their last
token), {"step", "kind": "prefill" | "decode",
"batch": [[id, new, past], ...] (prefill) or [id, ...] (decode), "finished", "retracted", "aborted", "ratio", "free", "evictable",
"waiting", "running"}.
"""
import importlib
import json
import os
import sys
from array import array
from types import SimpleNamespace

import sglang_ops as ops

HEAVY = ["sglang.kernels"] + ["sglang.srt." + part for part in """layers model_executor configs observability speculative lora
    models entrypoints distributed multimodal model_loader utils.hf_transformers utils.hf_transformers_utils
    utils.hf_transformers_patches disaggregation constrained sampling eplb hardware_backend parser function_call
    managers.tp_worker managers.mm_utils managers.io_struct""".split()]
FIRST_OUTPUT = 1 << 40


def load():
    os.environ.setdefault("SGLANG_RUST_BUILD_MODE", "never")
    ops.logging.disable(ops.logging.CRITICAL)
    import torch

    torch.set_num_threads(1)
    sys.meta_path.append(ops.Placeholders())
    for name in ["transformers"] + HEAVY:
        sys.modules[name] = ops.EmptyModule(name)
        ops.Placeholders.made.add(name)
    for part in ("decode", "prefill"):
        # The scheduler inherits from both, so they cannot be the same placeholder.
        module, name = ops.EmptyModule("sglang.srt.disaggregation." + part), f"SchedulerDisaggregation{part.title()}Mixin"
        setattr(module, name, type(name, (), {}))
        sys.modules[module.__name__] = module
    modules = {}
    for name in """managers.scheduler managers.schedule_policy managers.schedule_batch mem_cache.common mem_cache.allocation
            managers.scheduler_components.new_token_ratio_tracker managers.scheduler_components.recv_skipper mem_cache.base_prefix_cache mem_cache.cache_init_params
            mem_cache.memory_pool mem_cache.unified_radix_cache mem_cache.allocator.paged
            mem_cache.allocator.token""".split():
        modules[name.rpartition(".")[2]] = importlib.import_module("sglang.srt." + name)
    from sglang.srt.mem_cache.unified_cache.components import ComponentType

    return SimpleNamespace(torch=torch, ComponentType=ComponentType, **modules)


class Mode:
    """What a batch does, in place of ForwardMode (which lives beside the models)."""

    def __init__(self, kind):
        self.kind = kind

    def is_extend(self):
        return self.kind == "prefill"

    def is_decode(self):
        return self.kind == "decode"

    def is_prebuilt(self):
        return self.kind == "prebuilt"


def make_batch_class(sgl):
    real = sgl.schedule_batch.ScheduleBatch
    torch = sgl.torch

    class Batch:
        """SGLang's batch without its tensors: memory and membership are decided by SGLang's own methods."""

        check_decode_mem = real.check_decode_mem
        retract_decode = real.retract_decode
        release_req = real.release_req
        new_tokens_required_next_decode = real.new_tokens_required_next_decode
        _get_decode_retraction_order = staticmethod(real._get_decode_retraction_order)
        return_logprob, input_embeds, is_prefill_only, decoding_reqs = False, None, False, None
        hisparse_coordinator, spec_algorithm = None, SimpleNamespace(is_none=lambda: True)

        def __init__(self, reqs=(), batch_is_full=False, chunked_req=None, pools=None):
            self.reqs, self.batch_is_full, self.chunked_req = list(reqs), batch_is_full, chunked_req
            self.forward_mode = Mode("none")
            self.pools = pools

        req_to_token_pool = property(lambda self: self.pools[0])
        token_to_kv_pool_allocator = property(lambda self: self.pools[1])
        tree_cache = property(lambda self: self.pools[2])

        @classmethod
        def init_new(cls, reqs, rows, slots, tree, *_, chunked_req=None, **__):
            return cls(reqs, chunked_req=chunked_req, pools=(rows, slots, tree))

        def batch_size(self):
            return len(self.reqs)

        def is_empty(self):
            return not self.reqs

        def copy(self):
            other = Batch(self.reqs, self.batch_is_full, self.chunked_req, self.pools)
            other.forward_mode, other.plan = self.forward_mode, self.plan
            return other

        def filter_batch(self, reqs_to_exclude=None, keep_indices=None):
            out = reqs_to_exclude or []
            if keep_indices is None:
                keep_indices = [i for i, r in enumerate(self.reqs) if not r.finished() and r not in out]
            self.reqs = [self.reqs[i] for i in keep_indices]

        def merge_batch(self, other):
            self.reqs.extend(other.reqs)

        def prepare_for_extend(self):
            self.forward_mode = Mode("prefill")
            tree, rows, page = self.tree_cache, self.req_to_token_pool, self.tree_cache.page_size
            self.plan = [[r.rid, r.extend_len, r.prefix_len] for r in self.reqs]
            before = [r.prefix_len for r in self.reqs]
            after = [r.extend_end for r in self.reqs]
            found = [sgl.allocation._prefix_kv_indices(self, r) for r in self.reqs]
            sgl.allocation.alloc_req_slots(rows, self.reqs, tree)
            new = sum(after) - sum(before)
            if page == 1:
                taken = sgl.allocation.alloc_token_slots(tree, new)
            else:
                as_tensor = lambda values: torch.tensor(values, dtype=torch.int64)
                last = torch.cat([t[-1:].to(torch.int64) if len(t) else torch.full((1,), -1) for t in found])
                taken = sgl.allocation.alloc_paged_token_slots_extend(
                    tree, as_tensor(before), as_tensor(before), as_tensor(after), as_tensor(after), last, new)
            at = 0
            for r, hit, start, end in zip(self.reqs, found, before, after):
                row = r.kv.req_pool_idx
                if start:
                    rows.write((row, slice(0, start)), hit.to(torch.int32))
                rows.write((row, slice(start, end)), taken[at : at + end - start].to(torch.int32))
                at += end - start
                r.kv.kv_allocated_len = r.kv.kv_committed_len = end
                r.is_retracted = False

        def prepare_for_decode(self):
            self.forward_mode = Mode("decode")
            self.plan = [r.rid for r in self.reqs]
            tree, rows, page = self.tree_cache, self.req_to_token_pool, self.tree_cache.page_size
            ends = [r.kv.kv_committed_len for r in self.reqs]
            if page == 1:
                taken = sgl.allocation.alloc_token_slots(tree, len(ends))
            else:
                last = torch.stack([rows.req_to_token[r.kv.req_pool_idx, e - 1] for r, e in zip(self.reqs, ends)])
                ends_after = torch.tensor(ends, dtype=torch.int64) + 1
                taken = sgl.allocation.alloc_paged_token_slots_decode(tree, ends_after, ends_after, last.to(torch.int64))
            for r, end, slot in zip(self.reqs, ends, taken.to(torch.int32)):
                rows.write((r.kv.req_pool_idx, slice(end, end + 1)), slot.reshape(1))
                r.kv.kv_allocated_len += 1
                r.kv.kv_committed_len += 1

    return Batch


class Engine:
    def __init__(self, sgl, batch_class, job):
        self.sgl, self.job = sgl, job
        real, page = sgl.scheduler.Scheduler, job["page"]
        schedule = SimpleNamespace(
            prefill_max_requests=None, schedule_policy=job["schedule"], retraction_policy="length",
            schedule_conservativeness=job["conservativeness"], scheduler_recv_interval=job.get("recv_interval", 1), schedule_low_priority_values_first=False)
        settings = dict(
            get_schedule=lambda: schedule,
            get_parallel=lambda: SimpleNamespace(
                pp_max_micro_batch_size=job["max_running"], dcp_enabled=False, attn_dp_enabled=False),
            get_disagg=lambda: SimpleNamespace(disaggregation_mode="null"),
            get_memory=lambda: SimpleNamespace(radix_eviction_policy="lru", enable_hisparse=False),
            get_serving=lambda: SimpleNamespace(strip_thinking_cache=False),
            get_spec=lambda: SimpleNamespace(speculative_algorithm=None),
            get_exec=lambda: SimpleNamespace(features=SimpleNamespace(enable_encoder_swa_bounded_replay=False)))
        for module in (sgl.scheduler, sgl.schedule_policy, sgl.schedule_batch, sgl.common, sgl.allocation,
                       sgl.new_token_ratio_tracker, sgl.recv_skipper):
            for name, value in settings.items():
                if hasattr(module, name):
                    setattr(module, name, value)
        sgl.recv_skipper.ForwardMode = SimpleNamespace(DECODE="decode", TARGET_VERIFY="verify")
        self.skipper = sgl.recv_skipper.SchedulerRecvSkipper.maybe_create()
        sgl.schedule_policy.mamba_prefill_chunk_grid = lambda: 1
        sgl.scheduler.ScheduleBatch = batch_class
        sgl.scheduler.PrefillStats = SimpleNamespace(from_adder=lambda *_, **__: None)
        for name in ("set_time_batch", "set_schedule_time_batch"):
            setattr(sgl.scheduler, name, lambda *_, **__: None)
        pool = dict(dtype=sgl.torch.bfloat16, device="cpu", kvcache=None, need_sort=False)
        if page == 1:
            self.slots = sgl.token.TokenToKVPoolAllocator(job["capacity"], **pool)
        else:
            self.slots = sgl.paged.PagedTokenToKVPoolAllocator(job["capacity"], page, **pool)
        self.rows = sgl.memory_pool.ReqToTokenPool(
            size=job["max_running"], max_context_len=job["context"] + 8, device="cpu", enable_memory_saver=False)
        params = sgl.cache_init_params.CacheInitParams(
            disable=not job["radix"], req_to_token_pool=self.rows, token_to_kv_pool_allocator=self.slots, page_size=page,
            eviction_policy="lru")
        params.tree_components = (sgl.ComponentType.FULL,)
        params.tree_core_backend = "rust"
        self.tree = sgl.unified_radix_cache.UnifiedRadixCache(params)
        nothing = lambda *_, **__: None
        batches = (self.rows, self.slots, self.tree)
        self.aborted, self.retracted = [], []

        def queue_again(req, is_retracted=False):
            self.retracted.append(req.rid)
            self.s.waiting_queue.append(req)

        class Fake:
            """The scheduler's state; its methods are SGLang's."""

            def __getattr__(self, name):
                # Only methods; a missing attribute is a mistake of this script.
                method = getattr(real, name)
                return method.__get__(self)

        self.s = s = Fake()
        s.__dict__.update(
            process_pending_chunked_abort=nothing, _process_hicache_events=nothing, dllm_config=None, chunked_req=None,
            enable_hisparse=False, disaggregation_mode=None, _prefill_decode_interval_remaining=0,
            prefill_decode_interval=0, prefill_decode_interval_min_bs=0, prefill_delayer=None,
            grammar_manager=SimpleNamespace(has_waiting_grammars=lambda: False), enable_priority_preemption=False,
            is_hybrid_swa=False, waiting_queue=[], min_free_slots_delayer=None, req_to_token_pool=self.rows,
            beam_coordinator=SimpleNamespace(pending_member_rows=lambda _: 0, retire_group=nothing),
            processed_tokens_counter=0, chunked_prefill_size=job["chunk"], dynamic_chunk_sizer=None,
            tp_worker=SimpleNamespace(model_runner=SimpleNamespace(attn_backend=SimpleNamespace(), prefill_aware_swa=False)),
            page_size=page, tree_cache=self.tree, token_to_kv_pool_allocator=self.slots,
            max_prefill_tokens=job["max_prefill"], is_mixed_chunk=False, priority_scheduling_preemption_threshold=0,
            max_prefill_bs=0, max_running_requests=job["max_running"], truncation_align_size=None, enable_lora=False,
            enable_hicache_storage=False, enable_lmcache=False, enable_hierarchical_cache=False,
            enable_unified_cache_external_linker=False, model_config=None, enable_overlap=job["overlap"],
            spec_algorithm=SimpleNamespace(is_none=lambda: True), hisparse_coordinator=None,
            load_inquirer=SimpleNamespace(_get_num_pending_tokens=lambda **_: 0), enable_priority_scheduling=False,
            require_mlp_sync=False, ngram_embedding_manager=SimpleNamespace(prepare_for_forward=lambda b, **_: b),
            dp_attn_adapter=SimpleNamespace(maybe_prepare_mlp_sync_batch=lambda b, **_: b,
                                            maybe_convert_decode_to_extend=lambda b: b),
            decode_offload_manager=None, forward_ct=0, _add_request_to_queue=queue_again, result_queue=[],
            metrics_reporter=SimpleNamespace(num_retracted_reqs=0, enable_metrics=False),
            send_abort_output=lambda _, req: self.aborted.append(req.rid), enable_skip_finishing_decode=job["overlap"],
            new_token_ratio_tracker=sgl.new_token_ratio_tracker.NewTokenRatioTracker.from_config(),
            running_batch=batch_class(pools=batches), last_batch=None,
            policy=sgl.schedule_policy.SchedulePolicy(job["schedule"], self.tree, False, False, False))

    def request(self, number, given):
        sgl = self.sgl
        params = SimpleNamespace(
            max_new_tokens=given["output"], ignore_eos=False, stop_token_ids=None, stop_strs=[], stop_regex_strs=[], n=1)
        req = sgl.schedule_batch.Req(number, "", array("q", given["prompt"]), params)
        req.tokenizer, req.eos_token_ids, req.vocab_size, req.beam_group = None, None, 1 << 62, None
        req._check_str_based_finish = lambda *_: False
        req.priority = given.get("priority", 0)
        return req

    def token(self, req):
        return FIRST_OUTPUT + req.rid * (1 << 20) + len(req.output_ids)

    def process(self, batch, finished):
        """What the batch result processor does to memory and membership (`batch_result_processor.py`)."""
        common = self.sgl.common
        for req in batch.reqs:
            if req.finished() or req.is_retracted:
                continue
            if batch.forward_mode.is_extend() and req.inflight_middle_chunks > 0:
                req.inflight_middle_chunks -= 1
                continue
            req.output_ids.append(self.token(req))
            req.update_finish_state()
            if req.finished():
                finished.append(req.rid)
                common.release_kv_cache(req, self.tree, checkpoint=True)
            elif batch.forward_mode.is_extend():
                common.checkpoint_kv_cache(req, self.tree)

    def run(self):
        s, answers = self.s, []
        queue, finished = s.result_queue, []
        waiting = sorted(enumerate(self.job["requests"]), key=lambda pair: (pair[1]["step"], pair[0]))
        for step in range(self.job["steps"]):
            last = s.last_batch and SimpleNamespace(forward_mode=s.last_batch.forward_mode.kind)
            looks = self.skipper is None or self.skipper.handle(last)
            while looks and waiting and waiting[0][1]["step"] <= step:
                number, given = waiting.pop(0)
                s.waiting_queue.append(self.request(number, given))
            self.aborted.clear()
            self.retracted.clear()
            plan = s.get_next_batch_to_run(running_batch=s.running_batch, last_batch=s.last_batch)
            s.running_batch, batch = plan.running_batch, plan.batch_to_run
            if self.job["overlap"]:
                if batch:
                    queue.append((batch.copy(), None))
                if s.last_batch:
                    self.process(queue.pop(0)[0], finished)
            elif batch:
                self.process(batch, finished)
            s.last_batch = batch
            if batch or self.aborted or self.retracted:
                answers.append({
                    "step": step, "kind": batch.forward_mode.kind if batch else "none", "batch": batch.plan if batch else [],
                    "finished": finished, "retracted": list(self.retracted), "aborted": list(self.aborted),
                    "ratio": s.new_token_ratio_tracker.current, "free": int(self.slots.available_size()),
                    "evictable": int(self.tree.evictable_size()), "waiting": [r.rid for r in s.waiting_queue]})
                finished = []
            if not (waiting or s.waiting_queue or s.chunked_req or queue or batch or s.running_batch.reqs):
                break
        return answers


def main():
    sgl = load()
    batch_class = make_batch_class(sgl)
    for line in sys.stdin:
        print(json.dumps(Engine(sgl, batch_class, json.loads(line)).run(), separators=(",", ":")), flush=True)


if __name__ == "__main__":
    main()
