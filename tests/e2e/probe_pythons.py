#!/usr/bin/env python3
"""Runs the probe's tests under every Python named: `python3 tests/e2e/probe_pythons.py PYTHON... FOLDER...`.

PYTHON is an interpreter (`python3.9`, `~/.pyenv/versions/3.12.1/bin/python`): it runs all of `python/tests`. FOLDER holds the
npm package `pyodide`, CPython compiled to WebAssembly, for interpreters that are not at hand (`npm install pyodide@314.0.7` is
CPython 3.14; needs `node`): it runs `python/tests/wasm.py`, the tests that need neither threads nor processes, and the
stand-in engine under the probe. Without arguments: every `python3.N` on PATH.
"""

import json
import os
import shutil
import subprocess
import sys

ROOT = os.path.abspath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))


def native(python):
    version = subprocess.run([python, "-c", "import sys; print('%d.%d.%d' % sys.version_info[:3])"], stdout=subprocess.PIPE, check=True)
    done = subprocess.run([python, "-m", "unittest", "discover", "python/tests"], cwd=ROOT, stderr=subprocess.PIPE)
    lines = done.stderr.decode().strip().splitlines()
    ran = [line for line in lines if line.startswith("Ran ")]
    return version.stdout.decode().strip(), done.returncode == 0, ran[0] if ran else lines[-1]


def wasm(folder):
    if os.path.isdir(os.path.join(folder, "node_modules", "pyodide")):
        folder = os.path.join(folder, "node_modules", "pyodide")
    command = ["node", os.path.join(ROOT, "tests", "e2e", "pyodide.mjs"), os.path.abspath(folder), ROOT, "python/tests/wasm.py"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    lines = [line for line in done.stdout.decode().splitlines() if line.startswith("{")]
    if not lines:
        return "?", False, (done.stderr.decode().strip().splitlines() or ["no output"])[-1][:300]
    found = json.loads(lines[-1])
    text = "Ran %d tests and the stand-in engine (%d blocks) in WebAssembly" % (found["ran"], found["allocated"])
    return found["python"], not found["failed"], "; ".join([text] + found["failed"])


def main():
    named = sys.argv[1:] or [p for p in map(shutil.which, ("python3.%d" % minor for minor in range(9, 15))) if p]
    failed = 0
    for one in named:
        version, good, text = wasm(one) if os.path.isdir(one) else native(one)
        failed += not good
        print("%-8s %-6s %s" % (version, "ok" if good else "FAILED", text), flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
