#!/usr/bin/env python3
"""Makes combined_rows.jsonl of raw answers of vLLM 0.32.0 (one JSON line a configuration and setting, as the reference
scripts driving vLLM's own code print them): several settings at a time, on configurations cut to `layers` layers
(tests/conformance/layers.rs cuts them alike). `spec` of an answer's arguments is `--speculative-config`, of which only
multi-token prediction is kept; `drafter` lists the parameters that the drafter's class registers, of which embedding and
head become the target's unless the pipeline has several stages, whose last has no embedding to share.

usage: combine_rows.py OUT_DIR ANSWERS.jsonl...
"""
import json
import re
import sys

KEYS = ("block_size", "mamba_block_size", "mamba_page_size_padded", "max_model_len", "kv_layers", "bytes_per_block",
        "num_blocks", "capacity_tokens", "max_concurrency", "weight_bytes_per_rank", "scheduler_block_size", "hash_block_size")
SIZES = dict(bfloat16=2, float16=2, float32=4, int64=8, int32=4)
REFUSED = re.compile(r"is greater than the derived max_model_len|must be divisible by tensor parallel size|: \d+ is not divisible by|KV cache is needed, which is larger than|are not supported for now|Pipeline parallelism is not supported for this model|Decode context parallelism|DCP not support|must be divisible by n_predict")


def drafter_bytes(drafter, stages):
    total = 0
    for name, shape, dtype in drafter["params"]:
        size = SIZES[dtype]
        for n in shape:
            size *= n
        if "lm_head" in name or "shared_head.head" in name or ("embed_tokens" in name and stages == 1):
            continue
        total += size
    return total


rows = []
for path in sys.argv[2:]:
    for line in open(path):
        answer = json.loads(line)
        args = dict(answer["args"])
        args["available_bytes"] = int(args.pop("available_gib") * (1 << 30))
        args.pop("lora", None)
        if spec := args.pop("spec", None):
            args["mtp"] = spec["num_speculative_tokens"]
        row = dict(config=answer["job_name"], args=dict(sorted(args.items())))
        if "error" in answer:
            if not REFUSED.search(answer["error"]):
                continue
            row["refused"] = True
            if length := re.search(r"estimated maximum model length is (\d+)", answer["error"]):
                row["estimated_max_model_len"] = int(length[1])
        else:
            row.update((k, answer[k]) for k in KEYS if answer.get(k) is not None)
            if answer.get("drafter"):
                row["drafter_bytes"] = drafter_bytes(answer["drafter"], args.get("pp", 1))
            row["groups"] = [[g["layers"], g["wrapper"].replace("KVCacheSpecs", "").replace("Spec", ""), g["specs"][0]["block_size"],
                              g["specs"][0]["page_bytes"], g["blocks_per_max_len_request"]] for g in answer["groups"]]
        rows.append(row)
rows.sort(key=lambda r: (r["config"].lower(), json.dumps(r["args"], sort_keys=True)))
with open(f"{sys.argv[1]}/combined_rows.jsonl", "w") as f:
    for row in rows:
        f.write(json.dumps(row, separators=(",", ":")) + "\n")
print(len(rows), "rows")
