#!/usr/bin/env python3
"""Records a real llama.cpp server by its metrics and checks the figures against its own answers.

    KVWISE_LLAMACPP_URL=http://127.0.0.1:8555 python3 tests/e2e/llamacpp_attach.py [--kvwise target/release/kvwise]

Needs a running `llama-server --metrics` that nobody else uses. Prompts are lists of token ids that begin alike; the server says of
each answer how many prompt tokens it computed and how many it took from its cache, and the recording must say the same.
"""

import argparse
import concurrent.futures
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request


def answer(url, prompt, count):
    body = json.dumps({"prompt": prompt, "n_predict": count, "cache_prompt": True, "temperature": 0, "ignore_eos": True})
    request = urllib.request.Request(url + "/completion", body.encode(), {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request, timeout=300))["timings"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kvwise", default="kvwise")
    parser.add_argument("--requests", type=int, default=24)
    arguments = parser.parse_args()
    url = os.environ.get("KVWISE_LLAMACPP_URL")
    if not url:
        raise SystemExit("KVWISE_LLAMACPP_URL: set it to the address of a llama-server with --metrics")
    rng = random.Random(3)
    shared = [rng.randrange(250) for _ in range(200)]
    jobs = [(shared[: rng.randrange(50, 200)] + [rng.randrange(250) for _ in range(rng.randrange(10, 100))], rng.randrange(8, 64))
            for _ in range(arguments.requests)]
    with tempfile.TemporaryDirectory() as folder:
        recording = os.path.join(folder, "recording")
        attach = subprocess.Popen([arguments.kvwise, "attach", url, "--interval", "0.2s", "-q", "-o", recording])
        time.sleep(2)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            timings = list(pool.map(lambda job: answer(url, *job), jobs))
        time.sleep(2)
        attach.send_signal(signal.SIGINT)
        attach.wait(60)
        watched = subprocess.run([arguments.kvwise, "watch", url, "--once"], stdout=subprocess.PIPE)
        report = json.loads(subprocess.run([arguments.kvwise, "report", recording, "--format", "json"], check=True,
                                           stdout=subprocess.PIPE).stdout)
        subprocess.run([arguments.kvwise, "report", recording], check=True)
    engine = report["engines"][0]
    cached, computed = (sum(t[name] for t in timings) for name in ("cache_n", "prompt_n"))
    failed = 0
    for what, ours, theirs in (
        ("engine", engine["engine"], "llamacpp"),
        ("prompt tokens looked up", engine["prefix_query_tokens"], cached + computed),
        ("prompt tokens found", round(engine["prefix_hit_rate"] * engine["prefix_query_tokens"]), cached),
        ("generated tokens", round(engine["generation_tokens_per_s"] * engine["duration_s"]), sum(t["predicted_n"] for t in timings)),
        ("most requests running", engine["running_requests"]["max"] > 0, True),
        ("watch --once", watched.returncode, 0),
    ):
        failed += ours != theirs
        print("%-7s %-28s %12s %12s" % ("ok" if ours == theirs else "FAILED", what, ours, theirs))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
