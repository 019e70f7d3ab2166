"""Hooks on vLLM's classes: block pool, KV cache manager, scheduler, CUDA graphs, worker memory.

Each hook wraps one method: it calls the original first, returns its result untouched, and notes what happened. A hook
that raises is counted; after a few errors the original method is put back. A class or method that this version of
vLLM does not have is noted and skipped. Attribute names are those of vLLM 0.32.0 (`vllm/v1/core/block_pool.py`,
`kv_cache_manager.py`, `sched/scheduler.py`, `vllm/compilation/cuda_graph.py`, `vllm/v1/worker/gpu_worker.py`), with the
older shapes of 0.9 to 0.31 where they differ.

Records are lists, the kind first, then the monotonic time in nanoseconds:

    ["p", t, pool, num_blocks, caching, hash_block_size]       a block pool was made
    ["a", t, pool, [ids]]  ["f", t, pool, [ids]]  ["t", t, pool, [ids]]   allocated, freed (no longer used), hit
    ["e", t, pool, [ids]]  ["c", t, pool]                      lost their cached content; cache cleared
    ["x", t, pool, [ids], [lifetime_us], [idle_us], [hits], [cached]]   blocks given to other content
    ["s", t, step, running, waiting, requests, tokens, prefill_tokens, used_blocks, schedule_us]
    ["q", t, request, step, prompt_tokens, max_tokens, priority]        a request arrived
    ["h", t, request, step, tokens, hit_tokens, resumed]       its prefix lookup when admitted
    ["v", t, request, step, computed_tokens]                   preempted
    ["r", t, request, output_tokens, preemptions, reason, hash_block_size, hashes]   finished
    ["g", t, mode, num_tokens, num_reqs, uniform, has_lora]    a CUDA graph was captured
    ["G", t, [[mode, num_tokens, num_reqs, uniform, has_lora, count], ...]]  replays so far
    ["d", t, descriptor, duration_us]                          one replay, as the CPU sees it (the launch)
    ["m", t, name, bytes]  ["S", t, {settings}]  ["n", t, kind, text]  ["T", t, {totals}]  ["end", t]
"""

import functools
import itertools
import time

from .recorder import Recorder

MAX_ERRORS = 20

_now = time.monotonic_ns


class Probe(object):
    """What the hooks share in one process."""

    def __init__(self, settings):
        self.settings = settings
        self.recorder = Recorder(settings)
        self.pools = itertools.count()
        self.requests = itertools.count()
        self.graph_counts = {}
        self.graph_written = 0
        self.graph_leader = None
        self.original_ns = 0

    # -- wrapping ------------------------------------------------------------------------------------------------

    def note(self, kind, text):
        self.settings.say("%s: %s" % (kind, text))
        self.recorder.keep(["n", _now(), kind, text])

    def wrap(self, module, class_name, method, make, required=True):
        """Replaces `class_name.method` by `make(original, guard)`; notes what is missing."""
        name = "%s.%s.%s" % (module.__name__, class_name, method)
        cls = getattr(module, class_name, None)
        original = None if cls is None else cls.__dict__.get(method)
        if original is None or not callable(original):
            if required:
                self.note("missing", name)
            return False
        guard = Guard(self, cls, method, original, name)
        hook = make(original, guard)
        if self.settings.self_time:
            hook = self._timed(original, lambda inner: make(inner, guard))
        setattr(cls, method, functools.wraps(original)(hook))
        self.settings.say("hooked %s" % name)
        return True


    def _timed(self, original, make):
        """A hook that adds its own time, without the original's, to the total `hook_ns`."""

        def inner(*args, **kwargs):
            start = _now()
            try:
                return original(*args, **kwargs)
            finally:
                self.original_ns += _now() - start

        hook = make(inner)

        def timed(*args, **kwargs):
            outer, self.original_ns = self.original_ns, 0
            start = _now()
            try:
                return hook(*args, **kwargs)
            finally:
                self.recorder.add("hook_ns", _now() - start - self.original_ns)
                self.original_ns = outer

        return timed


class Guard(object):
    """Counts the errors of one hook and takes it off when there are too many."""

    def __init__(self, probe, cls, method, original, name):
        self.probe, self.cls, self.method, self.original, self.name = probe, cls, method, original, name
        self.errors = 0

    def failed(self, error):
        try:
            self.errors += 1
            self.probe.recorder.errors += 1
            if self.errors == 1:
                self.probe.note("error", "%s: %r" % (self.name, error))
            if self.errors == MAX_ERRORS:
                setattr(self.cls, self.method, self.original)
                self.probe.note("switched_off", "%s after %d errors" % (self.name, MAX_ERRORS))
        except Exception:
            pass


