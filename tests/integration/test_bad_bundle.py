"""A bundle that is not exactly as it was written is refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import ray
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from algospace.errors import BundleError, SchemaError
from algospace.files import sha256_file
from serving.bundle import MANIFEST, MANIFEST_HASH, load_bundle, network_shapes
from serving.export import write_bundle
from tests.command_line import refusal
from tests.serving_market import REGIME_SIZE, full_schema, random_bundle, random_networks


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_bundle(tmp_path_factory.mktemp("bundle") / "good").directory


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "copy"))


def refused(directory: Path) -> str:
    with pytest.raises(BundleError) as caught:
        load_bundle(directory)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert "\n" not in message
    return message


def reseal(directory: Path, manifest: dict) -> None:
    """Make the manifest's own hash right again: the fault must be found deeper."""
    (directory / MANIFEST).write_text(json.dumps(manifest))
    (directory / MANIFEST_HASH).write_text(sha256_file(directory / MANIFEST) + "\n")


def test_a_bundle_comes_back_as_written(written: Path) -> None:
    bundle = load_bundle(written)
    assert bundle.id == (written / MANIFEST_HASH).read_text().strip()
    assert bundle.schema == full_schema()
    assert all(bundle.has(graph) for graph in ("vote", "execute", "mrms", "rde"))
    assert bundle.manifest.metrics == {"score": 0.1}


def test_writing_a_bundle_replaces_a_bundle_and_nothing_else(tmp_path: Path) -> None:
    first = random_bundle(tmp_path / "bundle")
    assert random_bundle(tmp_path / "bundle", seed=1).id != first.id
    work = tmp_path / "work"
    work.mkdir()
    (work / "thesis.txt").write_text("years of work")
    for target in (work, work / "thesis.txt"):
        with pytest.raises(BundleError, match="holds something other than a bundle"):
            random_bundle(target)
    assert [path.read_text() for path in work.iterdir()] == ["years of work"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_is_noticed(copy: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(copy.iterdir())))
    good = path.read_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(bytes(bad))
    try:
        assert str(copy) in refused(copy)
    finally:
        path.write_bytes(good)


def test_every_missing_or_shortened_file_is_noticed(copy: Path) -> None:
    for path in sorted(copy.iterdir()):
        good = path.read_bytes()
        path.unlink()
        assert path.name in refused(copy)
        path.write_bytes(good[:-1])
        refused(copy)
        path.write_bytes(good)
    load_bundle(copy)


def test_other_faults(copy: Path, tmp_path: Path) -> None:
    assert "not a bundle directory" in refused(tmp_path / "absent")
    assert "not a bundle directory" in refused(copy / "vote.onnx")
    (copy / "notes.txt").write_text("hello")
    assert "notes.txt does not belong" in refused(copy)
    (copy / "notes.txt").unlink()

    manifest = json.loads((copy / MANIFEST).read_text())
    reseal(copy, manifest | {"surprise": 1})
    assert "surprise" in refused(copy)
    reseal(copy, manifest | {"format": 2})
    assert "format" in refused(copy)
    reseal(copy, manifest | {"instrument": "XYZ"})
    assert "unknown instrument 'XYZ'" in refused(copy)
    reseal(copy, manifest | {"schema_hash": "0" * 64})
    assert "schema's hash" in refused(copy)
    reseal(copy, manifest | {"matrices": {}})
    assert "not a matrix schema" in refused(copy)
    reseal(copy, manifest | {"files": {}})
    assert "does not belong" in refused(copy)
    reseal(copy, manifest)
    load_bundle(copy)


def test_networks_of_another_schema_are_not_exported(tmp_path: Path) -> None:
    core, risk, regime = random_networks()
    spec = load_bundle(random_bundle(tmp_path / "good").directory).manifest
    core.shapes = network_shapes(full_schema(), REGIME_SIZE)._replace(tactical=9)
    with pytest.raises(SchemaError, match="the core was built for"):
        write_bundle(tmp_path / "bad", spec, full_schema(), core, risk, regime)
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize(("arguments", "message"), [
    (["--bundle", "absent"], "absent: not a bundle directory"),
    (["--bundle", "{damaged}"], "vote.onnx does not match its checksum"),
    (["--bundle", "{good}", "--config", "absent.yaml"], "no such configuration file"),
    (["--bundle", "{good}", "--token-file", "absent"], "cannot read a token"),
    (["--bundle", "{good}", "--replicas", "100"], "replicas: Input should be less than or equal to 64"),
    (["--bundle", "{good}", "--replicas", "5"], "take 2.5 CPUs, Ray is started with cluster_cpus = 2"),
    (["--bundle", "{good}", "--config", "{signed}"], "keys.json: no such key ring; make it with"),
])
def test_bad_usage_of_serve_is_one_line_and_exit_code_2(
        written: Path, copy: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    graph = bytearray((copy / "vote.onnx").read_bytes())
    graph[len(graph) // 2] ^= 1
    (copy / "vote.onnx").write_bytes(bytes(graph))
    signed = copy.parent / "signed.yaml"
    signed.write_text(f"app: {{security: {{mode: jwt, folder: {copy.parent / 'security'}}}}}\n")
    words = [a.format(good=written, damaged=copy, signed=signed) for a in arguments]
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was started for what is refused"))
    assert message in refusal(monkeypatch, capsys, "serve", *words)
