"""Hooks on vLLM's block pool (`vllm/v1/core/block_pool.py`) and prefix lookups (`kv_cache_manager.py`)."""

from .encoder import PoolState
from .hooking import now, takes_only


def _state_of(probe, pool):
    """The probe's own attribute of a pool, made when the pool is seen first."""
    state = pool.__dict__.get("_kvwise_state")
    if state is None:
        state = PoolState(next(probe.pools), int(pool.num_gpu_blocks), bool(pool.enable_caching))
        pool._kvwise_state = state
        probe.recorder.keep(("p", now(), state, getattr(pool, "hash_block_size", None)))
    return state


def _flat(blocks):
    """Blocks of one group, or of several (vLLM 0.9.2 to 0.11 pass a tuple of lists)."""
    for block in blocks:
        if hasattr(block, "block_id"):
            yield block
        else:
            for inner in block:
                yield inner


def hook_block_pool(probe, module):
    live = probe.live
    append = live.append
    call_ns = probe.call_ns

    def init(original, guard):
        def hook(self, *args, **kwargs):
            original(self, *args, **kwargs)
            try:
                _state_of(probe, self)
            except Exception as error:
                guard.failed(error)

        return hook

    def allocated(pool, blocks):
        """Notes an allocation. The engine may change the list later: a copy is kept."""
        start = now() if live.timed else 0
        try:
            state = pool._kvwise_state
        except AttributeError:
            state = _state_of(probe, pool)
        gone = state.evicted
        if gone:
            state.evicted = []
            live.evicted_blocks += len(gone)
        else:
            gone = None  # not the list itself: later evictions go into it
        live.allocated_blocks += len(blocks)
        if live.open:
            if blocks:
                append(("a", live.t or now(), state, tuple(blocks), gone))
        else:
            live.lost += 1
        if start:
            live.hook_ns += now() - start + call_ns

    def get_new_blocks(original, guard):
        if takes_only(original, "self", "num_blocks"):

            def hook(self, num_blocks):
                blocks = original(self, num_blocks)
                try:
                    allocated(self, blocks)
                except Exception as error:
                    guard.failed(error)
                return blocks

        else:

            def hook(self, *args, **kwargs):
                blocks = original(self, *args, **kwargs)
                try:
                    allocated(self, blocks)
                except Exception as error:
                    guard.failed(error)
                return blocks

        return hook

    def maybe_evict(original, guard):
        # called for each block that is allocated: the shortest of all hooks. It does not read the clock; its cost is
        # that of its call.
        def noted(pool, block):
            try:
                pool._kvwise_state.evicted.append(block)
            except AttributeError:
                _state_of(probe, pool).evicted.append(block)
            except Exception as error:
                guard.failed(error)

        if takes_only(original, "self", "block"):

            def hook(self, block):
                result = original(self, block)
                if live.timed:
                    live.hook_ns += call_ns
                if result:
                    noted(self, block)
                return result

        else:

            def hook(self, block, *args, **kwargs):
                result = original(self, block, *args, **kwargs)
                if live.timed:
                    live.hook_ns += call_ns
                if result:
                    noted(self, block)
                return result

        return hook

    def evict_blocks(original, guard):
        def hook(self, *args, **kwargs):
            result = original(self, *args, **kwargs)
            try:
                state = _state_of(probe, self)
                gone, state.evicted = state.evicted, []
                if gone:
                    live.evicted_blocks += len(gone)
                    if live.open:
                        append(("e", live.t or now(), state, tuple(gone)))
                    else:
                        live.lost += 1
            except Exception as error:
                guard.failed(error)
            return result

        return hook

    def touch(original, guard):
        def hook(self, blocks, *args, **kwargs):
            result = original(self, blocks, *args, **kwargs)
            start = now() if live.timed else 0
            try:
                state = _state_of(probe, self)
                if blocks and not hasattr(blocks[0], "block_id"):
                    blocks = list(_flat(blocks))
                kept = [block for block in blocks if not block.is_null]
                live.hit_blocks += len(kept)
                if live.open:
                    if kept:
                        append(("t", live.t or now(), state, kept))
                else:
                    live.lost += 1
            except Exception as error:
                guard.failed(error)
            if start:
                live.hook_ns += now() - start + call_ns
            return result

        return hook

    def free_blocks(original, guard):
        def hook(self, ordered_blocks, *args, **kwargs):
            # an iterator can be read once: make it a list for the engine and for us
            blocks = ordered_blocks if isinstance(ordered_blocks, (list, tuple)) else list(ordered_blocks)
            try:
                before = self.get_num_free_blocks()
            except Exception:
                before = 0
            result = original(self, blocks, *args, **kwargs)
            start = now() if live.timed else 0
            try:
                state = _state_of(probe, self)
                if self.get_num_free_blocks() - before == len(blocks):
                    freed = tuple(blocks)
                else:
                    # some have another user, or belong to another pool, to whose own free_blocks they were passed on
                    freed = [block for block in blocks if block.ref_cnt == 0 and not block.is_null]
                    if freed and hasattr(freed[0], "pool"):
                        freed = [block for block in freed if block.pool is None or block.pool is self]
                live.freed_blocks += len(freed)
                if live.open:
                    if freed:
                        append(("f", live.t or now(), state, freed))
                else:
                    live.lost += 1
            except Exception as error:
                guard.failed(error)
            if start:
                live.hook_ns += now() - start + call_ns
            return result

        return hook

    def reset_prefix_cache(original, guard):
        def hook(self, *args, **kwargs):
            result = original(self, *args, **kwargs)
            if result:
                try:
                    probe.recorder.keep(("c", now(), _state_of(probe, self)))
                except Exception as error:
                    guard.failed(error)
            return result

        return hook

    probe.wrap(module, "BlockPool", "__init__", init, always=True)
    probe.wrap(module, "BlockPool", "get_new_blocks", get_new_blocks)
    probe.wrap(module, "BlockPool", "_maybe_evict_cached_block", maybe_evict)
    probe.wrap(module, "BlockPool", "evict_blocks", evict_blocks, required=False)
    probe.wrap(module, "BlockPool", "touch", touch)
    probe.wrap(module, "BlockPool", "free_blocks", free_blocks)
    probe.wrap(module, "BlockPool", "reset_prefix_cache", reset_prefix_cache, always=True)


