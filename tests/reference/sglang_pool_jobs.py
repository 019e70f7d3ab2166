#!/usr/bin/env python3
"""Jobs for `sglang_pools.py` over the whole catalogue, and its answers in short. No engine is needed.

    python sglang_pool_jobs.py jobs FOLDER [--only NAME] > jobs.jsonl     # writes each configuration into FOLDER
    python sglang_pools.py jobs.jsonl answers.jsonl                       # with SGLang's Python; takes half an hour
    python sglang_pool_jobs.py rows answers.jsonl > rows.jsonl
    KVWISE_SGLANG_POOLS=rows.jsonl cargo test -p kvwise-core --lib sglang::golden -- --nocapture

Each model of `crates/core/data/models.jsonl` is asked under every setting of SETTINGS. What is free before and after loading
is arbitrary but the same each time: the pools are made of it by the engine's own code.
"""
import argparse
import hashlib
import json
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# Memory in MiB as nvidia-smi reports it, compute capability, GiB that are free before loading.
CARDS = {
    "t4": (15360, (7, 5), 14.4), "l4": (23034, (8, 9), 21.48), "4090": (24564, (8, 9), 22.96), "a100-40": (40960, (8, 0), 38.83),
    "l40s": (46068, (8, 9), 43.84), "h100": (81559, (9, 0), 78.63), "pro6000": (97887, (12, 0), 93.9),
    "h200": (143771, (9, 0), 139.26), "b200": (183359, (10, 0), 177.8),
}
# What one setting is called, its card, its arguments.
SETTINGS = [
    ("plain", "h100", {"tp_size": 1}),
    ("two ranks", "a100-40", {"tp_size": 2}),
    ("eight ranks", "h200", {"tp_size": 8}),
    ("attention groups", "b200", {"tp_size": 8, "enable_dp_attention": True, "dp_size": 8}),
    ("few attention groups", "h100", {"tp_size": 8, "enable_dp_attention": True, "dp_size": 2, "kv_cache_dtype": "fp8_e5m2"}),
    ("8-bit cache", "h100", {"tp_size": 1, "kv_cache_dtype": "fp8_e4m3"}),
    ("8-bit cache, Blackwell", "b200", {"tp_size": 2, "kv_cache_dtype": "fp8_e4m3"}),
    ("pages of 16", "h200", {"tp_size": 2, "page_size": 16}),
    ("pages of 64", "l4", {"tp_size": 1, "page_size": 64}),
    ("smaller windows", "h100", {"tp_size": 2, "swa_full_tokens_ratio": 0.5, "mem_fraction_static": 0.8}),
    ("fewer states", "b200", {"tp_size": 1, "mamba_full_memory_ratio": 0.5, "mem_fraction_static": 0.9}),
    ("no prefix cache", "h200", {"tp_size": 1, "disable_radix_cache": True, "max_running_requests": 64}),
    ("no prefix cache, in order", "h100", {"tp_size": 4, "disable_radix_cache": True, "disable_overlap_schedule": True}),
    ("short chunks and context", "b200", {"tp_size": 1, "chunked_prefill_size": 2048, "context_length": 4096}),
    ("whole prompts", "l40s", {"tp_size": 1, "chunked_prefill_size": -1}),
    ("no graphs", "pro6000", {"tp_size": 1, "disable_cuda_graph": True, "page_size": 1}),
    ("small graphs", "4090", {"tp_size": 4, "cuda_graph_max_bs_decode": 16, "max_total_tokens": 50000}),
    ("small card", "t4", {"tp_size": 1}),
    ("two stages", "h100", {"tp_size": 2, "pp_size": 2}),
    ("own drafter", "h200", {"tp_size": 8, "speculative_algorithm": "NEXTN"}),
    ("own drafter, given steps", "b200", {"tp_size": 4, "speculative_algorithm": "EAGLE", "speculative_num_steps": 3,
                                          "speculative_eagle_topk": 1, "speculative_num_draft_tokens": 4}),
    ("lookups", "h100", {"tp_size": 2, "speculative_algorithm": "NGRAM"}),
]
# Classes whose own modules are named as the drafter (`ONE_MODULE` of crates/core/src/engine/sglang/speculative.rs), and those that
# need no name.
NAMED = {"Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration", "Qwen3_5ForCausalLM", "Qwen3_5MoeForCausalLM",
         "Qwen3NextForCausalLM", "MiMoForCausalLM", "MiMoV2ForCausalLM", "MiMoV2FlashForCausalLM"}
