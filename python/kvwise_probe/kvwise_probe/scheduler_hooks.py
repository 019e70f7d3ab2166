"""Hooks on vLLM's scheduler (`vllm/v1/core/sched/scheduler.py`)."""

from .encoder import Tokens
from .hooking import now
from .live import ARRIVED, PREEMPTED, STEP, TIMED_EVERY, head

STEP_MADE = head(STEP, 9)
ARRIVAL = head(ARRIVED, 6)
PREEMPTION = head(PREEMPTED, 4)
NOT_KNOWN = -1

# A gap between two steps that is longer than this is not a step's time, whatever the engine did meanwhile.
LONGEST_STEP_NS = 5000000000


def hook_scheduler(probe, module):
    recorder = probe.recorder
    live = probe.live
    append = live.append
    ended = live.ended.append
    waiting_events = live.events.__len__
    settings = probe.settings
    step_sample = settings.step_sample
    call_ns = probe.call_ns

    def init(original, guard):
        def hook(self, *args, **kwargs):
            original(self, *args, **kwargs)
            try:
                self._kvwise_step = 0
                recorder.keep(("S", now(), _engine_settings(self)))
            except Exception as error:
                guard.failed(error)

        return hook

    def add_request(original, guard):
        def hook(self, request, *args, **kwargs):
            start = now() if live.timed else 0
            try:
                own = request.__dict__
                number = own["_kvwise_number"] = next(probe.requests)
                own["_kvwise_scheduler"] = self
                if not self.running and not len(self.waiting):
                    live.last_end = 0  # the engine was idle: the time until the next step is nobody's
                if settings.requests:
                    if live.open:
                        step = self.__dict__.get("_kvwise_step", 0)
                        limit = getattr(request, "max_tokens", None)
                        limit = NOT_KNOWN if limit is None else int(limit)
                        priority = int(getattr(request, "priority", 0) or 0)
                        append((ARRIVAL, now(), number, step, int(request.num_prompt_tokens), limit, priority))
                    else:
                        live.lost += 1
            except Exception as error:
                guard.failed(error)
            if start:
                live.hook_ns += now() - start + call_ns
            return original(self, request, *args, **kwargs)

        return hook

    def schedule(original, guard):
        def hook(self, *args, **kwargs):
            start = live.t = now()
            try:
                output = original(self, *args, **kwargs)
            finally:
                live.t = 0
            end = now()
            try:
                timed = live.timed
                own = self.__dict__
                step = own.get("_kvwise_step", 0)
                own["_kvwise_step"] = step + 1
                live.steps += 1
                tokens = output.total_num_scheduled_tokens
                last = live.last_end
                took = end - last if last else end - start
                live.step_ns += took if took < LONGEST_STEP_NS else end - start
                live.last_end = end if tokens else 0
                if not step % step_sample and not step % live.every:
                    if live.open:
                        append(_step_record(self, output, step, start, end, int(tokens)))
                    else:
                        live.lost += 1
                if waiting_events() > live.room:
                    live.close()
                if recorder.thread is None:
                    recorder.begin()
                if timed:
                    live.hook_ns += now() - end + 2 * call_ns
                live.timed = not (step + 1) % TIMED_EVERY
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
                live.preemptions += 1
                if live.open:
                    number = request.__dict__.get("_kvwise_number", -1)
                    append((PREEMPTION, live.t or now(), number, self.__dict__.get("_kvwise_step", 0), computed))
                else:
                    live.lost += 1
            except Exception as error:
                guard.failed(error)
            return result

        return hook

    def free_request(original, guard):
        def hook(self, request, *args, **kwargs):
            result = original(self, request, *args, **kwargs)
            start = now() if live.timed else 0
            try:
                live.finished_requests += 1
                own = request.__dict__
                if settings.requests:
                    if live.open:
                        status = getattr(request.status, "name", str(request.status))
                        ended(
                            (
                                "r",
                                now(),
                                own.get("_kvwise_number", -1),
                                int(request.num_output_tokens),
                                int(getattr(request, "num_preemptions", 0)),
                                status.replace("FINISHED_", "").lower(),
                                _hash_block_size(self),
                                _content(request) if settings.hashes else None,
                            )
                        )
                    else:
                        live.lost += 1
                own.pop("_kvwise_scheduler", None)
            except Exception as error:
                guard.failed(error)
            if start:
                live.hook_ns += now() - start + call_ns
            return result

        return hook

    probe.wrap(module, "Scheduler", "__init__", init, always=True)
    probe.wrap(module, "Scheduler", "add_request", add_request)
    probe.wrap(module, "Scheduler", "schedule", schedule)
    probe.wrap(module, "Scheduler", "_preempt_request", preempt)
    probe.wrap(module, "Scheduler", "_free_request", free_request)


def _content(request):
    """The hashes of a request's blocks; its tokens where the engine made none. They are hashed by the writer, and not kept."""
    hashes = getattr(request, "block_hashes", None)
    if hashes:
        return hashes
    tokens = getattr(request, "_all_token_ids", None)
    return hashes if tokens is None else Tokens(tokens)


def _hash_block_size(scheduler):
    pool = scheduler.kv_cache_manager.block_pool
    size = getattr(pool, "hash_block_size", None) or getattr(scheduler, "block_size", None)
    return None if size is None else int(size)


def _step_record(scheduler, output, step, start, end, tokens):
    pool = scheduler.kv_cache_manager.block_pool
    counts = getattr(scheduler, "get_request_counts", None)
    running, waiting = counts() if counts is not None else (len(scheduler.running), len(scheduler.waiting))
    tokens_of = output.num_scheduled_tokens
    requests = len(tokens_of)
    prefill = 0
    if tokens != requests:  # not every request is given one token
        # a request in decode is given one token, or one and its draft tokens
        drafts = getattr(output, "scheduled_spec_decode_tokens", None) or {}
        decode = list(tokens_of.values()).count(1)
        for request in drafts:
            if tokens_of.get(request, 1) != 1:
                decode += tokens_of[request]
        prefill = max(0, tokens - decode)
    used = pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()
    return (STEP_MADE, end, step, running, waiting, requests, tokens, prefill, used, (end - start) // 1000)


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
