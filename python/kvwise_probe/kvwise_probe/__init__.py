"""Records what vLLM's KV cache does, from inside the engine's process. Standard library only, Python 3.9 to 3.14.

`start` installs an import hook; the hooks of :mod:`kvwise_probe.vllm_hooks` are put on vLLM's classes when their
modules are imported. Records go to one file for each process, `SESSION/probe/PID-N.jsonl`.
"""

VERSION = "2"


def start():
    """Installs the import hook once; does nothing where the settings switch the probe off."""
    from . import finder, settings, vllm_hooks

    chosen = settings.load()
    if chosen is None:
        return
    finder.install(vllm_hooks.hooks(chosen))
