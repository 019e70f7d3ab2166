#!/usr/bin/env python3
"""Schedules requests with SGLang's own scheduler, on the CPU and without a model.

`get_next_batch_to_run` and all it calls (waiting queue, prefill gate, new-token ratio, chunks, decode memory, retraction)
are SGLang's, over its own radix tree, allocators and request rows; only what needs a GPU, a tokenizer or sockets is
replaced: tensors of a batch, the forward pass (every request gets its next known token) and what is measured or sent.

Written against sglang 0.5.23 (see `sglang_ops.py` for what must be installed).
`crates/sim/tests/sglang_scheduler.rs` runs it when KVWISE_SGLANG_PYTHON names such an interpreter; by hand:

    python sglang_scheduler.py < jobs.jsonl > answers.jsonl

A job is one line: {"capacity", "page", "schedule", "conservativeness", "chunk" (null: off), "max_prefill", "max_running",
"context", "radix", "overlap", "recv_interval", "steps", "requests": [{"prompt": [...], "output": n, "step", "priority"}]}, and
if they are not SGLang's defaults "eviction", "eviction_config", "mixed", "prefill_max_requests", "retraction", "priorities"
({"low_first", "threshold" (null: no preemption)}); requests may have "id", "output_tokens", "extra_key" and "cache_salt". A
request arrives before its step, and is seen when the loop looks for new ones next.
The answer is one line: a list with, for each step that ran something (with overlap requests finish one step after their last
token), {"step", "kind": "prefill" | "decode",
"batch": [[id, new, past], ...] (prefill) or [id, ...] (decode), "finished", "retracted", "aborted", "ratio", "free", "evictable",
"waiting", "running"}. With "events" it is the list of lines that `kvwise replay --engine sglang --scheduler batch` writes.
"""
import importlib
import json
import os
import sys
from array import array
from types import SimpleNamespace

import sglang_ops as ops

PREFILLS = ("prefill", "mixed")
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
    for name in """managers.scheduler managers.utils managers.schedule_policy managers.schedule_batch mem_cache.common mem_cache.allocation
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
        return self.kind in PREFILLS

    def is_decode(self):
        return self.kind == "decode"

    def is_prebuilt(self):
        return self.kind == "prebuilt"


class Times:
    """A request's times: its entries into the queue, counted; nothing else is measured."""

    clock = 0

    def __init__(self):
        self.wait_queue_entry_time = 0.0

    def enter(self):
        Times.clock += 1
        self.wait_queue_entry_time = float(Times.clock)

    def __getattr__(self, name):
        return lambda *_, **__: None


def runs(slots):
    """Slots as [first, count]."""
    found = []
    for slot in slots:
        if found and sum(found[-1]) == slot:
            found[-1][1] += 1
        else:
            found.append([slot, 1])
    return found


def make_batch_class(sgl):
    real = sgl.schedule_batch.ScheduleBatch
    torch = sgl.torch

    class Batch:
        """SGLang's batch without its tensors: memory and membership are decided by SGLang's own methods."""

        check_decode_mem = real.check_decode_mem
        retract_decode = real.retract_decode
        new_tokens_required_next_decode = real.new_tokens_required_next_decode
        _get_decode_retraction_order = staticmethod(real._get_decode_retraction_order)
        return_logprob, input_embeds, is_prefill_only, decoding_reqs = False, None, False, None
        hisparse_coordinator, spec_algorithm = None, SimpleNamespace(is_none=lambda: True)

        def release_req(self, index, remaining, offload_kv=True):
            req = self.reqs[index]
            fate = "abort" if req.to_finish is not None else "preempt" if self.listener.preempting else "retract"
            computed = {} if fate == "abort" else {"computed": req.kv.kv_allocated_len}
            self.listener.emit(fate, req, **computed, out=len(req.output_ids))
            self.listener.lost(fate)
            return real.release_req(self, index, remaining, offload_kv)

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
            other.forward_mode, other.plan, other.decoding_reqs = self.forward_mode, self.plan, self.decoding_reqs
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
            self.extend_num_tokens = sum(r.extend_len for r in self.reqs)
            self.plan = [[r.number, r.extend_len, r.prefix_len] for r in self.reqs]
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
                self.listener.emit("prefill", r, new_tokens=end - start, past_tokens=start,
                                   slots=runs(taken[at : at + end - start].tolist()))
                at += end - start
                r.kv.kv_allocated_len = r.kv.kv_committed_len = end
                r.is_retracted = False

        def prepare_for_decode(self):
            self.forward_mode = Mode("decode")
            self.plan = [r.number for r in self.reqs]
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

        def mix_with_running(self, running):
            # As ScheduleBatch.mix_with_running does to requests; the rest of it is tensors.
            self.forward_mode = Mode("mixed")
            for r in running.reqs:
                r.refresh_fill_ids()
                r.extend_end = r.kv.kv_committed_len
            self.extend_num_tokens += len(running.reqs)
            self.merge_batch(running)

    return Batch