def hook_kv_cache_manager(probe, module):
    live = probe.live
    call_ns = probe.call_ns

    def lookup(request, hit_tokens):
        start = now() if live.timed else 0
        tokens, hit_tokens = int(request.num_tokens), int(hit_tokens)
        resumed = getattr(request, "num_preemptions", 0) > 0
        if resumed:
            live.resumed_query_tokens += tokens
            live.resumed_hit_tokens += hit_tokens
        else:
            live.query_tokens += tokens
            live.hit_tokens += hit_tokens
        if live.open:
            own = request.__dict__
            scheduler = own.get("_kvwise_scheduler")
            step = -1 if scheduler is None else scheduler.__dict__.get("_kvwise_step", 0)
            live.append(("h", live.t or now(), own.get("_kvwise_number", -1), step, tokens, hit_tokens, int(resumed)))
        else:
            live.lost += 1
        if start:
            live.hook_ns += now() - start + call_ns

    def record(original, guard):
        def hook(self, request, num_hits, *args, **kwargs):
            result = original(self, request, num_hits, *args, **kwargs)
            try:
                enabled = getattr(self, "prefix_cache_lookup_enabled", None)
                if enabled is None or enabled(request):
                    lookup(request, num_hits)
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
                    lookup(request, result[1])
            except Exception as error:
                guard.failed(error)
            return result

        return hook

    if not probe.wrap(module, "KVCacheManager", "record_prefix_cache_stats", record, required=False):
        probe.wrap(module, "KVCacheManager", "get_computed_blocks", get_computed_blocks)
