#!/usr/bin/env python3
"""Rows for DeepSeek-V4, whose model class cannot be built on a CPU: the specs that vLLM 0.32.0's layers publish
(models/deepseek_v4/attention.py, models/deepseek_v4/compressor.py, v1/attention/backends/mla/sparse_swa.py), written
down here layer by layer, go through vLLM's own grouping and pool sizing.

usage: vllm_deepseek_v4.py CONFIG.json... > rows.jsonl
"""
import json
import os
import sys
from types import SimpleNamespace as NS

import torch
from vllm.v1.attention.backend import MultipleOf
from vllm.v1.core import kv_cache_utils as kvu
from vllm.v1.core.single_type_kv_cache_manager import register_all_kvcache_specs
from vllm.v1.kv_cache_interface import MLAAttentionSpec, SlidingWindowMLASpec, UniformTypeKVCacheSpecs, get_kv_quant_mode
from vllm.v1.kv_cache_layout import KVCacheLayout

FP8 = dict(cache_dtype_str="fp8_ds_mla", kv_quant_mode=get_kv_quant_mode("fp8_ds_mla"), model_version="deepseek_v4", dtype=torch.uint8)


def layer(config, i):
    ratio = max(1, config["compress_ratios"][i])
    head, index = config["head_dim"], config["index_head_dim"]
    specs = {}
    def latent(name, size, content, **kw):
        specs[f"{i}.{name}"] = MLAAttentionSpec(block_size=256, num_kv_heads=1, max_tp_shards=1, head_size=size, tokens_per_state=ratio,
                                                alignment=576, state_content_bytes=content, block_stride_alignment=MultipleOf(256), **kw)
    def state(name, dim):
        coff = 2 if ratio == 4 else 1
        specs[f"{i}.{name}"] = SlidingWindowMLASpec(block_size=4 if ratio == 4 else 8, num_kv_heads=1, max_tp_shards=1, head_size=2 * coff * dim,
                                                    dtype=torch.float32, sliding_window=coff * ratio, alignment=576)
    if ratio == 4:
        latent("indexer.k_cache", index + index // 128 * 4, None, dtype=torch.uint8)
        state("indexer.compressor.state_cache", index)
    specs[f"{i}.swa_cache"] = SlidingWindowMLASpec(block_size=64, num_kv_heads=1, max_tp_shards=1, head_size=head, sliding_window=config["sliding_window"],
                                                   state_content_bytes=584, alignment=576, **FP8)
    if ratio > 1:
        latent("attn", head, 584, **FP8)
        state("compressor.state_cache", head)
    return specs


def main():
    register_all_kvcache_specs(None)
    for path in sys.argv[1:]:
        config = json.load(open(path))
        for stages, length, available in ((1, 8192, 40 << 30), (1, 131072, 40 << 30), (1, 1048576, 80 << 30), (2, 8192, 40 << 30)):
            n = config["num_hidden_layers"]
            first = (n + stages - 1) // stages
            ranges = [range(0, n)] if stages == 1 else [range(0, first), range(first, n)]
            workers = [{k: v for i in r for k, v in layer(config, i).items()} for r in ranges]
            cache = NS(num_gpu_blocks_override=None, prefix_cache_retention_interval=0, prefix_match_unit=None, enable_prefix_caching=True,
                       mamba_cache_mode="none", block_size=256, get_resolved_kv_cache_layout=lambda: KVCacheLayout.BLHNC)
            vc = NS(cache_config=cache, speculative_config=None, kv_transfer_config=None, num_prefill_lookahead_tokens=0,
                    model_config=NS(max_model_len=length, original_max_model_len=length), parallel_config=NS(decode_context_parallel_size=1, tensor_parallel_size=1),
                    scheduler_config=NS(disable_hybrid_kv_cache_manager=False, max_num_encoder_input_tokens=8192), attention_config=NS(hisparse_config=None),
                    device_config=NS(device_type="cuda"), max_in_flight_tokens=16384)
            configs = kvu.get_kv_cache_configs(vc, [dict(w) for w in workers], [available] * stages)
            tokens, concurrency = kvu.get_kv_cache_capacity(vc, configs[0])
            scheduler, hash_ = kvu.resolve_kv_cache_block_sizes(configs[0], vc)
            args = dict(max_model_len=length, available_bytes=available)
            if stages > 1:
                args["pp"] = stages
            print(json.dumps(dict(
                config=os.path.basename(path), args=args, available_bytes=available, block_size=256, max_model_len=length, kv_layers=sum(map(len, workers)),
                bytes_per_block=[kvu._pool_bytes_per_block(vc, c.kv_cache_groups) for c in configs], num_blocks=configs[0].num_blocks,
                capacity_tokens=tokens, max_concurrency=concurrency, scheduler_block_size=scheduler, hash_block_size=hash_,
                groups=[dict(layers=len(g.layer_names), wrapper=type(g.kv_cache_spec).__name__,
                             specs=[dict(block_size=g.kv_cache_spec.block_size, page_bytes=0)],
                             blocks_per_max_len_request=-(-g.kv_cache_spec.max_memory_usage_bytes(vc) // g.kv_cache_spec.page_size_bytes)) for g in configs[0].kv_cache_groups])))


if __name__ == "__main__":
    main()
