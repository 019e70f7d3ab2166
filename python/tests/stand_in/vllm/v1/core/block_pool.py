"""A block pool in the shape of vLLM's: free blocks in a list, cached content by hash."""


class Block(object):
    def __init__(self, block_id):
        self.block_id = block_id
        self.ref_cnt = 0
        self.block_hash = None
        self.is_null = block_id == 0


class BlockPool(object):
    def __init__(self, num_gpu_blocks, enable_caching=True, hash_block_size=4):
        self.num_gpu_blocks = num_gpu_blocks
        self.enable_caching = enable_caching
        self.hash_block_size = hash_block_size
        self.blocks = [Block(i) for i in range(num_gpu_blocks)]
        self.free = self.blocks[1:]
        self.cached = {}
        self.counts = {"allocated": 0, "evicted": 0}

    def get_num_free_blocks(self):
        return len(self.free)

    def get_new_blocks(self, num_blocks):
        taken, self.free = self.free[:num_blocks], self.free[num_blocks:]
        for block in taken:
            self._maybe_evict_cached_block(block)
            block.ref_cnt = 1
        self.counts["allocated"] += len(taken)
        return taken

    def _maybe_evict_cached_block(self, block):
        if block.block_hash is None:
            return False
        del self.cached[block.block_hash]
        block.block_hash = None
        self.counts["evicted"] += 1
        return True

    def evict_blocks(self, block_ids):
        for block_id in block_ids:
            self._maybe_evict_cached_block(self.blocks[block_id])

    def touch(self, blocks):
        for block in blocks:
            if block.ref_cnt == 0:
                self.free.remove(block)
            block.ref_cnt += 1

    def free_blocks(self, ordered_blocks):
        for block in ordered_blocks:
            block.ref_cnt -= 1
            if block.ref_cnt == 0:
                self.free.append(block)

    def reset_prefix_cache(self):
        self.cached.clear()
        for block in self.blocks:
            block.block_hash = None
        return True
