"""What `algospace export --backend tensorrt-rtx` does: engines of a bundle for named compute capabilities."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import typer

from algospace.errors import ConfigError
from serving.bundle import Bundle
from serving.engines import ENGINE_BACKENDS, Engine, default_cache
from serving.tensorrt_build import BuildOptions, build_engines, load_tensorrt, parse_capabilities


def export_engines(bundle: Bundle, backend: str, capabilities: str | None, precision: str = "fp32",
                   cache: Path | None = None) -> list[Path]:
    """Build every graph for every capability, with one line each; ConfigError if one of them is not known.

    Without `capabilities` the GPU that is present is meant.
    """
    cache = cache or default_cache()
    paths: list[Path] = []
    for options in wanted_builds(backend, capabilities, precision):
        started = time.perf_counter()

        def tell(path: Path, engine: Engine) -> None:
            nonlocal started
            seconds, started = time.perf_counter() - started, time.perf_counter()
            typer.echo(f"{path}: {engine.key.graph} for {engine.key.compute_capability}, {len(engine.layers)} "
                       f"layers, {path.stat().st_size / 1e6:.1f} MB, {seconds:.1f} s")

        paths += build_engines(backend, bundle, cache, options, progress=tell)
    return paths


def wanted_builds(backend: str, capabilities: str | None, precision: Any) -> list[BuildOptions]:
    """The builds that the options name; ConfigError for what cannot be built here."""
    if backend not in ENGINE_BACKENDS:
        raise ConfigError(f"--backend '{backend}': known are onnx, tensorrt and tensorrt-rtx")
    if precision not in ("fp32", "fp16"):
        raise ConfigError(f"--precision '{precision}': known are fp32 and fp16")
    module = load_tensorrt(backend)
    if capabilities is not None:
        return [BuildOptions(capability, precision=precision)
                for capability in parse_capabilities(module, capabilities)]
    from serving.tensorrt_backend import present_gpu

    return [BuildOptions(*present_gpu(backend), precision)]
