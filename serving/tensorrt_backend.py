"""TensorRT and TensorRT-RTX on an NVIDIA GPU.

One execution context per graph on its own stream; per batch size the inputs and outputs live in pinned and device
buffers made once, and copy in, run and copy out are one CUDA graph, captured after a warm-up. torch (a CUDA build)
gives memory, stream and graph.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from algospace.errors import BundleError, ConfigError
from algospace.types import AnyArray
from serving.bundle import Bundle
from serving.engines import BackendUnavailable, Engine, Precision, default_cache, engine_path, read_engine
from serving.tensorrt_build import BuildOptions, build_engines, engine_key, graphs_of, load_tensorrt

_SHAPES_KEPT = 8
_WARM_UP = 3


class TensorRTBackend:
    """Runs engines of the cache, building those that are missing. One that does not fit is refused, not rebuilt:
    BundleError. ConfigError without the package or a GPU."""

    def __init__(self, name: str, bundle: Bundle, cache: Path | None = None,
                 precision: Precision = "fp32") -> None:
        self.name, self.precision = name, precision
        self._bundle = bundle
        self._module = load_tensorrt(name)
        capability, driver = present_gpu(name)
        cache = cache or default_cache()
        runtime = self._module.Runtime(self._module.Logger(self._module.Logger.ERROR))
        self._graphs: dict[str, _Graph] = {}
        for graph in graphs_of(bundle):
            key = engine_key(name, self._module, bundle, graph, capability, driver, precision)
            path = engine_path(cache, key)
            if not path.exists():
                build_engines(name, bundle, cache, BuildOptions(capability, driver, precision), (graph,))
            engine, plan = read_engine(path, key)
            self._graphs[graph] = _Graph(self._module, runtime, engine, plan, path)

    def infer(self, graph: str, inputs: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        """See Backend. Larger batches than the engine's profile run in parts."""
        if graph not in self._graphs:
            raise ConfigError(f"{self._bundle.directory}: the bundle holds no graph '{graph}'")
        runner = self._graphs[graph]
        rows = len(next(iter(inputs.values())))
        if rows <= runner.max_batch:
            return runner.run(inputs)
        parts = [runner.run({name: array[first:first + runner.max_batch] for name, array in inputs.items()})
                 for first in range(0, rows, runner.max_batch)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def present_gpu(name: str) -> tuple[str, str]:
    """(compute capability, driver that an engine depends on). TensorRT-RTX compiles for the driver when it loads,
    so its engines do not depend on one."""
    if not torch.cuda.is_available():
        raise BackendUnavailable("no_gpu", f"backend '{name}' needs an NVIDIA GPU and a CUDA build of torch")
    major, minor = torch.cuda.get_device_capability()
    if name == "tensorrt-rtx":
        return f"{major}.{minor}", ""
    cuda: Any = torch._C  # this function exists in CUDA builds only
    return f"{major}.{minor}", str(cuda._cuda_getDriverVersion())


class _Shape:
    """Buffers and CUDA graph of one set of input shapes."""

    def __init__(self, context: Any, stream: Any, inputs: Mapping[str, AnyArray],
                 outputs: tuple[str, ...]) -> None:
        self.host: dict[str, Any] = {}
        self.device: dict[str, Any] = {}
        for name, array in inputs.items():
            context.set_input_shape(name, tuple(array.shape))
            self._add(context, name, tuple(array.shape))
        for name in outputs:
            self._add(context, name, tuple(context.get_tensor_shape(name)))
        self.inputs = {name: self.host[name].numpy() for name in inputs}
        self.outputs = {name: self.host[name].numpy() for name in outputs}
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                self._enqueue(context, stream)
            stream.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=stream):
                self._enqueue(context, stream)

    def _add(self, context: Any, name: str, shape: tuple[int, ...]) -> None:
        self.host[name] = torch.zeros(shape, dtype=torch.float32).pin_memory()
        self.device[name] = torch.zeros(shape, dtype=torch.float32, device="cuda")
        context.set_tensor_address(name, self.device[name].data_ptr())

    def _enqueue(self, context: Any, stream: Any) -> None:
        for name in self.inputs:
            self.device[name].copy_(self.host[name], non_blocking=True)
        if not context.execute_async_v3(stream.cuda_stream):
            raise ConfigError("TensorRT refused to run an engine; its message is above")
        for name in self.outputs:
            self.host[name].copy_(self.device[name], non_blocking=True)


class _Graph:
    """One engine with the buffers of the shapes used last."""

    def __init__(self, module: ModuleType, runtime: Any, engine: Engine, plan: bytes, path: Path) -> None:
        self._engine = runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise BundleError(f"{path}: {module.__name__} {module.__version__} refuses the engine on this GPU; "
                              f"delete it and build it again")
        self._inputs = tuple(b.name for b in engine.bindings if b.mode == "input")
        self._outputs = tuple(b.name for b in engine.bindings if b.mode == "output")
        self.max_batch = min(b.profile[2][0] for b in engine.bindings if b.mode == "input")
        self._stream = torch.cuda.Stream()
        self._shapes: OrderedDict[tuple[tuple[int, ...], ...], tuple[Any, _Shape]] = OrderedDict()

    def run(self, inputs: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        """Outputs of their own memory."""
        key = tuple(inputs[name].shape for name in self._inputs)
        kept = self._shapes.get(key)
        if kept is None:
            if len(self._shapes) == _SHAPES_KEPT:
                self._shapes.popitem(last=False)
            # a captured graph holds its context's addresses: every shape has a context of its own
            context = self._engine.create_execution_context()
            picked = {name: inputs[name] for name in self._inputs}
            kept = self._shapes[key] = context, _Shape(context, self._stream, picked, self._outputs)
        else:
            self._shapes.move_to_end(key)
        shape = kept[1]
        for name, buffer in shape.inputs.items():
            np.copyto(buffer, inputs[name])
        with torch.cuda.stream(self._stream):
            shape.graph.replay()
        self._stream.synchronize()
        return {name: buffer.copy() for name, buffer in shape.outputs.items()}