class Engine:
    def __init__(self, sgl, batch_class, job):
        self.sgl, self.job = sgl, job
        real, page = sgl.scheduler.Scheduler, job["page"]
        eviction = job.get("eviction", "lru")
        priorities = job.get("priorities")
        threshold = priorities["threshold"] if priorities else None
        low_first = bool(priorities and priorities["low_first"])
        self.lines, self.step, self.busy_steps, self.preempting = [], 0, 0, False
        self.sums = dict.fromkeys(("rejected", "aborted", "generated_tokens", "query_tokens", "hit_tokens", "retractions",
                                   "preemptions", "evicted_tokens", "evicted_nodes"), 0)
        schedule = SimpleNamespace(
            prefill_max_requests=job.get("prefill_max_requests"), schedule_policy=job["schedule"],
            retraction_policy=job.get("retraction", "length"), schedule_conservativeness=job["conservativeness"],
            scheduler_recv_interval=job.get("recv_interval", 1), schedule_low_priority_values_first=low_first)
        settings = dict(
            get_schedule=lambda: schedule,
            get_parallel=lambda: SimpleNamespace(
                pp_max_micro_batch_size=job["max_running"], dcp_enabled=False, attn_dp_enabled=False),
            get_disagg=lambda: SimpleNamespace(disaggregation_mode="null"),
            get_memory=lambda: SimpleNamespace(radix_eviction_policy=eviction, enable_hisparse=False),
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
            eviction_policy=eviction, eviction_policy_config=job.get("eviction_config"))
        params.tree_components = (sgl.ComponentType.FULL,)
        params.tree_core_backend = "rust"
        self.tree = sgl.unified_radix_cache.UnifiedRadixCache(params)
        self.watch(sgl.schedule_policy.PrefillAdder)
        batch_class.listener = self
        nothing = lambda *_, **__: None
        batches = (self.rows, self.slots, self.tree)
        self.aborted, self.retracted = [], []

        def queue_again(req, is_retracted=False):
            self.retracted.append(req.number)
            self.enter(req)

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
            grammar_manager=SimpleNamespace(has_waiting_grammars=lambda: False), enable_priority_preemption=threshold is not None,
            is_hybrid_swa=False, waiting_queue=[], min_free_slots_delayer=None, req_to_token_pool=self.rows,
            beam_coordinator=SimpleNamespace(pending_member_rows=lambda _: 0, retire_group=nothing),
            processed_tokens_counter=0, chunked_prefill_size=job["chunk"], dynamic_chunk_sizer=None,
            tp_worker=SimpleNamespace(model_runner=SimpleNamespace(attn_backend=SimpleNamespace(), prefill_aware_swa=False)),
            page_size=page, tree_cache=self.tree, token_to_kv_pool_allocator=self.slots,
            max_prefill_tokens=job["max_prefill"], is_mixed_chunk=job.get("mixed", False), priority_scheduling_preemption_threshold=threshold or 0,
            max_prefill_bs=0, max_running_requests=job["max_running"], truncation_align_size=None, enable_lora=False,
            enable_hicache_storage=False, enable_lmcache=False, enable_hierarchical_cache=False,
            enable_unified_cache_external_linker=False, model_config=None, enable_overlap=job["overlap"],
            spec_algorithm=SimpleNamespace(is_none=lambda: True), hisparse_coordinator=None,
            load_inquirer=SimpleNamespace(_get_num_pending_tokens=lambda **_: 0), enable_priority_scheduling=priorities is not None,
            require_mlp_sync=False, ngram_embedding_manager=SimpleNamespace(prepare_for_forward=lambda b, **_: b),
            dp_attn_adapter=SimpleNamespace(maybe_prepare_mlp_sync_batch=lambda b, **_: b,
                                            maybe_convert_decode_to_extend=lambda b: b),
            decode_offload_manager=None, forward_ct=0, _add_request_to_queue=queue_again, result_queue=[],
            metrics_reporter=SimpleNamespace(num_retracted_reqs=0, enable_metrics=False),
            send_abort_output=lambda _, req: self.aborted.append(req.number), enable_skip_finishing_decode=job["overlap"],
            new_token_ratio_tracker=sgl.new_token_ratio_tracker.NewTokenRatioTracker.from_config(),
            running_batch=batch_class(pools=batches), last_batch=None,
            policy=sgl.schedule_policy.SchedulePolicy(
                job["schedule"], self.tree, False, priorities is not None, low_first),
            max_new_tokens_limit=None, kv_shard_widening=1, max_total_num_tokens=job["capacity"], sliding_window_size=None,
            max_req_len=min(job["context"], job["capacity"]) - 1)

    def watch(self, adder):
        """Makes SGLang's own methods say what they do."""
        really_free = self.tree._free_values

        def watched_free(device, host):
            for values in device.values():
                for v in values:
                    self.emit("evict", None, tokens=len(v), slot=int(v[0]))
                    self.sums["evicted_tokens"] += len(v)
                    self.sums["evicted_nodes"] += 1
            really_free(device, host)

        self.tree._free_values = watched_free
        commit = getattr(adder, "really_commit", adder._commit_prefill_admission)
        preempt = getattr(adder, "really_preempt", adder.preempt_to_schedule)

        def committed(this, req, admission, *rest):
            again, known = req.retraction_count > 0, len(req.full_untruncated_fill_ids)
            if not again:
                self.sums["query_tokens"] += known
                self.sums["hit_tokens"] += admission.prefix_len
            self.emit("admit", req, hit_tokens=admission.prefix_len, tokens=known, resumed=again)
            commit(this, req, admission, *rest)

        def preempted(this, req):
            self.preempting = True
            made_room = preempt(this, req)
            self.preempting = False
            return made_room

        adder.really_commit, adder.really_preempt = commit, preempt
        adder._commit_prefill_admission, adder.preempt_to_schedule = committed, preempted

    def emit(self, event, req, **fields):
        name = {"id": str(req.rid)} if req is not None else {}
        self.lines.append(json.dumps({"ev": event, "step": self.step, **name, **fields}))

    def lost(self, fate):
        self.sums[{"abort": "aborted", "preempt": "preemptions", "retract": "retractions"}[fate]] += 1

    def enter(self, req):
        self.s.waiting_queue.append(req)
        req.time_stats.enter()
        req.arrival_processed_tokens = self.s.processed_tokens_counter

    def request(self, number, given):
        sgl = self.sgl
        params = SimpleNamespace(
            max_new_tokens=given["output"], ignore_eos=False, stop_token_ids=None, stop_strs=[], stop_regex_strs=[], n=1,
            min_new_tokens=0)
        req = sgl.schedule_batch.Req(given.get("id", number), "", array("q", given["prompt"]), params)
        req.number, req.given = number, given.get("output_tokens")
        req.extra_key, req.cache_salt = given.get("extra_key"), given.get("cache_salt")
        req.tokenizer, req.eos_token_ids, req.vocab_size, req.beam_group = None, None, 1 << 62, None
        req._check_str_based_finish = lambda *_: False
        req.priority = given.get("priority", 0)
        req.time_stats = Times()
        return req

    def check(self, req):
        """What becomes of a request as it comes: it is cut, and turned away or put where the loop will look."""
        self.s.init_req_max_new_tokens(req)
        if self.sgl.utils.validate_input_length(req, self.s.max_req_len - 5, False):
            self.sums["rejected"] += 1
            self.emit("rejected", req, reason="prompt_too_long")
        else:
            self.skipped.append(req)

    def token(self, req):
        at = len(req.output_ids)
        if req.given and at < len(req.given):
            return req.given[at]
        return FIRST_OUTPUT + req.number * (1 << 20) + at

    def process(self, batch, finished):
        """What the batch result processor does to memory and membership (`batch_result_processor.py`)."""
        common = self.sgl.common
        for req in batch.reqs:
            if req.finished() or req.is_retracted:
                continue
            if batch.forward_mode.is_extend() and req.inflight_middle_chunks > 0:
                req.inflight_middle_chunks -= 1
                continue
            decodes = not batch.forward_mode.is_extend() or req in (batch.decoding_reqs or [])
            req.output_ids.append(self.token(req))
            req.update_finish_state()
            if req.finished():
                finished.append(req.number)
                self.sums["generated_tokens"] += len(req.output_ids)
                row = self.rows.req_to_token[req.kv.req_pool_idx]
                self.emit("finish", req, out=len(req.output_ids), retractions=req.retraction_count,
                          slots=runs(row[: req.kv.kv_allocated_len].tolist()))
                common.release_kv_cache(req, self.tree, checkpoint=True)
            elif not decodes:
                common.checkpoint_kv_cache(req, self.tree)

    def run(self):
        s, answers = self.s, []
        self.skipped = []
        queue, finished = s.result_queue, []
        waiting = sorted(enumerate(self.job["requests"]), key=lambda pair: (pair[1]["step"], pair[0]))
        for step in range(self.job["steps"]):
            self.step = step
            last = s.last_batch and SimpleNamespace(forward_mode=s.last_batch.forward_mode.kind)
            # Requests are checked as they come, and join the queue when the loop looks.
            while waiting and waiting[0][1]["step"] <= step:
                self.check(self.request(*waiting.pop(0)))
            if self.skipper is None or self.skipper.handle(last):
                for req in self.skipped:
                    self.enter(req)
                self.skipped.clear()
            self.aborted.clear()
            self.retracted.clear()
            plan = s.get_next_batch_to_run(running_batch=s.running_batch, last_batch=s.last_batch)
            s.running_batch, batch = plan.running_batch, plan.batch_to_run
            if batch and batch.forward_mode.is_extend():
                s.processed_tokens_counter += batch.extend_num_tokens
            if batch or queue:
                self.busy_steps = step + 1
            if self.job["overlap"]:
                if batch:
                    queue.append((batch.copy(), None))
                if s.last_batch:
                    self.process(queue.pop(0)[0], finished)
            elif batch:
                self.process(batch, finished)
            if not (batch or (s.last_batch and self.job["overlap"])) and self.is_idle():
                # on_idle
                s.new_token_ratio_tracker.reset()
            s.last_batch = batch
            if batch or self.aborted or self.retracted:
                answers.append({
                    "step": step, "kind": batch.forward_mode.kind if batch else "none", "batch": batch.plan if batch else [],
                    "finished": finished, "retracted": list(self.retracted), "aborted": list(self.aborted),
                    "ratio": s.new_token_ratio_tracker.current, "free": int(self.slots.available_size()),
                    "evictable": int(self.tree.evictable_size()), "waiting": [r.number for r in s.waiting_queue]})
                finished = []
            if not (waiting or self.skipped or s.waiting_queue or s.chunked_req or queue or batch or s.running_batch.reqs):
                break
        return self.lines + [self.summary()] if self.job.get("events") else answers

    def is_idle(self):
        """`Scheduler.is_fully_idle`, for the state that is here."""
        s = self.s
        drained = s.last_batch is None or s.last_batch.is_empty()
        return drained and not (s.running_batch.reqs or s.chunked_req or s.result_queue or s.waiting_queue)

    def summary(self):
        sums, requests = dict(self.sums), self.job["requests"]
        rate = round(sums["hit_tokens"] / max(sums["query_tokens"], 1), 6)
        return json.dumps({
            "ev": "summary", "requests": len(requests), "rejected": sums["rejected"], "aborted": sums["aborted"],
            "steps": self.busy_steps, "prompt_tokens": sum(len(r["prompt"]) for r in requests),
            "generated_tokens": sums["generated_tokens"], "query_tokens": sums["query_tokens"],
            "hit_tokens": sums["hit_tokens"], "hit_rate": rate, "retractions": sums["retractions"],
            "preemptions": sums["preemptions"], "evicted_tokens": sums["evicted_tokens"],
            "evicted_nodes": sums["evicted_nodes"], "free_at_end": int(self.slots.available_size()),
            "cached_at_end": int(self.tree.evictable_size())})


def main():
    sgl = load()
    batch_class = make_batch_class(sgl)
    for line in sys.stdin:
        print(json.dumps(Engine(sgl, batch_class, json.loads(line)).run(), separators=(",", ":")), flush=True)


if __name__ == "__main__":
    main()
