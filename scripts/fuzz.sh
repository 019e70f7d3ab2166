#!/bin/sh
# Runs every fuzz target (or those named) for so many seconds each: scripts/fuzz.sh SECONDS [TARGET...]
# Needs a C++ compiler and no nightly toolchain: LLVM's coverage passes are switched on by hand. Debug assertions and
# checks of overflows are on. Inputs that break a target are left in fuzz/artifacts.
set -eu
cd "$(dirname "$0")/.."
seconds=${1:?scripts/fuzz.sh SECONDS [TARGET...]}
shift
triple=$(rustc -vV | sed -n 's/^host: //p')
export CARGO_TARGET_DIR="${KVWISE_FUZZ_TARGET:-$PWD/fuzz/target}"
export CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS=true
export CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares"
# The flags are for the targets alone, not for build scripts: hence --target.
(cd fuzz && cargo build --release --target "$triple" </dev/null)
python3 fuzz/seeds.py fuzz/corpus
mkdir -p fuzz/artifacts
[ $# -gt 0 ] || set -- $(cd fuzz/fuzz_targets && ls | sed 's/\.rs$//')
broken=""
for target in "$@"; do
    mkdir -p "fuzz/corpus/$target"
    echo "== $target"
    "$CARGO_TARGET_DIR/$triple/release/$target" "fuzz/corpus/$target" "-max_total_time=$seconds" -timeout=20 \
        -rss_limit_mb=2048 -max_len=16384 -print_final_stats=1 "-artifact_prefix=fuzz/artifacts/$target-" || broken="$broken $target"
done
[ -z "$broken" ] || {
    echo "broken:$broken" >&2
    exit 1
}
