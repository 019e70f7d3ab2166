#!/usr/bin/env python3
"""Schedules requests with SGLang's own prefill and decode servers' schedulers, on the CPU and without a model.

The queues of both sides (`PrefillBootstrapQueue`, `DecodePreallocQueue`, `DecodeTransferQueue` and the scheduler's mixins of
`disaggregation/prefill.py` and `decode.py`) are SGLang's, beside what `sglang_scheduler.py` drives; only handshakes and
transfers are replaced: they take as many turns of the loop as the job says.

Written against sglang 0.5.23. `crates/sim/tests/sglang_apart.rs` runs it when KVWISE_SGLANG_PYTHON names such an interpreter; by
hand:

    python sglang_apart.py < jobs.jsonl > answers.jsonl

A job is one of `sglang_scheduler.py` with {"side": "prefill" | "decode", "reserved", "extra_rows"} besides, and a "way" in each
request: turns from the last chunk until it is read (prefill), or from room until the prompt has come (decode).
The answer is one line: a list with, for each turn that did something, {"step", "batch": [[id, new, past], ...] (prefill) or
[id, ...] (decode), "sent": [[id, tokens, all], ...], "placed", "joined", "retracted", "aborted", "free", "evictable", "rows"}.
"""
import importlib.util
import json
import os
import sys
from types import SimpleNamespace

import sglang_ops as ops
import sglang_scheduler as whole


