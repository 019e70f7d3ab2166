#!/usr/bin/env python3
"""Packages a built program, and installs, runs and removes what comes out.

    python3 tests/e2e/packages.py BINARY [--root FOLDER] [--python PYTHON]...

The Debian package is put before `lintian` (no tag at all), and with `--root` (a minimal Debian of `debootstrap`, changed by this)
installed there, run, and removed without a trace. The wheel is installed in a new virtual environment of each Python given, run as
`kvwise` and as `python -m kvwise`, and removed. The manual pages are put before `mandoc -T lint`. bash, zsh and fish load the
completions and complete a flag as a user would press Tab. Needs lintian, mandoc, bash, zsh and fish.
"""
import argparse
import os
import pathlib
import pty
import select
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]


def said(*words, **options):
    done = subprocess.run([str(word) for word in words], text=True, capture_output=True, **options)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, words))}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def debian(binary, folder, root):
    package = pathlib.Path(said(ROOT / "packaging/deb.sh", binary, folder).strip())
    tags = [line for line in said("lintian", "--fail-on", "none", package).splitlines() if line[1:3] == ": "]
    # A static binary is what packaging/static.sh is for.
    tags = [tag for tag in tags if "statically-linked-binary" not in tag]
    assert not tags, tags
    print(f"{package.name}: lintian says nothing")
    if not root:
        return
    (root / "kvwise.deb").write_bytes(package.read_bytes())
    try:
        said("chroot", root, "dpkg", "-i", "/kvwise.deb")
        files = said("chroot", root, "dpkg", "-L", "kvwise").split()
        assert "/usr/bin/kvwise" in files and "/usr/share/man/man1/kvwise-plan.1.gz" in files, files
        assert '"fits": true' in said("chroot", root, "kvwise", "plan", "llama-3.1-8b", "--gpu", "h100", "--format", "json")
    finally:
        said("chroot", root, "dpkg", "--purge", "kvwise")
        (root / "kvwise.deb").unlink()
    left = [name for name in files if "kvwise" in name and (root / name[1:]).exists()]
    assert not left, left
    print(f"{package.name}: installed, run and removed; {len(files)} files and folders")


def wheel(binary, folder, pythons):
    made = pathlib.Path(said(sys.executable, ROOT / "packaging/wheel.py", binary, folder).strip())
    for python in pythons:
        environment = folder / ("venv" + python.replace("/", "_"))
        said(python, "-m", "venv", environment)
        inside = environment / "bin/python"
        said(inside, "-m", "pip", "install", "--quiet", "--no-index", "--disable-pip-version-check", made)
        direct = said(environment / "bin/kvwise", "--version")
        assert direct == said(inside, "-m", "kvwise", "--version"), direct
        said(inside, "-m", "pip", "uninstall", "--quiet", "--yes", "--disable-pip-version-check", "kvwise")
        assert not (environment / "bin/kvwise").exists()
        print(f"{made.name}: installed, run and removed with {said(inside, '--version').strip()}")


def pages(binary, folder):
    said(binary, "man", "--output-dir", folder)
    files = sorted(folder.glob("*.1"))
    # mandoc ends with 2 for a warning, 3 and more for errors.
    lint = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", *files], text=True, capture_output=True)
    assert lint.returncode == 0, lint.stdout + lint.stderr
    print(f"{len(files)} manual pages: mandoc warns of nothing")


def typed(words, environment, keys, until, seconds=60):
    """What a shell on a terminal shows after the keys, as soon as it shows `until`."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(words[0], words, environment)
    shown = b""
    try:
        for line in keys:
            os.write(terminal, line.encode())
            time.sleep(0.5)
        end = time.time() + seconds
        while time.time() < end and until not in shown:
            if select.select([terminal], [], [], 1)[0]:
                shown += os.read(terminal, 65536)
    except OSError:
        pass
    finally:
        os.close(terminal)
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    return shown


def completions(binary, folder):
    for shell, name in (("bash", "kvwise"), ("zsh", "_kvwise"), ("fish", "kvwise.fish")):
        (folder / name).write_text(said(binary, "completions", shell))
    environment = dict(os.environ, PATH=f"{binary.parent}:{os.environ['PATH']}", HOME=str(folder), TERM="dumb", PS1="$ ")
    fish = said("fish", "-c", f"source {folder}/kvwise.fish; complete -C 'kvwise plan --gpu-memory-'", env=environment)
    assert fish.startswith("--gpu-memory-utilization"), fish
    # Only the completed word holds the rest of the flag: it is never typed.
    for words, load in (
        (["bash", "--norc", "-i"], f". {folder}/kvwise\n"),
        (["zsh", "-f", "-i"], f"fpath=({folder} $fpath); autoload -U compinit; compinit -u -D\n"),
    ):
        shown = typed(words, environment, [load, "kvwise plan --gpu-memory-u\t"], b"memory-utilization")
        assert b"memory-utilization" in shown, (words, shown)
        shown = typed(words, environment, [load, "kvwise compl\t"], b"completions")
        assert b"completions" in shown, (words, shown)
    print("bash, zsh and fish complete flags and commands")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary", type=lambda path: pathlib.Path(path).resolve())
    parser.add_argument("--root", type=pathlib.Path)
    parser.add_argument("--python", action="append", default=[])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for name in ("deb", "wheels", "man", "shells"):
            (folder / name).mkdir()
        pages(arguments.binary, folder / "man")
        completions(arguments.binary, folder / "shells")
        debian(arguments.binary, folder / "deb", arguments.root)
        wheel(arguments.binary, folder / "wheels", arguments.python)


main()
