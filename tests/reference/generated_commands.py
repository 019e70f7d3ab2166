#!/usr/bin/env python3
"""Puts every generated command before the engine's own argument parser.

    cargo build --release && python tests/reference/generated_commands.py vllm target/release/kvwise

in an environment with vLLM 0.32.0 (the CPU build does), or `sglang` in one with SGLang 0.5.23, or `llamacpp` in one with
xllamacpp 2026.10.11549. For every model of the built-in catalogue and several settings, `kvwise generate` writes its scripts, a
shell runs them with stand-ins that show the words they were given, and the parser reads those words. Exits 1 if it refuses
one, or if a command could not be made for another reason than that it does not fit.
"""
import collections
import contextlib
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile

SETTINGS = {
    "vllm": [
        ["--gpu", "h100", "--max-model-len", "auto"],
        ["--gpu", "h200", "--tp", "8", "--kv-cache-dtype", "fp8", "--max-num-seqs", "64"],
        ["--gpu", "b200", "--tp", "4", "--max-model-len", "auto", "--max-num-batched-tokens", "16k", "--enable-expert-parallel"],
        ["--gpu", "l40s", "--tp", "2", "--max-model-len", "8k", "--enforce-eager", "--no-enable-prefix-caching"],
        ["--gpu", "a100-80gb", "--tp", "8", "--dtype", "bf16", "--gpu-memory-utilization", "0.9", "--max-model-len", "auto"],
        ["--gpu", "h100", "--tp", "8", "--pp", "2", "--max-model-len", "auto"],
        ["--gpu", "h200", "--tp", "8", "--pp", "2", "--max-model-len", "auto", "--distributed-executor-backend", "ray", "--image", "a/b:1"],
    ],
    "sglang": [
        ["--gpu", "h100"],
        ["--gpu", "h200", "--tp", "8", "--kv-cache-dtype", "fp8", "--max-running-requests", "64"],
        ["--gpu", "b200", "--tp", "8", "--dp", "2", "--enable-expert-parallel", "--mem-fraction-static", "0.85"],
        ["--gpu", "l40s", "--tp", "2", "--max-model-len", "8k", "--enforce-eager", "--no-enable-prefix-caching"],
        ["--gpu", "h100", "--tp", "8", "--pp", "2", "--max-model-len", "16k"],
        ["--gpu", "h200", "--tp", "8", "--speculative-algorithm", "NGRAM", "--speculative-num-draft-tokens", "4"],
        [
            "--gpu", "h200", "--tp", "8", "--speculative-algorithm", "STANDALONE", "--speculative-draft-model-path", "Qwen/Qwen3-0.6B",
            "--speculative-num-steps", "3", "--speculative-eagle-topk", "1", "--speculative-num-draft-tokens", "4",
        ],
    ],
    "llamacpp": [
        ["--gpu", "rtx-4090", "--context", "4k"],
        ["--gpu", "h100", "--context", "8k", "-c", "16", "--cache-type-k", "q8_0", "--cache-type-v", "q8_0", "--ubatch-size", "4096"],
        ["--gpu", "l40s", "--gpus", "2", "--context", "16k", "-c", "4", "--kv-unified", "--tensor-split", "3,1", "--swa-full"],
        ["--gpu", "t4", "--context", "4k", "--n-gpu-layers", "10", "--no-kv-offload", "--no-flash-attn", "--quantization", "q8_0"],
    ],
}
STAND_IN = "#!/bin/sh\nfor word in \"$@\"; do printf '%s\\0' \"$word\"; done\n"
# The words of a container before those of the engine end with its program.
PROGRAM = {"vllm": ["serve"], "sglang": ["-m", "sglang.launch_server"], "llamacpp": []}


class Refused(Exception):
    pass


def argparse_reader(parser, model_of):
    def read(words):
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                return model_of(parser.parse_args(words))
        except SystemExit:
            raise Refused(said.getvalue().strip().splitlines()[-1])

    return read


