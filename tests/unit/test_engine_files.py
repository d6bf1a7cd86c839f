"""An engine file is whole and for what is asked, or refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from algospace.errors import BundleError, ConfigError
from serving.engines import (
    BackendUnavailable,
    Binding,
    Engine,
    EngineKey,
    default_cache,
    engine_path,
    fallback_code,
    read_engine,
    write_engine,
)

KEY = EngineKey(backend="tensorrt-rtx", bundle="a" * 64, graph="vote", onnx_sha256="b" * 64, version="1.7.1",
                compute_capability="8.9")
ENGINE = Engine(key=KEY, bindings=(Binding(name="x", mode="input", dtype="float", shape=(-1, 3),
                                           profile=((1, 3), (1, 3), (1024, 3))),), layers=(("a", "matmul"),))
PLAN = bytes(range(256)) * 4


def refused(path: Path, expected: EngineKey | None = KEY) -> str:
    with pytest.raises(BundleError) as caught:
        read_engine(path, expected)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_engine_comes_back_as_written(tmp_path: Path) -> None:
    path = write_engine(tmp_path, ENGINE, PLAN)
    assert path == engine_path(tmp_path, KEY)
    assert read_engine(path, KEY) == (ENGINE, PLAN)
    assert "cannot be read" in refused(tmp_path / "absent")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_any_flipped_bit_is_refused(tmp_path: Path, at: int, bit: int) -> None:
    path = write_engine(tmp_path, ENGINE, PLAN)
    raw = bytearray(path.read_bytes())
    raw[at % len(raw)] ^= 1 << bit
    path.write_bytes(raw)
    assert "does not match its checksum" in refused(path)


@pytest.mark.parametrize("length", [0, 1, 50, 90, -1])
def test_a_shortened_engine_is_refused(tmp_path: Path, length: int) -> None:
    path = write_engine(tmp_path, ENGINE, PLAN)
    path.write_bytes(path.read_bytes()[:length])
    assert "does not match its checksum" in refused(path)


@pytest.mark.parametrize(("field", "value"), [
    ("bundle", "c" * 64), ("onnx_sha256", "c" * 64), ("version", "1.8.0"), ("compute_capability", "12.0"),
    ("driver", "13000"), ("precision", "fp16"), ("graph", "execute"), ("backend", "tensorrt")])
def test_an_engine_for_anything_else_is_refused(tmp_path: Path, field: str, value: str) -> None:
    path = write_engine(tmp_path, ENGINE, PLAN)
    message = refused(path, KEY.model_copy(update={field: value}))
    assert f"is of {field.replace('_', ' ')} '" in message
    assert value in message
    assert "build it again" in message


def test_the_cache_is_outside_the_bundle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ALGOSPACE_ENGINES", str(tmp_path / "here"))
    assert default_cache() == tmp_path / "here"
    monkeypatch.delenv("ALGOSPACE_ENGINES")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "algospace" / "engines"


def test_what_health_may_show_of_a_failure() -> None:
    assert fallback_code(BackendUnavailable("no_gpu", "/secret/path")) == "no_gpu"
    assert fallback_code(BundleError("/secret/path: damaged")) == "bundle_refused"
    assert fallback_code(ConfigError("/secret/path: what")) == "failed"
