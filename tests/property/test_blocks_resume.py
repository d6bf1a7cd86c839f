"""A partitioned build that is killed, or whose source changes, ends as if nothing had happened."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.errors import InputError
from algospace.features import FeatureConfig, build, concatenate
from algospace.features import blocks as blocks_module
from algospace.features.block_source import months_of_bars
from algospace.features.block_table import read_blocks
from algospace.features.blocks import BlocksReport, FeatureJob, build_blocks, iter_blocks
from algospace.features.driver import FeatureStream
from algospace.types import Bars
from tests.conftest import REPOSITORY
from tests.scale_market import SYNTH, assert_same, content, rolling_bars, write_catalog

LEAN = FeatureConfig(regime=False)
REPLACES_PER_BLOCK = 4  # base rows, 30-minute rows, state, manifest


class Killed(BaseException):
    """Nothing in the code under test may catch it."""


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_catalog(tmp_path_factory.mktemp("resume") / "catalog", rolling_bars())


@pytest.fixture(scope="module")
def undisturbed(catalog: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume") / "undisturbed"
    build_blocks(catalog, SYNTH, LEAN, folder)
    return folder


def _build(source: Path, folder: Path, config: FeatureConfig = LEAN) -> BlocksReport:
    return build_blocks(source, SYNTH, config, folder)


def _built_again(report: BlocksReport) -> int:
    return report.blocks - report.kept


def test_killed_at_every_step_it_continues_after_the_last_complete_block(
        catalog: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    months = len(json.loads((undisturbed / "blocks.json").read_text())["blocks"])
    real = Path.replace
    for step in range(1 + months * REPLACES_PER_BLOCK):  # the first is the folder's manifest
        folder, calls = tmp_path / str(step), 0

        def replace_or_die(self: Path, target: Path, last: int = step) -> Path:
            nonlocal calls
            calls += 1
            if calls > last:
                raise Killed
            return real(self, target)

        monkeypatch.setattr(Path, "replace", replace_or_die)
        with pytest.raises(Killed):
            _build(catalog, folder)
        monkeypatch.undo()
        report = _build(catalog, folder)
        assert report.kept == max(step - 1, 0) // REPLACES_PER_BLOCK
        assert content(folder) == content(undisturbed)


_SUICIDE = """
import os, signal, sys
from pathlib import Path
from algospace.features.blocks import build_blocks
from algospace.features import FeatureConfig
from algospace.instruments import instrument
real, calls = Path.replace, 0
def kill(self, target):
    global calls
    calls += 1
    if calls == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, target)
