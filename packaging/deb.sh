#!/bin/sh
# Makes a Debian package of a built program: packaging/deb.sh [BINARY] [FOLDER]
#
#   cargo build --release && packaging/deb.sh target/release/kvwise target/debian
#
# Needs dpkg-deb, gzip and strip. Man pages and completions are written by the program itself. The same binary and
# SOURCE_DATE_EPOCH (else the time of the last commit) give the same package. tests/e2e/packages.py puts it before lintian.
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
strip --strip-unneeded "$root/usr/bin/kvwise"
export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}"
maintainer="The kvwise developers <noreply@kvwise.invalid>"
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
documents="$root/usr/share/doc/kvwise"
mkdir -p "$documents"
# Debian has the Apache license's text in its own place; the MIT license's differs by its first line.
{
    cat <<COPYRIGHT
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: kvwise

Files: *
Copyright: $(sed -n 's/^Copyright (c) //p' LICENSE-MIT)
License: Apache-2.0 or MIT

License: Apache-2.0
 The full text is in /usr/share/common-licenses/Apache-2.0.

License: MIT
COPYRIGHT
    sed -e '1,/^Copyright/d' LICENSE-MIT | sed -e '/./,$!d' -e 's/^$/./' -e 's/^/ /'
} > "$documents/copyright"
cat > "$documents/changelog" <<CHANGELOG
kvwise ($version) unstable; urgency=low

  * See CHANGELOG.md of the sources.

 -- $maintainer  $(date -u -R -d "@$SOURCE_DATE_EPOCH")
CHANGELOG
chmod 0644 "$documents/copyright" "$documents/changelog"
gzip -9n "$documents/changelog"
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
Maintainer: $maintainer
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
