#!/usr/bin/env python3
"""GGUF files of more architectures, of real widths and few layers, and the starts to try with them (llamacpp_gpus.py).

    python llamacpp_graphs.py FOLDER [NAME...] > CASES          needs gguf and numpy; the files are sparse: tensors are holes
    python llamacpp_graphs.py FOLDER --rows < ANSWERS > ROWS    answers as rows of tests/data/llamacpp_graphs.jsonl

Sizes are those of published models (their config.json); which tensors a file holds is what llama.cpp's loader asks for
(b11434, src/models/*.cpp).
"""
import json
import os
import pathlib
import sys

import gguf
import numpy as np

Q = gguf.GGMLQuantizationType


def write(path: str, arch: str, metadata: dict, tensors: list) -> None:
    """A file with these keys (without the architecture's prefix) and tensors (name, type, dimensions innermost first)."""
    w = gguf.GGUFWriter(path, arch)
    w.add_tokenizer_model("none")
    for key, value in metadata.items():
        name = f"{arch}.{key}"
        if isinstance(value, bool):
            w.add_bool(name, value)
        elif isinstance(value, int):
            w.add_uint32(name, value)
        elif isinstance(value, float):
            w.add_float32(name, value)
        else:
            w.add_array(name, value)
    for name, kind, shape in tensors:
        block, size = gguf.GGML_QUANT_SIZES[Q[kind]]
        count = int(np.prod(shape)) // block * size
        dims = tuple(reversed(shape))
        if kind in ("F32", "F16"):
            w.add_tensor_info(name, dims, np.dtype(np.float32 if kind == "F32" else np.float16), count)
        else:
            w.add_tensor_info(name, (*dims[:-1], dims[-1] // block * size), np.dtype(np.uint8), count, raw_dtype=Q[kind])
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_ti_data_to_file()
    w.flush()
    f = w.fout[0]
    f.flush()
    at = f.tell()
    f.close()
    total = sum(-(-t.nbytes // 32) * 32 for t in w.tensors[0].values())
    os.truncate(path, -(-at // 32) * 32 + total)


def kind(shape: list, dense: str = "Q4_K") -> str:
    """The type that a mix gives: 32 bits for vectors, blocks of 256 where rows are whole ones."""
    if len([n for n in shape if n > 1]) < 2:
        return "F32"
    return dense if shape[0] % 256 == 0 or dense in ("F16", "F32") else "Q8_0" if shape[0] % 32 == 0 else "F16"


class File:
    """Tensors by the names that llama.cpp gives them."""

    def __init__(self, arch, layers, E, V, tied=False, norm="output_norm", dense="Q4_K", bias_norms=False, **metadata):
        self.arch, self.layers, self.E, self.V, self.dense, self.bias_norms = arch, layers, E, V, dense, bias_norms
        self.metadata = {"vocab_size": V, "context_length": 131072, "embedding_length": E, "block_count": layers,
                         "attention.layer_norm_rms_epsilon": 1e-5, "attention.layer_norm_epsilon": 1e-5,
                         "rope.freq_base": 10000.0, **metadata}
        self.tensors = []
        self.t("token_embd.weight", E, V)
        self.t(norm + ".weight", E)
        if bias_norms:
            self.t(norm + ".bias", E)
        if not tied:
            self.tensors.append(("output.weight", "Q6_K" if E % 256 == 0 else "Q8_0", [E, V]))

    def t(self, name, *shape, wide=False):
        self.tensors.append((name, "F32" if wide else kind(list(shape), self.dense), list(shape)))

    def l(self, i, name, *shape, wide=False):
        self.t(f"blk.{i}.{name}", *shape, wide=wide)

    def norms(self, i, *names):
        for name in names:
            self.l(i, name + ".weight", self.E)
            if self.bias_norms:
                self.l(i, name + ".bias", self.E)

    def attention(self, i, H, KV, D, bias=False, out_bias=False, norms=None, gate=1, rope=None):
        for n, heads in (("q", H * gate), ("k", KV), ("v", KV)):
            self.l(i, f"attn_{n}.weight", self.E, heads * D)
            if bias:
                self.l(i, f"attn_{n}.bias", heads * D)
        self.l(i, "attn_output.weight", H * D, self.E)
        if out_bias:
            self.l(i, "attn_output.bias", self.E)
        if norms == "head":
            self.l(i, "attn_q_norm.weight", D)
            self.l(i, "attn_k_norm.weight", D)
        elif norms == "row":
            self.l(i, "attn_q_norm.weight", H * D)
            self.l(i, "attn_k_norm.weight", KV * D)

    def ffn(self, i, F, suffix="", gate=True, bias=False, double=False):
        if gate:
            self.l(i, f"ffn_gate{suffix}.weight", self.E, F)
        self.l(i, f"ffn_up{suffix}.weight", self.E, F * (2 if double else 1))
        self.l(i, f"ffn_down{suffix}.weight", F, self.E)
        if bias:
            self.l(i, f"ffn_up{suffix}.bias", F)
            self.l(i, f"ffn_down{suffix}.bias", self.E)

    def experts(self, i, n, F, gate=True, probs=False, shared=0, shared_gate=False, width=None):
        width = width or self.E
        self.l(i, "ffn_gate_inp.weight", self.E, n, wide=True)
        if probs:
            self.l(i, "exp_probs_b.bias", n)
        if gate:
            self.l(i, "ffn_gate_exps.weight", width, F, n)
        self.l(i, "ffn_up_exps.weight", width, F, n)
        self.l(i, "ffn_down_exps.weight", F, width, n)
        if shared_gate:
            self.l(i, "ffn_gate_inp_shexp.weight", self.E)
        if shared:
            self.ffn(i, shared, "_shexp", gate=gate)

    def mamba2(self, i, inner, state, heads, groups, conv=4, norm=True):
        wide = inner + 2 * groups * state
        self.l(i, "ssm_in.weight", self.E, inner + wide + heads)
        self.l(i, "ssm_conv1d.weight", conv, wide, wide=True)
        self.l(i, "ssm_conv1d.bias", wide)
        self.l(i, "ssm_dt.bias", heads)
        self.l(i, "ssm_a", 1, heads, wide=True)
        self.l(i, "ssm_d", 1, heads, wide=True)
        if norm:
            self.l(i, "ssm_norm.weight", inner // groups, groups, wide=True)
        self.l(i, "ssm_out.weight", inner, self.E)

    def mamba1(self, i, inner, state, rank, conv=4, norms=False):
        self.l(i, "ssm_in.weight", self.E, 2 * inner)
        self.l(i, "ssm_conv1d.weight", conv, inner, wide=True)
        self.l(i, "ssm_conv1d.bias", inner)
        self.l(i, "ssm_x.weight", inner, rank + 2 * state)
        if norms:
            for n, size in (("dt", rank), ("b", state), ("c", state)):
                self.l(i, f"ssm_{n}_norm.weight", size)
        self.l(i, "ssm_dt.weight", rank, inner)
        self.l(i, "ssm_dt.bias", inner)
        self.l(i, "ssm_a", state, inner, wide=True)
        self.l(i, "ssm_d", inner)
        self.l(i, "ssm_out.weight", inner, self.E)


def ssm(inner, state, rank, groups=None, conv=4):
    out = {"ssm.inner_size": inner, "ssm.state_size": state, "ssm.time_step_rank": rank, "ssm.conv_kernel": conv}
    return out if groups is None else {**out, "ssm.group_count": groups}


def heads(H, KV, D=None):
    out = {"attention.head_count": H, "attention.head_count_kv": KV}
    return out if D is None else {**out, "attention.key_length": D, "attention.value_length": D, "rope.dimension_count": D}


def moe(n, used, F, **more):
    return {"expert_count": n, "expert_used_count": used, "expert_feed_forward_length": F, **more}


def deepseek2(layers, E, H, F, n, used, Fx, shared, V, q_lora=0, absorbed=True, dense=1, probs=False, groups=None, **more):
    key, rope, nope, v, lora = 192, 64, 128, 128, 512
    sizes = {"attention.head_count": H, "attention.head_count_kv": 1 if absorbed else H, "attention.q_lora_rank": q_lora,
             "attention.kv_lora_rank": lora, "rope.dimension_count": rope, "feed_forward_length": F,
             "leading_dense_block_count": dense, "expert_shared_count": shared,
             "attention.key_length": lora + rope if absorbed else key, "attention.value_length": lora if absorbed else v}
    if absorbed:
        sizes |= {"attention.key_length_mla": key, "attention.value_length_mla": v}
    if groups:
        sizes |= {"expert_group_count": groups[0], "expert_group_used_count": groups[1]}
    f = File("deepseek2", layers, E, V, **sizes, **moe(n, used, Fx), **more)
    for i in range(layers):
        f.norms(i, "attn_norm", "ffn_norm")
        f.l(i, "attn_kv_a_norm.weight", lora)
        if q_lora:
            f.l(i, "attn_q_a_norm.weight", q_lora)
            f.l(i, "attn_q_a.weight", E, q_lora)
            f.l(i, "attn_q_b.weight", q_lora, H * key)
        else:
            f.l(i, "attn_q.weight", E, H * key)
        f.l(i, "attn_kv_a_mqa.weight", E, lora + rope)
        if absorbed:
            f.l(i, "attn_k_b.weight", nope, lora, H)
            f.l(i, "attn_v_b.weight", lora, v, H)
        else:
            f.l(i, "attn_kv_b.weight", lora, H * (nope + v))
        f.l(i, "attn_output.weight", H * v, E)
        if i < dense:
            f.ffn(i, F)
        else:
            f.experts(i, n, Fx, probs=probs, shared=Fx * shared)
    return f


def glm4moe(layers, E, H, F, n, Fx, V, norms):
    f = File("glm4moe", layers, E, V, **heads(H, 8, 128), **moe(n, 8, Fx), feed_forward_length=F, leading_dense_block_count=1,
             expert_shared_count=1, expert_weights_norm=True, expert_weights_scale=1.0, expert_gating_func=2, nextn_predict_layers=1)
    for i in range(layers):
        f.norms(i, "attn_norm", "post_attention_norm")
        f.attention(i, H, 8, 128, bias=True, norms=norms)
        if i < 1:
            f.ffn(i, F)
        else:
            f.experts(i, n, Fx, probs=True, shared=Fx)
    f.l(layers - 1, "nextn.eh_proj.weight", 2 * E, E)
    f.norms(layers - 1, "nextn.enorm", "nextn.hnorm", "nextn.shared_head_norm")
    f.l(layers - 1, "nextn.embed_tokens.weight", E, V)
    f.l(layers - 1, "nextn.shared_head_head.weight", E, V)
    return f


def llama4(layers, n, step, V=202048):
    E, H, KV, D, F, Fx = 5120, 40, 8, 128, 16384, 8192
    f = File("llama4", layers, E, V, **heads(H, KV, D), **moe(n, 1, Fx), feed_forward_length=F, interleave_moe_layer_step=step)
    f.t("rope_freqs.weight", D // 2)
    for i in range(layers):
        f.norms(i, "attn_norm", "ffn_norm")
        f.attention(i, H, KV, D)
        if (i + 1) % step == 0:
            f.experts(i, n, Fx, shared=Fx)
        else:
            f.ffn(i, F)
    return f


def qwen3next(layers, arch, E, H, KV, rank, groups, n=0, used=0, Fx=0, F=0, V=151936, sections=None, tied=False):
    state, D = 128, 256
    inner, wide = state * rank, state * (rank + 2 * groups)
    more = {"rope.dimension_sections": sections} if sections else {}
    f = File(arch, layers, E, V, tied=tied, **{**heads(H, KV, D), "rope.dimension_count": 64}, **(moe(n, used, Fx, expert_shared_feed_forward_length=Fx) if n else {}),
             feed_forward_length=F, **ssm(inner, state, rank, groups), full_attention_interval=4, **more)
    for i in range(layers):
        f.norms(i, "attn_norm", "post_attention_norm")
        if (i + 1) % 4 == 0:
            f.attention(i, H, KV, D, norms="head", gate=2)
        else:
            f.l(i, "attn_qkv.weight", E, wide)
            f.l(i, "attn_gate.weight", E, inner)
            f.l(i, "ssm_conv1d.weight", 4, wide, wide=True)
            f.l(i, "ssm_dt.bias", rank)
            f.l(i, "ssm_a", rank)
            if arch == "qwen3next":
                f.l(i, "ssm_ba.weight", E, 2 * rank)
            else:
                f.l(i, "ssm_beta.weight", E, rank)
                f.l(i, "ssm_alpha.weight", E, rank)
            f.l(i, "ssm_norm.weight", state)
            f.l(i, "ssm_out.weight", inner, E)
        if n:
            f.experts(i, n, Fx, shared=Fx, shared_gate=True)
        else:
            f.ffn(i, F)
    return f


def gemma3n(layers, E=2048, F=16384, V=262400):
    H, KV, D, P, A = 8, 2, 256, 256, 4
    f = File("gemma3n", layers, E, V, tied=True, **heads(H, KV, D), feed_forward_length=F,
             **{"attention.sliding_window": 512, "attention.shared_kv_layers": 15, "altup.num_inputs": A, "altup.active_idx": 0,
                "embedding_length_per_layer_input": P, "rope.freq_base_swa": 10000.0})
    f.t("per_layer_token_embd.weight", P * layers, V)
    f.t("per_layer_model_proj.weight", E, P * layers)
    f.t("per_layer_proj_norm.weight", P)
    f.tensors += [("altup_proj.weight", "F16", [E, E, A - 1]), ("altup_unembd_proj.weight", "F16", [E, E, A - 1])]
    for i in range(layers):
        f.norms(i, "attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm", "post_norm", "altup_correct_scale",
                "altup_router_norm", "laurel_post_norm")
        f.attention(i, H, KV, D, norms="head")
        f.ffn(i, F)
        f.l(i, "inp_gate.weight", E, P, wide=True)
        f.l(i, "proj.weight", P, E, wide=True)
        f.l(i, "altup_correct_coef.weight", A, A, wide=True)
        f.l(i, "altup_predict_coef.weight", A, A * A, wide=True)
        f.l(i, "altup_router.weight", E, A, wide=True)
        f.l(i, "laurel_l.weight", E, 64)
        f.l(i, "laurel_r.weight", 64, E)
    return f


def gemma4(layers, E, H, KV, F, window, P=0, shared=0, n=0, Fx=0, V=262144, kv_full=None, no_values=False):
    D, S = 512, 256
    slides = [(i + 1) % 6 != 0 for i in range(layers)]
    kv = [KV if s else kv_full or KV for s in slides]
    more = moe(n, 8, Fx) if n else {}
    f = File("gemma4", layers, E, V, tied=True, feed_forward_length=F, **more,
             **{"attention.head_count": H, "attention.head_count_kv": kv, "attention.key_length": D, "attention.value_length": D,
                "attention.key_length_swa": S, "attention.value_length_swa": S, "rope.dimension_count": D, "rope.dimension_count_swa": S,
                "attention.sliding_window": window, "attention.sliding_window_pattern": slides, "attention.shared_kv_layers": shared,
                "embedding_length_per_layer_input": P, "rope.freq_base_swa": 10000.0, "final_logit_softcapping": 30.0})
    f.t("rope_freqs.weight", D // 2)
    if P:
        f.t("per_layer_token_embd.weight", P * layers, V)
        f.t("per_layer_model_proj.weight", E, P * layers)
        f.t("per_layer_proj_norm.weight", P)
    for i in range(layers):
        d = S if slides[i] else D
        f.norms(i, "attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
        f.l(i, "attn_q.weight", E, H * d)
        f.l(i, "attn_q_norm.weight", d)
        if i < layers - shared:
            f.l(i, "attn_k.weight", E, kv[i] * d)
            if slides[i] or not no_values:
                f.l(i, "attn_v.weight", E, kv[i] * d)
            f.l(i, "attn_k_norm.weight", d)
        f.l(i, "attn_output.weight", H * d, E)
        f.l(i, "layer_output_scale.weight", 1)
        f.ffn(i, F)
        if n:
            f.l(i, "ffn_gate_inp.weight", E, n, wide=True)
            f.l(i, "ffn_gate_inp.scale", E)
            f.norms(i, "pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2")
            f.l(i, "ffn_gate_up_exps.weight", E, 2 * Fx, n)
            f.l(i, "ffn_down_exps.weight", Fx, E, n)
            f.l(i, "ffn_down_exps.scale", n)
        if P:
            f.l(i, "inp_gate.weight", E, P, wide=True)
            f.l(i, "proj.weight", P, E, wide=True)
            f.norms(i, "post_norm")
    return f


GRANITE = dict(logit_scale=16.0, residual_scale=0.22, embedding_scale=12.0, **{"attention.scale": 0.0078125})


def granite(arch, layers, E, H, KV, F, V, n=0, used=0):
    f = File(arch, layers, E, V, tied=True, **heads(H, KV), feed_forward_length=F, **GRANITE, **(moe(n, used, F) if n else {}))
    for i in range(layers):
        f.norms(i, "attn_norm", "ffn_norm")
        f.attention(i, H, KV, E // H)
        f.experts(i, n, F) if n else f.ffn(i, F)
    return f


def granitehybrid(layers, E, H, KV, F, rank, n=0, used=0, shared=0, V=100352):
    at = [(i + 1) % 3 == 0 for i in range(layers)]
    f = File("granitehybrid", layers, E, V, tied=True, **GRANITE, **ssm(2 * E, 128, rank, 1), feed_forward_length=F,
             **{"attention.head_count": H, "attention.head_count_kv": [KV if a else 0 for a in at], "rope.scaling.finetuned": False},
             **({**moe(n, used, F), "expert_shared_feed_forward_length": shared} if n else {}))
    for i in range(layers):
        f.norms(i, "attn_norm", "ffn_norm")
        if at[i]:
            f.attention(i, H, KV, E // H)
        else:
            f.mamba2(i, 2 * E, 128, rank, 1)
        f.experts(i, n, F, shared=shared) if n else f.ffn(i, F)
    return f


def nemotron(arch, kinds, E, H, KV, F, rank, inner, groups=8, n=0, used=0, Fx=0, shared=0, V=131072):
    layers = len(kinds)
    f = File(arch, layers, E, V, **{"attention.head_count": [H if k == "*" else 0 for k in kinds], "attention.key_length": 128,
             "attention.value_length": 128, "attention.head_count_kv": [KV if k == "*" else 0 for k in kinds],
             "feed_forward_length": [F if k == "-" else 0 for k in kinds]}, **ssm(inner, 128, rank, groups),
             **({**moe(n, used, Fx), "expert_shared_feed_forward_length": shared, "expert_shared_count": 1, "expert_weights_norm": True,
                 "expert_weights_scale": 2.5} if n else {}))
    f.metadata["attention.head_count"] = H
    for i, k in enumerate(kinds):
        f.norms(i, "attn_norm")
        if k == "*":
            f.attention(i, H, KV, 128)
        elif k == "M":
            f.mamba2(i, inner, 128, rank, groups)
        elif n:
            f.experts(i, n, Fx, gate=False, probs=True, shared=shared)
        else:
            f.ffn(i, F, gate=False)
    return f


def lfm2(arch, layers, E, H, KV, F, V=65536, n=0, used=0, Fx=0, dense=0):
    at = [i % 3 == 2 for i in range(layers)]
    f = File(arch, layers, E, V, tied=True, norm="token_embd_norm", feed_forward_length=F,
             **{"attention.head_count": H, "attention.head_count_kv": [KV if a else 0 for a in at], "shortconv.l_cache": 3},
             **({**moe(n, used, Fx), "leading_dense_block_count": dense, "expert_gating_func": 2} if n else {}))
    for i in range(layers):
        f.norms(i, "attn_norm", "ffn_norm")
        if at[i]:
            f.attention(i, H, KV, E // H, norms="head")
        else:
            f.l(i, "shortconv.conv.weight", 3, E, wide=True)
            f.l(i, "shortconv.in_proj.weight", E, 3 * E)
            f.l(i, "shortconv.out_proj.weight", E, E)
        if n and i >= dense:
            f.experts(i, n, Fx, probs=True)
        else:
            f.ffn(i, F)
    return f


def mamba(arch, layers, E, V, rank, state, groups=None, rms=False):
    f = File(arch, layers, E, V, tied=True, feed_forward_length=0, **{"attention.head_count": 0, "ssm.dt_b_c_rms": rms}, **ssm(2 * E, state, rank, groups))
    for i in range(layers):
        f.norms(i, "attn_norm")
        if groups:
            f.mamba2(i, 2 * E, state, rank, groups)
        else:
            f.mamba1(i, 2 * E, state, rank)
    return f


def falcon_h1(layers, E, H, KV, F, inner, state, rank, groups=1, V=130048):
    f = File("falcon-h1", layers, E, V, **heads(H, KV, 128), feed_forward_length=F, **ssm(inner, state, rank, groups))
    for i in range(layers):
        f.norms(i, "attn_norm")
        f.l(i, "ffn_norm", E)
        f.mamba2(i, inner, state, rank, groups)
        f.attention(i, H, KV, 128)
        f.ffn(i, F)
    return f


def jamba(layers, E, H, KV, F, rank, n, V=65536):
    at = [i % 4 == 2 for i in range(layers)]
    f = File("jamba", layers, E, V, **{"attention.head_count": H, "attention.head_count_kv": [KV if a else 0 for a in at]},
             feed_forward_length=F, **ssm(2 * E, 16, rank), expert_count=n, expert_used_count=2)
    for i in range(layers):
        f.norms(i, "attn_norm", "ffn_norm")
        if at[i]:
            f.attention(i, H, KV, E // H)
        else:
            f.mamba1(i, 2 * E, 16, rank, norms=True)
        f.experts(i, n, F) if i % 2 else f.ffn(i, F)
    return f


def plain(arch, layers, E, H, KV, F, V, D=None, qk=None, bias=False, out_bias=False, before=("attn_norm", "ffn_norm"), gate=True,
          double=False, ffn_bias=False, n=0, used=0, Fx=0, shared=0, probs=False, dense=0, shared_gate=False, tied=False, bias_norms=False, rope=None, **more):
    d = D or E // H
    f = File(arch, layers, E, V, tied=tied, bias_norms=bias_norms, **{**heads(H, KV, d), "rope.dimension_count": rope or d}, feed_forward_length=F,
             **(moe(n, used, Fx) if n else {}), **({"leading_dense_block_count": dense} if dense else {}), **more)
    for i in range(layers):
        f.norms(i, *before)
        f.attention(i, H, KV, d, bias=bias, out_bias=out_bias, norms=qk)
        if n and i >= dense:
            f.experts(i, n, Fx, probs=probs, shared=shared, shared_gate=shared_gate)
        else:
            f.ffn(i, F, gate=gate, double=double, bias=ffn_bias)
    return f


POST = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
AFTER = ("post_attention_norm", "post_ffw_norm")
MODELS = dict(
    deepseek_v2_lite=lambda: deepseek2(4, 2048, 16, 10944, 64, 6, 1408, 2, 102400),
    deepseek_v2_lite_old=lambda: deepseek2(4, 2048, 16, 10944, 64, 6, 1408, 2, 102400, absorbed=False),
    deepseek_v3=lambda: deepseek2(3, 7168, 128, 18432, 256, 8, 2048, 1, 129280, q_lora=1536, probs=True, groups=(8, 4), expert_gating_func=2,
                                  expert_weights_norm=True, expert_weights_scale=2.5),
    kimi_k2=lambda: deepseek2(3, 7168, 64, 18432, 384, 8, 2048, 1, 163840, q_lora=1536, probs=True, expert_gating_func=2,
                              expert_weights_norm=True, expert_weights_scale=2.827),
    glm45_air=lambda: glm4moe(4, 4096, 96, 10944, 128, 1408, 151552, None),
    glm45=lambda: glm4moe(4, 5120, 96, 12288, 160, 1536, 151552, "head"),
    llama4_scout=lambda: llama4(5, 16, 1),
    llama4_maverick=lambda: llama4(5, 128, 2),
    qwen3next_80b=lambda: qwen3next(5, "qwen3next", 2048, 16, 2, 32, 16, n=512, used=10, Fx=512, F=5120),
    qwen35_27b=lambda: qwen3next(5, "qwen35", 5120, 24, 4, 48, 16, F=17408, V=248320, sections=[11, 11, 10, 0]),
    qwen35_35b=lambda: qwen3next(5, "qwen35moe", 2048, 16, 2, 32, 16, n=256, used=8, Fx=512, V=248320, sections=[11, 11, 10, 0]),
    gemma3n_e4b=lambda: gemma3n(23),
    gemma4_e4b=lambda: gemma4(8, 2560, 8, 2, 10240, 512, P=256, shared=2),
    gemma4_26b=lambda: gemma4(7, 2816, 16, 8, 2112, 1024, n=128, Fx=704, kv_full=2, no_values=True),
    gemma4_31b=lambda: gemma4(7, 5376, 32, 16, 21504, 1024, kv_full=4, no_values=True),
    granite33_8b=lambda: granite("granite", 4, 4096, 32, 8, 12800, 49159),
    granite31_3b_a800m=lambda: granite("granitemoe", 4, 1536, 24, 8, 512, 49155, n=40, used=8),
    granite4_small=lambda: granitehybrid(4, 4096, 32, 8, 768, 128, n=72, used=10, shared=1536),
    granite4_micro=lambda: granitehybrid(5, 2048, 32, 8, 8192, 64),
    nemotron_9b=lambda: nemotron("nemotron_h", "M-M*-M-", 4480, 40, 8, 15680, 128, 10240),
    nemotron_30b=lambda: nemotron("nemotron_h_moe", "M-M*-M-", 2688, 32, 2, 1856, 64, 4096, n=128, used=6, Fx=1856, shared=3712),
    lfm2_1b=lambda: lfm2("lfm2", 5, 2048, 32, 8, 8192),
    lfm2_8b=lambda: lfm2("lfm2moe", 6, 2048, 32, 8, 7168, n=32, used=4, Fx=1792, dense=2),
    mamba_2b=lambda: mamba("mamba", 4, 2560, 50280, 160, 16),
    falcon_mamba=lambda: mamba("mamba", 4, 4096, 65024, 256, 16, rms=True),
    mamba2_2b=lambda: mamba("mamba2", 4, 2560, 50288, 80, 128, groups=1),
    falcon_h1_7b=lambda: falcon_h1(4, 3072, 12, 2, 12288, 3072, 256, 24),
    jamba_mini=lambda: jamba(5, 4096, 32, 8, 14336, 256, 16),
    glm4_9b=lambda: plain("glm4", 4, 4096, 32, 2, 13696, 151552, D=128, bias=True, before=POST, gate=False, double=True, rope=64),
    minimax_m2=lambda: plain("minimax-m2", 3, 3072, 48, 8, 1536, 200064, D=128, qk="row", n=256, used=8, Fx=1536, probs=True, rope=64, expert_gating_func=2),
    olmo2_13b=lambda: plain("olmo2", 4, 5120, 40, 40, 13824, 100352, qk="row", before=AFTER),
    olmo3_7b=lambda: plain("olmo2", 5, 4096, 32, 32, 11008, 100278, qk="row", before=AFTER, **{"attention.sliding_window": 4096}),
    starcoder2_7b=lambda: plain("starcoder2", 4, 4608, 36, 4, 18432, 49152, bias=True, out_bias=True, gate=False, ffn_bias=True, bias_norms=True),
    command_r7b=lambda: plain("cohere2", 5, 4096, 32, 8, 14336, 256000, before=("attn_norm",), tied=True, logit_scale=0.25, **{"attention.sliding_window": 4096}),
    ernie45_21b=lambda: plain("ernie4_5-moe", 4, 2560, 20, 4, 12288, 103424, D=128, n=64, used=6, Fx=1536, shared=3072, probs=True, dense=1, tied=True,
                              expert_shared_feed_forward_length=3072, interleave_moe_layer_step=1),
    ernie45_03b=lambda: plain("ernie4_5", 4, 1024, 16, 2, 3072, 103424, D=128, tied=True),
    hunyuan_a13b=lambda: plain("hunyuan-moe", 4, 4096, 32, 8, 3072, 128167, D=128, qk="head", n=64, used=8, Fx=3072, shared=3072, tied=True,
                               expert_shared_feed_forward_length=3072),
    qwen2moe_57b=lambda: plain("qwen2moe", 4, 3584, 28, 4, 18944, 151936, bias=True, n=64, used=8, Fx=2560, shared=20480, shared_gate=True,
                               expert_shared_feed_forward_length=20480),
    seed_oss_36b=lambda: plain("seed_oss", 4, 5120, 80, 8, 27648, 155136, D=128, bias=True, before=("attn_norm", "post_attention_norm")),
    exaone4_32b=lambda: plain("exaone4", 4, 5120, 40, 8, 27392, 102400, D=128, qk="head", before=AFTER),
    gemma_7b=lambda: plain("gemma", 4, 3072, 16, 16, 24576, 256000, D=256, tied=True),
    ling_mini=lambda: plain("bailingmoe2", 4, 2048, 16, 4, 5120, 157184, D=128, qk="head", n=256, used=8, Fx=512, shared=512, probs=True, dense=1,
                            expert_shared_count=1, expert_weights_scale=2.5, expert_weights_norm=True, expert_gating_func=2, expert_group_count=8, expert_group_used_count=4),
)
FUSED = {"ling_mini"}
OFFLOADED = ["deepseek_v3", "glm45_air", "llama4_maverick", "qwen3next_80b", "gemma4_26b", "granite4_small", "minimax_m2", "qwen2moe_57b"]


def make(name: str, path: str) -> None:
    f = MODELS[name]()
    if name in FUSED:
        at = {t[0]: t for t in f.tensors}
        for i in range(f.layers):
            rows = [at[f"blk.{i}.attn_{n}.weight"] for n in "qkv"]
            for row in rows:
                f.tensors.remove(row)
            f.l(i, "attn_qkv.weight", f.E, sum(r[2][1] for r in rows))
    write(path, f.arch, f.metadata, f.tensors)


def cases(folder: pathlib.Path, names: list):
    flash = dict(flash_attn=1)
    starts = [
        dict(n_ctx=4096, **flash), dict(n_ctx=32768, **flash), dict(n_ctx=8192, flash_attn=0), dict(n_ctx=32768, n_seq_max=4, **flash),
        dict(n_ctx=32768, type_k="q8_0", type_v="q8_0", **flash), dict(n_ctx=8192, n_ubatch=2048, **flash),
        dict(n_ctx=8192, out=512, **flash), dict(n_ctx=32768, n_seq_max=4, kv_unified=True, **flash),
        dict(n_ctx=3000, n_seq_max=3, n_ubatch=256, **flash), dict(n_ctx=300, **flash),
        dict(n_ctx=8192, flash_attn=0, n_seq_max=2, kv_unified=True), dict(n_ctx=8192, flash_attn=0, n_seq_max=3),
    ]
    # CUDA has no kernel for heads of 192 and 128 elements without grouping: llama.cpp leaves flash attention out.
    if_unsupported = [{k: v for k, v in s.items() if k != "flash_attn"} for s in starts if s.get("flash_attn") == 1 and "type_v" not in s]
    for name in names:
        mine = starts if name != "deepseek_v2_lite_old" else if_unsupported
        few = mine[:5]
        one = dict(name=name, file=str(folder / f"{name}.gguf"))
        yield dict(one, free_mib=[80000], runs=mine)
        for layers in (0, 2, 3):
            yield dict(one, free_mib=[80000], ngl=layers, runs=few)
        yield dict(one, free_mib=[40000, 80000], runs=few)
        yield dict(one, free_mib=[24000] * 3, split=[1.0, 1.0, 2.0], runs=few)
        yield dict(one, free_mib=[24000] * 2, ngl=4, split=[3.0, 1.0], runs=few[:3])
        if name in OFFLOADED:
            yield dict(one, free_mib=[80000], cpu_moe=99, runs=few[:4])
            yield dict(one, free_mib=[80000], cpu_moe=2, runs=few[:3])
            yield dict(one, free_mib=[80000], cpu_moe=2, ngl=3, runs=few[:3])
            yield dict(one, free_mib=[40000, 80000], cpu_moe=3, runs=few[:3])


def rows(folder: pathlib.Path, answers):
    """One row a file: metadata, tensors with the layers that have them, and what every start answered."""
    out: dict = {}
    for answer in map(json.loads, answers):
        name = answer["name"]
        if name not in out:
            reader = gguf.GGUFReader(answer["file"])
            metadata = {f.name: f.contents() for f in reader.fields.values() if not f.name.startswith(("GGUF.", "tokenizer"))}
            metadata = {k: [int(x) for x in v] if isinstance(v, list) and isinstance(v[0], bool) else v for k, v in metadata.items()}
            outside, layers = [], {}
            for t in reader.tensors:
                row = [t.tensor_type.name.lower(), [int(n) for n in t.shape]]
                if t.name.startswith("blk."):
                    _, i, rest = t.name.split(".", 2)
                    layers.setdefault(json.dumps([rest, *row]), []).append(int(i))
                else:
                    outside.append([t.name, *row])
            parts = [[*json.loads(key), at] for key, at in layers.items()]
            out[name] = dict(name=name, metadata=metadata, outside=outside, layers=parts, cases=[])
        measured = ("compute", "kv", "rs", "output", "copies", "attends", "log")
        runs = []
        for r in answer.get("runs", []):
            if "error" in r:
                continue
            asked = {k: v for k, v in r.items() if k not in measured}
            if "attends" in r:
                asked |= {"flash_attn": int(r["attends"]), "flash_attn_auto": True}
            memory = dict(r.get("kv", {}))
            for device, size in r.get("rs", {}).items():
                memory[device] = memory.get(device, 0) + size
            runs.append([asked, memory, r["compute"]])
        kept = {k: answer[k] for k in ("free_mib", "ngl", "split", "cpu_moe", "model") if k in answer}
        out[name]["cases"].append(dict(kept, runs=runs))
    return out.values()


def main() -> None:
    folder = pathlib.Path(sys.argv[1]).absolute()
    if "--rows" in sys.argv:
        for row in rows(folder, sys.stdin):
            print(json.dumps(row, separators=(",", ":")))
        return
    names = sys.argv[2:] or list(MODELS)
    for name in names:
        make(name, str(folder / f"{name}.gguf"))
    for case in cases(folder, names):
        print(json.dumps(case))


if __name__ == "__main__":
    main()
