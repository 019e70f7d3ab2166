#!/bin/sh
# Installs what the tests need and runs all of them: formatting, lints, documentation, tests, doc tests.
# Needs rustup's cargo (https://rustup.rs) and, on Debian, the packages named below; nothing else, and no network at test time.
set -eu
cd "$(dirname "$0")/.."

# Cargo gives `rustc -` an empty standard input, /dev/null. Where an ordinary file took that name (a program of root's
# renamed its output to it, say), the compiler would read what others wrote there: it is emptied before each step.
say() {
    printf '\n== %s\n' "$*"
    if [ ! -c /dev/null ]; then
        echo "warning: /dev/null is an ordinary file here; mend it with: mknod -m 666 /dev/null.new c 1 3 && mv -f /dev/null.new /dev/null" >&2
        true >/dev/null
    fi
}

if ! command -v cc >/dev/null 2>&1; then
    say "installing a C compiler (for SQLite and zstd)"
    if command -v apt-get >/dev/null 2>&1; then
        sudo=""
        [ "$(id -u)" -eq 0 ] || sudo="sudo"
        $sudo apt-get update -q && $sudo apt-get install -q -y --no-install-recommends build-essential
    else
        echo "error: no C compiler; install gcc or clang" >&2
        exit 2
    fi
fi
if command -v rustup >/dev/null 2>&1; then
    for component in rustfmt clippy; do
        rustup component list --installed 2>/dev/null | grep -q "^$component" || rustup component add "$component"
    done
fi

say "cargo fmt"
cargo fmt --all --check

say "cargo clippy"
cargo clippy --workspace --all-targets --locked -- -D warnings

say "cargo doc"
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet

say "cargo test --doc"
cargo test --workspace --doc --locked --quiet

if command -v python3 >/dev/null 2>&1 && [ -d python/tests ]; then
    say "python3 -m unittest (the probe)"
    (cd python && python3 -m unittest discover -s tests -q)
fi

# Last, so that the runner's own summary is what the output ends with.
if command -v cargo-nextest >/dev/null 2>&1; then
    say "cargo nextest run"
    exec cargo nextest run --workspace --locked --no-fail-fast
else
    say "cargo test"
    exec cargo test --workspace --lib --bins --tests --examples --locked --no-fail-fast
fi