Path.replace = kill
build_blocks(sys.argv[1], instrument("SYNTH"), FeatureConfig(regime=False), sys.argv[2])
"""


def test_after_a_real_kill_nothing_is_left_over(catalog: Path, undisturbed: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _SUICIDE, str(catalog), str(tmp_path)], cwd=REPOSITORY,
                          capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list(tmp_path.glob(".*.part"))  # SIGKILL leaves no time to clean up
    assert (tmp_path / ".lock").is_file()
    with pytest.raises(InputError, match="the build was stopped after 2000-01; run it again"):
        read_blocks(tmp_path)
    assert len(read_blocks(tmp_path, partial=True)) > 0
    assert _build(catalog, tmp_path).kept == 1
    assert content(tmp_path) == content(undisturbed)


def test_a_finished_folder_is_left_alone(catalog: Path, tmp_path: Path) -> None:
    _build(catalog, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.name != ".lock"}
    report = _build(catalog, tmp_path)
    assert (_built_again(report), report.notes) == (0, ())
    assert {path: path.stat().st_mtime_ns for path in before} == before


def _months(bars: Bars) -> list[str]:
    return [month.name for month in months_of_bars(bars).months]


def _first_row(bars: Bars, month: str) -> int:
    return int(np.searchsorted(bars.ts_open.astype("datetime64[ns]"), np.datetime64(month, "ns")))


def test_new_months_are_appended_and_an_unfinished_one_is_done_again(tmp_path: Path) -> None:
    bars = rolling_bars()
    months = _months(bars)
    cut = _first_row(bars, months[2]) + 1_000
    source, folder = tmp_path / "catalog", tmp_path / "out"
    write_catalog(source, bars.slice(0, cut))
    assert _build(source, folder).blocks == 3
    write_catalog(source, bars)
    report = _build(source, folder)
    assert (report.blocks, report.kept) == (len(months), 2)
    assert report.notes == (f"the source of {months[2]} has changed: rebuilt from there on",)
    assert_same(read_blocks(folder), build(bars, SYNTH, LEAN))


def test_a_changed_month_is_found_and_everything_after_it_built_again(catalog: Path, tmp_path: Path) -> None:
    bars = rolling_bars()
    source, folder = write_catalog(tmp_path / "catalog", bars), tmp_path / "out"
    _build(source, folder)
    second = _months(bars)[1]
    row = _first_row(bars, second)
    close = bars.close.copy()
    row += int(np.argmax(bars.close[row:] != bars.low[row:]))
    close[row] = bars.low[row]
    changed = replace(bars, close=close)
    write_catalog(source, changed)
    report = _build(source, folder)
    assert (report.kept, report.notes) == (1, (f"the source of {second} has changed: rebuilt from there on",))
    assert_same(read_blocks(folder), build(changed, SYNTH, LEAN))


def test_a_shorter_source_drops_the_blocks_it_no_longer_has(tmp_path: Path) -> None:
    bars = rolling_bars()
    source = months_of_bars(bars)
    build_blocks(source, SYNTH, LEAN, tmp_path)
    shorter = source._replace(months=source.months[:2])
    report = build_blocks(shorter, SYNTH, LEAN, tmp_path)
    assert (report.blocks, report.kept) == (2, 2)
    assert f"no longer has {source.months[2].name}" in report.notes[0]
    assert not (tmp_path / f"{source.months[2].name}.parquet").exists()
    few = sum(len(month.read()) for month in shorter.months)
    assert_same(read_blocks(tmp_path), build(bars.slice(0, few), SYNTH, LEAN))


@pytest.mark.parametrize("ending", ["parquet", "30m.parquet", "state"])
def test_a_damaged_or_missing_file_is_repaired(
        catalog: Path, undisturbed: Path, tmp_path: Path, ending: str) -> None:
    _build(catalog, tmp_path)
    months = [block["month"] for block in json.loads((tmp_path / "blocks.json").read_text())["blocks"]]
    damaged = tmp_path / f"{months[-2]}.{ending}"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    if ending != "state":
        with pytest.raises(InputError, match="differ from the manifest"):
            read_blocks(tmp_path)
    report = _build(catalog, tmp_path)
    assert report.kept == len(months) - 2
    assert f"{damaged.name} is missing or damaged: rebuilt from {months[-2]} on" in report.notes[0]
    (tmp_path / f"{months[-1]}.{ending}").unlink()
    assert _build(catalog, tmp_path).kept == len(months) - 1
    assert content(tmp_path) == content(undisturbed)


def test_another_configuration_version_or_contract_list_builds_anew(
        catalog: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _build(catalog, tmp_path, FeatureConfig(regime=False, source="close"))
    report = _build(catalog, tmp_path)
    assert (report.kept, report.notes) == (0, ("the configuration has changed: built anew",))
    assert content(tmp_path) == content(undisturbed)
    monkeypatch.setattr("algospace.__version__", "0.0.0-other")
    assert _build(catalog, tmp_path).notes == ("the version of AlgoSpace has changed: built anew",)
    monkeypatch.undo()
    monkeypatch.setattr(blocks_module, "_code_digest", lambda: "another")
    assert _build(catalog, tmp_path).notes == ("the version of AlgoSpace has changed: built anew",)
    monkeypatch.undo()
    assert _build(catalog, tmp_path).notes == ("the code of the features has changed: built anew",)
    other = months_of_bars(rolling_bars(), ["X", "Y", "Z"])
    build_blocks(other, SYNTH, LEAN, tmp_path)
    report = build_blocks(other._replace(contracts=["W", "X", "Y"]), SYNTH, LEAN, tmp_path)
    assert report.notes == ("the source's contracts have changed: built anew",)
    assert build_blocks(other._replace(contracts=["W", "X", "Y", "Z"]), SYNTH, LEAN, tmp_path).notes == ()


def test_two_builders_of_one_folder_exclude_each_other(
        catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks_module, "_LOCK_WAIT_S", 0.2)
    first = iter_blocks(FeatureJob("first", SYNTH, catalog, tmp_path, LEAN))
    next(first)
    with pytest.raises(InputError, match=r"process \d+ is building features here"):
        _build(catalog, tmp_path)
    first.close()  # abandoned: the lock is free again
    assert _build(catalog, tmp_path).kept == 1


def test_a_folder_with_other_files_is_never_written_to(catalog: Path, tmp_path: Path) -> None:
    """A catalog's months have the names of blocks: `--out` on the catalog itself would have replaced them."""
    before = content(catalog / "SYNTH")
    assert before
    with pytest.raises(InputError, match=r"it holds other files .* name a new or empty folder"):
        _build(catalog, catalog / "SYNTH")
    assert content(catalog / "SYNTH") == before
    assert not (catalog / "SYNTH" / ".lock").exists()
    folder = tmp_path / "out"
    _build(catalog, folder)
    kept = [folder / "notes.parquet", folder / "mine.state", folder / "2000-01.csv"]
    for path in kept:
        path.write_bytes(b"of the user")
    leftovers = [folder / "1999-12.parquet", folder / ".2000-01.state.ab12.part"]
    for path in leftovers:
        path.write_bytes(b"of a killed build")
    _build(catalog, folder)
    assert all(path.is_file() for path in kept)
    assert not any(path.exists() for path in leftovers)


def test_a_folder_that_is_no_table_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no partitioned feature table here"):
        read_blocks(tmp_path)
    (tmp_path / "blocks.json").write_text('{"format": 99}')
    with pytest.raises(InputError, match="not a manifest of format 1"):
        read_blocks(tmp_path)


@settings(max_examples=8, deadline=None)
@given(cuts=st.lists(st.integers(1, 5_999), min_size=1, max_size=6, unique=True).map(sorted))
def test_any_cut_with_the_state_saved_and_loaded_between_equals_one_block(cuts: list[int]) -> None:
    bars = rolling_bars().slice(0, 6_000)
    tables, state = [], FeatureStream(SYNTH, LEAN, bars.width_ns).snapshot()
    for start, stop in zip([0, *cuts], [*cuts, 6_000], strict=True):
        stream = FeatureStream(SYNTH, LEAN, bars.width_ns)
        stream.restore(state)
        tables.append(stream.extend(bars.slice(start, stop)))
        state = stream.snapshot()
    assert_same(concatenate(tables), build(bars, SYNTH, LEAN))
