#!/usr/bin/env python3
"""Golden cases for the grouping of KV caches: random layer specs through vLLM's own kv_cache_utils.

Needs vllm (0.32.0) importable; a CPU build is enough, no GPU and no model is used.
usage: vllm_grouping.py COUNT SEED > vllm_grouping.jsonl
One JSON object a line: the specs (registration order, pipeline stage of each), the settings, and what
get_kv_cache_configs, get_kv_cache_capacity and resolve_kv_cache_block_sizes made of them, or the error.
"""
import json
import random
import sys
from types import SimpleNamespace as NS

import torch
import vllm
from vllm.v1.attention.backend import MultipleOf
from vllm.v1.core import kv_cache_utils as kvu
from vllm.v1.core.single_type_kv_cache_manager import register_all_kvcache_specs
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec, CrossAttentionSpec, FullAttentionSpec, MambaSpec, MLAAttentionSpec,
    SlidingWindowMLASpec, SlidingWindowSpec, UniformTypeKVCacheSpecs)
from vllm.v1.kv_cache_layout import KVCacheLayout

BF16 = torch.bfloat16


def build(d):
    stride = d.get("stride")
    if isinstance(stride, dict):
        stride = MultipleOf(stride["kernel"])
    if d["kind"] == "state":
        return MambaSpec(block_size=d["block"], shapes=tuple(map(tuple, d["shapes"])),
                         dtypes=tuple(getattr(torch, t) for t in d["dtypes"]), page_size_padded=d.get("padded"),
                         mamba_cache_mode=d["mode"], num_speculative_blocks=d["spec"],
                         num_prefill_checkpoint_blocks=d["checkpoint"],
                         prefill_checkpoint_alignment=1 if d["checkpoint"] else None)
    if d["kind"] in ("mla", "swmla"):
        common = dict(block_size=d["block"], num_kv_heads=1, head_size=d["head"], dtype=torch.uint8,
                      state_content_bytes=d["content"], tokens_per_state=d["tps"], alignment=d.get("align"),
                      block_stride_alignment=stride)
        if d["kind"] == "mla":
            return MLAAttentionSpec(**common, cache_dtype_str="indexer" if d["indexer"] else "fp8_ds_mla")
        return SlidingWindowMLASpec(**common, sliding_window=d["window"])
    common = dict(block_size=d["block"], num_kv_heads=d["heads"], head_size=d["head"], head_size_v=d["head_v"],
                  dtype=BF16, page_size_padded=d.get("padded"), block_stride_alignment=stride)
    if d["kind"] == "full":
        return FullAttentionSpec(**common)
    if d["kind"] == "sliding":
        return SlidingWindowSpec(**common, sliding_window=d["window"])
    if d["kind"] == "chunked":
        return ChunkedLocalAttentionSpec(**common, attention_chunk_size=d["chunk"])
    return CrossAttentionSpec(**common)


def attention(r, kind, block):
    d = dict(kind=kind, block=block, heads=r.choice([1, 2, 3, 4, 8, 16]), head=r.choice([64, 96, 128, 256]))
    d["head_v"] = d["head"] if r.random() < 0.9 else r.choice([64, 128])
    if kind == "sliding":
        d["window"] = r.choice([64, 128, 512, 1024, 4096])
    if kind == "chunked":
        d["chunk"] = r.choice([1024, 8192])
    if r.random() < 0.1:
        d["stride"] = {"kernel": r.choice([16, 64])}
    return d


def layers_of(r):
    """Specs in registration order, and whether blocks are outermost."""
    block = r.choice([16, 16, 16, 32, 64, 528])
    style = r.choice(["dense", "window", "window", "two_windows", "hetero", "hybrid", "hybrid", "mla", "dsa", "mla_window",
                      "cross", "chunked", "deepseek_v4", "mixed"])
    count = r.randint(1, 48)
    every = r.randint(2, 7)
    full = attention(r, "full", block)
    if style == "dense":
        return [full] * count, False
    if style in ("window", "two_windows"):
        window = dict(attention(r, "sliding", block))
        if r.random() < 0.6:
            window.update(heads=full["heads"], head=full["head"], head_v=full["head_v"])
        other = dict(window, window=window["window"] * 2)
        pick = (lambda i: other if i % 2 else window) if style == "two_windows" else (lambda i: window)
        return [full if (i + 1) % every == 0 else pick(i) for i in range(count)], False
    if style == "hetero":
        return [attention(r, "full", block) for _ in range(count)], False
    if style == "hybrid":
        mode = r.choice(["align", "none"])
        state = dict(kind="state", block=block if mode == "align" else 8192, shapes=[[3, r.choice([512, 1024])],
                     [r.choice([8, 16, 32]), 64, r.choice([16, 64])]], dtypes=["bfloat16", r.choice(["bfloat16", "float32"])],
                     mode=mode, spec=r.choice([0, 0, 2]), checkpoint=r.choice([0, 1]))
        page = full["heads"] * (full["head"] + full["head_v"]) * 2 * block
        bytes_ = build(state).page_size_bytes
        if page >= bytes_ and page != bytes_ and r.random() < 0.8:
            state["padded"] = page
        return [full if (i + 1) % every == 0 else state for i in range(count)], False
    latent = dict(kind="mla", block=block, head=576, content=r.choice([1152, 576, 656]), tps=1, indexer=False)
    indexer = dict(kind="mla", block=block, head=132, content=132, tps=1, indexer=True, stride={"kernel": 64})
    if style == "mla":
        return [latent] * count, False
    if style == "dsa":
        return [x for _ in range(count) for x in (latent, indexer)], False
    if style == "mla_window":
        return [latent] * count + [attention(r, "sliding", block) for _ in range(r.randint(1, 2))], False
    if style == "cross":
        cross = dict(full, kind="cross")
        return [x for _ in range(count) for x in (full, cross)], False
    if style == "chunked":
        chunk = dict(full, kind="chunked", chunk=8192)
        return [full if (i + 1) % every == 0 else chunk for i in range(count)], False
    if style == "mixed":
        window = attention(r, "sliding", block)
        chunk = attention(r, "chunked", block)
        return [r.choice([full, window, chunk]) for _ in range(count)], False
    # DeepSeek-V4: one entry a layer, ratios in a random pattern.
    specs = []
    ratios = [r.choice([1, 4, 128]) for _ in range(r.randint(1, 4))]
    def swmla(window, block_, head, content):
        return dict(kind="swmla", block=block_, head=head, content=content, tps=1, align=576, window=window)
    def mla(head, content, tps, index):
        return dict(kind="mla", block=256, head=head, content=content, tps=tps, align=576, indexer=index,
                    stride={"kernel": 256})
    for i in range(count):
        ratio = ratios[i % len(ratios)]
        if ratio == 4:
            specs += [mla(132, 132, 4, True), swmla(8, 4, 512, 2048)]
        specs.append(swmla(128, 64, 512, 584))
        if ratio > 1:
            width = 2048 if ratio == 4 else 1024
            specs += [mla(512, 584, ratio, False), swmla(8 if ratio == 4 else 128, 4 if ratio == 4 else 8, width, width * 4)]
    return specs, True


