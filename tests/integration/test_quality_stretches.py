"""The quality report finds, with its place, everything that is known to be wrong with the recorded files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.instruments import instrument
from algospace.marketdata import ImportOptions, import_file
from algospace.marketdata.quality import QualityReport
from algospace.marketdata.stretches import attention, find_stretches
from algospace.marketdata.synthetic import generate
from algospace.types import Bars


def report_of(data_root: Path, file: str, symbol: str, **options: object) -> QualityReport:
    return import_file(data_root / file, symbol, ImportOptions(**options)).report  # type: ignore[arg-type]


def test_the_stretch_in_another_contract_is_found(data_root: Path) -> None:
    report = report_of(data_root, "nq_cl_30m_volume/nq_30m_vol.parquet", "NQ")
    [found] = report.stretches["suspected_other_contract"]
    assert found["from"] == "2023-12-12T20:30:00Z"
    assert "2024-06-12" <= found["to"] < "2024-06-18"
    assert found["factor"] < 1e-3
    assert found["entry_jump"] > 231
    [thin] = report.stretches["thin_stretches"]
    assert thin["from"] == "2023-12-12T20:30:00Z"
    assert report.reported["zero_volume"] == 51
    assert len(report.places["zero_volume"]) == 5
    assert "another contract" in " ".join(attention(report.stretches))


def test_the_clean_contract_beside_it_is_not_accused(data_root: Path) -> None:
    assert report_of(data_root, "nq_cl_30m_volume/cl_30m_vol.parquet", "CL").stretches == {}
    assert report_of(data_root, "es_1m", "ES").stretches == {}
    assert report_of(data_root, "btc_1m", "BTCUSD").stretches == {}


@pytest.mark.parametrize("symbol", ["SPY", "QQQ"])
def test_the_step_of_the_volume_unit_is_found(data_root: Path, symbol: str) -> None:
    report = report_of(data_root, f"equities/{symbol.lower()}_1m_2025_09_2026_03.parquet", symbol)
    [step] = report.stretches["volume_steps"]
    assert step["at"] == "2026-01-22T14:30:00Z"
    assert 25 < step["factor"] < 70


def test_rows_that_break_high_and_low_are_set_aside_with_their_place(data_root: Path) -> None:
    result = import_file(data_root / "daily", "VIX", ImportOptions(max_bad_fraction=0.01))
    assert result.report.quarantined == {"ohlc_violation": 47}
    assert result.quarantine.num_rows == 47
    assert result.quarantine.column("row")[0].as_py() == 534


def market(seed: int) -> Bars:
    return generate("session", seed, 12_000).bars


@given(st.integers(0, 3), st.floats(15.0, 500.0), st.booleans(), st.integers(3000, 8000))
@settings(max_examples=15, deadline=None)
def test_a_planted_change_of_unit_is_found_where_it_is(seed: int, factor: float, up: bool, row: int) -> None:
    bars = market(seed)
    volume = bars.volume.copy()
    volume[row:] *= factor if up else 1 / factor
    [step] = find_stretches(replace(bars, volume=volume), instrument("SYNTH").session, True)["volume_steps"]
    place = int(np.searchsorted(bars.ts_open, np.datetime64(step["at"][:-1], "ns").astype(np.int64)))
    assert abs(place - row) < 300  # a trading day
    assert step["factor"] == pytest.approx(factor if up else 1 / factor, rel=0.6)


def test_days_that_are_mostly_absent_are_found() -> None:
    bars = market(1)
    keep = np.ones(len(bars), np.bool_)
    keep[4000:7000] = np.arange(3000) % 10 == 0
    thin = Bars(bars.ts_open[keep], bars.open[keep], bars.high[keep], bars.low[keep], bars.close[keep],
                bars.volume[keep], bars.width_ns)
    [found] = find_stretches(thin, instrument("SYNTH").session, False)["thin_stretches"]
    assert found["share"] < 0.25
    assert 8 <= found["days"] <= 13


def test_an_ordinary_market_is_not_accused() -> None:
    for seed in range(4):
        assert find_stretches(market(seed), instrument("SYNTH").session, True) == {}


def test_stated_roll_ratios_are_held_against_the_bars(data_root: Path) -> None:
    guesses = report_of(data_root, "nq_1m", "NQ").guesses
    [note] = [line for line in guesses if line.startswith("roll ratios of contracts.csv")]
    assert "8 of 63 differ" in note
    assert "inverse" not in note
