"""`precision: fp16` makes a service take FP16 engines, says which it runs, and is refused where nothing can.

No GPU and no TensorRT: the package, the card and the engine's runner are stand-ins; what is chosen is ours.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import structlog
from pydantic import ValidationError

from algospace.errors import ConfigError
from serving import backends, tensorrt_backend, tensorrt_build
from serving.backends import OnnxBackend, make_backend
from serving.bundle import Bundle
from serving.engines import BackendUnavailable, Engine, engine_path, read_engine, write_engine
from serving.models import choose_backend
from serving.service import AppSettings, Service
from serving.tensorrt_build import BuildOptions, Built, build_engines, engine_key, graphs_of
from tests.serving_market import random_bundle

NAME = "tensorrt-rtx"
MODULE = SimpleNamespace(__version__="1.7.1", Logger=type("Logger", (), {"ERROR": 0, "__init__": lambda *_: None}),
                         Runtime=lambda _: None)


class Runner:
    """Answers what ONNX Runtime would, in place of an engine; remembers which engine it was given."""

    given: list[Engine] = []  # noqa: RUF012  # emptied by the fixture

    def __init__(self, module: Any, runtime: Any, engine: Engine, plan: bytes, path: Path) -> None:
        assert plan == f"{engine.key.graph} {engine.key.precision}".encode()
        self.max_batch, self._graph = 1024, engine.key.graph
        self.given.append(engine)

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return OnnxBackend(self.bundle).infer(self._graph, inputs)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return random_bundle(tmp_path_factory.mktemp("precision") / "bundle")


@pytest.fixture(autouse=True)
def built(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(graph, precision) of every engine that is built."""
    found: list[tuple[str, str]] = []

    def graph_bytes(_: Bundle, graph: str, precision: str) -> bytes:
        found.append((graph, precision))
        return f"{graph} {precision}".encode()

    for module in (backends, tensorrt_backend, tensorrt_build):
        monkeypatch.setattr(module, "load_tensorrt", lambda _: MODULE)
    monkeypatch.setattr(tensorrt_build, "graph_bytes", graph_bytes)
    monkeypatch.setattr(tensorrt_build, "build_engine", lambda _, model, *__: Built(model, (), ()))
    monkeypatch.setattr(tensorrt_backend, "present_gpu", lambda _: ("8.9", ""))
    monkeypatch.setattr(tensorrt_backend, "_Graph", Runner)
    monkeypatch.setattr(Runner, "given", [])
    monkeypatch.setattr(Runner, "bundle", bundle, raising=False)
    monkeypatch.setenv("ALGOSPACE_ENGINES", str(tmp_path / "engines"))
    return found


def test_a_service_runs_the_engines_that_export_built_in_its_precision(bundle: Bundle, tmp_path: Path,
                                                                       built: list[tuple[str, str]]) -> None:
    for precision in ("fp32", "fp16"):
        build_engines(NAME, bundle, tmp_path / "engines", BuildOptions("8.9", precision=precision))
    assert len(built) == 2 * len(graphs_of(bundle))
    built.clear()
    service = Service(bundle, AppSettings(backends=(NAME, "onnx"), precision="fp16"))
    assert {engine.key.precision for engine in Runner.given} == {"fp16"}
    assert [engine.key.graph for engine in Runner.given] == list(graphs_of(bundle))
    assert built == []  # none was built again
    health = service.health()
    assert (health["backend"], health["precision"], health["fallbacks"]) == (NAME, "fp16", [])
    service.life.close()


def test_what_is_missing_is_built_in_the_precision(bundle: Bundle, tmp_path: Path,
                                                   built: list[tuple[str, str]]) -> None:
    assert choose_backend(bundle, (NAME,), "fp16")[0].precision == "fp16"
    assert built == [(graph, "fp16") for graph in graphs_of(bundle)]
    for graph in graphs_of(bundle):
        key = engine_key(NAME, MODULE, bundle, graph, "8.9", "", "fp16")
        assert read_engine(engine_path(tmp_path / "engines", key), key)


def test_every_model_of_a_service_is_of_its_precision(bundle: Bundle, tmp_path: Path) -> None:
    service = Service(bundle, AppSettings(backends=(NAME,), precision="fp16"))
    ref = service.life.aliases.champion
    assert service.life._open(ref).backend.precision == "fp16"
    service.life.close()


def test_an_engine_of_another_precision_is_refused_in_one_line(bundle: Bundle, tmp_path: Path) -> None:
    key = engine_key(NAME, MODULE, bundle, "vote", "8.9", "", "fp16")
    single = Engine(key=key.model_copy(update={"precision": "fp32"}), bindings=(), layers=())
    path = write_engine(tmp_path / "engines", single, b"vote fp32")
    path.rename(engine_path(tmp_path / "engines", key))
    with structlog.testing.capture_logs() as lines:
        backend, failures = choose_backend(bundle, (NAME, "onnx"), "fp16")
    assert (backend.name, backend.precision, failures) == ("onnx", "fp32", [f"{NAME}: bundle_refused"])
    assert "is of precision 'fp32', here 'fp16' is needed" in lines[0]["error"]


def test_without_modelopt_the_fallback_computes_in_fp32_and_says_why(bundle: Bundle,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any) -> bytes:
        raise BackendUnavailable("no_package", "FP16 needs ModelOpt")

    monkeypatch.setattr(tensorrt_build, "graph_bytes", absent)
    service = Service(bundle, AppSettings(backends=(NAME, "onnx"), precision="fp16"))
    health = service.health()
    assert (health["backend"], health["precision"], health["fallbacks"]) == (
        "onnx", "fp32", [f"{NAME}: no_package"])
    service.life.close()
    with pytest.raises(ConfigError, match=r"no configured backend works: .*FP16 needs ModelOpt"):
        choose_backend(bundle, (NAME,), "fp16")


def test_precision_is_refused_where_no_backend_has_it(bundle: Bundle) -> None:
    with pytest.raises(ValidationError, match="backends = onnx, torch run none: add tensorrt or tensorrt-rtx"):
        AppSettings(precision="fp16")
    with pytest.raises(ValidationError, match="precision"):
        AppSettings(backends=(NAME,), precision="int8")  # type: ignore[arg-type]
    for name in ("onnx", "torch"):
        with pytest.raises(ConfigError, match=f"backend '{name}' computes in fp32 only; fp16 is for tensorrt and"):
            make_backend(name, bundle, precision="fp16")
        assert make_backend(name, bundle).precision == "fp32"


def test_float32_engines_are_the_default(bundle: Bundle) -> None:
    service = Service(bundle, AppSettings(backends=(NAME,)))
    assert {engine.key.precision for engine in Runner.given} == {"fp32"}
    assert service.health()["precision"] == "fp32"
    assert np.isfinite(service.champion.expected.confidence)
    service.life.close()
