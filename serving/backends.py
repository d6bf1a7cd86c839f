"""Inference backends: `infer(graph, inputs) -> outputs`, one protocol for all.

Graphs: vote, execute, mrms, rde (serving.export), and embed and heads, which are `vote` cut in two.
`torch` (serving.torch_backend) is the reference; `onnx` (ONNX Runtime, one thread) is the default on CPUs;
`tensorrt` and `tensorrt-rtx` (serving.tensorrt_backend) need an NVIDIA GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol, get_args

import onnxruntime as ort

from algospace.errors import BundleError, ConfigError
from algospace.types import AnyArray
from serving.bundle import Bundle
from serving.engines import ENGINE_BACKENDS, Precision
from serving.graphs import graph_model
from serving.tensorrt_build import load_tensorrt

BackendName = Literal["onnx", "torch", "tensorrt", "tensorrt-rtx"]


class Backend(Protocol):
    """Runs a bundle's graphs. Inputs and outputs are float32 arrays by name, whatever it computes in."""

    name: str
    precision: Precision

    def infer(self, graph: str, inputs: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        """Outputs of `graph`; ConfigError if the bundle does not hold it."""
        ...


class OnnxBackend:
    """ONNX Runtime on one thread, operators in sequence: the lowest latency for small graphs."""

    name = "onnx"
    precision: Precision = "fp32"

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._sessions: dict[str, tuple[ort.InferenceSession, list[str]]] = {}
        self._vote = bundle.read("vote.onnx")  # for `embed` and `heads`, whatever becomes of the file
        for graph in ("vote", "execute", "mrms", "rde"):
            if bundle.has(graph):
                self._open(graph, self._vote if graph == "vote" else bundle.read(f"{graph}.onnx"))

    def _open(self, graph: str, model: bytes) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        try:
            session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no public base class
            raise BundleError(f"{self._bundle.directory}: {graph}.onnx cannot be loaded: "
                              f"{' '.join(str(error).split())}") from error
        self._sessions[graph] = (session, [output.name for output in session.get_outputs()])

    def infer(self, graph: str, inputs: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        """See Backend."""
        found = self._sessions.get(graph)
        if found is None:
            if graph not in ("embed", "heads"):
                raise absent(self._bundle, graph)
            self._open(graph, graph_model(self._vote, graph))
            found = self._sessions[graph]
        session, outputs = found
        return dict(zip(outputs, session.run(outputs, inputs), strict=True))


def make_backend(name: str, bundle: Bundle, engines: Path | None = None,
                 precision: Precision = "fp32") -> Backend:
    """The registry of backends. `engines` (folder of built engines; by default the user's cache) concerns TensorRT
    only. ConfigError or BundleError if the backend cannot run here, or not in `precision`."""
    if precision != "fp32" and name not in ENGINE_BACKENDS:
        raise ConfigError(f"backend '{name}' computes in fp32 only; {precision} is for "
                          f"{' and '.join(ENGINE_BACKENDS)}")
    if name == "onnx":
        return OnnxBackend(bundle)
    if name == "torch":
        from serving.torch_backend import TorchBackend  # 200 MB, which a service on another backend does not need

        return TorchBackend(bundle)
    if name in ENGINE_BACKENDS:
        load_tensorrt(name)  # before the backend brings torch, too: without the package nobody needs it
        from serving.tensorrt_backend import TensorRTBackend

        return TensorRTBackend(name, bundle, engines, precision)
    raise ConfigError(f"unknown backend '{name}'; known: {', '.join(get_args(BackendName))}")


def absent(bundle: Bundle, graph: str) -> ConfigError:
    """A graph is asked for that the bundle does not hold."""
    return ConfigError(f"{bundle.directory}: the bundle holds no graph '{graph}'")
