#!/usr/bin/env python3
"""Performs cache operations with SGLang's own radix cache, allocators and rows, on the CPU.

Written against sglang 0.5.23 (pip install --no-deps sglang==0.5.23, beside torch 2.11 to 2.14, numpy, msgspec, orjson,
pybase64, pydantic, psutil, pyzmq). `crates/sim/tests/sglang_reference.rs` runs it when KVWISE_SGLANG_PYTHON names such
an interpreter; by hand:

    python sglang_ops.py [--core rust|python] < jobs.jsonl > answers.jsonl

A job is one line: {"capacity", "page", "policy", "policy_config", "rows", "width", "operations": [...]}. Operations:
    {"op": "admit", "id", "tokens", "prompt_len", "priority", "extra_key", "cache_salt"}   match, lock, take a row
    {"op": "extend", "id", "to"}            evict what is needed and give positions up to `to` slots
    {"op": "checkpoint", "id", "up_to"}     publish the first `up_to` tokens
    {"op": "finish", "id", "up_to"}         publish and release
    {"op": "retract", "id"}                 release without publishing
    {"op": "evict", "tokens"}               evict at least so many tokens
The answer is one line: a list with, for each operation, {"matched" (admit), "short" (extend that failed), "row" (slots of
all positions the request has), "events": [["stored", parent hash, hashes, tokens] | ["removed", hashes], ...],
"evicted": [[tokens, first slot], ...], "free", "evictable", "protected"}.
"""
import argparse
import importlib.abc
import importlib.machinery
import json
import logging
import os
import sys
import types
from array import array
from types import SimpleNamespace

# Parts of SGLang that the cache imports for types or for GPUs only, and that need packages a CPU machine lacks.
UNNEEDED = ("sglang.kernels",) + tuple(
    "sglang.srt." + part
    for part in """layers model_executor configs observability speculative managers lora models entrypoints distributed
    disaggregation.utils multimodal model_loader utils.hf_transformers utils.hf_transformers_utils
    utils.hf_transformers_patches""".split()
)
# Probed by SGLang inside try/except: their absence is an answer.
OPTIONAL = {"sglang", "torch", "numpy", "torch_npu", "vllm", "aiter", "orjson", "cupy", "ray", "nixl", "mooncake",
            "deep_gemm", "deep_ep", "torch_musa", "torch_xla", "habana_frameworks", "intel_extension_for_pytorch",
            "sgl_kernel_npu", "mlx", "tml_renderers"}


class NothingType(type):
    """Every attribute, subscript and union of the placeholder is the placeholder."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return cls

    def __getitem__(cls, _):
        return cls

    def __or__(cls, _):
        return cls

    __ror__ = __or__

    def __iter__(cls):
        return iter(())

    def __call__(cls, *args, **kwargs):
        bare_decorator = len(args) == 1 and not kwargs and isinstance(args[0], (type, types.FunctionType))
        return args[0] if bare_decorator else super().__call__()


class Nothing(metaclass=NothingType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing

    def __call__(self, *args, **kwargs):
        return Nothing(*args, **kwargs)

    @classmethod
    def __get_pydantic_core_schema__(cls, *_):
        from pydantic_core import core_schema

        return core_schema.any_schema()


class EmptyModule(types.ModuleType):
    __version__ = "0.0.0"
    __path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing


class Placeholders(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Comes after the real finders: answers for missing packages that SGLang itself imports, and all inside them."""

    made = set()

    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        inside = any(name.startswith(made + ".") for made in self.made)
        wanted = "." not in name and top not in OPTIONAL and not top.startswith("_") and self.asked_by_sglang()
        if not (inside or wanted):
            return None
        if wanted:
            self.made.add(name)
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    @staticmethod
    def asked_by_sglang():
        frame = sys._getframe(2)
        while frame and frame.f_code.co_filename.startswith("<frozen importlib"):
            frame = frame.f_back
        return frame is not None and f"{os.sep}sglang{os.sep}" in frame.f_code.co_filename

    def create_module(self, spec):
        return EmptyModule(spec.name)

    def exec_module(self, module):
        pass


def load_sglang():
    os.environ.setdefault("SGLANG_RUST_BUILD_MODE", "never")
    logging.disable(logging.WARNING)
    import torch

    torch.set_num_threads(1)
    sys.meta_path.append(Placeholders())
    for name in ("transformers",) + UNNEEDED:
        sys.modules[name] = EmptyModule(name)
        Placeholders.made.add(name)
    from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator
    from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator
    from sglang.srt.mem_cache.base_prefix_cache import EvictParams, MatchPrefixParams
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams
    from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
    from sglang.srt.mem_cache.radix_cache import RadixKey
    from sglang.srt.mem_cache.unified_cache.components import ComponentType
    from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

    return SimpleNamespace(**locals())


