"""From raw events of the hooks to records, on the writer's thread.

Neighbouring events of one kind and pool become one record: a step of 256 requests allocates 16 single blocks. Lifetimes
are worked out here, from the order of the events.
"""

import array
import base64
import hashlib
import operator
import sys

_ids = operator.attrgetter("block_id")


class PoolState(object):
    """What is remembered of one block pool: birth, last hit and number of hits of each block."""

    __slots__ = ("number", "count", "caching", "birth", "last", "hits", "evicted")

    def __init__(self, number, count, caching):
        self.number, self.count, self.caching = number, count, caching
        self.evicted = []  # used by the hooks: blocks that lost their content since the last allocation
        self.forget()

    def forget(self):
        self.birth = [0] * self.count
        self.last = [0] * self.count
        self.hits = [0] * self.count

    def keep_every(self, every):
        """Forgets blocks whose number is no multiple of `every`: their events were not followed."""
        known = self.birth[::every]
        self.birth = [0] * self.count
        self.birth[::every] = known


class Encoder(object):
    """Takes events one by one; finished records are in `rows`."""

    def __init__(self, settings):
        self.settings = settings
        self.rows = []
        self.every = 1
        self._mask = 0
        self._pools = []
        self._turn = 0
        self._kind = None
        self._pool = None
        self._time = 0
        self._blocks = []
        self._gone = []
        self._short = {}

    def sample(self, every):
        """From now on only blocks, and hashes of requests, whose number is a multiple of `every` (a power of two)."""
        self._end_run()
        if every < self.every:
            for pool in self._pools:
                pool.keep_every(self.every)
        self.every, self._mask = every, every - 1

    def forget(self):
        """Events were lost: what is known of blocks is not true any more."""
        self._end_run()
        for pool in self._pools:
            pool.forget()

    def add(self, event):
        kind = event[0]
        if kind == "a" or kind == "t" or kind == "f" or kind == "e":
            # a run is what one pool did in one go: its blocks are looked at together
            if kind != self._kind or event[1] != self._time or event[2] is not self._pool:
                self._end_run()
                self._kind, self._time, self._pool = kind, event[1], event[2]
            self._blocks += event[3]
            if kind == "a" and event[4]:
                self._gone += event[4]
            return
        self._end_run()
        if kind == "r":
            self.rows.append(self._request(event))
        elif kind == "c":
            event[2].forget()
            self.rows.append(("c", event[1], event[2].number))
        elif kind == "p":
            pool = event[2]
            self._pools.append(pool)
            self.rows.append(("p", event[1], pool.number, pool.count, int(pool.caching), event[3]))
        else:
            self.rows.append(event)

    def finish(self):
        """The records of everything added so far; the list is the caller's."""
        self._end_run()
        rows, self.rows = self.rows, []
        return rows

    def _end_run(self):
        kind = self._kind
        if kind is None:
            return
        pool, time, number = self._pool, self._time, self._pool.number
        ids, gone = list(map(_ids, self._blocks)), list(map(_ids, self._gone))
        self._kind = None
        self._blocks, self._gone = [], []
        if self._mask:
            mask = self._mask
            ids = [i for i in ids if not i & mask]
            gone = [i for i in gone if not i & mask]
        if kind == "a":
            self._allocated(pool, time, ids, gone)
        elif kind == "t":
            last, hits = pool.last, pool.hits
            for i in ids:
                last[i] = time
                hits[i] += 1
        if self.settings.blocks:
            rows = self.rows
            if gone:
                rows.append(("e", time, number, packed("I", gone)))
            # times of neighbouring frees and hits differ: they are still one record
            if ids:
                ids = packed("I", ids)
                before = rows[-1] if rows else None
                if before is not None and kind != "a" and before[0] == kind and before[2] == number:
                    rows[-1] = (kind, time, number, before[3] + ids)
                else:
                    rows.append((kind, time, number, ids))

    def _allocated(self, pool, now, ids, gone):
        """Lifetime and idle time of blocks given to other content, as vLLM's own `kv_block_lifetime_seconds` means them:
        with caching on, every block that was allocated before; with caching off, none."""
        birth, last, hits = pool.birth, pool.last, pool.hits
        if pool.caching:
            old = [i for i in ids if birth[i]]
            sample = self.settings.lifetime_sample
            if sample > 1:
                turn, self._turn = self._turn, (self._turn + len(old)) % sample
                old = old[-turn % sample :: sample]
            if old:
                lost = set(gone)
                self.rows.append(
                    (
                        "x",
                        now,
                        pool.number,
                        packed("I", old),
                        packed("Q", [(now - birth[i]) // 1000 for i in old]),
                        packed("Q", [(now - (last[i] or birth[i])) // 1000 for i in old]),
                        packed("I", [hits[i] for i in old]),
                        packed("I", [1 if i in lost else 0 for i in old]),
                    )
                )
        for i in ids:
            birth[i] = now
            last[i] = hits[i] = 0

    def _request(self, event):
        """A finished request: its block hashes become short keyed ones, which cannot be turned back."""
        hashes = event[-1]
        if hashes is None or event[2] & self._mask:
            return event[:-1] + (None,)
        short = self._short
        if len(short) > 100000:
            short.clear()
        hashes = list(hashes)
        if hashes and type(hashes[0]) is not bytes:
            hashes = [_hash_bytes(value) for value in hashes]
        # each hash of vLLM's stands for all blocks before it: where one is new, so are those behind it
        found = list(map(short.get, hashes))
        if None in found:
            at = found.index(None)
            key, new, rest = self.settings.hash_key, hashlib.blake2b, hashes[at:]
            found[at:] = made = [new(key + value, digest_size=6).digest() for value in rest]
            short.update(zip(rest, made))
        return event[:-1] + (base64.b64encode(b"".join(found)).decode("ascii"),)


def packed(width, numbers):
    """Hexadecimal text of numbers of 4 ("I") or 8 ("Q") bytes, lowest byte first: a tenth of the cost of decimal."""
    data = array.array(width, numbers)
    if sys.byteorder == "big":
        data.byteswap()
    return data.tobytes().hex()


def _hash_bytes(block_hash):
    """Block hashes are bytes in vLLM from 0.10.2 on; a tuple with `hash_value`, or a number, before."""
    value = getattr(block_hash, "hash_value", block_hash)
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    return repr(value).encode("utf-8")
