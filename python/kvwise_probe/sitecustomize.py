"""Starts the kvwise probe in every Python process that has this folder on PYTHONPATH.

Nothing happens until a module of vLLM that has a hook is imported. Whatever goes wrong here is swallowed: a profiler
must never keep a server from starting.
"""

import os
import sys


def _start_probe():
    try:
        import kvwise_probe

        kvwise_probe.start()
    except Exception as error:
        if os.environ.get("VLLM_PROFILING_VERBOSE", "0") not in ("", "0"):
            sys.stderr.write("kvwise probe: not started: %r\n" % (error,))


def _run_hidden_sitecustomize():
    """Python runs one sitecustomize only: the first on the path. Run the one that this file hides, if any."""
    here = os.path.dirname(os.path.abspath(__file__))
    for folder in sys.path:
        candidate = os.path.join(folder or ".", "sitecustomize.py")
        if os.path.abspath(os.path.dirname(candidate)) != here and os.path.isfile(candidate):
            import importlib.util

            spec = importlib.util.spec_from_file_location("sitecustomize_hidden", candidate)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return


_start_probe()
try:
    _run_hidden_sitecustomize()
except Exception as _error:  # as Python itself treats a failing sitecustomize: say so, go on
    sys.stderr.write("Error in hidden sitecustomize: %r\n" % (_error,))