class Cache:
    def __init__(self, sgl, job, core):
        self.sgl, self.page = sgl, job["page"]
        pool = dict(dtype=sgl.torch.bfloat16, device="cpu", kvcache=None, need_sort=False)
        if self.page == 1:
            self.slots = sgl.TokenToKVPoolAllocator(job["capacity"], **pool)
        else:
            self.slots = sgl.PagedTokenToKVPoolAllocator(job["capacity"], self.page, **pool)
        self.rows = sgl.ReqToTokenPool(
            size=job["rows"], max_context_len=job["width"], device="cpu", enable_memory_saver=False)
        params = sgl.CacheInitParams(
            disable=False, req_to_token_pool=self.rows, token_to_kv_pool_allocator=self.slots, page_size=self.page,
            eviction_policy=job["policy"], eviction_policy_config=job.get("policy_config"),
            enable_kv_cache_events=job.get("kv_events", True))
        params.tree_components = (sgl.ComponentType.FULL,)
        params.tree_core_backend = core
        self.tree = sgl.UnifiedRadixCache(params)
        if core == "rust" and "Rust" not in type(self.tree.tree_core).__name__:
            sys.exit("SGLang's Rust tree core did not load")
        self.evicted, self.live = [], {}
        self.tree.take_events()  # the construction itself
        really_free = self.tree._free_values

        def watched_free(device, host):
            for values in device.values():
                self.evicted += [[len(v), int(v[0])] for v in values]
            really_free(device, host)

        self.tree._free_values = watched_free

    def perform(self, op):
        self.evicted.clear()
        answer, req = getattr(self, op["op"])(op), self.live.get(op.get("id"))
        if req is not None:
            row = self.rows.req_to_token[req.kv.req_pool_idx]
            answer["row"] = row[: req.kv.kv_allocated_len].tolist()
        events = [self.event(e) for e in self.tree.take_events()]
        return dict(answer, events=events, evicted=list(self.evicted), free=int(self.slots.available_size()),
                    evictable=int(self.tree.evictable_size()), protected=int(self.tree.protected_size()))

    @staticmethod
    def event(event):
        kind = type(event).__name__
        if kind == "BlockStored":
            return ["stored", event.parent_block_hash, list(event.block_hashes), len(event.token_ids)]
        return ["removed", list(event.block_hashes)] if kind == "BlockRemoved" else ["cleared"]

    def admit(self, op):
        tokens = array("q", op["tokens"])
        prompt = tokens[: op["prompt_len"]]
        kv = SimpleNamespace(
            req_pool_idx=None, holds_kv=False, holds_mamba=False, cache_protected_len=0, cache_inserted_len=0,
            kv_committed_len=0, kv_allocated_len=0, swa_evict_floor=0, component_evicted_seqlens={},
            get_evicted_seqlen=lambda component: 0)
        kv.swa_dead_lo = lambda page_size: kv.cache_protected_len
        req = SimpleNamespace(
            rid=op["id"], origin_input_ids=prompt, full_untruncated_fill_ids=tokens, priority=op["priority"],
            extra_key=op["extra_key"], cache_salt=op["cache_salt"], session_id=None, session=None, kv=kv, lock=None,
            last_node=None, prefix_len=0, kv_rotation_base=None, finished_reason=None, finished=lambda: False)
        key = self.sgl.RadixKey(
            prompt, req.extra_key, limit=max(len(prompt) - 1, 0), cache_salt=req.cache_salt)
        match = self.tree.match_prefix(self.sgl.MatchPrefixParams(key=key, req=req))
        req.last_node, req.prefix_len = match.last_device_node, match.device_prefix_len
        kv.cache_protected_len = kv.kv_allocated_len = match.device_prefix_len
        req.lock = self.tree.lock(req.last_node)
        kv.req_pool_idx, kv.holds_kv = self.rows.alloc_rows(1)[0], True
        if match.device_prefix_len:
            found = self.tree.prefix_device_indices(req).to(self.sgl.torch.int32)
            self.rows.write((kv.req_pool_idx, slice(0, match.device_prefix_len)), found)
        self.live[op["id"]] = req
        return {"matched": int(match.device_prefix_len)}

    def extend(self, op):
        torch, kv = self.sgl.torch, self.live[op["id"]].kv
        start, end = kv.kv_allocated_len, op["to"]
        if end <= start:
            return {}
        if self.page == 1:
            self.slots.evict_to_free_tokens(self.tree, end - start)
            taken = self.slots.alloc(end - start)
        else:
            self.slots.evict_to_free_tokens(self.tree, end - start + self.page)
            row = self.rows.req_to_token[kv.req_pool_idx]
            last = row[start - 1 : start].to(torch.int64) if start else torch.tensor([-1])
            before, after = torch.tensor([start]), torch.tensor([end])
            taken = self.slots.alloc_extend(before, before, after, after, last, end - start)
        if taken is None:
            return {"short": True}
        self.rows.write((kv.req_pool_idx, slice(start, end)), taken.to(torch.int32))
        kv.kv_allocated_len = kv.kv_committed_len = end
        return {}

    def checkpoint(self, op):
        self.tree.checkpoint(self.live[op["id"]], up_to=op["up_to"])
        return {}

    def finish(self, op):
        self.live[op["id"]].finished = lambda: True
        self.checkpoint(op)
        return self.retract(op)

    def retract(self, op):
        req = self.live.pop(op["id"])
        self.tree.free_kv_row(req.kv, [(req.kv.cache_protected_len, req.kv.kv_allocated_len)])
        self.tree.unlock(req.lock)
        self.rows.free_rows([req.kv.req_pool_idx])
        return {}

    def evict(self, op):
        self.tree.evict(self.sgl.EvictParams(num_tokens=op["tokens"]))
        return {}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--core", choices=["rust", "python"], default="rust")
    core = parser.parse_args().core
    sgl = load_sglang()
    for line in sys.stdin:
        job = json.loads(line)
        cache = Cache(sgl, job, core)
        print(json.dumps([cache.perform(op) for op in job["operations"]], separators=(",", ":")), flush=True)


if __name__ == "__main__":
    main()
