"""Runs a function on a module right after it was imported, without changing how it is found or loaded."""

import sys


class HookFinder(object):
    """A meta-path finder that lets the other finders do the work and wraps the loader's `exec_module`."""

    def __init__(self, hooks):
        self._hooks = hooks
        self._busy = set()

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in self._hooks or fullname in self._busy:
            return None
        self._busy.add(fullname)
        try:
            for finder in sys.meta_path:
                if finder is self or not hasattr(finder, "find_spec"):
                    continue
                spec = finder.find_spec(fullname, path, target)
                if spec is not None:
                    self._wrap(spec, self._hooks[fullname])
                    return spec
        finally:
            self._busy.discard(fullname)
        return None

    @staticmethod
    def _wrap(spec, hook):
        loader = spec.loader
        if loader is None or not hasattr(loader, "exec_module"):
            return
        original = loader.exec_module

        def exec_module(module):
            original(module)
            try:
                hook(module)
            except Exception:  # the hook notes its own errors; the import must go on
                pass

        try:
            loader.exec_module = exec_module
        except (AttributeError, TypeError):  # a loader that cannot be changed: no hook, no harm
            pass


def install(hooks):
    """Puts one finder first on the meta path; modules that are loaded already are hooked at once."""
    if any(isinstance(finder, HookFinder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, HookFinder(hooks))
    for name, hook in hooks.items():
        module = sys.modules.get(name)
        if module is not None:
            try:
                hook(module)
            except Exception:
                pass
