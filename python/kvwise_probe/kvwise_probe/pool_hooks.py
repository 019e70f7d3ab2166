"""Hooks on vLLM's block pool (`vllm/v1/core/block_pool.py`) and prefix lookups (`kv_cache_manager.py`).

These run for every block that is allocated: what can be written out in place of a call is.
"""

from .hooking import now, takes_only
from .live import ALLOCATED, CLEARED, DROPPED, EVICTED, FREED, HIT, LOOKED_UP, Pool, head

ONE_ALLOCATED = head(ALLOCATED, 3)
ONE_EVICTED = head(EVICTED, 3)
CLEARED_ALL = head(CLEARED, 2)
LOOKUP = head(LOOKED_UP, 6)


def _state_of(probe, pool):
    """The probe's own attribute of a pool, made when the pool is seen first."""
    state = pool.__dict__.get("_kvwise_state")
    if state is None:
        state = Pool(next(probe.pools))
        pool._kvwise_state = state
        probe.live.pools.append(state)
        size = getattr(pool, "hash_block_size", None)
        known = (state.number, int(pool.num_gpu_blocks), int(bool(pool.enable_caching)), size)
        probe.recorder.keep(("p", now()) + known)
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
    wanted = probe.settings.blocks

    def note(kind, state, ids):
        """One event about these blocks, or about those of the sample."""
        if live.mask:
            mask = live.mask
            ids = [i for i in ids if not i & mask]
        if ids and wanted:
            append((kind | (len(ids) + 2) << 8, live.t or now(), state.number, *ids))

    def init(original, guard):
        def hook(self, *args, **kwargs):
            original(self, *args, **kwargs)
            try:
                _state_of(probe, self)
            except Exception as error:
                guard.failed(error)

        return hook

    def allocated(pool, blocks):
        start = now() if live.timed else 0
        try:
            state = pool._kvwise_state
        except AttributeError:
            state = _state_of(probe, pool)
        count = len(blocks)
        live.allocated_blocks += count
        gone = state.evicted
        if gone:
            live.evicted_blocks += len(gone)
        if live.open:
            if count == 1 and wanted and not live.mask:  # by far the most frequent: a request's next block
                t = live.t or now()
                if gone:
                    if len(gone) == 1:
                        append((ONE_EVICTED, t, state.number, gone[0]))
                    else:
                        note(EVICTED, state, gone)
                append((ONE_ALLOCATED, t, state.number, blocks[0].block_id))
            elif count:
                if gone:
                    note(EVICTED, state, gone)
                note(ALLOCATED, state, [block.block_id for block in blocks])
        else:
            live.lost += 1
        if gone:
            del gone[:]
        if start:
            # the hook on evictions does not read the clock: it costs what its call costs
            live.hook_ns += now() - start + call_ns * (1 + count)

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
        # called for each block that is allocated: the shortest of all hooks
        def noted(pool, block):
            try:
                pool._kvwise_state.evicted.append(block.block_id)
            except AttributeError:
                _state_of(probe, pool).evicted.append(block.block_id)
            except Exception as error:
                guard.failed(error)

        if takes_only(original, "self", "block"):

            def hook(self, block):
                result = original(self, block)
                if result:
                    noted(self, block)
                return result

        else:

            def hook(self, block, *args, **kwargs):
                result = original(self, block, *args, **kwargs)
                if result:
                    noted(self, block)
                return result

        return hook

    def evict_blocks(original, guard):
        def hook(self, *args, **kwargs):
            result = original(self, *args, **kwargs)
            try:
                state = _state_of(probe, self)
                gone = state.evicted
                if gone:
                    live.evicted_blocks += len(gone)
                    if live.open:
                        note(DROPPED, state, gone)
                    else:
                        live.lost += 1
                    del gone[:]
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
                ids = [block.block_id for block in blocks if not block.is_null]
                live.hit_blocks += len(ids)
                if live.open:
                    note(HIT, state, ids)
                else:
                    live.lost += 1
            except Exception as error:
                guard.failed(error)
            if start:
                live.hook_ns += now() - start + call_ns
            return result

        return hook

    def released(pool, blocks):
        state = _state_of(probe, pool)
        live.freed_blocks += len(blocks)
        if live.open:
            note(FREED, state, [block.block_id for block in blocks])
        else:
            live.lost += 1

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
                freed = blocks
                if self.get_num_free_blocks() - before != len(blocks):
                    # some have another user, or belong to another pool, to whose own free_blocks they were passed on
                    freed = [block for block in blocks if block.ref_cnt == 0 and not block.is_null]
                    if freed and hasattr(freed[0], "pool"):
                        freed = [block for block in freed if block.pool is None or block.pool is self]
                released(self, freed)
            except Exception as error:
                guard.failed(error)
            if start:
                live.hook_ns += now() - start + call_ns
            return result

        return hook

    def unpin_blocks(original, guard):
        # vLLM 0.32 gives blocks back here that a transfer still reads: they count as free
        def hook(self, blocks, *args, **kwargs):
            blocks = blocks if isinstance(blocks, (list, tuple)) else list(blocks)
            result = original(self, blocks, *args, **kwargs)
            try:
                released(self, [block for block in blocks if block.ref_cnt == 0])
            except Exception as error:
                guard.failed(error)
            return result

        return hook

    def reset_prefix_cache(original, guard):
        def hook(self, *args, **kwargs):
            result = original(self, *args, **kwargs)
            if result:
                try:
                    append((CLEARED_ALL, now(), _state_of(probe, self).number))
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
    probe.wrap(module, "BlockPool", "unpin_blocks", unpin_blocks, required=False)
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
            live.append((LOOKUP, live.t or now(), own.get("_kvwise_number", -1), step, tokens, hit_tokens, int(resumed)))
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