def run(case):
    specs = [build(d) for d in case["specs"]]
    cache = NS(num_gpu_blocks_override=case["override"], prefix_cache_retention_interval=0, prefix_match_unit=None,
               enable_prefix_caching=case["caching"], mamba_cache_mode=case["mode"], block_size=case["block"],
               get_resolved_kv_cache_layout=lambda: KVCacheLayout.BLHNC if case["block_outermost"] else KVCacheLayout.LBNHC)
    config = NS(cache_config=cache, speculative_config=None, kv_transfer_config=None, num_prefill_lookahead_tokens=0,
                model_config=NS(max_model_len=case["length"], original_max_model_len=-1 if case["auto"] else case["length"]),
                parallel_config=NS(decode_context_parallel_size=case["dcp"], tensor_parallel_size=case["dcp"]),
                scheduler_config=NS(disable_hybrid_kv_cache_manager=case["disable_hybrid"],
                                    max_num_encoder_input_tokens=case["batched"]),
                attention_config=NS(hisparse_config=None), device_config=NS(device_type="cuda"), max_in_flight_tokens=case["in_flight"])
    stages = [{} for _ in case["available"]]
    for i, spec in enumerate(specs):
        stages[case["stages"][i]][f"l{i}"] = spec
    configs = kvu.get_kv_cache_configs(config, stages, list(case["available"]))
    tokens, concurrency = kvu.get_kv_cache_capacity(config, configs[0])
    scheduler, hash_ = kvu.resolve_kv_cache_block_sizes(configs[0], config)
    return dict(
        bytes_per_block=[kvu._pool_bytes_per_block(config, c.kv_cache_groups) for c in configs],
        num_blocks=configs[0].num_blocks, tokens=tokens, concurrency=concurrency,
        length=config.model_config.max_model_len, scheduler_block=scheduler, hash_block=hash_,
        groups=[dict(layers=[int(n[1:]) for n in g.layer_names], block=g.kv_cache_spec.block_size,
                     uniform=isinstance(g.kv_cache_spec, UniformTypeKVCacheSpecs),
                     page=g.kv_cache_spec.page_size_bytes) for g in configs[0].kv_cache_groups])


def main():
    count, seed = int(sys.argv[1]), int(sys.argv[2])
    register_all_kvcache_specs(None)
    for index in range(count):
        r = random.Random(seed * 100003 + index)
        specs, block_outermost = layers_of(r)
        kinds = {s["kind"] for s in specs}
        pp = r.choice([1, 1, 1, 2, 3])
        modes = {s["mode"] for s in specs if s["kind"] == "state"}
        mode = modes.pop() if modes else "none"
        local = kinds & {"sliding", "swmla"}
        cuts = sorted(r.randint(0 if r.random() < 0.1 else 1, len(specs)) for _ in range(pp - 1))
        page = max(build(s).page_size_bytes for s in specs) * len(specs)
        batched = r.choice([512, 2048, 8192])
        case = dict(
            specs=specs, stages=[sum(i >= c for c in cuts) for i in range(len(specs))], block_outermost=block_outermost,
            available=[r.randint(page // 2, page * r.choice([40, 3000, 20000, 20000])) for _ in range(pp)], dcp=1 if local else r.choice([1, 1, 1, 2, 4]),
            disable_hybrid=r.random() < (0.3 if local or "chunked" in kinds else 0.03), override=r.choice([None] * 6 + [1, 64, 4096]), caching=mode == "align" or (not modes and mode == "none" and "state" not in kinds and r.random() < 0.8),
            mode=mode, block=next((s["block"] for s in specs if s["kind"] != "state"), 16), length=r.choice([100, 2048, 8192, 131072]),
            auto=r.random() < 0.2, batched=batched, in_flight=batched * r.choice([1, 2, 3]))
        try:
            case["result"] = run(case)
        except Exception as e:
            case["error"] = f"{type(e).__name__}: {e}"[:300]
        # Equal specs are written once.
        table = []
        order = []
        for s in case.pop("specs"):
            if s not in table:
                table.append(s)
            order.append(table.index(s))
        case["table"], case["order"] = table, order
        case["vllm"] = vllm.__version__
        print(json.dumps(case, separators=(",", ":")))


if __name__ == "__main__":
    main()
