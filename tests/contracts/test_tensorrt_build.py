"""Engines are built ahead of time without a GPU, are what they say, and are refused where they do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from algospace.errors import BundleError, ConfigError
from serving import tensorrt_build
from serving.backends import make_backend
from serving.bundle import Bundle, load_bundle
from serving.engine_commands import export_engines
from serving.engines import Engine, engine_path, read_engine
from serving.tensorrt_build import (
    BuildOptions,
    build_engine,
    capabilities,
    engine_key,
    graph_bytes,
    graphs_of,
    load_tensorrt,
    parse_capabilities,
)
from tests.command_line import refusal
from tests.packages import require_package
from tests.serving_market import random_bundle

NAME, CAPABILITY = "tensorrt-rtx", "8.9"


@pytest.fixture(scope="module")
def module() -> object:
    require_package(NAME)
    return load_tensorrt(NAME)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return random_bundle(tmp_path_factory.mktemp("bundle") / "tcn", seed=3)


@pytest.fixture(scope="module")
def built(module: object, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    cache = tmp_path_factory.mktemp("engines")
    return cache, export_engines(bundle, NAME, CAPABILITY, cache=cache)


def test_every_graph_has_an_engine_of_its_own(built: tuple[Path, list[Path]], bundle: Bundle,
                                              module: object) -> None:
    cache, paths = built
    assert bundle.directory not in cache.parents
    keys = [engine_key(NAME, module, bundle, graph, CAPABILITY) for graph in graphs_of(bundle)]
    assert paths == [engine_path(cache, key) for key in keys]
    for path, key in zip(paths, keys, strict=True):
        assert len(read_engine(path, key)[1]) > 10_000
    load_bundle(bundle.directory)  # nothing was written into it


def test_bindings_and_layers_are_those_of_the_graph(built: tuple[Path, list[Path]], bundle: Bundle) -> None:
    engines = {engine.key.graph: engine for engine in (read_engine(path)[0] for path in built[1])}
    samples, schema = bundle.manifest.gate.iterations, bundle.schema
    windows = {"strategic": (-1, schema.strategic.window, schema.strategic.width),
               "tactical": (-1, schema.tactical.window, schema.tactical.width)}
    assert shapes(engines["embed"], "input") == windows
    assert shapes(engines["vote"], "input") == windows | {
        "regime": (-1, 8), "synergy": (-1, 3), "account": (-1, 8), "masks": (-1, -1, 3, 64)}
    assert shapes(engines["vote"], "output")["logits"] == (-1, -1, 3, 3)
    assert set(shapes(engines["heads"], "input")) == {"embedded", "regime", "synergy", "account", "masks"}
    assert shapes(engines["rde"], "output") == {"regime": (-1, 8)}
    assert shapes(engines["mrms"], "output") == {"logits": (-1, 3, 7)}
    for engine in engines.values():
        assert len(engine.layers) > 3
        assert {binding.dtype for binding in engine.bindings} == {"float"}
        for binding in engine.bindings:
            if binding.mode == "input":
                assert [shape[0] for shape in binding.profile] == [1, 1, 1024]
    masks = next(b for b in engines["vote"].bindings if b.name == "masks")
    assert [shape[1] for shape in masks.profile] == [1, samples, samples]


def shapes(engine: Engine, mode: str) -> dict[str, tuple[int, ...]]:
    return {binding.name: binding.shape for binding in engine.bindings if binding.mode == mode}


def test_engines_of_another_bundle_version_or_precision_are_refused(built: tuple[Path, list[Path]],
                                                                    bundle: Bundle, module: object) -> None:
    key = engine_key(NAME, module, bundle, "vote", CAPABILITY)
    path = engine_path(built[0], key)
    for change in ({"bundle": "0" * 64}, {"version": "0.1"}, {"precision": "fp16"}, {"driver": "1"}):
        with pytest.raises(BundleError, match="build it again"):
            read_engine(path, key.model_copy(update=change))
    bad = bytearray(path.read_bytes())
    bad[len(bad) // 2] ^= 1
    broken = built[0] / "broken.engine"
    broken.write_bytes(bad)
    with pytest.raises(BundleError, match="does not match its checksum"):
        read_engine(broken, key)


def test_unknown_capabilities_and_unreadable_graphs_are_refused(module: object, bundle: Bundle) -> None:
    assert parse_capabilities(module, "8.9, 12.0") == ("8.9", "12.0")
    assert {"7.5", "8.6", "8.9", "12.0"} <= set(capabilities(module))
    for text in ("9.0", "8.9,99.0", "", "fast"):
        with pytest.raises(ConfigError, match=r"builds for 7\.5, .*8\.9"):
            parse_capabilities(module, text)
    with pytest.raises(ConfigError, match="cannot read the graph"):
        build_engine(module, bundle.read("rde.onnx")[:-200], BuildOptions(CAPABILITY), 30)


def test_a_graph_changed_after_loading_is_not_built(tmp_path: Path) -> None:
    bundle = random_bundle(tmp_path / "bundle", experts=False)
    path = bundle.path("vote")
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ConfigError, match="changed since the bundle was opened"):
        graph_bytes(bundle, "embed", "fp32")


@pytest.mark.parametrize(("arguments", "message"), [
    (["--bundle", "{bundle}"], "give --backend tensorrt-rtx"),
    (["--bundle", "{bundle}", "--backend", "tpu"], "known are onnx, tensorrt and tensorrt-rtx"),
    (["--bundle", "{bundle}", "--backend", "tensorrt-rtx", "--precision", "int8"], "known are fp32 and fp16"),
    (["--bundle", "absent", "--backend", "tensorrt-rtx"], "not a bundle directory"),
])
def test_bad_usage_is_one_line(bundle: Bundle, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch,
                               capsys: pytest.CaptureFixture[str]) -> None:
    words = [a.format(bundle=bundle.directory) for a in arguments]
    assert message in refusal(monkeypatch, capsys, "export", *words)


def test_a_package_that_is_not_there_is_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tensorrt_build.MODULES, NAME, ("no_such_tensorrt",))
    with pytest.raises(ConfigError, match=r"pip install 'algospace\[tensorrt-rtx\]'") as caught:
        make_backend(NAME, bundle)
    assert caught.value.code == "no_package"
