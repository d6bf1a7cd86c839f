"""Built engines in a cache outside the bundle, each in one file that proves what it is.

    algospace-engine 1 SHA256\\n      SHA-256 of everything below, in hex
    {"bundle": ..., ...}\\n           EngineKey and Bindings as one line of JSON
    ...                              the serialised engine

An engine fits one bundle, graph, package version, compute capability, driver and precision; reading one that was
built for anything else, or that has a byte changed, is one BundleError.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from algospace.config import FrozenConfig
from algospace.errors import BundleError, ConfigError
from algospace.files import atomic_path

Precision = Literal["fp32", "fp16"]
ENGINE_BACKENDS = ("tensorrt", "tensorrt-rtx")
"""Those that run engines, and alone can compute in fp16."""
_MAGIC = b"algospace-engine 1 "
_HEAD = len(_MAGIC) + 64 + 1
_CACHE_VARIABLE = "ALGOSPACE_ENGINES"


class BackendUnavailable(ConfigError):
    """A backend cannot run here. `code` is what health may show to anyone: no_package, no_gpu or no_build."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def fallback_code(error: Exception) -> str:
    """A short reason without paths for a backend that failed; the whole text belongs into the log."""
    if isinstance(error, BackendUnavailable):
        return error.code
    return "bundle_refused" if isinstance(error, BundleError) else "failed"


class Binding(FrozenConfig):
    """One input or output of an engine; -1 is a dynamic dimension. `profile`: smallest, usual and largest shape,
    for inputs."""

    name: str
    mode: Literal["input", "output"]
    dtype: str
    shape: tuple[int, ...]
    profile: tuple[tuple[int, ...], ...] = ()


class EngineKey(FrozenConfig):
    """What an engine was built from and for. `driver` is empty where the engine does not depend on one."""

    backend: Literal["tensorrt", "tensorrt-rtx"]
    bundle: str = Field(pattern="^[0-9a-f]{64}$")
    graph: str
    onnx_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    version: str
    compute_capability: str = Field(pattern=r"^\d+\.\d$")
    driver: str = ""
    precision: Precision = "fp32"


class Engine(FrozenConfig):
    """Key and contents of an engine as they were when it was built: bindings, and (name, kind) of each layer."""

    key: EngineKey
    bindings: tuple[Binding, ...]
    layers: tuple[tuple[str, str], ...]


def default_cache() -> Path:
    """Where engines are kept: ALGOSPACE_ENGINES, else the user's cache folder."""
    named = os.environ.get(_CACHE_VARIABLE)
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "algospace" / "engines"


def engine_path(cache: Path, key: EngineKey) -> Path:
    """The file of `key`: one per bundle, backend, graph, capability and precision, so that an engine of another
    version is met, and refused, instead of silently left behind."""
    name = f"{key.backend}-{key.graph}-sm{key.compute_capability.replace('.', '')}-{key.precision}.engine"
    return cache / key.bundle[:16] / name


def write_engine(cache: Path, engine: Engine, plan: bytes) -> Path:
    """Store an engine, whole or not at all."""
    path = engine_path(cache, engine.key)
    body = engine.model_dump_json().encode() + b"\n" + plan
    with atomic_path(path) as part:
        part.write_bytes(_MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    return path


def read_engine(path: Path, expected: EngineKey | None = None) -> tuple[Engine, bytes]:
    """(what the file says it is, the serialised engine); BundleError unless it is whole and for `expected`."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); build it with `algospace export "
                          f"--backend ...`") from None
    body = raw[_HEAD:]
    if raw[:_HEAD] != _MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n":
        raise BundleError(f"{path}: the engine does not match its checksum; delete it and build it again")
    line, _, plan = body.partition(b"\n")
    try:
        engine = Engine.model_validate_json(line)
    except ValidationError:
        raise BundleError(f"{path}: the engine was written by another version of AlgoSpace; delete it and build "
                          f"it again") from None
    if expected is not None:
        _require(path, engine.key, expected)
    return engine, plan


def _require(path: Path, found: EngineKey, expected: EngineKey) -> None:
    for field in EngineKey.model_fields:
        has, needs = getattr(found, field), getattr(expected, field)
        if has != needs:
            raise BundleError(f"{path}: the engine is of {field.replace('_', ' ')} '{has or 'none'}', here "
                              f"'{needs or 'none'}' is needed; delete it and build it again")
