"""Reads what the probe wrote, for its tests: a second reader, written for clarity."""

import base64
import json
import os
import struct

NAMES = ["", "alloc", "free", "hit", "evict", "drop", "clear", "step", "arrive", "lookup", "preempt", "replay", "lost"]


def events(line):
    """The events of a line that begins with "b", as lists: name of the kind, time, the rest."""
    data = base64.b64decode(line)
    numbers = struct.unpack("<%dq" % (len(data) // 8), data)
    found, at = [], 0
    while at < len(numbers):
        kind, count = numbers[at] & 255, numbers[at] >> 8
        found.append([NAMES[kind]] + list(numbers[at + 1 : at + 1 + count]))
        at += 1 + count
    return found


def of_file(path):
    """Header, then all records and events of a file."""
    with open(path) as lines:
        found = [json.loads(next(lines))]
        for text in lines:
            line = json.loads(text)
            found += events(line[1]) if line[0] == "b" else line
    return found


def of_folder(folder):
    """What every process wrote."""
    found = []
    for root, _, names in os.walk(folder):
        for name in sorted(names):
            if name.endswith(".jsonl"):
                found.append(of_file(os.path.join(root, name)))
    return found
