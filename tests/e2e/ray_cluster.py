#!/usr/bin/env python3
"""Runs generated scripts for two machines under the real Ray, in two network namespaces of this machine.

    PATH=/path/to/venv-with-ray/bin:$PATH python3 tests/e2e/ray_cluster.py [--kvwise target/release/kvwise]

Needs root, iproute2 and Ray on the PATH (tested: `pip install ray`, 2.60.0; no GPU: the scripts say how many there are). Each
namespace is a machine with an address of its own; nothing leaves them. The same `serve_command.sh` runs in both, as a user would
start it: NODE_RANK 1 must join the cluster of NODE_RANK 0, whichever starts first. A stand-in named `vllm` on the head asks Ray what vLLM asks
it for (0.32.0, `v1/executor/ray_utils.py`): one GPU for each of all ranks, placed over both machines. Then the words of
`docker_command.sh` after the image are run by a stand-in of `docker` in the same way, and must make a cluster of two, too. Ends
every process it started.
"""
import argparse
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HEAD, WORKER = "kvwise-ray-0", "kvwise-ray-1"
ADDRESS = {HEAD: "10.199.7.1", WORKER: "10.199.7.2"}
GENERATE = [
    "generate", "meta-llama/Llama-3.1-405B", "--gpu", "h100", "--tp", "8", "--pp", "2", "--max-model-len", "16k",
    "--distributed-executor-backend", "ray", "--image", "a/b:1", "--offline", "--emit", "command,docker",
]
# Waits for both machines and says what they have; places a bundle of one GPU for every rank where there are GPUs.
VLLM = """
import json, sys, time
import ray
from ray.util.placement_group import placement_group
words = sys.argv[1:]
assert words[0] == "serve" and words[words.index("--distributed-executor-backend") + 1] == "ray", words
ranks = int(words[words.index("--tensor-parallel-size") + 1]) * int(words[words.index("--pipeline-parallel-size") + 1])
ray.init(address="auto", log_to_driver=False, logging_level="error")
until = time.time() + 120
while sum(node["Alive"] for node in ray.nodes()) < 2:
    assert time.time() < until, ray.nodes()
    time.sleep(1)
resources = ray.cluster_resources()
placed = None
if resources.get("GPU"):
    group = placement_group([{"GPU": 1}] * ranks, strategy="PACK")
    ray.get(group.ready(), timeout=120)
    table = ray.util.placement_group_table(group)
    placed = sorted(list(table["bundles_to_node_id"].values()).count(node) for node in set(table["bundles_to_node_id"].values()))
addresses = sorted(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"])
print("JOINED " + json.dumps({"addresses": addresses, "gpus": resources.get("GPU", 0), "placed": placed}), flush=True)
"""
DOCKER = """#!/bin/sh
# Runs the words after the image with the entry point.
while [ "$1" != a/b:1 ]; do
  [ "$1" = --entrypoint ] && entry=$2
  shift
done
shift
exec "$entry" "$@"
"""


def run(*words):
    subprocess.run([str(word) for word in words], check=True)


def namespaces():
    for name in (HEAD, WORKER):
        run("ip", "netns", "add", name)
        run("ip", "-n", name, "link", "set", "lo", "up")
    run("ip", "link", "add", "kvwr0", "netns", HEAD, "type", "veth", "peer", "name", "kvwr1", "netns", WORKER)
    for name, link in ((HEAD, "kvwr0"), (WORKER, "kvwr1")):
        run("ip", "-n", name, "address", "add", ADDRESS[name] + "/24", "dev", link)
        run("ip", "-n", name, "link", "set", link, "up")
        # Ray asks the kernel which of its addresses leads outside.
        run("ip", "-n", name, "route", "add", "default", "via", ADDRESS[WORKER if name == HEAD else HEAD])


def start(name, script, root, log):
    """A machine's script; every machine has a folder of its own for Ray's sockets, whose names must be short."""
    folder = root / name[-1]
    folder.mkdir(exist_ok=True)
    environ = dict(
        os.environ, PATH=f"{root / 'bin'}:{os.environ['PATH']}", NODE_RANK=name[-1], HEAD_ADDRESS=ADDRESS[HEAD], HOME=str(folder),
        RAY_TMPDIR=str(folder), RAY_USAGE_STATS_ENABLED="0", RAY_DEFAULT_OBJECT_STORE_MEMORY_PROPORTION="0.01",
    )
    return subprocess.Popen(["ip", "netns", "exec", name, "sh", script], env=environ, stdout=log, stderr=log, start_new_session=True)


def inside(name):
    """Processes of a namespace."""
    listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout
    return [int(pid) for pid in listed.split()]


def end_all():
    for name in (WORKER, HEAD):
        for pid in inside(name):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
    time.sleep(1)


def cluster(script, root, first):
    """What the head's stand-in says when both machines run the script."""
    logs = {name: open(root / f"{name}.log", "w+b") for name in (HEAD, WORKER)}
    order = [first, WORKER if first == HEAD else HEAD]
    running = {}
    try:
        for name in order:
            running[name] = start(name, script, root, logs[name])
            time.sleep(8 if name == first else 0)
        status = running[HEAD].wait(300)
        logs[HEAD].seek(0)
        said = logs[HEAD].read().decode()
        joined = [line for line in said.splitlines() if line.startswith("JOINED ")]
        if status != 0 or not joined:
            logs[WORKER].seek(0)
            sys.exit(f"the head ended with {status}:\n{said}\nthe other machine:\n{logs[WORKER].read().decode()}")
        assert running[WORKER].poll() is None, "the other machine's script ended"
        return joined[0].removeprefix("JOINED ")
    finally:
        end_all()
        for process in running.values():
            process.wait()
        for log in logs.values():
            log.close()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kvwise", default="target/release/kvwise")
    arguments = parser.parse_args()
    if not shutil.which("ray"):
        sys.exit("ray is not on the PATH: pip install ray into a virtual environment")
    python = pathlib.Path(shutil.which("ray")).parent / "python3"
    root = pathlib.Path(tempfile.mkdtemp(prefix="kr"))
    try:
        (root / "bin").mkdir()
        (root / "vllm.py").write_text(VLLM)
        (root / "bin/vllm").write_text(f'#!/bin/sh\nexec {python} {root}/vllm.py "$@"\n')
        (root / "bin/docker").write_text(DOCKER)
        for name in ("vllm", "docker"):
            (root / "bin" / name).chmod(0o755)
        run(arguments.kvwise, "-q", *GENERATE, "--format", "table", "--output-dir", root / "out")
        namespaces()
        addresses = f'"addresses": ["{ADDRESS[HEAD]}", "{ADDRESS[WORKER]}"]'
        for first in (HEAD, WORKER):
            said = cluster(root / "out/serve_command.sh", root, first)
            assert addresses in said and '"gpus": 16.0, "placed": [8, 8]' in said, said
            print(f"serve_command.sh, machine {first[-1]} first: {said}")
        said = cluster(root / "out/docker_command.sh", root, HEAD)
        assert addresses in said, said
        print(f"docker_command.sh: {said}")
    finally:
        for name in (HEAD, WORKER):
            subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL)
        shutil.rmtree(root, ignore_errors=True)


main()
