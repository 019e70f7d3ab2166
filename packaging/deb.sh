#!/bin/sh
# Makes a Debian package of a built program: packaging/deb.sh [BINARY] [FOLDER]
#
#   cargo build --release && packaging/deb.sh target/release/kvwise target/debian
#
# Needs dpkg-deb and gzip. Man pages and completions are written by the program itself.
set -eu
cd "$(dirname "$0")/.."
binary="${1:-target/release/kvwise}"
folder="${2:-target/debian}"
[ -x "$binary" ] || { echo "error: $binary is not there; run cargo build --release" >&2; exit 2; }
version=$("$binary" --version | cut -d' ' -f2)
architecture=$(dpkg --print-architecture)
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 0755 "$root"
install -D -m 0755 "$binary" "$root/usr/bin/kvwise"
for pair in bash:usr/share/bash-completion/completions/kvwise zsh:usr/share/zsh/vendor-completions/_kvwise fish:usr/share/fish/vendor_completions.d/kvwise.fish; do
    file="$root/${pair#*:}"
    mkdir -p "$(dirname "$file")"
    "$binary" completions "${pair%%:*}" > "$file"
    chmod 0644 "$file"
done
mkdir -p "$root/usr/share/man/man1"
"$binary" man --output-dir "$root/usr/share/man/man1" >/dev/null
chmod 0644 "$root"/usr/share/man/man1/*.1
gzip -9n "$root"/usr/share/man/man1/*.1
install -D -m 0644 LICENSE-MIT "$root/usr/share/doc/kvwise/copyright"
printf '\n' >> "$root/usr/share/doc/kvwise/copyright"
cat LICENSE-APACHE >> "$root/usr/share/doc/kvwise/copyright"
# The C library's version is the only thing that the binary needs, and nothing at all if it is static.
depends=""
if ldd "$binary" 2>/dev/null | grep -q libc.so; then
    newest=$(objdump -T "$binary" 2>/dev/null | grep -o 'GLIBC_[0-9.]*' | sed 's/GLIBC_//' | sort -V | tail -1)
    depends="Depends: libc6${newest:+ (>= $newest)}, libgcc-s1
"
fi
mkdir -p "$root/DEBIAN" "$folder"
size=$(du -sk "$root" | cut -f1)
cat > "$root/DEBIAN/control" <<CONTROL
Package: kvwise
Version: $version
Architecture: $architecture
Maintainer: The kvwise developers <kvwise@localhost>
Section: utils
Priority: optional
Installed-Size: $size
${depends}Description: plans the GPU memory of serving language models
 Weights, memory budget and KV cache by the engines' own rules; simulation,
 recommendation, profiling and the files that start a server.
CONTROL
package="$folder/kvwise_${version}_${architecture}.deb"
dpkg-deb --root-owner-group --build "$root" "$package" >/dev/null
echo "$package"
