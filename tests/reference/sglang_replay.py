#!/usr/bin/env python3
"""Runs whole traces through SGLang's own radix tree, allocators and request rows, as `kvwise replay --engine sglang` does.

Needs what `sglang_scheduler.py` needs (sglang 0.5.23). `crates/kvwise/tests/replay_sglang.rs` starts it when
KVWISE_SGLANG_PYTHON names such an interpreter; by hand:

    python sglang_replay.py < cases.jsonl > answers.jsonl

A case is one line: {"settings": {"capacity", "page", "policy", "policy_config", "running", "hash_block", "max_context"},
"rows": [...]}, rows as in the `tokens` format. The answer is one line: the list of event lines.

Requests come one after the other and are held `running` at a time; the oldest ends first and decodes all its output then.
SGLang decides what is matched, evicted and freed, and which request is retracted; the rule of admission is that of
`PrefillAdder` for a request alone (`schedule_policy.py`).
"""
import json
import sys

import sglang_ops as ops
import sglang_scheduler

MADE_UP = -(1 << 40)


def tokens_of(row, number, hash_block):
    """Prompt and output; outputs that are not given are numbers below zero that no other request has."""
    if "tokens" in row:
        prompt = list(row["tokens"])
    else:
        prompt = [i * hash_block + k for i in row["hash_ids"] for k in range(hash_block)][: row["input_length"]]
    own = MADE_UP - number * (1 << 20)
    output = row.get("output_tokens") or [own - k for k in range(row["output_length"])]
    return prompt, output


class Running:
    def __init__(self, number, row, hash_block):
        self.number, self.row, self.again = number, row, False
        self.prompt, self.output = tokens_of(row, number, hash_block)


