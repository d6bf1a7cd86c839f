"""ONNX graphs -> TensorRT engines, with `tensorrt` or `tensorrt-rtx`: one API under two module names.

TensorRT-RTX builds for a compute capability that is only named, so on machines without a GPU; TensorRT builds for
the GPU that is present. Engines are strongly typed: the graph's own types are the precision. TF32 is off, since
it would move float32 answers by 1e-3. Reading an engine back needs a GPU: layers and bindings are those of the
network definition that was compiled.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

from algospace.errors import ConfigError
from serving.bundle import Bundle
from serving.engines import BackendUnavailable, Binding, Engine, EngineKey, Precision, write_engine
from serving.graphs import graph_model

TensorRTName = Literal["tensorrt", "tensorrt-rtx"]
MAX_BATCH = 1024
MODULES: dict[str, tuple[str, ...]] = {"tensorrt": ("tensorrt",),
                                       "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}


@dataclass(frozen=True)
class BuildOptions:
    """`capability` as in "8.9" (None: the GPU that is present); `driver`: see EngineKey; `precision` fp16 converts
    the graph with ModelOpt first; `max_batch`: largest batch of the dynamic profile, whose smallest is 1."""

    capability: str | None = None
    driver: str = ""
    precision: Precision = "fp32"
    max_batch: int = MAX_BATCH


class Built(NamedTuple):
    """A serialised engine and what it is."""

    plan: bytes
    bindings: tuple[Binding, ...]
    layers: tuple[tuple[str, str], ...]


def load_tensorrt(name: str) -> ModuleType:
    """The package of a backend; ConfigError says what to install."""
    for module in MODULES[name]:
        try:
            return importlib.import_module(module)
        except ImportError as error:
            if error.name is not None and error.name.split(".")[0] == module:
                continue
            raise BackendUnavailable("no_package", f"backend '{name}': {module} is installed but cannot be "
                                     f"loaded: {' '.join(str(error).split())}") from error
    raise BackendUnavailable("no_package", f"backend '{name}' is not installed; run `pip install "
                             f"'algospace[{name}]'`")


def capabilities(module: ModuleType) -> dict[str, Any]:
    """Compute capabilities that engines can be built for without the GPU, "8.9" -> the package's constant."""
    known = getattr(module, "ComputeCapability", None)
    members = {} if known is None else dict(known.__members__)
    return {f"{name[2:-1]}.{name[-1]}": value for name, value in members.items() if name.startswith("SM")}


def parse_capabilities(module: ModuleType, text: str) -> tuple[str, ...]:
    """"8.9,12.0" -> its parts; ConfigError names the ones that can be built."""
    known = capabilities(module)
    if not known:
        raise ConfigError(f"{module.__name__} {module.__version__} builds for the GPU that is present only; use "
                          f"--backend tensorrt-rtx for named compute capabilities")
    named = tuple(part.strip() for part in text.split(",") if part.strip())
    strange = [part for part in named if part not in known]
    if strange or not named:
        raise ConfigError(f"--compute-capability '{strange[0] if strange else text}': {module.__name__} "
                          f"{module.__version__} builds for {', '.join(sorted(known, key=float))}")
    return named


def engine_key(name: str, module: ModuleType, bundle: Bundle, graph: str, capability: str, driver: str = "",
               precision: Precision = "fp32") -> EngineKey:
    """What an engine of `graph` must have been built from and for."""
    source = "vote" if graph in ("embed", "heads") else graph
    return EngineKey.model_validate({
        "backend": name, "bundle": bundle.id, "graph": graph,
        "onnx_sha256": bundle.manifest.files[f"{source}.onnx"], "version": module.__version__,
        "compute_capability": capability, "driver": driver, "precision": precision})


def graphs_of(bundle: Bundle) -> tuple[str, ...]:
    """Graphs that a bundle can be asked for; embed and heads are vote cut in two."""
    return ("vote", "embed", "heads", *(g for g in ("execute", "mrms", "rde") if bundle.has(g)))


