#!/bin/sh
# Lints and tests the optional build features, and checks the alert rules where `promtool` (Debian package prometheus) is there.
# Not a part of scripts/test.sh: the Parquet and tokenizer libraries take minutes to build.
set -eu
cd "$(dirname "$0")/.."

features="kvwise/nvml,kvwise/parquet,kvwise/tokenizer"
printf '\n== cargo clippy with %s\n' "$features"
cargo clippy --workspace --all-targets --locked --features "$features" -- -D warnings

if command -v promtool >/dev/null 2>&1; then
    printf '\n== promtool\n'
    promtool check rules deploy/prometheus/kvwise-alerts.yaml
    (cd deploy/prometheus && promtool test rules kvwise-alerts.test.yaml)
fi

printf '\n== cargo test with %s\n' "$features"
exec cargo test --workspace --all-targets --locked --no-fail-fast --features "$features"
