#!/bin/sh
# Time of one whole `kvwise plan` (process start included), mean of many: scripts/measure_plan.sh [BINARY] [RUNS]
set -eu
binary=${1:-target/release/kvwise}
runs=${2:-200}
for words in \
    "meta-llama/Llama-3.1-8B --gpu h100" \
    "deepseek-ai/DeepSeek-V3 --gpu h200 --tp 8" \
    "openai/gpt-oss-120b --gpu h100 --tp 2" \
    "nvidia/Nemotron-H-56B-Base-8K --gpu h100 --tp 8"; do
    # Exit status 1 is an answer, 2 an error.
    # shellcheck disable=SC2086
    "$binary" plan $words --format json >/dev/null || [ $? -eq 1 ]
    start=$(date +%s%N)
    i=0
    while [ "$i" -lt "$runs" ]; do
        # shellcheck disable=SC2086
        "$binary" plan $words --format json >/dev/null || true
        i=$((i + 1))
    done
    end=$(date +%s%N)
    echo "$words: $(((end - start) / runs / 1000)) microseconds"
done
