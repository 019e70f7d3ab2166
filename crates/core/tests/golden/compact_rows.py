#!/usr/bin/env python3
"""Makes vllm_rows.jsonl and vllm_configs.jsonl of the raw answers of vLLM 0.32.0 (one JSON line a configuration and
setting, as the reference scripts driving vLLM's own code print them) and the config.json files they were made from.

usage: compact_rows.py OUT_DIR --configs DIR... --rows FILE.jsonl...
Answers with an "error" are left out unless the engine's own rule refused (a length above the derived maximum, heads
that cannot be divided, too little memory, an unknown class); the others are limits of running GPU model classes on a CPU.
"""
import argparse
import json
import os
import re

ap = argparse.ArgumentParser()
ap.add_argument("out")
ap.add_argument("--configs", nargs="+", required=True)
ap.add_argument("--rows", nargs="+", required=True)
a = ap.parse_args()
configs = {}
for directory in a.configs:
    for name in sorted(os.listdir(directory)):
        if name.endswith(".json"):
            configs.setdefault(name, os.path.join(directory, name))
REFUSED = re.compile(r"is greater than the derived max_model_len|must be divisible by tensor parallel size|: \d+ is not divisible by|KV cache is needed, which is larger than|are not supported for now|Pipeline parallelism is not supported for this model|'PPMissingLayer' object has no attribute 'tie_weights'")
KEYS = ("block_size", "mamba_block_size", "mamba_page_size_padded", "max_model_len", "kv_layers", "bytes_per_block",
        "num_blocks", "capacity_tokens", "max_concurrency", "weight_bytes_per_rank", "scheduler_block_size", "hash_block_size")
seen, used, rows = set(), set(), []
for path in a.rows:
    for line in open(path):
        d = json.loads(line)
        name = os.path.basename(d["config"])
        if name not in configs:
            continue
        args = d.get("args") or {}
        if not args:
            args = dict(tp=d["tp"], max_model_len=d["max_model_len"], available_bytes=d["available_bytes"], kv_dtype=d["kv_dtype"])
            if args["kv_dtype"] == "fp8_ds_mla":
                args["kv_dtype"] = "fp8"
        if d.get("available_bytes"):
            args = dict(args, available_bytes=d["available_bytes"])
        elif "available_gib" in args and "available_bytes" not in args:
            args["available_bytes"] = int(args["available_gib"] * (1 << 30))
        args.pop("available_gib", None)
        args = {k: v for k, v in sorted(args.items()) if (k, v) not in (("tp", 1), ("pp", 1), ("kv_dtype", "auto"))}
        key = (name, json.dumps(args, sort_keys=True))
        if key in seen:
            continue
        row = dict(config=name[:-5], args=args)
        if "error" in d:
            if not REFUSED.search(d["error"]):
                continue
            row["refused"] = True
            if length := re.search(r"estimated maximum model length is (\d+)", d["error"]):
                row["estimated_max_model_len"] = int(length[1])
        else:
            row.update((k, d[k]) for k in KEYS if d.get(k) is not None)
            row["groups"] = [[g["layers"], g["wrapper"].replace("KVCacheSpecs", "").replace("Spec", ""), g["specs"][0]["block_size"],
                              sum(s["page_bytes"] for s in g["specs"][:1]), g["blocks_per_max_len_request"]] for g in d["groups"]]
        seen.add(key)
        used.add(name)
        rows.append(row)
rows.sort(key=lambda r: (r["config"].lower(), json.dumps(r["args"], sort_keys=True)))
with open(os.path.join(a.out, "vllm_rows.jsonl"), "w") as f:
    for row in rows:
        f.write(json.dumps(row, separators=(",", ":")) + "\n")
with open(os.path.join(a.out, "vllm_configs.jsonl"), "w") as f:
    for name in sorted(used, key=str.lower):
        config = json.load(open(configs[name]))
        # Rows were made with the quantisation ignored.
        config.pop("quantization_config", None)
        for value in config.values():
            if isinstance(value, dict):
                value.pop("quantization_config", None)
        # As text: some files hold Python's Infinity, which is no JSON but what vLLM is given.
        text = json.dumps(config, separators=(",", ":"))
        f.write(json.dumps({"name": name[:-5], "class": config["architectures"][0], "config": text}) + "\n")
print(len(rows), "rows", len(used), "configurations")