def load():
    sgl = whole.load()
    import sglang

    folder = os.path.join(os.path.dirname(sglang.__file__), "srt", "disaggregation")
    poll = SimpleNamespace(Failed=0, Bootstrapping=1, WaitingForInput=2, Transferring=3, Success=4)
    modules = {}
    for part in ("utils", "base", "base.conn", "checksum", "common.conn", "common.staging_buffer", "minimax",
                 "decode_hicache_mixin"):
        name = "sglang.srt.disaggregation." + part
        sys.modules[name] = ops.EmptyModule(name)
    sys.modules["sglang.srt.disaggregation.base"].KVPoll = poll
    mixin = sys.modules["sglang.srt.disaggregation.decode_hicache_mixin"]
    mixin.DecodeHiCachePreallocMixin = type("Prealloc", (), {"_hicache_pending_restore_tokens": lambda self: 0})
    mixin.DecodeHiCacheTransferMixin = type("Transfer", (), {})
    for part in ("prefill", "decode"):
        name = f"sglang.srt.disaggregation.{part}"
        spec = importlib.util.spec_from_file_location(name, os.path.join(folder, part + ".py"))
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        modules[part] = module
    decode, prefill = modules["decode"], modules["prefill"]
    decode._is_npu = prefill._is_npu = False
    decode._is_fake_transfer = lambda _: False
    decode.kv_to_page_indices = lambda indices, _: indices.numpy()
    decode.is_unadmitted_reject = prefill.is_unadmitted_reject = lambda _: False
    decode.set_time_batch = decode.set_schedule_time_batch = prefill.set_schedule_time_batch = lambda *_: None
    decode.poll_and_all_reduce = lambda receivers, _: [r.poll() for r in receivers]
    decode.all_reduce_flags = lambda flags, **_: flags
    decode.ensure_mamba_capacity = lambda *_: True
    decode.dsv4_needs_rebootstrap = lambda *_: False
    prefill.poll_and_all_reduce_attn_cp_tp_group = lambda senders, *_: [s.poll() for s in senders]
    prefill.is_aborted = lambda req: req.finished_reason is not None
    prefill._uses_write_through_cache = lambda _: False
    prefill.kv_to_page_num = lambda tokens, page: -(-tokens // page)
    return SimpleNamespace(poll=poll, decode=decode, prefill=prefill, **vars(sgl))


class Fake:
    """An object whose methods are those of one of SGLang's classes."""

    def __init__(self, of, **fields):
        self.__dict__.update(fields, _of=of)

    def __getattr__(self, name):
        for kind in self._of:
            if hasattr(kind, name):
                value = getattr(kind, name)
                raw = next(k.__dict__[name] for k in kind.__mro__ if name in k.__dict__)
                return value.__get__(self) if callable(value) and not isinstance(raw, staticmethod) else value
        raise AttributeError(name)


class Stats:
    def __getattr__(self, _):
        return lambda *_, **__: None


class Side(whole.Engine):
    def __init__(self, sgl, batch_class, job):
        super().__init__(sgl, batch_class, job)
        disagg = SimpleNamespace(
            disaggregation_mode=job["side"], disaggregation_decode_enable_radix_cache=False,
            disaggregation_decode_host_receive_threshold=1, optimistic_prefill_attempts=0,
            disaggregation_decode_allocation_policy="early", disaggregation_decode_polling_interval=1,
            disaggregation_decode_retraction_backup="cpu_tensor", disaggregation_decode_enable_offload_kvcache=False)
        memory = SimpleNamespace(radix_eviction_policy="lru", enable_hisparse=False, disable_radix_cache=not job["radix"])
        for module in (sgl.scheduler, sgl.schedule_policy, sgl.schedule_batch, sgl.common, sgl.decode, sgl.prefill,
                       sgl.unified_radix_cache):
            for name, value in (("get_disagg", lambda: disagg), ("get_memory", lambda: memory)):
                if hasattr(module, name):
                    setattr(module, name, value)
        self.now, self.due, self.placed, self.sent, self.joined = 0, {}, [], [], []
        s, mixin = self.s, getattr(getattr(sgl, job["side"]), f"SchedulerDisaggregation{job['side'].title()}Mixin")
        s.__dict__["_of"] = None
        state = dict(s.__dict__)
        state.pop("_of")
        self.s = s = Fake((mixin, sgl.scheduler.Scheduler), **state)
        s.disaggregation_mode = sgl.scheduler.DisaggregationMode = None
        # Only the loop that does everything sets it.
        s.enable_skip_finishing_decode = False
        s.enable_decode_hicache = s.enable_lora = s.enable_hisparse = False
        s.batch_result_processor = SimpleNamespace(process_batch_result_prebuilt=self.prebuilt)
        s.output_streamer = SimpleNamespace(stream_output=lambda *_: None)
        s.disagg_decode_prealloc_queue = None
        if job["side"] == "decode":
            self.decode_side(disagg)
        else:
            self.prefill_side()

    # --- decode ---

    def decode_side(self, disagg):
        s, sgl, job = self.s, self.sgl, self.job
        rows = sgl.decode.DecodeReqToTokenPool(
            size=job["max_running"], max_context_len=job["context"] + 8, device="cpu", enable_memory_saver=False,
            pre_alloc_size=job["extra_rows"])
        self.rows = s.req_to_token_pool = self.tree.req_to_token_pool = rows
        s.running_batch.pools = (rows, self.slots, self.tree)
        indices = SimpleNamespace(available_size=lambda: 1 << 20, free=lambda _: None, alloc=lambda: 0)
        self.transfer = Fake(
            (sgl.decode.DecodeTransferQueue,), queue=[], scheduler=s, enable_staging=False, tp_rank=0, gloo_group=None,
            req_to_metadata_buffer_idx_allocator=indices, metadata_buffers=SimpleNamespace(clear_slot=lambda _: None),
            _poll_with_metadata_gate=lambda: [self.arrival(d.req) for d in self.transfer.queue],
            _commit_transfer_to_req=lambda d: d.req.output_ids.append(self.token(d.req)),
            resolve_deferred_releases=lambda: None)
        manager = SimpleNamespace(kv_args=SimpleNamespace(state_types=[]))
        self.queue = Fake(
            (sgl.decode.DecodePreallocQueue,), req_to_token_pool=rows, token_to_kv_pool_allocator=self.slots,
            token_to_kv_pool=None, draft_token_to_kv_pool=None, scheduler=s, transfer_queue=self.transfer,
            tree_cache=self.tree, max_total_num_tokens=job["capacity"], num_reserved_decode_tokens=job["reserved"],
            pp_size=1, queue=[], retracted_queue=[], pending_reqs=[], held_rebootstrap_reqs=[], gloo_group=None, _num_published_destinations=0,
            kv_manager=manager, req_to_metadata_buffer_idx_allocator=indices, transfer_backend=None,
            _resolve_pending_reqs=lambda: None, _send_kv_metadata=self.note_place,
            _uses_swa_tail_prealloc=lambda: False, _uses_swa_reservation=lambda: False)
        self.slots.translate_kv_indices_for_transfer = lambda x: x
        s.disagg_decode_prealloc_queue, s.disagg_decode_transfer_queue = self.queue, self.transfer
        s.tp_worker.is_hybrid_swa = False
        s._verify_kv_checksums = lambda _: None
        s.future_map = s.forward_stream = None
        s.schedule_stream = SimpleNamespace(wait_stream=lambda _: None)
        s.kv_checksum_computer = None
        s.grammar_manager = SimpleNamespace(has_waiting_grammars=lambda: False)
        sgl.schedule_batch.backup_kv_cache = lambda *_: True
        sgl.decode.restore_kv_cache = lambda *_: None

        def queue_again(req, is_retracted=False):
            self.retracted.append(req.rid)
            self.queue.retracted_queue.append(req)

        s._add_request_to_queue = queue_again
        batch_class = type(s.running_batch)

        def prepare(batch):
            for req in batch.reqs:
                req.is_retracted = False
            batch.forward_mode = whole.Mode("prebuilt")

        sgl.decode.ScheduleBatch = batch_class
        batch_class.prepare_for_prebuilt = prepare
        batch_class.process_prebuilt = lambda batch, _: None

    def note_place(self, decode_req, *_, **__):
        self.placed.append(decode_req.req.rid)
        decode_req.metadata_buffer_index = 0
        self.due[decode_req.req.rid] = self.now + decode_req.req.way

    def arrival(self, req):
        return self.sgl.poll.Success if self.due[req.rid] <= self.now else self.sgl.poll.Transferring

    def prebuilt(self, batch):
        for req in batch.reqs:
            req.update_finish_state()
            self.joined.append([req.rid, bool(req.finished())])
            if req.finished():
                self.sgl.common.release_kv_cache(req, self.tree, checkpoint=True)

    # --- prefill ---

    def prefill_side(self):
        s, sgl = self.s, self.sgl
        s.disagg_prefill_inflight_queue = []
        s.attn_cp_cpu_group = s.attn_tp_cpu_group = None
        s.result_queue = []
        s.send_kv_chunk = self.send
        type(s.running_batch).prefill_chunk_processed = False
        s.enable_staging = False
        s.disagg_prefill_pending_chunk_rids = set()
        sgl.prefill.maybe_release_metadata_buffer = lambda *_: None
        s.req_to_metadata_buffer_idx_allocator = None
        self.tree.finish = lambda *_: None
        sgl.prefill.FAKE_BOOTSTRAP_HOST = "fake"
        sgl.prefill.CacheRequestOutcome = SimpleNamespace(SUCCESS=1)
        sgl.scheduler.Req = None

    def send(self, req, last_chunk=False, end_idx=None):
        page = self.tree.page_size
        end = end_idx if end_idx is not None else min(req.extend_end, len(req.origin_input_ids))
        if not last_chunk:
            end -= end % page
        self.sent.append([req.rid, end, last_chunk])
        if last_chunk:
            self.due[req.rid] = self.now + req.way

    def sender(self, req):
        polls = self.sgl.poll
        return SimpleNamespace(
            poll=lambda: polls.Success if self.due.get(req.rid, 1 << 60) <= self.now else polls.WaitingForInput,
            clear=lambda: None, get_transfer_metric=lambda: None)

    def process_prefill(self, batch):
        """What `process_batch_result_disagg_prefill` does to memory and queues."""
        s = self.s
        for req in batch.reqs:
            if req.inflight_middle_chunks <= 0:
                req.output_ids.append(self.token(req))
                s.checkpoint_disagg_prefill(req)
                s.disagg_prefill_inflight_queue.append(req)
                self.send(req, last_chunk=True)
            else:
                req.inflight_middle_chunks -= 1
                if self.job["overlap"]:
                    self.send(req, end_idx=req.tmp_end_idx)

    # --- both ---

    def request(self, number, given):
        req = super().request(number, given)
        req.way, req.pending_bootstrap, req.time_stats = given["way"], False, Stats()
        req.finished_output = False
        if self.job["side"] == "prefill":
            req.sampling_params.max_new_tokens = 1
            req.disagg_kv_sender, req.bootstrap_host = self.sender(req), "here"
            req.return_routed_experts = req.return_logprob = False
        return req

    def arrive(self, req):
        if self.job["side"] == "prefill":
            self.s.waiting_queue.append(req)
        else:
            receiver = SimpleNamespace(poll=lambda: self.sgl.poll.WaitingForInput, supports_host_destination=False,
                                       clear=lambda: None)
            self.queue.queue.append(self.sgl.decode.DecodeRequest(req=req, kv_receiver=receiver))

    def run(self):
        s, answers, queue = self.s, [], []
        decode, overlap = self.job["side"] == "decode", self.job["overlap"]
        waiting = sorted(enumerate(self.job["requests"]), key=lambda pair: (pair[1]["step"], pair[0]))
        for self.now in range(self.job["steps"]):
            while waiting and waiting[0][1]["step"] <= self.now:
                self.arrive(self.request(*waiting.pop(0)))
            for notes in (self.aborted, self.retracted, self.placed, self.sent, self.joined):
                notes.clear()
            finished = []
            if decode:
                s.process_decode_queue()
                plan = s.get_next_disagg_decode_batch_to_run(running_batch=s.running_batch)
            else:
                plan = s.get_next_disagg_prefill_batch_to_run(running_batch=s.running_batch, last_batch=s.last_batch)
            s.running_batch, batch = plan.running_batch, plan.batch_to_run
            handle = (lambda b: self.process(b, finished)) if decode else self.process_prefill
            if overlap:
                if batch:
                    queue.append(batch.copy())
                if s.last_batch:
                    handle(queue.pop(0))
            elif batch:
                handle(batch)
            if not decode:
                s.process_disagg_prefill_inflight_queue()
            s.last_batch = batch
            if batch or self.aborted or self.retracted or self.placed or self.joined or self.sent:
                answers.append({
                    "step": self.now, "batch": batch.plan if batch else [], "sent": list(self.sent),
                    "placed": list(self.placed), "joined": list(self.joined), "retracted": list(self.retracted),
                    "aborted": list(self.aborted), "free": int(self.slots.available_size()),
                    "evictable": int(self.tree.evictable_size()), "rows": int(self.rows.available_size())})
            under_way = (self.queue.queue or self.queue.retracted_queue or self.transfer.queue) if decode else \
                s.disagg_prefill_inflight_queue
            if not (waiting or s.waiting_queue or s.chunked_req or queue or batch or s.running_batch.reqs or under_way):
                break
        return answers


def main():
    sgl = load()
    batch_class = whole.make_batch_class(sgl)
    for line in sys.stdin:
        print(json.dumps(Side(sgl, batch_class, json.loads(line)).run(), separators=(",", ":")), flush=True)


if __name__ == "__main__":
    main()
