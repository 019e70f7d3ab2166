"""A KV cache manager in the shape of vLLM's."""

from .block_pool import BlockPool


class KVCacheManager(object):
    def __init__(self, num_blocks):
        self.block_pool = BlockPool(num_blocks)
        self.held = {}
        self.counts = {"query_tokens": 0, "hit_tokens": 0}

    def record_prefix_cache_stats(self, request, num_hits):
        if request.num_preemptions == 0:
            self.counts["query_tokens"] += request.num_tokens
            self.counts["hit_tokens"] += num_hits

    def admit(self, request):
        pool = self.block_pool
        hits = []
        for block_hash in request.block_hashes:
            block = pool.cached.get(block_hash)
            if block is None:
                break
            hits.append(block)
        need = len(request.block_hashes) + 1 - len(hits)
        free_hits = sum(1 for block in hits if block.ref_cnt == 0)
        if need + free_hits > pool.get_num_free_blocks():
            return False
        pool.touch(hits)
        blocks = hits + pool.get_new_blocks(need)
        for block, block_hash in zip(blocks, request.block_hashes):
            if block.block_hash is None and block_hash not in pool.cached:
                block.block_hash = block_hash
                pool.cached[block_hash] = block
        self.held[request.request_id] = blocks
        self.record_prefix_cache_stats(request, len(hits) * pool.hash_block_size)
        return True

    def free(self, request):
        # a generator, as vLLM passes `reversed(...)`: a hook that reads it up would break the engine
        self.block_pool.free_blocks(reversed(self.held.pop(request.request_id)))
