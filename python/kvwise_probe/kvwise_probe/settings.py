"""What the environment says about the recording.

==========================  ===========================================================================================
KVWISE_SESSION_DIR          folder of the session (set by `kvwise run`; made by the probe otherwise)
VLLM_PROFILING_DIR          folder in which the probe makes `session_DATE_TIME_PID` (default /tmp/vllm_profiling)
VLLM_PROFILING_VERBOSE      1: say on stderr what is hooked and what is skipped
KVWISE_PROBE                0: off
KVWISE_PROBE_MAX_PERCENT    most of the engine's step time that the probe may take (default 1; 0: no limit)
KVWISE_PROBE_BLOCKS         0: no block ids of single allocations, and no lifetimes (totals stay exact)
KVWISE_PROBE_REQUESTS       0: no record for each request
KVWISE_PROBE_HASHES         0: no block hashes of requests (then no trace can be exported)
KVWISE_PROBE_STEP_SAMPLE    record every n-th step (default 1)
KVWISE_PROBE_RECORDS_PER_S  most single events a second; more are dropped and counted (default 20000)
KVWISE_PROBE_MAX_MB         size at which a process stops single records (default 256); totals go on
KVWISE_PROBE_MIN_FREE_MB    free disk space below which nothing is written (default 128)
==========================  ===========================================================================================
"""

import binascii
import os
import sys
import time


class Settings(object):
    """The settings of this process; numbers that cannot be read are the defaults."""

    def __init__(self, environ):
        self.folder = environ["KVWISE_SESSION_DIR"]
        self.verbose = _number(environ, "VLLM_PROFILING_VERBOSE", 0) != 0
        self.max_percent = max(0.0, _number(environ, "KVWISE_PROBE_MAX_PERCENT", 1.0, float))
        self.blocks = _number(environ, "KVWISE_PROBE_BLOCKS", 1) != 0
        self.requests = _number(environ, "KVWISE_PROBE_REQUESTS", 1) != 0
        self.hashes = _number(environ, "KVWISE_PROBE_HASHES", 1) != 0
        self.step_sample = max(1, _number(environ, "KVWISE_PROBE_STEP_SAMPLE", 1))
        self.records_per_s = max(1, _number(environ, "KVWISE_PROBE_RECORDS_PER_S", 20000))
        self.max_bytes = max(1, _number(environ, "KVWISE_PROBE_MAX_MB", 256)) << 20
        self.min_free_bytes = max(0, _number(environ, "KVWISE_PROBE_MIN_FREE_MB", 128)) << 20
        self.hash_key = binascii.unhexlify(environ["KVWISE_PROBE_HASH_KEY"])

    def public(self):
        """What is written to the file's head: everything but the key."""
        return {k: v for k, v in vars(self).items() if k not in ("hash_key", "folder")}

    def say(self, text):
        if self.verbose:
            sys.stderr.write("kvwise probe [%d]: %s\n" % (os.getpid(), text))


def load(environ=None):
    """Reads the settings and fixes, for all child processes, the session's folder and the key of the hashes."""
    environ = os.environ if environ is None else environ
    if environ.get("KVWISE_PROBE", "1") == "0":
        return None
    if not environ.get("KVWISE_SESSION_DIR"):
        base = environ.get("VLLM_PROFILING_DIR") or "/tmp/vllm_profiling"
        name = "session_%s_%d" % (time.strftime("%Y%m%d_%H%M%S"), os.getpid())
        environ["KVWISE_SESSION_DIR"] = os.path.join(os.path.abspath(base), name)
    try:
        valid = len(binascii.unhexlify(environ.get("KVWISE_PROBE_HASH_KEY", ""))) == 32
    except (ValueError, binascii.Error):
        valid = False
    if not valid:
        environ["KVWISE_PROBE_HASH_KEY"] = binascii.hexlify(os.urandom(32)).decode("ascii")
    return Settings(environ)


def _number(environ, name, default, kind=int):
    try:
        value = kind(environ.get(name, "") or default)
    except ValueError:
        return default
    return value if value == value and abs(value) < 1e18 else default
