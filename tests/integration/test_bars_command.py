"""`algospace data bars`: the files hold what `build_bars` gives, and a fault leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from algospace import commands
from algospace.errors import ConfigError, InputError
from algospace.features.tick_bars import build_bars
from algospace.instruments import instrument
from algospace.marketdata.synthetic_ticks import generate_ticks


@pytest.fixture(scope="module")
def prints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, object]:
    ticks = generate_ticks("session", 4, 60).ticks
    path = tmp_path_factory.mktemp("ticks") / "ticks.parquet"
    stamp = pa.timestamp("ns", tz="UTC")
    pq.write_table(pa.table({"ts": pa.array(ticks.ts, stamp), "price": ticks.price, "size": ticks.size,
                             "aggressor": ticks.aggressor}), path)
    return path, ticks


def call(*words: object) -> str:
    app = typer.Typer(pretty_exceptions_enable=False)
    commands.register(app)
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_every_frame_is_written_and_equals_the_library_call(prints: tuple[Path, object], tmp_path: Path) -> None:
    path, ticks = prints
    out = tmp_path / "bars"
    words = ("data", "bars", path, "--instrument", "SYNTH", "--frames", "5m,tick:50,volume:500,dollar:2e7",
             "--out", out, "--library", "sma_20,rsi_14", "--json")  # fmt: skip
    summary = json.loads(call(*words))
    assert summary["ticks"] == len(ticks)  # type: ignore[arg-type]
    assert sorted(p.name for p in out.iterdir()) == [
        "5m.parquet", "bars.json", "dollar-2e7.parquet", "tick-50.parquet", "volume-500.parquet"]  # fmt: skip
    expected = build_bars(ticks, ["5m", "tick:50", "volume:500"])  # type: ignore[arg-type]
    for name, series in expected.items():
        table = pq.read_table(out / f"{name.replace(':', '-')}.parquet")
        assert table.num_rows == len(series) > 5
        for column in ("open", "high", "low", "close", "volume", "count"):
            np.testing.assert_array_equal(table[column].to_numpy(), getattr(series, column))
        assert np.isfinite(table["signed_volume"].to_numpy()).all()
        sma = table["sma_20"].to_numpy()
        assert np.isnan(sma[:19]).all()
        if len(sma) > 19:
            assert sma[19] == pytest.approx(series.close[:20].mean(), rel=1e-12)
    call(*words)  # an earlier result is replaced


def test_dollars_count_the_contract_multiplier(prints: tuple[Path, object], tmp_path: Path) -> None:
    path, ticks = prints
    call("data", "bars", path, "--instrument", "SYNTH", "--frames", "dollar:2e7", "--out", tmp_path / "b")
    table = pq.read_table(tmp_path / "b" / "dollar-2e7.parquet")
    worth = float((ticks.price * ticks.size).sum()) * instrument("SYNTH").multiplier  # type: ignore[attr-defined]
    assert table.num_rows <= worth / 2e7
    assert table.num_rows > 0.5 * worth / 2e7


@pytest.mark.parametrize(("frames", "words"), [("5x", "'5x' is unknown"), ("", "name at least one"),
                                               ("5m,tick:1.5", "whole number"), ("volume:-1", "positive")])
def test_impossible_frames_are_refused(
    prints: tuple[Path, object], tmp_path: Path, frames: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        call("data", "bars", prints[0], "--instrument", "SYNTH", "--frames", frames, "--out", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_folder_with_other_things_and_a_missing_source_are_refused(prints: tuple[Path, object], tmp_path: Path
                                                                     ) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds something else"):
        call("data", "bars", prints[0], "--instrument", "SYNTH", "--frames", "5m", "--out", tmp_path)
    with pytest.raises(InputError, match="no such file"):
        call("data", "bars", tmp_path / "absent", "--instrument", "SYNTH", "--frames", "5m", "--out",
             tmp_path / "b")  # fmt: skip
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.txt"]