class PoolState(object):
    """What the probe remembers of one block pool: birth, last hit and number of hits of each block."""

    def __init__(self, probe, pool):
        self.number = next(probe.pools)
        count = int(pool.num_gpu_blocks)
        self.birth = [0] * count
        self.last = [0] * count
        self.hits = [0] * count
        self.evicted = []
        self.turn = 0
        probe.recorder.keep(
            ["p", _now(), self.number, count, int(bool(pool.enable_caching)), getattr(pool, "hash_block_size", None)]
        )


def _pool_state(probe, pool):
    state = pool.__dict__.get("_kvwise_state")
    if state is None:
        state = PoolState(probe, pool)
        pool._kvwise_state = state
    return state


def _flat(blocks):
    """Blocks of one group, or of several (vLLM 0.9.2 to 0.11 pass a tuple of lists)."""
    for block in blocks:
        if hasattr(block, "block_id"):
            yield block
        else:
            for inner in block:
                yield inner


# -- block pool --------------------------------------------------------------------------------------------------


def _hook_block_pool(probe, module):
    recorder = probe.recorder
    settings = probe.settings

    def init(original, guard):
        def hook(self, *args, **kwargs):
            original(self, *args, **kwargs)
            try:
                _pool_state(probe, self)
            except Exception as error:
                guard.failed(error)

        return hook

    def get_new_blocks(original, guard):
        def hook(self, *args, **kwargs):
            blocks = original(self, *args, **kwargs)
            try:
                state = _pool_state(probe, self)
                now = _now()
                ids = [block.block_id for block in blocks]
                recorder.add("allocated_blocks", len(ids))
                evicted, state.evicted = state.evicted, []
                if evicted:
                    recorder.add("evicted_blocks", len(evicted))
                _reused(recorder, settings, state, now, ids, evicted, self.enable_caching)
                if settings.blocks and ids:
                    if evicted:
                        recorder.detail(["e", now, state.number, evicted])
                    recorder.detail(["a", now, state.number, ids])
            except Exception as error:
                guard.failed(error)
            return blocks

        return hook

    def maybe_evict(original, guard):
        def hook(self, block, *args, **kwargs):
            result = original(self, block, *args, **kwargs)
            if result:
                try:
                    _pool_state(probe, self).evicted.append(block.block_id)
                except Exception as error:
                    guard.failed(error)
            return result

        return hook

    def evict_blocks(original, guard):
        def hook(self, *args, **kwargs):
            result = original(self, *args, **kwargs)
            try:
                state = _pool_state(probe, self)
                evicted, state.evicted = state.evicted, []
                if evicted:
                    recorder.add("evicted_blocks", len(evicted))
                    recorder.detail(["e", _now(), state.number, evicted])
            except Exception as error:
                guard.failed(error)
            return result

        return hook

    def touch(original, guard):
        def hook(self, blocks, *args, **kwargs):
            result = original(self, blocks, *args, **kwargs)
            try:
                state = _pool_state(probe, self)
                now = _now()
                ids = [block.block_id for block in _flat(blocks) if not block.is_null]
                last, hits = state.last, state.hits
                for number in ids:
                    last[number] = now
                    hits[number] += 1
                recorder.add("hit_blocks", len(ids))
                if settings.blocks and ids:
                    recorder.detail(["t", now, state.number, ids])
            except Exception as error:
                guard.failed(error)
            return result

        return hook

    def free_blocks(original, guard):
        def hook(self, ordered_blocks, *args, **kwargs):
            # an iterator can be read once: make it a list for the engine and for us
            blocks = ordered_blocks if isinstance(ordered_blocks, (list, tuple)) else list(ordered_blocks)
            result = original(self, blocks, *args, **kwargs)
            try:
                state = _pool_state(probe, self)
                ids = [
                    block.block_id
                    for block in blocks
                    if block.ref_cnt == 0 and not block.is_null and getattr(block, "pool", None) in (None, self)
                ]
                recorder.add("freed_blocks", len(ids))
                if settings.blocks and ids:
                    recorder.detail(["f", _now(), state.number, ids])
            except Exception as error:
                guard.failed(error)
            return result

        return hook

    def reset_prefix_cache(original, guard):
        def hook(self, *args, **kwargs):
            result = original(self, *args, **kwargs)
            if result:
                try:
                    state = _pool_state(probe, self)
                    state.birth = [0] * len(state.birth)
                    recorder.keep(["c", _now(), state.number])
                except Exception as error:
                    guard.failed(error)
            return result

        return hook

    probe.wrap(module, "BlockPool", "__init__", init)
    probe.wrap(module, "BlockPool", "get_new_blocks", get_new_blocks)
    probe.wrap(module, "BlockPool", "_maybe_evict_cached_block", maybe_evict)
    probe.wrap(module, "BlockPool", "evict_blocks", evict_blocks, required=False)
    probe.wrap(module, "BlockPool", "touch", touch)
    probe.wrap(module, "BlockPool", "free_blocks", free_blocks)
    probe.wrap(module, "BlockPool", "reset_prefix_cache", reset_prefix_cache)


