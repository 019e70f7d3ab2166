"""Start llama.cpp on small files with many settings and compare what it logs with `kvwise verify`.

    KVWISE_LLAMACPP_PYTHON=/path/to/python tests/e2e/llamacpp_verify.py [--kvwise target/release/kvwise]

The Python needs `xllamacpp` (llama-server's own code in a wheel; tested with 2026.10.11549, which is llama.cpp b11549), `gguf` and
`numpy`. The files hold zeros: their shapes decide every size. Caches, cells and recurrent states must be equal to the byte.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[2]

MAKE = r"""
import sys, numpy as np, gguf
folder = sys.argv[1]

def vocabulary(w):
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    names = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(rest)}
    tokens = [names[b] for b in range(256)] + ["ab", "<|end|>", "<|start|>"]
    types = [gguf.TokenType.NORMAL] * 257 + [gguf.TokenType.CONTROL] * 2
    w.add_tokenizer_model("gpt2"); w.add_tokenizer_pre("default"); w.add_token_list(tokens)
    w.add_token_types(types); w.add_token_merges(["a b"]); w.add_eos_token_id(257); w.add_bos_token_id(258)
    return len(tokens)

def make(arch, layers, hidden=256, heads=8, kv=4, head=None, context=8192, window=None):
    w = gguf.GGUFWriter(f"{folder}/{arch}.gguf", arch)
    w.add_context_length(context); w.add_embedding_length(hidden); w.add_block_count(layers)
    w.add_layer_norm_rms_eps(1e-5)
    rows = vocabulary(w)
    def zeros(name, *shape, wide=False):
        w.add_tensor(name, np.zeros(shape, np.float32 if wide else np.float16))
    zeros("token_embd.weight", rows, hidden); zeros("output_norm.weight", hidden, wide=True)
    if arch == "mamba":
        inner, state, conv, rank = hidden * 2, 16, 4, hidden // 16
        w.add_feed_forward_length(0); w.add_head_count(0); w.add_ssm_conv_kernel(conv)
        w.add_ssm_inner_size(inner); w.add_ssm_state_size(state); w.add_ssm_time_step_rank(rank)
        for i in range(layers):
            p = f"blk.{i}."
            zeros(p + "attn_norm.weight", hidden, wide=True); zeros(p + "ssm_in.weight", 2 * inner, hidden)
            zeros(p + "ssm_conv1d.weight", inner, conv, wide=True); zeros(p + "ssm_conv1d.bias", inner, wide=True)
            zeros(p + "ssm_x.weight", rank + 2 * state, inner); zeros(p + "ssm_dt.weight", inner, rank)
            zeros(p + "ssm_dt.bias", inner, wide=True); zeros(p + "ssm_a", inner, state, wide=True)
            zeros(p + "ssm_d", inner, wide=True); zeros(p + "ssm_out.weight", hidden, inner)
    else:
        head = head or hidden // heads
        w.add_feed_forward_length(hidden * 2); w.add_head_count(heads); w.add_head_count_kv(kv)
        w.add_key_length(head); w.add_value_length(head); w.add_rope_freq_base(10000.0)
        if window:
            w.add_sliding_window(window)
        for i in range(layers):
            p = f"blk.{i}."
            zeros(p + "attn_norm.weight", hidden, wide=True); zeros(p + "ffn_norm.weight", hidden, wide=True)
            zeros(p + "attn_q.weight", heads * head, hidden); zeros(p + "attn_k.weight", kv * head, hidden)
            zeros(p + "attn_v.weight", kv * head, hidden); zeros(p + "attn_output.weight", hidden, heads * head)
            if arch in ("qwen3", "gemma3"):
                zeros(p + "attn_q_norm.weight", head, wide=True); zeros(p + "attn_k_norm.weight", head, wide=True)
            if arch.startswith("gemma"):
                zeros(p + "post_attention_norm.weight", hidden, wide=True)
                zeros(p + "post_ffw_norm.weight", hidden, wide=True)
            zeros(p + "ffn_gate.weight", hidden * 2, hidden); zeros(p + "ffn_up.weight", hidden * 2, hidden)
            zeros(p + "ffn_down.weight", hidden, hidden * 2)
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()

