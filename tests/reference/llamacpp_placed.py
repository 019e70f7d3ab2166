#!/usr/bin/env python3
"""Starts of llama.cpp with tensors placed by name, uneven shares and other ways to split, for llamacpp_gpus.py.

    python llamacpp_placed.py FOLDER > CASES                      needs gguf and numpy; makes the files of the other two scripts
    python llamacpp_placed.py FOLDER --rows < ANSWERS > ROWS      answers as rows of tests/data/llamacpp_placed.jsonl

The files are those of llamacpp_files.py and llamacpp_graphs.py: rows name them, and their tensors are in the rows of those.
"""
import json
import pathlib
import sys

import llamacpp_files
import llamacpp_graphs

FLASH = dict(flash_attn=1)
RUNS = [dict(n_ctx=4096, **FLASH), dict(n_ctx=8192, n_ubatch=2048, **FLASH), dict(n_ctx=16384, n_seq_max=4, n_ubatch=64, **FLASH)]
ONE, TWO, THREE = [80000], [40000, 80000], [24000] * 3
HOST = -1
# Free MiB of the GPUs, what else is said, and patterns with their device.
WAYS = [
    (ONE, {}, [[r"\.ffn_", HOST]]),
    (ONE, {}, [[r"blk\.[01]\.", HOST]]),
    (ONE, {}, [[r"attn_(q|k|v|qkv)\.weight", HOST], [r"ssm", HOST]]),
    (ONE, {}, [[r"^output\.weight$", HOST]]),
    (ONE, dict(ngl=2), [[r"blk\.0\.ffn_(up|down|gate)", 0]]),
    (ONE, {}, [[r"token_embd", HOST]]),
    (ONE, {}, [[r"rope_freqs|norm", HOST]]),
    (TWO, {}, [[r"blk\.1\.", 1]]),
    (TWO, {}, [[r"ffn_(up|gate)", 1], [r"ffn_down", HOST]]),
    (TWO, dict(split=[3.0, 1.0]), [[r"exps", 0]]),
    (TWO, {}, [[r"nothing of that name", HOST]]),
    (TWO, dict(split=[1.0, 4.0], ngl=3), [[r"blk\.2\.attn", 0]]),
    (TWO, dict(cpu_moe=2), [[r"blk\.0\.ffn", 1]]),
    (THREE, dict(split=[1.0, 1.0, 2.0]), [[r"blk\.(0|2)\.(attn|ssm)", 2], [r"ffn_down", 1]]),
    (THREE, dict(split=[5.0, 1.0]), []),
    (THREE, dict(split=[0.2, 7.5, 1.3]), []),
]
# What is refused, or used alone.
MODES = [
    (TWO, dict(split_mode=2), []),
    (ONE, dict(split_mode=2, ngl=0), []),
    (TWO, dict(split_mode=0, main_gpu=1), []),
    (TWO, dict(split_mode=0, main_gpu=2), []),
    (TWO, dict(split_mode=0, main_gpu=-1), []),
    (TWO, dict(split_mode=1, main_gpu=1), []),
    (TWO, dict(split_mode=0, main_gpu=1, split=[1.0, 0.0], ngl=3), []),
]


def cases(folder: pathlib.Path):
    files = []
    for script in (llamacpp_files, llamacpp_graphs):
        for name in script.MODELS:
            path = str(folder / f"{name}.gguf")
            script.make(path, **script.MODELS[name]) if script is llamacpp_files else script.make(name, path)
            files.append((name, path))
    for i, (name, path) in enumerate(files):
        # Every second way for every file, by turns, so that all ways meet all kinds of models.
        ways = WAYS[i % 2 :: 2] + (MODES if i < 3 else [])
        for k, (free, more, place) in enumerate(ways):
            runs = [RUNS[0], RUNS[1 + (i + k) % 2]]
            yield dict(name=name, file=path, free_mib=free, place=place, runs=runs, **more)


def rows(answers):
    out: dict = {}
    kept = ("free_mib", "ngl", "split", "split_mode", "main_gpu", "cpu_moe", "place", "model")
    for answer in map(json.loads, answers):
        row = out.setdefault(answer["name"], dict(name=answer["name"], cases=[]))
        case = {k: answer[k] for k in kept if k in answer}
        if "error" in answer:
            said = [line for line in answer["error"].splitlines() if "error" in line or "invalid" in line]
            case["refused"] = said[0].split(": ", 1)[-1] if said else "refused"
            case["runs"] = []
        else:
            measured = ("compute", "kv", "rs", "output", "copies", "attends", "log")
            case["runs"] = []
            for run in answer["runs"]:
                if "error" in run:
                    continue
                memory = dict(run.get("kv", {}))
                for device, size in run.get("rs", {}).items():
                    memory[device] = memory.get(device, 0) + size
                case["runs"].append([{k: v for k, v in run.items() if k not in measured}, memory, run["compute"]])
        row["cases"].append(case)
    return out.values()


if __name__ == "__main__":
    where = pathlib.Path(sys.argv[1]).absolute()
    if "--rows" in sys.argv:
        for made in rows(sys.stdin):
            print(json.dumps(made, separators=(",", ":")))
    else:
        for case in cases(where):
            print(json.dumps(case))
