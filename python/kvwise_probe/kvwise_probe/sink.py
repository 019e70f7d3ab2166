"""The file of one process, `SESSION/probe/PID-N.jsonl`.

Its first line says who writes; each further line is a JSON list: of records, or of `"b"` and many events as numbers. A line
that a kill cuts off is the only thing that can be lost beside what waits for the next write.
"""

import json
import os
import sys
import time

from . import VERSION


class Sink(object):
    """Opens its file at the first write."""

    def __init__(self, settings):
        self.settings = settings
        self.full = False
        self._file = None
        self._bytes = 0
        self._paused_until = 0.0
        # an encoder made once: `json.dumps` with separators makes one at each call
        self._encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode

    def paused(self):
        return time.monotonic() < self._paused_until

    def line(self, rows):
        """Records as one line."""
        return (self._encode(rows) + "\n").encode("ascii")

    def write(self, data):
        """Writes all of these lines, or nothing that would be read: a piece that did not fit is cut off again. `False` if
        they are lost."""
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
            self.full = True
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
        self._bytes = os.write(self._file, (self._encode(header) + "\n").encode("ascii"))

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


def _process_name():
    multiprocessing = sys.modules.get("multiprocessing.process")
    return multiprocessing.current_process().name if multiprocessing else "MainProcess"


def _vllm_version():
    module = sys.modules.get("vllm.version") or sys.modules.get("vllm")
    return str(getattr(module, "__version__", "unknown"))
