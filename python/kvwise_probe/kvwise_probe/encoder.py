"""From events to lines of the file, on the writer's thread: as few operations of Python for each event as can be."""

import array
import base64
import binascii
import hashlib
import itertools
import struct

_chain = itertools.chain.from_iterable
# Hashes that are remembered: each was computed once, the same prompt comes again and again.
MOST_HASHES = 100000


def line(events):
    """Tuples of integers as one line: 64-bit numbers, lowest byte first, in base64."""
    numbers = list(_chain(events))
    packed = struct.Struct("<%dq" % len(numbers)).pack(*numbers)
    return b'["b","' + binascii.b2a_base64(packed, newline=False) + b'"]\n'


class Tokens(object):
    """Tokens of a finished request, on their way to being hashed."""

    __slots__ = ("tokens",)

    def __init__(self, tokens):
        self.tokens = tokens


class Hashes(object):
    """Block hashes as short keyed ones, which cannot be turned back."""

    def __init__(self, key):
        # copying a hash that has read the key takes half as long as making one
        self._copy = hashlib.blake2b(key, digest_size=6).copy
        self._short = {}

    def of(self, content, block_tokens):
        """Base64 of six bytes for each full block; `None` where nothing is known of them."""
        if content is None:
            return None
        if type(content) is Tokens:
            return self.text_of_tokens(content.tokens, block_tokens) if block_tokens else None
        return self.text(content)

    def text(self, hashes):
        """The same of the engine's own hashes."""
        short = self._short
        if len(short) > MOST_HASHES:
            short.clear()
        hashes = list(hashes)
        if hashes and type(hashes[0]) is not bytes:
            hashes = [_hash_bytes(value) for value in hashes]
        # each hash of vLLM's stands for all blocks before it: where one is new, so are those behind it
        found = list(map(short.get, hashes))
        if None in found:
            at = found.index(None)
            copy, rest, made = self._copy, hashes[at:], []
            for value in rest:
                one = copy()
                one.update(value)
                made.append(one.digest())
            found[at:] = made
            short.update(zip(rest, made))
        return base64.b64encode(b"".join(found)).decode("ascii")

    def text_of_tokens(self, tokens, block_tokens):
        """The same of tokens, for an engine that gives blocks no hashes, because its prefix caching is off: each full block stands for
        all tokens up to its end."""
        data, width = array.array("q", tokens).tobytes(), 8 * block_tokens
        running, made = self._copy(), []
        for start in range(0, len(data) - width + 1, width):
            running.update(data[start : start + width])
            made.append(running.digest())
        return base64.b64encode(b"".join(made)).decode("ascii")


def _hash_bytes(block_hash):
    """Block hashes are bytes in vLLM from 0.10.2 on; a tuple with `hash_value`, or a number, before."""
    value = getattr(block_hash, "hash_value", block_hash)
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    return repr(value).encode("utf-8")
