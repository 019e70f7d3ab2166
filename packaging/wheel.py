#!/usr/bin/env python3
"""Makes a Python wheel that carries the program: packaging/wheel.py [BINARY] [FOLDER]

    cargo build --release && python3 packaging/wheel.py target/release/kvwise target/wheels
    pip install target/wheels/kvwise-*.whl

Needs nothing but Python's standard library. The wheel holds the binary as a script, so `pip install` puts it on the PATH, and a
module so that `python -m kvwise` works as well. The same binary gives the same bytes.
"""
import base64
import hashlib
import os
import pathlib
import platform
import re
import subprocess
import sys
import zipfile

MODULE = '''"""The kvwise program, carried by a wheel: `python -m kvwise` runs it."""
'''
MAIN = '''"""Runs the program that lies beside this Python's other scripts."""
import os
import shutil
import sys
import sysconfig


def main():
    beside = os.path.join(sysconfig.get_path("scripts"), "kvwise")
    program = beside if os.path.exists(beside) else shutil.which("kvwise")
    if program is None:
        sys.exit("kvwise: the program of this wheel is not there; install it again")
    os.execv(program, [program, *sys.argv[1:]])


main()
'''


def tag(binary):
    """The platform that the binary needs, from the newest version of the C library that it names."""
    machine = platform.machine()
    versions = re.findall(rb"GLIBC_(\d+)\.(\d+)", binary.read_bytes())
    if not versions:
        # A static binary runs on every Linux.
        return f"manylinux_2_17_{machine}.musllinux_1_1_{machine}"
    major, minor = max((int(a), int(b)) for a, b in versions)
    return f"manylinux_{major}_{max(minor, 17)}_{machine}"


def main():
    root = pathlib.Path(__file__).resolve().parent.parent
    binary = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else root / "target/release/kvwise")
    folder = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else root / "target/wheels")
    if not binary.is_file():
        sys.exit(f"error: {binary} is not there; run cargo build --release")
    version = subprocess.run([binary.resolve(), "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    platforms = tag(binary)
    name = f"kvwise-{version}"
    info = f"{name}.dist-info"
    files = {
        "kvwise/__init__.py": (MODULE.encode(), 0o644),
        "kvwise/__main__.py": (MAIN.encode(), 0o644),
        f"{name}.data/scripts/kvwise": (binary.read_bytes(), 0o755),
        f"{info}/METADATA": (
            (
                f"Metadata-Version: 2.1\nName: kvwise\nVersion: {version}\n"
                "Summary: Where your GPU memory goes when serving LLMs, and what to do about it\n"
                "License: Apache-2.0 OR MIT\nRequires-Python: >=3.8\n"
            ).encode(),
            0o644,
        ),
        f"{info}/WHEEL": (
            ("Wheel-Version: 1.0\nGenerator: kvwise packaging/wheel.py\nRoot-Is-Purelib: false\n"
             + "".join(f"Tag: py3-none-{p}\n" for p in platforms.split("."))).encode(),
            0o644,
        ),
        f"{info}/licenses/LICENSE-APACHE": ((root / "LICENSE-APACHE").read_bytes(), 0o644),
        f"{info}/licenses/LICENSE-MIT": ((root / "LICENSE-MIT").read_bytes(), 0o644),
    }
    record = []
    for path, (data, _) in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record.append(f"{path},sha256={digest},{len(data)}\n")
    record.append(f"{info}/RECORD,,\n")
    files[f"{info}/RECORD"] = ("".join(record).encode(), 0o644)
    os.makedirs(folder, exist_ok=True)
    wheel = folder / f"{name}-py3-none-{platforms}.whl"
    temporary = wheel.with_suffix(".tmp")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, (data, mode) in files.items():
            entry = zipfile.ZipInfo(path, (2020, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o100000 | mode) << 16
            archive.writestr(entry, data)
    os.replace(temporary, wheel)
    print(wheel)


main()