def reader(engine):
    """A function from words to the model that the engine reads from them."""
    if engine == "vllm":
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        made = make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
        return argparse_reader(made, lambda read: read.model_tag or read.model)
    if engine == "sglang":
        import argparse

        from sglang.srt.server_args import ServerArgs

        made = argparse.ArgumentParser()
        ServerArgs.add_cli_args(made)
        return argparse_reader(made, lambda read: read.model_path)
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import llamacpp_parser

    def read(words):
        params = llamacpp_parser.parse(words)
        if params is None:
            raise Refused("see above")
        return params.model.hf_repo

    return read


def words(script, environment):
    out = subprocess.run(["/bin/sh", script], env=environment, capture_output=True, check=True).stdout
    return [word.decode() for word in out.split(b"\0")[:-1]]


def after(given, program):
    """The words after the program, which stand after the image in a container's command."""
    for at in range(len(given) - len(program) + 1):
        if given[at : at + len(program)] == program:
            return given[at + len(program) :]
    raise SystemExit(f"no {program} in {given}")


def main():
    engine, kvwise = sys.argv[1:3]
    read = reader(engine)
    listed = json.loads(subprocess.run([kvwise, "models", "--format", "json"], capture_output=True, check=True).stdout)
    ids = [model["id"] for model in listed["models"]]
    accepted, refused, unfit, unplanned, errors = 0, [], 0, collections.Counter(), []
    with tempfile.TemporaryDirectory() as root:
        root = pathlib.Path(root)
        for name in ("vllm", "docker", "python3", "llama-server"):
            (root / name).write_text(STAND_IN)
            (root / name).chmod(0o755)
        # Ray's own commands say nothing here.
        (root / "ray").write_text("#!/bin/sh\n")
        (root / "ray").chmod(0o755)
        environment = {"PATH": f"{root}:/usr/bin:/bin", "HOME": str(root), "HEAD_ADDRESS": "10.0.0.1"}
        folder = root / "out"
        for model in ids:
            for settings in SETTINGS[engine]:
                repo = f"{model}-GGUF:Q4_K_M" if engine == "llamacpp" else model
                own = ["--hf-repo", repo] if engine == "llamacpp" else []
                run = subprocess.run(
                    [kvwise, "-q", "generate", model, "--offline", "--engine", engine, *own, *settings, "--output-dir", folder,
                     "--force", "--emit", "command,docker"],
                    capture_output=True, text=True, env=dict(os.environ, KVWISE_FORMAT="json"),
                )
                if run.returncode == 1:
                    unfit += 1
                    continue
                if run.returncode != 0:
                    why = run.stderr.strip().splitlines()[0]
                    # What the planner does not know of an engine is said, and no mistake of a command.
                    if any(said in why for said in ("is not planned", "is not known", "not supported")):
                        unplanned[why] += 1
                    else:
                        errors.append((model, settings, why))
                    continue
                # Under Ray only the head starts the engine; without it every machine does.
                environment["NODE_RANK"] = "0" if "ray" in settings else "1"
                bare = words(folder / "serve_command.sh", environment)
                contained = words(folder / "docker_command.sh", environment)
                image = next(i for i, w in enumerate(contained) if w == "--entrypoint") + 3
                for given in (after(bare, PROGRAM[engine]), after(contained[image:], PROGRAM[engine])):
                    try:
                        model_read = read(given)
                        if model_read != repo:
                            refused.append((given, f"the model is read as {model_read}"))
                        accepted += 1
                    except Refused as why:
                        refused.append((given, why))
    for given, why in refused:
        print("refused:", given, why)
    for (why, settings), count in collections.Counter((why, tuple(s)) for _, s, why in errors).most_common():
        print(f"error, {count} times with {' '.join(settings)}:", why)
    for why, count in unplanned.most_common():
        print(f"not planned, {count} times:", why)
    print(
        f"{engine}: {len(ids)} models x {len(SETTINGS[engine])} settings: {accepted} commands accepted, {len(refused)} refused, "
        f"{unfit} do not fit, {sum(unplanned.values())} not planned, {len(errors)} errors"
    )
    return 1 if refused or errors or accepted == 0 else 0


sys.exit(main())