def build_engines(name: str, bundle: Bundle, cache: Path, options: BuildOptions,
                  graphs: Sequence[str] | None = None,
                  progress: Callable[[Path, Engine], None] | None = None) -> list[Path]:
    """Build and store engines for one capability; returns their files."""
    module = load_tensorrt(name)
    if options.capability is None:
        raise ConfigError(f"backend '{name}': name the compute capability to build for")
    paths = []
    for graph in graphs or graphs_of(bundle):
        built = build_engine(module, graph_bytes(bundle, graph, options.precision), options,
                             bundle.manifest.gate.iterations)
        key = engine_key(name, module, bundle, graph, options.capability, options.driver, options.precision)
        engine = Engine(key=key, bindings=built.bindings, layers=built.layers)
        paths.append(write_engine(cache, engine, built.plan))
        if progress is not None:
            progress(paths[-1], engine)
    return paths


def graph_bytes(bundle: Bundle, graph: str, precision: Precision) -> bytes:
    """The ONNX graph in the wanted precision. The bundle's bytes are verified again: they may have been changed
    since it was loaded."""
    source = "vote" if graph in ("embed", "heads") else graph
    raw = bundle.path(source).read_bytes()
    if hashlib.sha256(raw).hexdigest() != bundle.manifest.files[f"{source}.onnx"]:
        raise ConfigError(f"{bundle.path(source)}: changed since the bundle was opened; open it again")
    model = graph_model(raw, graph)
    if precision == "fp16":
        from serving.half import to_fp16

        model = to_fp16(model)
    return model


def build_engine(module: ModuleType, model: bytes, options: BuildOptions, samples: int) -> Built:
    """Parse, build and serialise one graph with a dynamic batch of 1 to `max_batch`."""
    logger = module.Logger(module.Logger.ERROR)
    builder = module.Builder(logger)
    network = builder.create_network(_network_flags(module))
    parser = module.OnnxParser(network, logger)
    if not parser.parse(model):
        first = " ".join(str(parser.get_error(0)).split()) if parser.num_errors else "no reason given"
        raise BackendUnavailable("no_build", f"{module.__name__} {module.__version__} cannot read the graph: "
                                 f"{first}")
    config = builder.create_builder_config()
    config.clear_flag(module.BuilderFlag.TF32)
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    known = capabilities(module)
    if known and options.capability is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(known[options.capability], 0)
    profile = builder.create_optimization_profile()
    shapes = {}
    for place in range(network.num_inputs):
        tensor = network.get_input(place)
        shapes[tensor.name] = _profile_shapes(tuple(tensor.shape), options.max_batch, samples)
        profile.set_shape(tensor.name, *shapes[tensor.name])
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BackendUnavailable("no_build", f"{module.__name__} {module.__version__} cannot build an engine for "
                                 f"compute capability {options.capability}; its messages are above")
    return Built(bytes(plan), _bindings(network, shapes), _layers(network))


def _network_flags(module: ModuleType) -> int:
    """Strongly typed, where that is still a choice (TensorRT 10; from 11 on it is the only way)."""
    flags = module.NetworkDefinitionCreationFlag
    return 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0


def _profile_shapes(shape: tuple[int, ...], batch: int, samples: int) -> tuple[tuple[int, ...], ...]:
    """(smallest, usual, largest): dimension 0 is the batch, a second dynamic one the dropout samples."""
    usual = (1, *(samples if size < 0 else size for size in shape[1:]))
    smallest = tuple(1 if size < 0 else size for size in shape)
    return smallest, usual, (batch, *usual[1:])


def _bindings(network: Any, shapes: dict[str, tuple[tuple[int, ...], ...]]) -> tuple[Binding, ...]:
    found = []
    for mode, count, get in (("input", network.num_inputs, network.get_input),
                             ("output", network.num_outputs, network.get_output)):
        for place in range(count):
            tensor = get(place)
            found.append(Binding.model_validate({
                "name": tensor.name, "mode": mode, "dtype": tensor.dtype.name.lower(),
                "shape": tuple(tensor.shape), "profile": shapes.get(tensor.name, ())}))
    return tuple(found)


def _layers(network: Any) -> tuple[tuple[str, str], ...]:
    layers = (network.get_layer(place) for place in range(network.num_layers))
    return tuple((layer.name, layer.type.name.lower()) for layer in layers)
