#!/bin/sh
# Makes a static binary that runs on every Linux of this architecture: packaging/static.sh [FOLDER] [CARGO FLAGS...]
#
#   packaging/static.sh target/static --release
#   packaging/deb.sh target/static/kvwise target/debian        # a package that depends on nothing
#   python3 packaging/wheel.py target/static/kvwise target/wheels
#
# Needs rustup's target for musl (installed if it is missing) and musl-gcc (Debian: musl-tools) for SQLite and zstd.
set -eu
cd "$(dirname "$0")/.."
folder="${1:-target/static}"
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- --release
target="$(uname -m)-unknown-linux-musl"
command -v musl-gcc >/dev/null 2>&1 || { echo "error: musl-gcc is not there; install musl-tools" >&2; exit 2; }
rustup target list --installed | grep -qx "$target" || rustup target add "$target"
variable=$(echo "$target" | tr - _)
export "CC_$variable=musl-gcc"
cargo build --locked --target "$target" -p kvwise "$@"
# The newest of the profiles that may have been built.
built=$(ls -t "${CARGO_TARGET_DIR:-target}/$target"/*/kvwise | head -1)
mkdir -p "$folder"
install -m 0755 "$built" "$folder/kvwise"
if ldd "$folder/kvwise" >/dev/null 2>&1 && ! ldd "$folder/kvwise" 2>&1 | grep -q "statically linked"; then
    echo "error: $folder/kvwise is not static" >&2
    exit 1
fi
"$folder/kvwise" plan llama-3.1-8b --gpu h100 --format json >/dev/null
echo "$folder/kvwise"
