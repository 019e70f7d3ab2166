#!/usr/bin/env python3
"""Memory of SGLang by its own code, on the CPU: fractions, pools, states and requests for many models and settings.

Written against sglang 0.5.23 (pip install --no-deps sglang==0.5.23, beside torch 2.11 to 2.14, transformers 5.19.0,
numpy, msgspec, orjson, pybase64, pydantic, psutil, pyzmq, pillow, dill). Packages that only a GPU needs are replaced by
empty modules. `crates/core/tests/data/sglang_pools.jsonl` holds its answers in short.

    python sglang_pools.py jobs.jsonl answers.jsonl

A path of "itself" for the drafter is the model's own folder. A job is one line: {"config": path, "gpu_mib": 81559, "cap": [9, 0], "args": {"tp_size": 2, ...}, "pre_gb": free GiB before
loading, "available_gb": free GiB after}. The engine resolves its arguments itself, with the platform's facts stated, and
its KVCacheConfigurator sizes the pools from the two measurements.
"""
import importlib.abc
import importlib.machinery
import json
import logging
import os
import shutil
import sys
import tempfile
import types
import warnings
from types import SimpleNamespace

warnings.simplefilter("ignore")
os.environ.update(SGLANG_RUST_BUILD_MODE="never", HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")

# Probed with find_spec by transformers, so they must look absent while it is imported.
LATE = {"torchvision", "torchaudio", "librosa", "soundfile", "av", "cv2", "scipy"}
REAL = LATE | {"sglang", "torch", "numpy", "torch_npu", "intel_extension_for_pytorch", "aiter", "vllm", "deep_gemm", "deep_ep",
               "orjson", "cupy", "ray", "nixl", "mooncake", "torchcodec", "sklearn", "accelerate", "peft", "bitsandbytes",
               "kernels", "timm", "torch_musa", "mlx", "torch_xla", "habana_frameworks", "sgl_kernel_npu"}


class AnythingType(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return cls

    def __call__(cls, *args, **named):
        if cls is Anything and len(args) == 1 and not named and isinstance(args[0], (types.FunctionType, type)):
            return args[0]
        return super().__call__(*args, **named)

    def __or__(cls, other):
        return cls

    __ror__ = __or__

    def __getitem__(cls, item):
        return cls

    def __iter__(cls):
        return iter(())


class Anything(metaclass=AnythingType):
    def __init_subclass__(cls, **named):
        pass

    def __init__(self, *args, **named):
        pass

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything

    def __call__(self, *args, **named):
        if len(args) == 1 and not named and isinstance(args[0], (types.FunctionType, type)):
            return args[0]
        return Anything()

    @classmethod
    def __get_pydantic_core_schema__(cls, source, handler):
        from pydantic_core import core_schema

        return core_schema.any_schema()


class Module(types.ModuleType):
    __version__ = "0.0.0"

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything


class Missing(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Comes last, so that only packages that are not installed are replaced."""

    seen = set()

    def find_spec(self, name, path=None, target=None):
        top, parent = name.partition(".")[0], name.rpartition(".")[0]
        below = any(parent == s or parent.startswith(s + ".") for s in self.seen)
        if not below and (top in REAL or top.startswith("_") or "." in name):
            return None
        if not below and not self.third_party():
            return None
        self.seen.add(name)
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    @staticmethod
    def third_party():
        frame = sys._getframe(2)
        while frame is not None:
            name = frame.f_globals.get("__name__", "")
            if name.startswith("sglang"):
                return True
            if not name.startswith(("importlib", "_frozen_importlib", "__main__")):
                return False
            frame = frame.f_back
        return False

    def create_module(self, spec):
        module = Module(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module):
        pass


sys.meta_path.append(Missing())
import torch
torch.set_num_threads(1)
import transformers.utils.import_utils as iu
for n in dir(iu):
    if n.startswith("is_") and n.endswith("_available"):
        try: getattr(iu, n)()
        except Exception: pass
import transformers
from transformers import AutoProcessor, AutoConfig
REAL -= LATE
CAP = [9, 0]
torch.cuda.get_device_capability = lambda *a, **k: tuple(CAP)
import sglang.srt.server_args as sa
logging.disable(logging.WARNING)
from sglang.srt import runtime_context as rc
import sglang.srt.model_executor.cuda_graph_config as cgc
cgc.default_prefill_backend = lambda: cgc.Backend.BREAKABLE
import sglang.srt.arg_groups.memory_hook as mh
MEM = [81559.0]
mh.get_device_memory_capacity = lambda d=None: MEM[0]
import sglang.srt.mem_cache.kv_cache_configurator as kcc
from sglang.srt.arg_groups.overrides import resolved_view, model_config_of, use_mla_backend
from sglang.srt.model_executor.model_runner_components.layer_setup import resolve_layer_indices
from sglang.srt.model_executor.model_runner_components.spec_aux_hidden_state import resolve_spec_aux_hidden_state_config
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm
from sglang.srt.mem_cache.kv_cache_dtype import configure_kv_cache_dtype
from sglang.srt.model_loader.weight_utils import get_quant_config
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.model_executor import pool_configurator as pc
pc.is_float4_e2m1fn_x2 = lambda dtype: dtype == torch.float4_e2m1fn_x2
import sglang.srt.mem_cache.memory_pool as memory_pool
memory_pool._is_cuda = True
import sglang.srt.mem_cache.deepseek_v4_memory_pool as dsv4
import sglang.srt.layers.quantization.fp4_kv_cache_quant_method as fp4
_method = fp4.get_kv_cache_quant_method
fp4.get_kv_cache_quant_method = lambda name, **kw: _method(name, **{**kw, "device": "cpu"})
def layout(_layouts=dsv4.select_dsv4_kv_layout):
    # The wheel of torch on this machine has no CUDA: its two questions get the GPU's answers.
    available, version = torch.cuda.is_available, torch.version.cuda
    torch.cuda.is_available, torch.version.cuda = (lambda: True), "13.0"
    try:
        return _layouts()
    finally:
        torch.cuda.is_available, torch.version.cuda = available, version
dsv4.select_dsv4_kv_layout = layout
from transformers import AutoConfig as _AutoConfig, PretrainedConfig as _Pretrained
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
def described(model_type):
    """Makes a type of configuration known whose class comes with the checkpoint: its file's keys are its attributes."""
    if model_type and model_type not in CONFIG_MAPPING and model_type != "deepseek_ref":
        try:
            _AutoConfig.register(model_type, type("Described", (_Pretrained,), {"model_type": model_type}))
        except ValueError:
            pass
ENVIRONMENT = dict(os.environ)
# It measures nothing here, and collecting takes most of the time.
kcc.gc = SimpleNamespace(collect=lambda: 0)
AVAIL = [0.0]
# Stands in for the all-reduce over stages.
LEAST = [None]
def reduce(tensor, **_):
    if LEAST[0] is not None:
        tensor.fill_(min(tensor.item(), LEAST[0]))
torch.distributed.all_reduce = reduce
from sglang.srt.distributed import get_pp_indices
kcc.get_available_gpu_memory = lambda *a, **k: AVAIL[0]

import sglang.srt.arg_groups.model_overrides.qwen3_vl as qvl
qvl.is_sm90_supported = lambda *a, **k: CAP[0] == 9
qvl.get_device_memory_capacity = lambda d=None: MEM[0]

def platform(cap):
    CAP[:] = cap
    f = dict(is_cuda=True, is_hopper_with_cuda_12_3=cap[0] == 9, is_sm90=cap[0] == 9, is_sm100=cap[0] == 10, is_sm120=cap[0] == 12,
             is_blackwell=cap[0] >= 10, has_flashinfer=True, is_sm100_or_sm110=cap[0] in (10, 11), is_sm110=cap[0] == 11, device_sm=cap[0] * 10 + cap[1], device_capability=tuple(cap))
    rc.override_platform(**f).install()

def row(job, folder):
    # The engine writes some of what it resolves into its environment, for one server a process.
    os.environ.clear()
    os.environ.update(ENVIRONMENT)
    MEM[0] = float(job["gpu_mib"])
    platform(job["cap"])
    rc.get_parallel().clear_stamp() if hasattr(rc.get_parallel(), "clear_stamp") else None
    args = sa.ServerArgs(model_path=folder, device="cuda", **job["args"])
    args.resolve_once()
    v = resolved_view(args)
    out = {"mem_fraction_static": v.mem_fraction_static, "chunked_prefill_size": v.chunked_prefill_size, "page_size": v.page_size,
           "attention_backend": v.attention_backend, "decode_max_bs": v.cuda_graph_config.decode.max_bs,
           "prefill_backend": v.cuda_graph_config.prefill.backend, "kv_cache_dtype": v.kv_cache_dtype,
           "mamba_strategy": v.mamba_radix_cache_strategy}
    rc.publish(args, role="scheduler")
    tp, pp = v.tp_size, v.pp_size
    mc = model_config_of(args)
    algorithm = SpeculativeAlgorithm.from_string(v.speculative_algorithm)
    aux = resolve_spec_aux_hidden_state_config(server_args=args, model_config=mc, spec_algorithm=algorithm, is_draft_worker=False)
    out["algorithm"] = v.speculative_algorithm
    out["draft"] = [v.speculative_num_steps, v.speculative_eagle_topk, v.speculative_num_draft_tokens]
    out["draft_layers"] = [aux.eagle_draft_num_layers, aux.eagle_draft_swa_num_layers, aux.dflash_draft_num_layers]
    m = SimpleNamespace(quant_config=None)
    if mc.quantization is not None:
        m.quant_config = get_quant_config(mc, SimpleNamespace(download_dir=None, model_loader_extra_config={}), {})
    out["checkpoint_kv_algo"] = getattr(m.quant_config, "kv_cache_quant_algo", None)
    s, dt = configure_kv_cache_dtype(server_args_kv_cache_dtype=v.kv_cache_dtype, model=m, model_dtype=mc.dtype, is_draft_worker=False, is_dflash=False, speculative_draft_attention_backend=None)
    kv_str = s or v.kv_cache_dtype
    n = mc.num_hidden_layers
    window = mc.sliding_window_size if mc.sliding_window_size is not None else mc.attention_chunk_size
    par = rc.get_parallel()
    out["context_len"] = mc.context_len
    out["kv_element"] = str(dt).replace("torch.", "")
    AVAIL[0] = job["available_gb"]
    rc.get_parallel().override_permanently(world_group=SimpleNamespace(cpu_group=None))
    def configurator(first, end):
        """That of the stage with these layers."""
        model = SimpleNamespace(start_layer=first, end_layer=end) if pp > 1 and not mc.is_encoder_decoder else SimpleNamespace()
        info = resolve_layer_indices(model=model, model_config=mc, is_draft_worker=False)
        return kcc.KVCacheConfigurator(device="cuda", gpu_id=0, attn_dp_size=par.attn_dp_size, pp_size=pp, pp_group=SimpleNamespace(rank_in_group=0), model=None, model_config=mc, server_args=args,
            kv_cache_dtype=dt, model_dtype=mc.dtype, page_size=v.page_size, sliding_window_size=window, spec_algorithm=SpeculativeAlgorithm.from_string(v.speculative_algorithm),
            is_draft_worker=False, post_capture_kv_active=False, spec_aux_config=aux, is_hybrid_swa=mc.is_hybrid_swa, is_hybrid_swa_compress=getattr(mc,"is_hybrid_swa_compress",False),
            use_mla_backend=use_mla_backend(args), layer_info=info, forward_stream=None, req_to_token_pool=None, token_to_kv_pool_allocator=None, memory_pool_config=None, kv_cache_dtype_str=kv_str)
    try:
        stages = [get_pp_indices(n, rank, pp) for rank in range(pp)]
        # The stages agree on the fewest tokens (an all-reduce in the engine): each is sized alone, then with that as a cap.
        LEAST[0] = None
        alone, slots = [], rc.get_schedule().max_mamba_cache_size
        for first, end in stages:
            # What one stage resolved is not what the next was given.
            rc.get_context().override("stage", max_mamba_cache_size=slots)
            kvc = configurator(first, end)
            conf = pc.create_memory_pool_configurator(kvc)
            avail = kvc._profile_available_bytes(job["pre_gb"])
            alone.append((kvc.config_from_budget(avail).max_total_num_tokens, kvc, conf, avail))
        least, kvc, conf, avail = min(alone, key=lambda stage: stage[0])
        LEAST[0] = least
        out["cell"] = getattr(conf, "_cell_size", None) or getattr(conf, "bytes_per_full_token", None)
        out["kv_bytes"] = avail
        c = kvc.config_from_budget(avail)
        out["tokens"] = c.max_total_num_tokens
        out["swa_tokens"] = c.swa_max_total_num_tokens
        out["mamba_slots"] = rc.get_schedule().max_mamba_cache_size if kvc.mambaish_config is not None else None
        out["running"] = kvc.resolve_max_num_reqs(c.max_total_num_tokens)
    except (ValueError, RuntimeError, AssertionError) as e:
        out["refused"] = "%s: %s" % (type(e).__name__, str(e)[:160])
    return out

if __name__ == "__main__":
    jobs = [json.loads(l) for l in open(sys.argv[1])]
    with open(sys.argv[2], "w") as f:
        for job in jobs:
            d = os.path.join(tempfile.mkdtemp(), os.path.basename(job["config"])[:-5])
            os.mkdir(d)
            text = json.load(open(job["config"]))
            # Their methods are registered with CUDA only; none says anything of the cache.
            for c in (text, text.get("text_config") or {}):
                if (c.get("quantization_config") or {}).get("quant_method") in ("mxfp4", "gptq", "awq"): del c["quantization_config"]
            if text.get("model_type") == "qwen3_next":
                # The hub's file has it; files that list layer_types instead lack what the engine reads.
                text.setdefault("full_attention_interval", 4)
            described(text.get("model_type"))
            if isinstance((text.get("quantization_config") or {}).get("quantization"), dict):
                # Checkpoints of this form have it in a file of its own.
                json.dump(text.pop("quantization_config"), open(d + "/hf_quant_config.json", "w"))
            json.dump(text, open(d + "/config.json", "w"))
            if job["args"].get("speculative_draft_model_path") == "itself":
                job["args"]["speculative_draft_model_path"] = d
            try: r = row(job, d)
            except (ValueError, AssertionError, RuntimeError, NotImplementedError) as e:
                r = {"refused": "%s: %s" % (type(e).__name__, str(e)[:160])}
            except BaseException as e:
                import traceback
                r = {"failed": "%s: %s" % (type(e).__name__, str(e)[:300]), "tb": traceback.format_exc()[-400:]}
            shutil.rmtree(os.path.dirname(d), ignore_errors=True)
            f.write(json.dumps({"job": job, "row": r}) + "\n"); f.flush()
    f.close(); os._exit(0)
