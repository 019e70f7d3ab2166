"""Hooks on CUDA graphs (`vllm/compilation/cuda_graph.py`) and on what the worker says of memory
(`vllm/v1/worker/gpu_worker.py`, `gpu_model_runner.py`)."""

from .hooking import now
from .live import REPLAYED, head

REPLAY = head(REPLAYED, 3)
SECOND_NS = 1000000000


def hook_cuda_graph(probe, module):
    def call(original, guard):
        def hook(self, *args, **kwargs):
            # piecewise graphs are one wrapper for each piece: the first one speaks for the step
            leader = probe.graph_leader
            if leader is not None and leader is not self and self.runtime_mode is leader.runtime_mode:
                return original(self, *args, **kwargs)
            captured = descriptor = None
            try:
                if module.is_forward_context_available():
                    context = module.get_forward_context()
                    if context.cudagraph_runtime_mode is self.runtime_mode:
                        descriptor = context.batch_descriptor
                        entry = self.concrete_cudagraph_entries.get(descriptor)
                        captured = entry is not None and entry.cudagraph is not None
                        if probe.graph_leader is None and self.runtime_mode.name == "PIECEWISE":
                            probe.graph_leader = self
            except Exception as error:
                guard.failed(error)
            start = now()
            result = original(self, *args, **kwargs)
            if descriptor is not None:
                try:
                    _graph_used(probe, self.runtime_mode.name, descriptor, captured, start, now())
                except Exception as error:
                    guard.failed(error)
            return result

        return hook

    probe.wrap(module, "CUDAGraphWrapper", "__call__", call)


class Graph(object):
    """One captured graph: how it is described, and how often it was replayed."""

    __slots__ = ("number", "key", "count", "named")

    def __init__(self, number, mode, descriptor):
        reqs = getattr(descriptor, "num_reqs", None)
        self.number = number
        self.key = (
            mode,
            int(descriptor.num_tokens),
            None if reqs is None else int(reqs),
            bool(getattr(descriptor, "uniform", getattr(descriptor, "uniform_decode", False))),
            bool(getattr(descriptor, "has_lora", False)),
        )
        self.count = 0
        self.named = False


def _graph_used(probe, mode, descriptor, captured, start, end):
    graphs = probe.graphs
    graph = graphs.get((mode, descriptor))
    if graph is None:
        graph = graphs[(mode, descriptor)] = Graph(len(graphs), mode, descriptor)
    if not captured:
        probe.recorder.keep(("g", end) + graph.key)
        return
    graph.count += 1
    live = probe.live
    if live.open:
        if not graph.count % live.every:
            if not graph.named:
                graph.named = True
                probe.recorder.keep(("k", end, graph.number, "%s:%s" % (mode, descriptor)))
            live.append((REPLAY, end, graph.number, (end - start) // 1000))
    else:
        live.lost += 1
    if end - probe.graph_written > SECOND_NS:
        probe.graph_written = end
        counts = {}  # graphs for different numbers of adapters are one row
        for graph in graphs.values():
            if graph.count:
                counts[graph.key] = counts.get(graph.key, 0) + graph.count
        probe.recorder.keep(("G", end, [list(key) + [count] for key, count in counts.items()]))
    if live.timed:
        live.hook_ns += now() - end + 2 * probe.call_ns


def hook_worker(probe, module):
    recorder = probe.recorder

    def available(original, guard):
        def hook(self, *args, **kwargs):
            result = original(self, *args, **kwargs)
            try:
                at = now()
                recorder.keep(("m", at, "available_kv_cache", int(result)))
                runner = getattr(self, "model_runner", None)
                for name, value in (
                    ("weights", getattr(runner, "model_memory_usage", None)),
                    ("peak_activation", getattr(self, "peak_activation_memory", None)),
                    ("non_torch", getattr(self, "non_torch_memory", None)),
                ):
                    if isinstance(value, (int, float)):
                        recorder.keep(("m", at, name, int(value)))
            except Exception as error:
                guard.failed(error)
            return result

        return hook

    probe.wrap(module, "Worker", "determine_available_memory", available, required=False, always=True)


def hook_model_runner(probe, module):
    recorder = probe.recorder

    def capture(original, guard):
        def hook(self, *args, **kwargs):
            result = original(self, *args, **kwargs)
            try:
                if isinstance(result, int):
                    recorder.keep(("m", now(), "cuda_graphs", result))
            except Exception as error:
                guard.failed(error)
            return result

        return hook

    probe.wrap(module, "GPUModelRunner", "capture_model", capture, required=False, always=True)
