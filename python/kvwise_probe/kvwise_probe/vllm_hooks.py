"""Which hook belongs to which module of vLLM, and what they record.

Attribute names are those of vLLM 0.32.0 (`vllm/v1/core/block_pool.py`, `kv_cache_manager.py`, `sched/scheduler.py`,
`vllm/compilation/cuda_graph.py`, `vllm/v1/worker/gpu_worker.py`), with the older shapes of 0.9 to 0.31 where they differ.

A line of the file is a JSON list. Most begin with `"b"` and hold many events, as 64-bit numbers (lowest byte first) in base64:

    kind + 256 * count, then so many numbers, of which the first is the monotonic time in nanoseconds

     1 allocated    t, pool, block...            2 freed (no longer used), 3 hit: likewise
     4 evicted      t, pool, block...            lost their cached content to the allocation that follows; 5: on request
     6 cleared      t, pool                      the cache was emptied
     7 step         t, step, running, waiting, requests, tokens, prefill_tokens, used_blocks, schedule_us
     8 arrived      t, request, step, prompt_tokens, max_tokens (-1: none), priority
     9 looked up    t, request, step, tokens, hit_tokens, resumed     a prefix lookup at admission
    10 preempted    t, request, step, computed_tokens
    11 replayed     t, graph, duration_us        a CUDA graph, as the CPU sees it (the launch)
    12 lost         t                            events are missing here: nothing is known of blocks

What happens to blocks while a step is scheduled bears the time at which that began; its order is that of the events. The
other lines are lists of records, each a list with its kind and time first:

    ["p", t, pool, num_blocks, caching, hash_block_size]       a block pool was made
    ["r", t, request, output_tokens, preemptions, reason, hash_block_size, hashes]   finished
    ["g", t, mode, num_tokens, num_reqs, uniform, has_lora]    a CUDA graph was captured
    ["G", t, [[mode, num_tokens, num_reqs, uniform, has_lora, count], ...]]  replays so far
    ["k", t, graph, text]                                      what a number in "replayed" stands for
    ["B", t, every, share_ppm, limit_ppm]                      from here on only every n-th step, block and hashed request
                                                               (0: totals only, -1: nothing at all), and for what cost
    ["m", t, name, bytes]  ["S", t, {settings}]  ["n", t, kind, text]  ["T", t, {totals}]  ["end", t]
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
