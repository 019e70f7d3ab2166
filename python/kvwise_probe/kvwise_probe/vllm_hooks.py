"""Which hook belongs to which module of vLLM, and what they record.

Attribute names are those of vLLM 0.32.0 (`vllm/v1/core/block_pool.py`, `kv_cache_manager.py`, `sched/scheduler.py`,
`vllm/compilation/cuda_graph.py`, `vllm/v1/worker/gpu_worker.py`), with the older shapes of 0.9 to 0.31 where they differ.

Records are lists, the kind first, then the monotonic time in nanoseconds; a line of the file is a list of records:

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
    ["B", t, every, share_ppm, limit_ppm]                      from here on only every n-th step, block and hashed request
                                                               (0: totals only, -1: nothing at all), and for what cost
    ["m", t, name, bytes]  ["S", t, {settings}]  ["n", t, kind, text]  ["T", t, {totals}]  ["end", t]

Lists of blocks are hexadecimal text: 8 digits a number, lowest byte first; 16 for lifetimes and idle times. What
happens to blocks while a step is scheduled bears the time at which that began; its order is that of the records.
"""

from .gpu_hooks import hook_cuda_graph, hook_model_runner, hook_worker
from .hooking import Probe
from .pool_hooks import hook_block_pool, hook_kv_cache_manager
from .scheduler_hooks import hook_scheduler


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
        "vllm.v1.core.block_pool": lazily(hook_block_pool),
        "vllm.v1.core.kv_cache_manager": lazily(hook_kv_cache_manager),
        "vllm.v1.core.sched.scheduler": lazily(hook_scheduler),
        "vllm.compilation.cuda_graph": lazily(hook_cuda_graph),
        "vllm.v1.worker.gpu_worker": lazily(hook_worker),
        "vllm.v1.worker.gpu_model_runner": lazily(hook_model_runner),
    }
