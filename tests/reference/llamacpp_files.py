#!/usr/bin/env python3
"""GGUF files of real widths and few layers whose tensors are holes, and the starts to try with them (llamacpp_gpus.py).

    python llamacpp_files.py FOLDER > CASES          needs gguf and numpy; the files are sparse and take little of a disk
    python llamacpp_files.py FOLDER --rows < ANSWERS > ROWS     answers as rows of tests/data/llamacpp_gpus.jsonl
"""
import json
import os
import pathlib
import sys

import gguf
import numpy as np

Q=gguf.GGMLQuantizationType


def make(path, arch, layers, E, F, H, KV, hd=None, V=32000, ctx=131072, win=None, nx=0, used=0, Fx=0, quant='Q4_K', tied=False, qkbias=False, **kv):
    w=gguf.GGUFWriter(path, arch)
    hd=hd or E//H
    w.add_context_length(ctx); w.add_embedding_length(E); w.add_block_count(layers); w.add_feed_forward_length(F)
    w.add_head_count(H); w.add_head_count_kv(KV); w.add_key_length(hd); w.add_value_length(hd)
    w.add_layer_norm_rms_eps(1e-5); w.add_rope_freq_base(10000.0); w.add_rope_dimension_count(hd)
    if win: w.add_sliding_window(win)
    if nx: w.add_expert_count(nx); w.add_expert_used_count(used)
    if Fx: w.add_expert_feed_forward_length(Fx)
    printable=[*range(33,127),*range(161,173),*range(174,256)]
    rest=[b for b in range(256) if b not in printable]
    names={b:chr(b) for b in printable}|{b:chr(256+i) for i,b in enumerate(rest)}
    toks=[names[b] for b in range(256)]+["ab"]+[f"<t{i}>" for i in range(V-257)]
    w.add_tokenizer_model("gpt2"); w.add_tokenizer_pre("default"); w.add_token_list(toks)
    w.add_token_types([1]*257+[3]*(V-257)); w.add_token_merges(["a b"]); w.add_eos_token_id(257); w.add_bos_token_id(258)
    def t(name,*shape,wide=False,kind=None):
        k=Q.F32 if wide else Q[kind or quant]
        blk,sz=gguf.GGML_QUANT_SIZES[k]
        if shape[-1]%blk: k=Q.Q8_0 if shape[-1]%32==0 else Q.F16; blk,sz=gguf.GGML_QUANT_SIZES[k]
        n=int(np.prod(shape))//blk*sz
        if k in(Q.F32,Q.F16): w.add_tensor_info(name,shape,np.dtype(np.float32 if k==Q.F32 else np.float16),n)
        else: w.add_tensor_info(name,(*shape[:-1],shape[-1]//blk*sz),np.dtype(np.uint8),n,raw_dtype=k)
    if kv.pop('rope',False): t('rope_freqs.weight',hd//2,wide=True)
    t('token_embd.weight',V,E); t('output_norm.weight',E,wide=True)
    if not tied: t('output.weight',V,E,kind='Q6_K')
    for i in range(layers):
        p=f'blk.{i}.'
        t(p+'attn_norm.weight',E,wide=True)
        if arch=='phi3': t(p+'attn_qkv.weight',(H+2*KV)*hd,E)
        else:
            t(p+'attn_q.weight',H*hd,E); t(p+'attn_k.weight',KV*hd,E); t(p+'attn_v.weight',KV*hd,E)
            if qkbias:
                t(p+'attn_q.bias',H*hd,wide=True); t(p+'attn_k.bias',KV*hd,wide=True); t(p+'attn_v.bias',KV*hd,wide=True)
        t(p+'attn_output.weight',E,H*hd)
        if arch in('qwen3','qwen3moe','gemma3'): t(p+'attn_q_norm.weight',hd,wide=True); t(p+'attn_k_norm.weight',hd,wide=True)
        if arch.startswith('gemma'): t(p+'post_attention_norm.weight',E,wide=True); t(p+'post_ffw_norm.weight',E,wide=True)
        if arch=='gpt-oss':
            t(p+'post_attention_norm.weight',E,wide=True); t(p+'attn_sinks.weight',H,wide=True); t(p+'attn_output.bias',E,wide=True)
            t(p+'ffn_gate_inp.weight',nx,E,wide=True); t(p+'ffn_gate_inp.bias',nx,wide=True)
            for n,a,b in(('gate',F,E),('up',F,E),('down',E,F)): t(p+f'ffn_{n}_exps.weight',nx,a,b,kind='MXFP4'); t(p+f'ffn_{n}_exps.bias',nx,a,wide=True)
            continue
        t(p+'ffn_norm.weight',E,wide=True)
        if nx:
            f=Fx or F
            t(p+'ffn_gate_inp.weight',nx,E,wide=True)
            t(p+'ffn_gate_exps.weight',nx,f,E); t(p+'ffn_up_exps.weight',nx,f,E); t(p+'ffn_down_exps.weight',nx,E,f)
        elif arch=='phi3': t(p+'ffn_up.weight',2*F,E); t(p+'ffn_down.weight',E,F)
        else: t(p+'ffn_gate.weight',F,E); t(p+'ffn_up.weight',F,E); t(p+'ffn_down.weight',E,F)
    for k,v in kv.items(): getattr(w,k)(v)
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_ti_data_to_file(); w.flush()
    f=w.fout[0]; f.flush(); pos=f.tell(); f.close()
    total=0
    for ti in w.tensors[0].values(): total+=-(-ti.nbytes//32)*32
    os.truncate(path,-(-pos//32)*32+total)

MODELS = dict(
 llama31=dict(arch='llama',layers=4,E=4096,F=14336,H=32,KV=8,V=32000,rope=True),
 tiny=dict(arch='llama',layers=5,E=512,F=1376,H=8,KV=2,V=1000,rope=True,quant='Q8_0'),
 gemma3_1b=dict(arch='gemma3',layers=8,E=1152,F=6912,H=4,KV=1,hd=256,V=2000,win=512,tied=True),
 qwen3_tiny=dict(arch='qwen3',layers=6,E=1024,F=3072,H=16,KV=8,hd=128,V=1000,tied=True,quant='F16'),
 llama8b=dict(arch='llama',layers=4,E=4096,F=14336,H=32,KV=8,V=128256),
 llama3b=dict(arch='llama',layers=4,E=3072,F=8192,H=24,KV=8,V=128256,tied=True,quant='Q8_0'),
 qwen2_7b=dict(arch='qwen2',layers=3,E=3584,F=18944,H=28,KV=4,V=152064,qkbias=True),
 qwen3_4b=dict(arch='qwen3',layers=4,E=2560,F=9728,H=32,KV=8,hd=128,V=151936,tied=True,quant='Q8_0'),
 qwen3_32b=dict(arch='qwen3',layers=3,E=5120,F=25600,H=64,KV=8,hd=128,V=151936),
 qwen3moe_30b=dict(arch='qwen3moe',layers=4,E=2048,F=6144,H=32,KV=4,hd=128,V=151936,nx=128,used=8,Fx=768),
 qwen3moe_235b=dict(arch='qwen3moe',layers=3,E=4096,F=12288,H=64,KV=4,hd=128,V=151936,nx=128,used=8,Fx=1536),
 mixtral=dict(arch='llama',layers=3,E=4096,F=14336,H=32,KV=8,V=32000,nx=8,used=2),
 gemma2_9b=dict(arch='gemma2',layers=4,E=3584,F=14336,H=16,KV=8,hd=256,V=256000,win=4096,tied=True),
 gemma3_12b=dict(arch='gemma3',layers=7,E=3840,F=15360,H=16,KV=8,hd=256,V=262208,win=1024,tied=True),
 gptoss20b=dict(arch='gpt-oss',layers=4,E=2880,F=2880,H=64,KV=8,hd=64,V=201088,win=128,nx=32,used=4,Fx=2880,qkbias=True,quant='Q8_0'),
 phi3=dict(arch='phi3',layers=3,E=3072,F=8192,H=32,KV=32,V=32064),
)


def cases(folder: pathlib.Path):
    flash = dict(flash_attn=1)
    starts = [
        dict(n_ctx=4096, **flash), dict(n_ctx=32768, **flash), dict(n_ctx=8192, n_ubatch=2048, **flash),
        dict(n_ctx=8192, flash_attn=0), dict(n_ctx=8192, out=512, **flash), dict(n_ctx=32768, n_seq_max=4, **flash),
        dict(n_ctx=32768, n_seq_max=4, kv_unified=True, **flash), dict(n_ctx=32768, type_k="q8_0", type_v="q8_0", **flash),
        dict(n_ctx=4096, n_ubatch=128, **flash), dict(n_ctx=3000, n_seq_max=3, n_ubatch=256, **flash), dict(n_ctx=300, **flash),
        dict(n_ctx=8192, flash_attn=0, n_seq_max=2, kv_unified=True), dict(n_ctx=32768, type_k="q8_0", type_v="f16", **flash),
        dict(n_ctx=32768, type_k="f16", type_v="q4_0", n_ubatch=64, **flash),
    ]
    few = [starts[i] for i in (0, 1, 3, 7, 2, 5)]
    for name in MODELS:
        file = str(folder / f"{name}.gguf")
        one = dict(name=name, file=file, free_mib=[80000])
        yield dict(one, runs=starts)
        for layers in (0, 2, 3):
            yield dict(one, ngl=layers, runs=few)
        yield dict(name=name, file=file, free_mib=[40000, 80000], runs=few)
        yield dict(name=name, file=file, free_mib=[24000] * 3, split=[1.0, 1.0, 2.0], runs=few)
        yield dict(name=name, file=file, free_mib=[24000] * 4, split=[1.0, 0.0, 2.0, 1.5], runs=few)
        yield dict(name=name, file=file, free_mib=[24000] * 2, ngl=3, runs=few[:3])
        yield dict(name=name, file=file, free_mib=[24000] * 2, ngl=4, split=[3.0, 1.0], runs=few[:3])


def rows(answers):
    """One row a file: metadata, tensors of a layer and outside of layers, and what every start answered."""
    out: dict = {}
    for answer in map(json.loads, answers):
        name = answer["name"]
        if name not in out:
            reader = gguf.GGUFReader(answer["file"])
            metadata = {f.name: f.contents() for f in reader.fields.values() if not f.name.startswith(("GGUF.", "tokenizer"))}
            metadata[metadata["general.architecture"] + ".vocab_size"] = MODELS[name]["V"]
            outside, layer = [], []
            for t in reader.tensors:
                row = [t.name, t.tensor_type.name.lower(), [int(n) for n in t.shape]]
                if t.name.startswith("blk.0."):
                    layer.append([t.name[6:], *row[1:]])
                elif not t.name.startswith("blk."):
                    outside.append(row)
            out[name] = dict(name=name, metadata=metadata, outside=outside, layer=layer, cases=[])
        measured = ("compute", "kv", "output", "rs", "copies", "attends")
        runs = [[{k: v for k, v in r.items() if k not in measured}, r["kv"], r["compute"]] for r in answer["runs"] if "error" not in r]
        kept = {k: answer[k] for k in ("free_mib", "ngl", "split", "model") if k in answer}
        out[name]["cases"].append(dict(kept, runs=runs))
    return out.values()


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1]).absolute()
    if "--rows" in sys.argv:
        for row in rows(sys.stdin):
            print(json.dumps(row, separators=(",", ":")))
    else:
        for name, sizes in MODELS.items():
            make(str(folder / f"{name}.gguf"), **sizes)
        for case in cases(folder):
            print(json.dumps(case))
