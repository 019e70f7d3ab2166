#!/usr/bin/env python3
"""Puts every generated command before vLLM 0.32.0's own argument parser.

    cargo build --release && python tests/reference/vllm_generate.py target/release/kvwise

in an environment with vLLM 0.32.0 (the CPU build does). For every model of the built-in catalogue on several GPUs and with
several settings, `kvwise generate` writes its scripts, a shell runs them with a stand-in for `vllm` and `docker` that shows
the words it was given, and the parser reads those words. Exits 1 if it refuses one.
"""
import contextlib
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile

SETTINGS = [
    ["--gpu", "h100", "--max-model-len", "auto"],
    ["--gpu", "h200", "--tp", "8", "--kv-cache-dtype", "fp8", "--max-num-seqs", "64"],
    ["--gpu", "b200", "--tp", "4", "--max-model-len", "auto", "--max-num-batched-tokens", "16k", "--enable-expert-parallel"],
    ["--gpu", "l40s", "--tp", "2", "--max-model-len", "8k", "--enforce-eager", "--no-enable-prefix-caching"],
    ["--gpu", "a100-80gb", "--tp", "8", "--dtype", "bf16", "--gpu-memory-utilization", "0.9", "--max-model-len", "auto"],
]
STAND_IN = "#!/bin/sh\nfor word in \"$@\"; do printf '%s\\0' \"$word\"; done\n"


def parser():
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    return make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))


def words(script, environment):
    out = subprocess.run(["/bin/sh", script], env=environment, capture_output=True, check=True).stdout
    return [word.decode() for word in out.split(b"\0")[:-1]]


def main():
    kvwise = sys.argv[1]
    own = parser()
    listed = json.loads(subprocess.run([kvwise, "models", "--format", "json"], capture_output=True, check=True).stdout)
    ids = [model["id"] for model in listed["models"]]
    accepted, refused, unfit = 0, [], 0
    with tempfile.TemporaryDirectory() as root:
        root = pathlib.Path(root)
        for name in ("vllm", "docker"):
            (root / name).write_text(STAND_IN)
            (root / name).chmod(0o755)
        environment = {"PATH": f"{root}:/usr/bin:/bin", "HOME": str(root)}
        for model in ids:
            for settings in SETTINGS:
                folder = root / "out"
                run = subprocess.run(
                    [kvwise, "-q", "generate", model, *settings, "--output-dir", folder, "--force", "--emit", "command,docker"],
                    capture_output=True, text=True, env=dict(os.environ, KVWISE_FORMAT="json"),
                )
                if run.returncode != 0:
                    unfit += 1
                    continue
                bare = words(folder / "serve_command.sh", environment)
                contained = words(folder / "docker_command.sh", environment)
                at = contained.index("serve")
                for given in (bare[1:], contained[at + 1 :]):
                    said = io.StringIO()
                    try:
                        with contextlib.redirect_stderr(said):
                            read = own.parse_args(given)
                        if (read.model_tag or read.model) != model:
                            refused.append((given, f"the model is read as {read.model_tag}"))
                        accepted += 1
                    except SystemExit:
                        refused.append((given, said.getvalue().strip().splitlines()[-1]))
    for given, why in refused:
        print("refused:", given, why)
    print(f"{len(ids)} models x {len(SETTINGS)} settings: {accepted} commands accepted, {len(refused)} refused, {unfit} not generated")
    return 1 if refused or accepted == 0 else 0


sys.exit(main())
