"""Collects records in memory and writes them from a thread of its own, in small pieces.

The engine's thread only appends to a list. The writer turns a few records at a time into text and writes them, so that
it never holds the interpreter lock for long. Each process has its own file; a line that a kill cuts off is the only
thing that can be lost beside the last quarter of a second.
"""

import atexit
import base64
import collections
import hashlib
import json
import os
import sys
import threading
import time

from . import VERSION

FLUSH_INTERVAL_S = 0.25
RECORDS_AT_ONCE = 64
MAX_PENDING = 200000


class Recorder(object):
    """One for each process; made again after a fork."""

    def __init__(self, settings):
        self.settings = settings
        self.totals = {}
        self.lost = 0
        self.errors = 0
        self._written_totals = None
        self._reset()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)
        atexit.register(self.close)

    def _reset(self):
        self._pending = collections.deque()  # appended and popped without a lock: both are atomic
        self._budget = self.settings.records_per_s * FLUSH_INTERVAL_S
        self._file = None
        self._bytes = 0
        self._full = False
        self._paused_until = 0.0
        self._thread = None
        self._closed = False
        self._header_notes = []
        self._lock = threading.Lock()
        self._wake = threading.Event()

    def _after_fork(self):
        self.totals = {}
        self.lost = 0
        self.errors = 0
        self._written_totals = None
        self._reset()

    # -- called from the engine's thread -------------------------------------------------------------------------

    def keep(self, record):
        """A record that is rare and always kept."""
        if len(self._pending) < MAX_PENDING:
            self._pending.append(record)
        else:
            self.lost += 1
        if self._thread is None:
            self._begin()

    def detail(self, record):
        """A record of which there may be too many: dropped, and counted, above the rate or the size limit."""
        if self._budget > 0 and not self._full:
            self._budget -= 1
            self._pending.append(record)
            if self._thread is None:
                self._begin()
        else:
            self.lost += 1

    def add(self, name, amount):
        """Adds to a total: exact whatever happens to single records."""
        totals = self.totals
        totals[name] = totals.get(name, 0) + amount

    # -- the writer ----------------------------------------------------------------------------------------------

    def _begin(self):
        with self._lock:
            if self._thread is not None or self._closed:
                return
            self._thread = threading.Thread(target=self._run, name="kvwise-probe", daemon=True)
            self._thread.start()
        try:  # children of multiprocessing end without atexit
            from multiprocessing import util

            util.Finalize(None, self.close, exitpriority=1000)
        except Exception:
            pass

    def _run(self):
        last_totals = 0.0
        while not self._closed:
            self._wake.wait(FLUSH_INTERVAL_S)
            self._budget = self.settings.records_per_s * FLUSH_INTERVAL_S
            try:
                now = time.monotonic()
                if now - last_totals >= 1.0:
                    last_totals = now
                    self._queue_totals()
                self._write_pending()
            except Exception:
                self.errors += 1

    def _queue_totals(self):
        if self.settings.self_time and threading.current_thread() is self._thread:
            self.totals["writer_ns"] = time.thread_time_ns()
        totals = dict(self.totals, lost_records=self.lost, errors=self.errors)
        if totals != self._written_totals:
            self._written_totals = totals
            self._pending.append(["T", time.monotonic_ns(), totals])

    def _write_pending(self):
        if not self._pending:
            return
        if time.monotonic() < self._paused_until:
            self._drop_pending()
            return
        pending = self._pending
        while pending:
            lines = []
            while pending and len(lines) < RECORDS_AT_ONCE:
                record = pending.popleft()
                try:
                    lines.append(json.dumps(self._finish(record), separators=(",", ":")))
                except Exception:
                    self.errors += 1
            data = ("\n".join(lines) + "\n").encode("utf-8")
            if lines and not self._write(data):
                self.lost += len(lines)
                self._drop_pending()
                return

    def _finish(self, record):
        """Work that must not be done in the engine's thread: block hashes into short keyed hashes."""
        if record[0] == "r" and record[-1] is not None:
            key = self.settings.hash_key
            short = [
                hashlib.blake2b(_hash_bytes(h), digest_size=6, key=key).digest() for h in list(record[-1])
            ]
            record = list(record)
            record[-1] = base64.b64encode(b"".join(short)).decode("ascii")
        return record

    def _drop_pending(self):
        while self._pending:
            self._pending.popleft()
            self.lost += 1

    def _write(self, data):
        """Writes all of `data`, or nothing that would be read: a piece that did not fit is cut off again."""
        before = None
        try:
            if self._file is None:
                self._open()
            before = self._bytes
            if self._too_little_space(len(data)):
                self._pause("too little free disk space")
                return False
            view = memoryview(data)
            while view:
                done = os.write(self._file, view)
                self._bytes += done
                view = view[done:]
        except OSError as error:
            if before is not None:
                try:
                    os.ftruncate(self._file, before)
                    os.lseek(self._file, before, os.SEEK_SET)
                    self._bytes = before
                except OSError:
                    pass
            self._pause("cannot write: %s" % error)
            return False
        if self._bytes > self.settings.max_bytes:
            self._full = True
        return True

    def _too_little_space(self, size):
        if not hasattr(os, "fstatvfs"):
            return False
        free = os.fstatvfs(self._file)
        return free.f_bavail * free.f_frsize < self.settings.min_free_bytes + size

    def _pause(self, why):
        self._paused_until = time.monotonic() + 10.0
        self.settings.say("%s; trying again in 10 s" % why)

    def _open(self):
        folder = os.path.join(self.settings.folder, "probe")
        os.makedirs(folder, exist_ok=True)
        self._write_metadata()
        number = 0
        while True:
            path = os.path.join(folder, "%d-%d.jsonl" % (os.getpid(), number))
            try:
                self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
                break
            except FileExistsError:
                number += 1
        header = {
            "kvwise_probe": VERSION,
            "pid": os.getpid(),
            "ppid": os.getppid(),
            "program": os.path.basename(sys.argv[0]) if getattr(sys, "argv", None) else "",
            "process": _process_name(),
            "python": "%d.%d.%d" % sys.version_info[:3],
            "vllm": _vllm_version(),
            "mono_ns": time.monotonic_ns(),
            "unix_ns": time.time_ns(),
            "settings": self.settings.public(),
        }
        data = (json.dumps(header, separators=(",", ":")) + "\n").encode("utf-8")
        self._bytes = os.write(self._file, data)

    def _write_metadata(self):
        """The first process describes the session, unless `kvwise run` did."""
        metadata = {
            "schema": "kvwise.session/1",
            "session_id": os.path.basename(self.settings.folder),
            "start_unix_us": time.time_ns() // 1000,
            "made_by": "probe",
            "targets": [os.path.basename(sys.argv[0])] if getattr(sys, "argv", None) else [],
            "kvwise_version": "probe %s" % VERSION,
        }
        try:
            path = os.path.join(self.settings.folder, "metadata.json")
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "w") as out:
                out.write(json.dumps(metadata, indent=2) + "\n")
        except FileExistsError:
            pass

    def close(self):
        """Writes what is left; called at the end of the process."""
        with self._lock:
            if self._closed or self._thread is None:
                return
            self._closed = True
        self._wake.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(2.0)
        try:
            self._queue_totals()
            self._pending.append(["end", time.monotonic_ns()])
            self._write_pending()
        except Exception:
            pass


def _hash_bytes(block_hash):
    """Block hashes are bytes in vLLM from 0.10.2 on; a tuple with `hash_value`, or a number, before."""
    value = getattr(block_hash, "hash_value", block_hash)
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    return repr(value).encode("utf-8")


def _process_name():
    multiprocessing = sys.modules.get("multiprocessing.process")
    return multiprocessing.current_process().name if multiprocessing else "MainProcess"


def _vllm_version():
    module = sys.modules.get("vllm.version") or sys.modules.get("vllm")
    return str(getattr(module, "__version__", "unknown"))
