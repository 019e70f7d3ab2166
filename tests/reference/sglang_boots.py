"""Plan the deployments of published SGLang start-up logs and compare the memory and the tokens of the pools.

    tests/reference/sglang_boots.py target/release/kvwise [--write]

Reads data/measurements/sglang_boots.tsv: logs that show model, flags, GPU and the pools. What is logged before the states of
recurrent layers and the drafter's part are taken off is not there. A refused start has less than nothing in its pools: what was
left after loading, less what its share keeps free. `--write` puts the table into docs/src/reference/accuracy.md.
"""

import csv
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
ROWS = ROOT / "data/measurements/sglang_boots.tsv"
PAGE = ROOT / "docs/src/reference/accuracy.md"
BEGIN, END = "<!-- sglang boots: begin -->", "<!-- sglang boots: end -->"
GIB = 1 << 30


def planned(binary: str, row: dict) -> tuple:
    """What is planned for a row: GiB of the pools with its interval, tokens, GiB of the GPU, whether it would start."""
    words = [binary, "plan", row["model"], "--engine", "sglang", *row["flags"].split(" "), "--format", "json"]
    answer = json.loads(subprocess.run(words, capture_output=True, text=True, check=False).stdout)
    terms = {term["name"]: term for term in answer["memory"]["components"]}
    cache, gpu = terms["kv_cache"], answer["memory"]["gpu_bytes"] / GIB
    gib = [cache[key] / GIB for key in ("low_bytes", "bytes", "high_bytes")]
    if not cache["bytes"]:
        # Refused: how much is missing, and how far the terms may be off.
        taken = [term for name, term in terms.items() if name not in ("kv_cache", "unused")]
        gib = [gpu - sum(term[key] for term in taken) / GIB for key in ("high_bytes", "bytes", "low_bytes")]
    kv = answer.get("kv_cache") or {}
    return gib, kv.get("capacity_tokens"), gpu, answer["feasibility"]["refused"] is None


def main() -> None:
    binary = sys.argv[1]
    lines = ["| model | flags | planned GiB | logged GiB | error | planned tokens | logged tokens | log |", "|---|---|--:|--:|--:|--:|--:|---|"]
    errors, inside, fresh = [], 0, 0
    with ROWS.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            (low, best, high), tokens, gpu, starts = planned(binary, row)
            if row["pool_gib"]:
                logged = float(row["pool_gib"])
            else:
                # Tokens alone: at the planned bytes a token, which are the engine's own.
                logged = best * int(row["tokens"]) / tokens
            error = (best - logged) / gpu * 100
            held = low - 0.05 <= logged <= high + 0.05
            seen = "were used" in row["note"]
            if not seen:
                errors.append(abs(error))
                inside += held
                fresh += 1
            flags = row["flags"].replace("--gpu ", "").replace("--mem-fraction-static", "--mem-fraction-static")
            lines.append(
                f"| {row['model']} | `{flags}` | {best:.2f} ({low:.2f} to {high:.2f}) | {logged:.2f}{'' if starts else ', refused'} "
                f"| {error:+.1f} %{'' if held else ', outside'}{', not unseen' if seen else ''} "
                f"| {tokens or 0:,} | {int(row['tokens']) if row['tokens'] else 0:,} | {row['source'].split('/', 1)[1]} |"
            )
    errors.sort()
    lines.append("")
    lines.append(
        f"Of the {fresh} logs that nothing was fitted to, the error is {errors[len(errors) // 2]:.1f} % of the GPU's memory in the median and "
        f"{errors[-1]:.1f} % at most; {inside} of {fresh} lie in the stated interval."
    )
    text = "\n".join(lines)
    print(text)
    if "--write" in sys.argv:
        page = PAGE.read_text(encoding="utf-8")
        head, rest = page.split(BEGIN)
        PAGE.write_text(f"{head}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