make("llama", 4)
make("qwen3", 5, head=64, kv=2)
make("gemma2", 6, head=64, window=1024)
make("gemma3", 26, hidden=1152, heads=4, kv=1, head=256, context=32768, window=512)
make("mamba", 6)
"""

START = r"""
import json, os, sys, xllamacpp as x
p = x.CommonParams()
p.model.path = sys.argv[1]
p.hostnames, p.port, p.n_gpu_layers, p.warmup, p.verbosity = ["127.0.0.1"], 20000 + os.getpid() % 9000, 0, False, 4
p.cpuparams.n_threads = 1
for name, value in json.loads(sys.argv[2]).items():
    setattr(p, name, getattr(getattr(x, value[0]), value[1]) if isinstance(value, list) else value)
server = x.Server(p)
print("started", flush=True)
os._exit(0)
"""


def kind(name: str) -> list[str]:
    return ["ggml_type", f"GGML_TYPE_{name}"]


SETTINGS = [
    {"n_parallel": 1},
    {"n_ctx": 512, "n_parallel": 1},
    {"n_ctx": 1000, "n_parallel": 3},
    {"n_ctx": 5000, "n_parallel": 4},
    {"n_ctx": 8192, "n_parallel": 4, "kv_unified": True},
    {"n_ctx": 2500, "n_parallel": 5, "kv_unified": True, "n_ubatch": 256},
    {"n_ctx": 4096, "n_parallel": 1, "cache_type_k": kind("Q8_0"), "cache_type_v": kind("Q8_0")},
    {"n_ctx": 4096, "n_parallel": 1, "cache_type_k": kind("Q4_0"), "cache_type_v": kind("F16")},
    {"n_ctx": 4096, "n_parallel": 1, "cache_type_k": kind("BF16"), "cache_type_v": kind("Q5_1")},
    {
        "n_ctx": 4096,
        "n_parallel": 1,
        "flash_attn_type": ["llama_flash_attn_type", "LLAMA_FLASH_ATTN_TYPE_DISABLED"],
    },
    {"n_ctx": 3000, "n_parallel": 2, "swa_full": True},
    {"n_ctx": 8192, "n_parallel": 2, "n_ubatch": 64},
    {"n_ctx": 8192, "n_parallel": 1, "n_ubatch": 1024, "n_batch": 1024},
]


def start(python: str, model: pathlib.Path, settings: dict) -> bytes:
    """What llama.cpp prints when it starts; a start that hangs (its port may be taken) is tried again."""
    words = [python, "-c", START, str(model), json.dumps(settings)]
    printed = b""
    for _ in range(3):
        try:
            printed = subprocess.run(
                words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=30, check=False
            ).stdout
        except subprocess.TimeoutExpired as hung:
            printed = hung.stdout or b""
            continue
        if b"started" in printed:
            return printed
    sys.exit(f"{model.stem} {settings}: llama.cpp did not start:\n{printed.decode()[-2000:]}")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--kvwise", default=str(ROOT / "target/release/kvwise"))
    kvwise = arguments.parse_args().kvwise
    python = os.environ.get("KVWISE_LLAMACPP_PYTHON")
    if not python:
        print("KVWISE_LLAMACPP_PYTHON names no Python with xllamacpp: nothing was compared")
        return
    different = starts = 0
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, "-c", MAKE, folder], check=True)
        for model in sorted(pathlib.Path(folder).glob("*.gguf")):
            for settings in SETTINGS:
                log = start(python, model, settings)
                words = [kvwise, "verify", "--log", "-", str(model), "--gpu", "rtx-4090", "--format", "json"]
                answer = subprocess.run(words, input=log, capture_output=True, check=False)
                starts += 1
                terms = json.loads(answer.stdout)["terms"] if answer.stdout else []
                wrong = [term for term in terms if term["status"] != "equal"]
                if not terms or wrong:
                    different += 1
                    print(f"{model.stem} {settings}: {wrong or answer.stderr.decode()}")
    print(f"{starts} starts of llama.cpp, {different} differ")
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
