"""Plan the deployments of published start-up logs and compare the memory left for the KV cache.

    tests/reference/plan_boots.py target/release/kvwise

Reads data/measurements/vllm_boots_plans.tsv: the logs of vllm_boots.csv whose model is in the catalogue, with the flags
that the log shows. Unlike the fit, which takes the logged size of the weights, this compares whole plans.
"""

import csv
import json
import pathlib
import subprocess
import sys

ROWS = pathlib.Path(__file__).parents[2] / "data/measurements/vllm_boots_plans.tsv"
GIB = 1 << 30


def missing(memory: dict) -> tuple[float, tuple[float, float]]:
    """What is left, below zero, where nothing is left for a cache, and how far the largest estimate may be off."""
    terms = [
        term
        for term in memory["components"]
        if term["name"] not in ("kv_cache", "unused") and "leaves to the memory" not in term["formula"]
    ]
    left = memory["budget_bytes"] - sum(term["bytes"] for term in terms)
    fitted = [term for term in terms if term["basis"] == "fitted"]
    above = max(term["high_bytes"] - term["bytes"] for term in fitted)
    below = max(term["bytes"] - term["low_bytes"] for term in fitted)
    return left / GIB, (above / GIB, below / GIB)


def main() -> None:
    binary = sys.argv[1]
    errors = []
    inside = 0
    with ROWS.open(newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            words = [binary, "plan", row["model"], *row["flags"].split(" "), "--format", "json"]
            answer = json.loads(subprocess.run(words, capture_output=True, text=True, check=False).stdout)
            cache = next(c for c in answer["memory"]["components"] if c["name"] == "kv_cache")
            logged = float(row["available_gib"])
            low, best, high = (cache[k] / GIB for k in ("low_bytes", "bytes", "high_bytes"))
            if not cache["bytes"]:
                best, spread = missing(answer["memory"])
                low, high = min(best - spread[0], low), max(best + spread[1], high)
            error = (best - logged) / float(row["gpu_gib"]) * 100
            errors.append(abs(error))
            held = low - 0.005 <= logged <= high + 0.005
            inside += held
            print(
                f"{row['id']:>4} {row['model']:34} planned {best:6.2f} ({low:.2f} to {high:.2f}) logged {logged:6.2f}"
                f" GiB, {error:+.1f} %{'' if held else '  outside'}"
            )
    errors.sort()
    print(f"median {errors[len(errors) // 2]:.2f} %, largest {errors[-1]:.2f} %, {inside} of {len(errors)} inside")


if __name__ == "__main__":
    main()
