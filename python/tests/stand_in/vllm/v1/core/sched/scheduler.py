"""A scheduler in the shape of vLLM's: each step admits what fits and finishes the oldest."""

from ..kv_cache_manager import KVCacheManager


class Status(object):
    def __init__(self, name):
        self.name = name


class Request(object):
    def __init__(self, number, block_hashes, prompt_tokens):
        self.request_id = str(number)
        self.block_hashes = block_hashes
        self.num_prompt_tokens = prompt_tokens
        self.num_tokens = prompt_tokens
        self.num_output_tokens = 0
        self.num_preemptions = 0
        self.num_computed_tokens = 0
        self.max_tokens = 3
        self.priority = 0
        self.status = Status("WAITING")


class Output(object):
    def __init__(self, num_scheduled_tokens):
        self.num_scheduled_tokens = num_scheduled_tokens
        self.total_num_scheduled_tokens = sum(num_scheduled_tokens.values())


class Scheduler(object):
    def __init__(self, num_blocks):
        self.kv_cache_manager = KVCacheManager(num_blocks)
        self.max_model_len = 64
        self.max_num_running_reqs = 8
        self.waiting, self.running = [], []
        self.counts = {"preemptions": 0, "finished": 0, "steps": 0}

    def add_request(self, request):
        self.waiting.append(request)

    def schedule(self, throttle_prefills=False):
        self.counts["steps"] += 1
        tokens = {}
        for request in self.running:
            request.num_output_tokens += 1
            tokens[request.request_id] = 1
        if self.counts["steps"] % 7 == 0 and len(self.running) > 1:
            self._preempt_request(self.running.pop(), 0.0)
        while self.waiting and self.kv_cache_manager.admit(self.waiting[0]):
            request = self.waiting.pop(0)
            request.num_computed_tokens = request.num_tokens
            self.running.append(request)
            tokens[request.request_id] = request.num_tokens
        for request in [r for r in self.running if r.num_output_tokens >= r.max_tokens]:
            self.running.remove(request)
            request.status = Status("FINISHED_LENGTH_CAPPED")
            self._free_request(request)
        return Output(tokens)

    def _preempt_request(self, request, timestamp):
        self.kv_cache_manager.free(request)
        request.num_preemptions += 1
        self.counts["preemptions"] += 1
        self.waiting.insert(0, request)

    def _free_request(self, request, delay_free_blocks=False):
        self.kv_cache_manager.free(request)
        self.counts["finished"] += 1
        return None, None