def _reused(recorder, settings, state, now, ids, evicted, caching):
    """Lifetime and idle time of blocks given to other content, as vLLM's own `kv_block_lifetime_seconds` means them:
    with caching on, every block that was allocated before; with caching off, none."""
    birth, last, hits = state.birth, state.last, state.hits
    cached = set(evicted)
    blocks, lifetimes, idles, counts, contents = [], [], [], [], []
    for number in ids:
        born = birth[number]
        if born and caching:
            recorder.add("reused_blocks", 1)
            state.turn += 1
            if state.turn >= settings.lifetime_sample:
                state.turn = 0
                blocks.append(number)
                lifetimes.append((now - born) // 1000)
                idles.append((now - (last[number] or born)) // 1000)
                counts.append(hits[number])
                contents.append(1 if number in cached else 0)
        birth[number] = now
        last[number] = 0
        hits[number] = 0
    if blocks:
        recorder.detail(["x", now, state.number, blocks, lifetimes, idles, counts, contents])


# -- KV cache manager --------------------------------------------------------------------------------------------


def _hook_kv_cache_manager(probe, module):
    recorder = probe.recorder

    def lookup(manager, request, hit_tokens):
        resumed = int(getattr(request, "num_preemptions", 0) > 0)
        tokens = int(request.num_tokens)
        prefix = "resumed_" if resumed else ""
        recorder.add(prefix + "query_tokens", tokens)
        recorder.add(prefix + "hit_tokens", int(hit_tokens))
        number = request.__dict__.get("_kvwise_number", -1)
        recorder.detail(["h", _now(), number, _step_of(request), tokens, int(hit_tokens), resumed])

    def record(original, guard):
        def hook(self, request, num_hits, *args, **kwargs):
            result = original(self, request, num_hits, *args, **kwargs)
            try:
                enabled = getattr(self, "prefix_cache_lookup_enabled", None)
                if enabled is None or enabled(request):
                    lookup(self, request, num_hits)
            except Exception as error:
                guard.failed(error)
            return result

        return hook

    def get_computed_blocks(original, guard):
        # versions without record_prefix_cache_stats count in here, at each attempt to admit
        def hook(self, request, *args, **kwargs):
            result = original(self, request, *args, **kwargs)
            try:
                if getattr(self, "enable_caching", True):
                    lookup(self, request, result[1])
            except Exception as error:
                guard.failed(error)
            return result

        return hook

    if not probe.wrap(module, "KVCacheManager", "record_prefix_cache_stats", record, required=False):
        probe.wrap(module, "KVCacheManager", "get_computed_blocks", get_computed_blocks)


def _step_of(request):
    scheduler = request.__dict__.get("_kvwise_scheduler")
    return -1 if scheduler is None else scheduler.__dict__.get("_kvwise_step", 0)


# -- scheduler ---------------------------------------------------------------------------------------------------


def _hook_scheduler(probe, module):
    recorder = probe.recorder
    settings = probe.settings

    def init(original, guard):
        def hook(self, *args, **kwargs):
            original(self, *args, **kwargs)
            try:
                self._kvwise_step = 0
                recorder.keep(["S", _now(), _engine_settings(self)])
            except Exception as error:
                guard.failed(error)

        return hook

    def add_request(original, guard):
        def hook(self, request, *args, **kwargs):
            try:
                request._kvwise_number = next(probe.requests)
                request._kvwise_scheduler = self
                if settings.requests:
                    recorder.detail(
                        [
                            "q",
                            _now(),
                            request._kvwise_number,
                            self.__dict__.get("_kvwise_step", 0),
                            int(request.num_prompt_tokens),
                            getattr(request, "max_tokens", None),
                            int(getattr(request, "priority", 0) or 0),
                        ]
                    )
            except Exception as error:
                guard.failed(error)
            return original(self, request, *args, **kwargs)

        return hook

    def schedule(original, guard):
        def hook(self, *args, **kwargs):
            start = _now()
            output = original(self, *args, **kwargs)
            try:
                end = _now()
                step = self.__dict__.get("_kvwise_step", 0)
                self._kvwise_step = step + 1
                recorder.add("steps", 1)
                if step % settings.step_sample == 0:
                    recorder.detail(_step_record(self, output, step, start, end))
            except Exception as error:
                guard.failed(error)
            return output

        return hook

    def preempt(original, guard):
        def hook(self, request, *args, **kwargs):
            try:
                computed = int(request.num_computed_tokens)
            except Exception:
                computed = -1
            result = original(self, request, *args, **kwargs)
            try:
                recorder.add("preemptions", 1)
                number = request.__dict__.get("_kvwise_number", -1)
                recorder.detail(["v", _now(), number, self.__dict__.get("_kvwise_step", 0), computed])
            except Exception as error:
                guard.failed(error)
            return result

        return hook

    def free_request(original, guard):
        def hook(self, request, *args, **kwargs):
            result = original(self, request, *args, **kwargs)
            try:
                recorder.add("finished_requests", 1)
                if settings.requests:
                    status = getattr(request.status, "name", str(request.status))
                    hashes = getattr(request, "block_hashes", None) if settings.hashes else None
                    recorder.detail(
                        [
                            "r",
                            _now(),
                            request.__dict__.get("_kvwise_number", -1),
                            int(request.num_output_tokens),
                            int(getattr(request, "num_preemptions", 0)),
                            status.replace("FINISHED_", "").lower(),
                            _hash_block_size(self),
                            hashes,
                        ]
                    )
                request.__dict__.pop("_kvwise_scheduler", None)
            except Exception as error:
                guard.failed(error)
            return result

        return hook

    probe.wrap(module, "Scheduler", "__init__", init)
    probe.wrap(module, "Scheduler", "add_request", add_request)
    probe.wrap(module, "Scheduler", "schedule", schedule)
    probe.wrap(module, "Scheduler", "_preempt_request", preempt)
    probe.wrap(module, "Scheduler", "_free_request", free_request)


def _hash_block_size(scheduler):
    pool = scheduler.kv_cache_manager.block_pool
    size = getattr(pool, "hash_block_size", None) or getattr(scheduler, "block_size", None)
    return None if size is None else int(size)


def _step_record(scheduler, output, step, start, end):
    pool = scheduler.kv_cache_manager.block_pool
    counts = getattr(scheduler, "get_request_counts", None)
    running, waiting = counts() if counts is not None else (len(scheduler.running), len(scheduler.waiting))
    tokens_of = output.num_scheduled_tokens
    tokens = int(output.total_num_scheduled_tokens)
    # a request in decode is given one token, or one and its draft tokens
    drafts = getattr(output, "scheduled_spec_decode_tokens", None) or {}
    decode = list(tokens_of.values()).count(1)
    for request in drafts:
        if tokens_of.get(request, 1) != 1:
            decode += tokens_of[request]
    used = pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()
    return [
        "s",
        end,
        step,
        running,
        waiting,
        len(tokens_of),
        tokens,
        max(0, tokens - decode),
        used,
        (end - start) // 1000,
    ]


def _engine_settings(scheduler):
    """Sizes that the advice needs; whatever an engine version lacks is left out."""
    found = {}

    def take(name, *path):
        value = scheduler
        for part in path:
            value = getattr(value, part, None)
        if isinstance(value, (bool, int, float, str)):
            found[name] = value

    take("max_model_len", "max_model_len")
    take("max_num_seqs", "max_num_running_reqs")
    take("max_num_batched_tokens", "max_num_scheduled_tokens")
    take("num_blocks", "kv_cache_manager", "block_pool", "num_gpu_blocks")
    take("block_size", "cache_config", "block_size")
    take("cache_dtype", "cache_config", "cache_dtype")
    take("enable_prefix_caching", "cache_config", "enable_prefix_caching")
    take("gpu_memory_utilization", "cache_config", "gpu_memory_utilization")
    take("prefix_cache_retention_interval", "cache_config", "prefix_cache_retention_interval")
    take("watermark", "scheduler_config", "watermark")
    take("policy", "scheduler_config", "policy")
    take("async_scheduling", "scheduler_config", "async_scheduling")
    take("model", "vllm_config", "model_config", "model")
    take("tensor_parallel_size", "parallel_config", "tensor_parallel_size")
    take("enforce_eager", "vllm_config", "model_config", "enforce_eager")
    groups = getattr(getattr(scheduler, "kv_cache_config", None), "kv_cache_groups", None)
    if groups is not None:
        described = []
        for group in groups:
            spec = group.kv_cache_spec
            described.append(
                {
                    "kind": type(spec).__name__,
                    "layers": len(group.layer_names),
                    "block_size": getattr(spec, "block_size", None),
                    "page_bytes": getattr(spec, "page_size_bytes", None),
                    "sliding_window": getattr(spec, "sliding_window", None),
                }
            )
        found["groups"] = described
    return found


# -- CUDA graphs and memory --------------------------------------------------------------------------------------


def _hook_cuda_graph(probe, module):
    recorder = probe.recorder

    def call(original, guard):
        def hook(self, *args, **kwargs):
            # piecewise graphs are one wrapper for each piece: the first one speaks for the step
            leader = probe.graph_leader
            if leader is not None and leader is not self and self.runtime_mode == leader.runtime_mode:
                return original(self, *args, **kwargs)
            captured = descriptor = None
            try:
                if module.is_forward_context_available():
                    context = module.get_forward_context()
                    if context.cudagraph_runtime_mode == self.runtime_mode:
                        descriptor = context.batch_descriptor
                        entry = self.concrete_cudagraph_entries.get(descriptor)
                        captured = entry is not None and entry.cudagraph is not None
                        if probe.graph_leader is None and self.runtime_mode.name == "PIECEWISE":
                            probe.graph_leader = self
            except Exception as error:
                guard.failed(error)
            start = _now()
            result = original(self, *args, **kwargs)
            if descriptor is not None:
                try:
                    _graph_used(probe, recorder, self.runtime_mode.name, descriptor, captured, start, _now())
                except Exception as error:
                    guard.failed(error)
            return result

        return hook

    probe.wrap(module, "CUDAGraphWrapper", "__call__", call)


def _graph_used(probe, recorder, mode, descriptor, captured, start, end):
    reqs = getattr(descriptor, "num_reqs", None)
    key = (
        mode,
        int(descriptor.num_tokens),
        None if reqs is None else int(reqs),
        bool(getattr(descriptor, "uniform", getattr(descriptor, "uniform_decode", False))),
        bool(getattr(descriptor, "has_lora", False)),
    )
    if not captured:
        recorder.keep(["g", end] + list(key))
        return
    probe.graph_counts[key] = probe.graph_counts.get(key, 0) + 1
    recorder.detail(["d", end, "%s:%s" % (mode, descriptor), (end - start) // 1000])
    if end - probe.graph_written > 1000000000:
        probe.graph_written = end
        recorder.keep(["G", end, [list(k) + [n] for k, n in list(probe.graph_counts.items())]])


def _hook_worker(probe, module):
    recorder = probe.recorder

    def available(original, guard):
        def hook(self, *args, **kwargs):
            result = original(self, *args, **kwargs)
            try:
                now = _now()
                recorder.keep(["m", now, "available_kv_cache", int(result)])
                runner = getattr(self, "model_runner", None)
                for name, value in (
                    ("weights", getattr(runner, "model_memory_usage", None)),
                    ("peak_activation", getattr(self, "peak_activation_memory", None)),
                    ("non_torch", getattr(self, "non_torch_memory", None)),
                ):
                    if isinstance(value, (int, float)):
                        recorder.keep(["m", now, name, int(value)])
            except Exception as error:
                guard.failed(error)
            return result

        return hook

    probe.wrap(module, "Worker", "determine_available_memory", available, required=False)


def _hook_model_runner(probe, module):
    recorder = probe.recorder

    def capture(original, guard):
        def hook(self, *args, **kwargs):
            result = original(self, *args, **kwargs)
            try:
                if isinstance(result, int):
                    recorder.keep(["m", _now(), "cuda_graphs", result])
            except Exception as error:
                guard.failed(error)
            return result

        return hook

    probe.wrap(module, "GPUModelRunner", "capture_model", capture, required=False)


def hooks(settings):
    """Module name to hook, for the import hook. The probe itself is made at the first hooked import."""
    made = []

    def probe():
        if not made:
            made.append(Probe(settings))
        return made[0]

    def lazily(function):
        return lambda module: function(probe(), module)

    return {
        "vllm.v1.core.block_pool": lazily(_hook_block_pool),
        "vllm.v1.core.kv_cache_manager": lazily(_hook_kv_cache_manager),
        "vllm.v1.core.sched.scheduler": lazily(_hook_scheduler),
        "vllm.compilation.cuda_graph": lazily(_hook_cuda_graph),
        "vllm.v1.worker.gpu_worker": lazily(_hook_worker),
        "vllm.v1.worker.gpu_model_runner": lazily(_hook_model_runner),
    }
