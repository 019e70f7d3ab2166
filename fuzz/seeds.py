#!/usr/bin/env python3
"""Inputs for the fuzz targets to begin with, made of the tests' own samples: fuzz/seeds.py fuzz/corpus"""
import json
import pathlib
import struct
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = pathlib.Path(sys.argv[1])


def write(target, name, data):
    folder = OUT / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)


def lines(path):
    return (ROOT / path).read_text().splitlines()


def packed(value):
    """MessagePack, of what KV events are made of."""
    if value is None:
        return b"\xc0"
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return b"\xcf" + struct.pack(">Q", value)
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, str):
        return b"\xd9" + bytes([len(value)]) + value.encode()
    return b"\xdc" + struct.pack(">H", len(value)) + b"".join(map(packed, value))


for i, line in enumerate(lines("crates/core/data/models.jsonl")):
    row = json.loads(line)
    config = row.get("config", row)
    config = config if isinstance(config, str) else json.dumps(config)
    if i % 4 == 0 and len(config) < 6000:
        write("config_json", f"model{i}", config)
for i, line in enumerate(lines("crates/core/tests/golden/quantized_variants.jsonl")):
    row = json.loads(line)
    text = json.dumps({**row["config"], "quantization_config": row["quantization_config"]})
    if i % 5 == 0 and len(text) < 6000:
        write("config_json", f"quantized{i}", text)
for i, line in enumerate(lines("crates/core/tests/golden/quantized_settings.jsonl")):
    text = json.dumps(json.loads(line).get("config", {}))
    if 2 < len(text) < 6000:
        write("config_json", f"settings{i}", text)

for path in (ROOT / "crates/kvwise/tests/data/verify").glob("*.log"):
    write("engine_log", path.name, path.read_bytes()[:20000])
write("prometheus_text", "vllm", (ROOT / "crates/io/testdata/vllm_0.32.0_metrics.txt").read_bytes()[:20000])
write("gguf_header", "tiny", (ROOT / "crates/io/tests/data/tiny-llama.gguf").read_bytes()[:20000])
write("gpus_file", "one", "".join(f"{line}\n" for line in lines("crates/core/data/gpus.toml")[:60]))
header = json.dumps({"a": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, "__metadata__": {"k": "v"}})
write("safetensors_header", "one", struct.pack("<Q", len(header)) + header.encode() + bytes(12))
stored = ["BlockStored", [1, 2], None, list(range(32)), 16, None, "GPU"]
write("kv_events", "stored", packed([1.5, [stored, ["BlockRemoved", [1], "GPU"], ["AllBlocksCleared"]], 0]))
write(
    "plan_profile",
    "one",
    "version: 1\nmodel: meta-llama/Llama-3.1-8B\ngpu: h100\ntensor_parallel: 2\nmax_model_len: 8k\nkv_cache_dtype: fp8\n",
)
for i, words in enumerate(["--model a --tensor-parallel-size 2 -tp=4 --max-model-len 8k", "8b layers=32 kv_heads=8 head_dim=128"]):
    write("words", f"words{i}", words)
trace = '{"timestamp": 0, "input_length": 100, "output_length": 5, "hash_ids": [0, 1, 2]}\n'
write("trace_json", "line", trace)
samples = {
    0: trace,
    1: trace,
    2: '{"timestamp": 1.5, "tokens": [1, 2, 3], "output_length": 4}\n',
    3: '{"chat_id": 1, "parent_chat_id": -1, "timestamp": 0.1, "input_length": 9, "output_length": 2, "type": "text", "turn": 1, "hash_ids": [1]}\n',
    4: "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n",
    5: "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,Conversation log\n",
    6: '{"id": "a", "requests": [{"t": 0.0, "in": 10, "out": 2, "hash_ids": [1]}]}\n',
}
for form, text in samples.items():
    write("trace_lines", f"form{form}", bytes([form, 0]) + text.encode())
record = '{"k":"step","t":1000,"n":1,"tokens":5}\n'
write("probe_records", "one", b"\x01" + record.encode())