UNNAMED = {"DeepseekV32ForCausalLM", "DeepseekV3ForCausalLM", "DeepseekV4ForCausalLM", "Glm4MoeForCausalLM", "Glm4MoeLiteForCausalLM",
           "GlmMoeDsaForCausalLM", "BailingMoeForCausalLM", "BailingMoeV2ForCausalLM", "BailingMoeV2_5ForCausalLM",
           "MistralLarge3ForCausalLM", "HYV3ForCausalLM", "HYV4ForCausalLM", "Qwen4ExpForConditionalGeneration"}


def share(text):
    """A number of 0 to 1 that follows from the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32


def jobs(folder, only):
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(ROOT, "crates/core/data/sglang_classes.txt"), encoding="utf-8") as f:
        known = set(f.read().split())
    for line in open(os.path.join(ROOT, "crates/core/data/models.jsonl"), encoding="utf-8"):
        entry = json.loads(line)
        name, config = entry["id"], entry["config"]
        if only and only not in name:
            continue
        classes = set(config.get("architectures") or [])
        if not classes & known:
            # The engine would refuse the class or run Transformers' code, whose pools the configurator alone does not show.
            print(f"{name}: no class of SGLang's own ({', '.join(sorted(classes))})", file=sys.stderr)
            continue
        path = os.path.join(folder, name.replace("/", "--") + ".json")
        with open(path, "w", encoding="utf-8") as f:
            json.dump(config, f)
        for title, card, args in SETTINGS:
            args = dict(args)
            if args.get("speculative_algorithm") in ("NEXTN", "EAGLE"):
                if classes & NAMED:
                    args["speculative_draft_model_path"] = "itself"
                elif not classes & UNNAMED:
                    continue
            mib, capability, before = CARDS[card]
            after = round(before * (0.3 + 0.65 * share(name + title)), 4)
            print(json.dumps({"model": name, "title": title, "config": path, "gpu_mib": mib, "cap": capability, "args": args,
                              "pre_gb": before, "available_gb": after}))


def rows(path):
    for line in open(path, encoding="utf-8"):
        answer = json.loads(line)
        job, row = answer["job"], answer["row"]
        if "speculative_draft_model_path" in job["args"]:
            # A folder that was made for the run.
            job["args"]["speculative_draft_model_path"] = "itself"
        short = {"model": job["model"], "mib": job["gpu_mib"], "cap": job["cap"], "args": job["args"],
                 "before_gib": job["pre_gb"], "after_gib": job["available_gb"]}
        if "mem_fraction_static" in row:
            short.update(fraction=row["mem_fraction_static"], page=row["page_size"], backend=row["attention_backend"],
                         chunk=row["chunked_prefill_size"], element=row["kv_element"], context=row["context_len"])
            if row.get("decode_max_bs") is not None:
                short["graphs"] = row["decode_max_bs"]
            if row.get("cell"):
                short["cell"] = row["cell"]
            if row.get("algorithm"):
                short["steps"] = row["draft"]
            for ours, theirs in (("kv_bytes", "kv_bytes"), ("tokens", "tokens"), ("swa", "swa_tokens"), ("slots", "mamba_slots"),
                                 ("running", "running")):
                if row.get(theirs) is not None:
                    short[ours] = row[theirs]
        # What needs code or files that are not there is no answer.
        refused, failed = row.get("refused"), row.get("failed")
        if failed or refused and ("does not recognize this architecture" in refused or "Cannot find the config file" in refused):
            print(f"{job['model']} {job['args']}: not answered ({failed or refused})", file=sys.stderr)
            continue
        if refused:
            short["refused"] = refused[:160]
            for late in ("kv_bytes", "tokens", "swa", "slots", "running"):
                short.pop(late, None)
        print(json.dumps(short, separators=(",", ":")))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["jobs", "rows"])
    parser.add_argument("where", help="folder for configurations, or the file of answers")
    parser.add_argument("--only", help="only models whose name contains this")
    args = parser.parse_args()
    try:
        jobs(args.where, args.only) if args.what == "jobs" else rows(args.where)
    except BrokenPipeError:
        sys.exit(1)
