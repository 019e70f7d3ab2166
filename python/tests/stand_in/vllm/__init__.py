"""A stand-in for vLLM with the names that the probe hooks: a tiny block pool, manager and scheduler."""

__version__ = "0.0-stand-in"
