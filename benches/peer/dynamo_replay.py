#!/usr/bin/env python3
"""One trace through `kvwise simulate` and through Dynamo's replay, in turn, in one run: time and peak memory of each.

    python3 -m venv venv && venv/bin/pip install --no-deps ai-dynamo==1.6.1 ai-dynamo-runtime==1.6.1
    benches/peer/dynamo_replay.py --dynamo venv/bin/python --kvwise target/release/kvwise conversation_trace.jsonl

The trace is Mooncake's format, not compressed. Both simulate vLLM on one worker with blocks of 16 tokens and as many of
them as kvwise plans for Llama-3.1-8B on one H100, prefix caching on, at the trace's own times. Dynamo's step times are
those of its default model; what is compared is the cost of simulating, not the answer.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

BLOCKS = 28731
DYNAMO = """
import sys
from dynamo._core import run_mocker_trace_replay
engine = {"num_gpu_blocks": int(sys.argv[2]), "block_size": 16, "max_num_seqs": 1024, "max_num_batched_tokens": 8192}
report = run_mocker_trace_replay(
    [sys.argv[1]], extra_engine_args={"engine": engine}, num_workers=1, trace_block_size=512, capture_planner_details=False,
)
print(sorted(dict(report.summary).items()))
"""


def once(command):
    """Wall time and user time in seconds, peak memory in MB, of one process."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 1):
        sys.exit(f"{command[0]} ended with {process.returncode}")
    return time.perf_counter() - begin, usage.ru_utime, usage.ru_maxrss / 1000, output


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("trace")
    parser.add_argument("--kvwise", required=True)
    parser.add_argument("--dynamo", required=True, help="a Python that has ai-dynamo-runtime")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    common = ["simulate", arguments.trace, "--gpu", "h100", "--format", "json"]
    eight = ["--model", "llama-3.1-8b"]
    seventy = ["--model", "llama-3.1-70b", "--tp", "4"]
    blocks = ["--num-gpu-blocks-override", str(BLOCKS)]
    commands = {
        "kvwise, vLLM, 8B": [arguments.kvwise, *common, *eight, *blocks],
        "kvwise, vLLM, 70B on 4 GPUs": [arguments.kvwise, *common, *seventy],
        "kvwise, SGLang, 8B": [arguments.kvwise, *common, *eight, "--engine", "sglang"],
        "Dynamo's replay, vLLM": [arguments.dynamo, "-c", DYNAMO, arguments.trace, str(BLOCKS)],
    }
    measured = {name: [] for name in commands}
    for _ in range(arguments.runs):
        for name, command in commands.items():
            measured[name].append(once(command)[:3])
    print("| simulator | wall s | user s | peak MB |\n|---|--:|--:|--:|")
    for name, runs in measured.items():
        wall, user, peak = (statistics.median(column) for column in zip(*runs))
        print(f"| {name} | {wall:.2f} | {user:.2f} | {peak:.0f} |")


if __name__ == "__main__":
    main()
