#!/usr/bin/env python3
"""Builds packaging/Dockerfile without Docker's daemon, and runs what comes out.

    python3 tests/e2e/dockerfile.py [--static target/static/kvwise] [--base FOLDER]

Needs root, and Debian's `buildah` and `debootstrap`, whose mirror it uses. The image that the Dockerfile starts from is replaced
by a minimal Debian 12 of `debootstrap` under the same name (`--base` names one that is there already); everything else is the
Dockerfile's own text, read by buildah. With `--static` (a binary of packaging/static.sh) the base holds stand-ins of `cargo` and
`rustup`, and the one of `cargo` puts that binary where a build would; without, it gets this machine's toolchain, and the
program is compiled inside. Then the image's files must be the binary and the licences, nothing else, its entry point must be the
binary, and the binary must answer in a root that holds only the image.
"""
import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "packaging" / "Dockerfile"
BUILDAH = ["buildah", "--storage-driver", "vfs"]
# What `cargo build` leaves, for packaging/static.sh.
CARGO = """#!/bin/sh
set -eu
[ "$1" = build ] || exit 64
folder="${CARGO_TARGET_DIR:-target}/$(uname -m)-unknown-linux-musl/release"
mkdir -p "$folder"
cp /usr/local/share/kvwise-static "$folder/kvwise"
"""
RUSTUP = """#!/bin/sh
echo "$(uname -m)-unknown-linux-musl"
"""


def run(*words, **options):
    return subprocess.run([str(word) for word in words], check=True, text=True, **options)


def said(*words):
    return run(*words, stdout=subprocess.PIPE).stdout.strip()


def start_image():
    """The image that the first stage starts from."""
    return re.search(r"^FROM (\S+) AS build$", DOCKERFILE.read_text(), re.MULTILINE).group(1)


def base(folder, given, static):
    """A root filesystem that stands in for the start image."""
    if given:
        run("cp", "-a", given, folder)
    else:
        run("debootstrap", "--variant=minbase", "--include=binutils", "bookworm", folder, stdout=subprocess.DEVNULL)
    # The mirror as this machine reaches it.
    for name in ("sources.list", "sources.list.d", "apt.conf.d", "trusted.gpg.d", "keyrings"):
        source = pathlib.Path("/etc/apt") / name
        target = folder / "etc/apt" / name
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        elif source.exists():
            shutil.copy(source, target)
    local = folder / "usr/local"
    if static:
        shutil.copy(static, local / "share/kvwise-static")
        for name, text in (("cargo", CARGO), ("rustup", RUSTUP)):
            (local / "bin" / name).write_text(text)
            (local / "bin" / name).chmod(0o755)
    else:
        toolchain = said("rustc", "--print", "sysroot")
        run("cp", "-a", toolchain, local / "toolchain")
        for name in ("cargo", "rustc"):
            (local / "bin" / name).symlink_to(local / "toolchain/bin" / name)
        (local / "bin/rustup").write_text(RUSTUP)
        (local / "bin/rustup").chmod(0o755)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--static", type=pathlib.Path, help="a binary of packaging/static.sh, instead of compiling")
    parser.add_argument("--base", type=pathlib.Path, help="folder of a minimal Debian 12")
    arguments = parser.parse_args()
    for program in ("buildah", "debootstrap"):
        if not shutil.which(program):
            sys.exit(f"{program} is not there: apt-get install {program}")
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        BUILDAH.extend(["--root", str(scratch / "storage"), "--runroot", str(scratch / "run")])
        base(scratch / "base", arguments.base, arguments.static)
        container = said(*BUILDAH, "from", "scratch")
        run(*BUILDAH, "add", "--quiet", container, scratch / "base", "/", stdout=subprocess.DEVNULL)
        run(*BUILDAH, "config", "--env", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", container)
        run(*BUILDAH, "commit", "--quiet", "--rm", container, "docker.io/library/" + start_image(), stdout=subprocess.DEVNULL)
        shutil.rmtree(scratch / "base")
        # The build sees what Docker would send: a copy, so that nothing is written here.
        run(
            *BUILDAH, "bud", "--isolation", "chroot", "--pull-never", "--layers=false",
            "--ignorefile", ROOT / ".dockerignore", "-f", DOCKERFILE, "-t", "kvwise", ROOT, stdin=subprocess.DEVNULL,
        )
        made = said(*BUILDAH, "from", "--pull-never", "localhost/kvwise")
        config = json.loads(said(*BUILDAH, "inspect", made))["OCIv1"]["config"]
        assert config["Entrypoint"] == ["/usr/bin/kvwise"], config
        files = pathlib.Path(said(*BUILDAH, "mount", made))
        held = sorted(str(path.relative_to(files)) for path in files.rglob("*") if not path.is_dir())
        expected = ["usr/bin/kvwise", "usr/share/doc/kvwise/LICENSE-APACHE", "usr/share/doc/kvwise/LICENSE-MIT"]
        # Files that every container gets for its own network.
        held = [path for path in held if not path.startswith(("dev/", "etc/", "proc/", "sys/", "run/"))]
        assert held == expected, held
        answer = said("chroot", files, *config["Entrypoint"], "plan", "meta-llama/Llama-3.1-8B", "--gpu", "h100", "--format", "json")
        plan = json.loads(answer)
        assert plan["feasibility"]["fits"], plan
        version = said("chroot", files, *config["Entrypoint"], "--version")
        size = (files / "usr/bin/kvwise").stat().st_size
        run(*BUILDAH, "umount", made, stdout=subprocess.DEVNULL)
    print(f"the image holds {version}, {size / 2**20:.1f} MiB, and answers")


main()