class Replay:
    def __init__(self, sgl, case):
        self.sgl, self.settings = sgl, case["settings"]
        self.requests = [Running(n, r, self.settings["hash_block"]) for n, r in enumerate(case["rows"])]
        longest = max(len(r.prompt) + len(r.output) for r in self.requests)
        job = dict(self.settings, rows=self.settings["running"] + 1, width=longest, kv_events=False)
        self.cache = ops.Cache(sgl, job, "rust")
        self.live, self.waiting, self.lines = [], [], []
        self.sums = dict(requests=0, refused=0, input=0, matched=0, evicted=0, evicted_nodes=0)
        self.lost = dict(retracted=0, aborted=0)

    def emit(self, request, **fields):
        self.lines.append(json.dumps({"id": request.row["id"], **fields}))

    def admit(self, request):
        """Matched tokens, or None if it has to wait or never fits."""
        cache, sgl = self.cache, self.sgl
        row = request.row
        total = len(request.prompt) + len(request.output)
        matched = cache.admit({
            "id": request.number, "tokens": request.prompt + request.output, "prompt_len": len(request.prompt),
            "priority": row.get("priority", 0), "extra_key": row.get("extra_key"), "cache_salt": row.get("cache_salt"),
        })["matched"]
        new_tokens = min(len(request.output), sgl.schedule_policy.CLIP_MAX_NEW_TOKENS)
        needed = len(request.prompt) - matched + new_tokens + cache.page
        room = cache.slots.available_size() + cache.tree.evictable_size()
        if needed >= room or total > self.settings["max_context"]:
            cache.retract({"id": request.number})
            return None
        if cache.extend({"id": request.number, "to": len(request.prompt)}):
            raise RuntimeError("no room after admission")
        if len(request.output) > 1:
            cache.checkpoint({"id": request.number, "up_to": len(request.prompt)})
        return matched

    def retract(self):
        """Takes the request out of which SGLang would; returns whether there was one."""
        reqs = [self.cache.live[r.number] for r in self.live]
        if not reqs:
            return False
        for req in reqs:
            req.output_ids = [0]  # that of its prefill
        order = self.sgl.schedule_batch.ScheduleBatch._get_decode_retraction_order(reqs)
        victim = self.live.pop(order[-1])
        self.cache.retract({"id": victim.number})
        left = len(self.live) + 1
        steps = self.sgl.schedule_batch.envs.SGLANG_RETRACT_DECODE_STEPS.get()
        self.sgl.common.evict_from_tree_cache(self.cache.tree, left * steps)
        self.lost["retracted"] += 1
        self.emit(victim, retracted=True)
        self.waiting.append(victim)
        return True

    def finish_oldest(self):
        request = self.live.pop(0)
        page, at = self.cache.page, len(request.prompt)
        end = at + max(len(request.output) - 1, 0)  # the last token's keys and values are never computed
        while at < end:
            to = end if page == 1 else min(end, at + page - at % page)
            if not self.cache.extend({"id": request.number, "to": to}):
                at = to
            elif not self.retract():
                self.cache.retract({"id": request.number})
                self.lost["aborted"] += 1
                self.emit(request, aborted=True)
                return
        self.cache.finish({"id": request.number, "up_to": end})

    def turn(self, request):
        cache = self.cache
        cache.evicted.clear()
        while len(self.live) >= self.settings["running"]:
            self.finish_oldest()
        matched = self.admit(request)
        while matched is None and self.live:
            self.finish_oldest()
            matched = self.admit(request)
        if matched is None:
            self.sums["refused"] += 1
            self.emit(request, refused=True)
            return
        self.live.append(request)
        if self.settings["running"] == 1:
            self.finish_oldest()
        if not request.again:
            self.sums["input"] += len(request.prompt)
            self.sums["matched"] += matched
        self.sums["evicted"] += sum(tokens for tokens, _ in cache.evicted)
        self.sums["evicted_nodes"] += len(cache.evicted)
        again = {"again": True} if request.again else {}
        self.emit(request, input=len(request.prompt), matched=matched, new=len(request.prompt) - matched,
                  evicted=[tokens for tokens, _ in cache.evicted], slots=[slot for _, slot in cache.evicted],
                  free=int(cache.slots.available_size()), evictable=int(cache.tree.evictable_size()),
                  protected=int(cache.tree.protected_size()), **again)

    def turns_of_retracted(self):
        while self.waiting:
            request = self.waiting.pop(0)
            request.again = True
            self.turn(request)

    def run(self):
        for request in self.requests:
            self.sums["requests"] += 1
            self.turn(request)
            self.turns_of_retracted()
        while self.live:
            while self.live:
                self.finish_oldest()
            self.turns_of_retracted()
        lost = {name: count for name, count in self.lost.items() if count}
        names = {name: self.settings[name] for name in ("policy", "page", "capacity")}
        self.lines.append(json.dumps({"summary": {**self.sums, **names, **lost}}))
        return self.lines


def load():
    """SGLang with the modules of both scripts."""
    sgl = sglang_scheduler.load()
    for name in ("PagedTokenToKVPoolAllocator", "TokenToKVPoolAllocator"):
        setattr(sgl, name, getattr(sgl.paged if "Paged" in name else sgl.token, name))
    sgl.EvictParams, sgl.MatchPrefixParams = sgl.base_prefix_cache.EvictParams, sgl.base_prefix_cache.MatchPrefixParams
    sgl.CacheInitParams = sgl.cache_init_params.CacheInitParams
    sgl.ReqToTokenPool = sgl.memory_pool.ReqToTokenPool
    sgl.UnifiedRadixCache = sgl.unified_radix_cache.UnifiedRadixCache
    from sglang.srt.mem_cache.radix_cache import RadixKey

    sgl.RadixKey = RadixKey
    schedule = type("Schedule", (), {"retraction_policy": "length"})
    sgl.schedule_batch.get_schedule = lambda: schedule
    return sgl


def main():
    sgl = load()
    for line in sys.stdin:
        print(json.dumps(Replay(sgl, json.loads(line)).run()), flush=True)


if __name__ == "__main__":
    main()
