"""What synthetic ticks look like: order flow by regime, hours, spreads, halts, holes, rolls, files and command."""

import hashlib
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import typer
from pydantic import ValidationError
from scipy import stats
from typer.testing import CliRunner

from algospace.calendars import to_local_ns
from algospace.errors import ConfigError
from algospace.files import sha256_file
from algospace.marketdata.synthetic import generate
from algospace.marketdata.synthetic_commands import add_synth_command
from algospace.marketdata.synthetic_rolls import contract_codes
from algospace.marketdata.synthetic_tick_files import read_written_ticks
from algospace.marketdata.synthetic_tick_kernels import minute_prices
from algospace.marketdata.synthetic_ticks import TickOptions, generate_ticks
from algospace.seeding import to_unit
from algospace.types import BASE_BAR_NS, HOUR_NS


@pytest.fixture(scope="module")
def stress():
    to_unit(1)  # has numba compile it for signed integers: what it compiled before must not matter
    return generate_ticks("stress", 2, 20_000)


def base_row(market):
    """The base bar of every print."""
    return np.searchsorted(market.bars.ts_open, market.ticks.ts, side="right") - 1


def buys_by_regime(market):
    regime = market.truth.regime[base_row(market)]
    return np.array([np.mean(market.ticks.aggressor[regime == state] > 0) for state in range(4)])


def test_the_same_seed_gives_the_same_prints_on_every_machine():
    digest = hashlib.sha256()
    for column in generate_ticks("stress", 1, 300, TickOptions(latency_ms=1.0)).ticks.columns().values():
        digest.update(np.ascontiguousarray(column).tobytes())
    assert digest.hexdigest() == "a4db44f9e20e8cab0e370529e44edf4915562c17db15a168e56dc2529a68a6fd"


def test_buyers_follow_the_regime_as_documented():
    market = generate_ticks("easy", 3, 20_000, TickOptions(imbalance=0.1, tick_rule=0.0))
    np.testing.assert_allclose(buys_by_regime(market), [0.6, 0.4, 0.5, 0.5], atol=0.01)
    diluted = buys_by_regime(generate_ticks("easy", 3, 20_000, TickOptions(imbalance=0.1)))
    assert 0.53 < diluted[0] < 0.6
    assert 0.4 < diluted[1] < 0.47


def test_without_imbalance_nothing_of_the_flow_tells_the_regime_once_the_return_is_given():
    market = generate_ticks("easy", 5, 40_000)
    rows = base_row(market)
    count = np.bincount(rows)
    flow = np.bincount(rows, market.ticks.aggressor) / count
    spread = np.bincount(rows, market.ticks.ask - market.ticks.bid) / count
    r, regime = market.bars.close / market.bars.open - 1.0, market.truth.regime
    smallest = 1.0
    for centre in (-6e-4, 0.0, 6e-4):
        near = np.abs(r - centre) < 1e-4
        for column in (flow, spread, count):
            groups = [column[near & (regime == state)] for state in range(4)]
            smallest = min(smallest, stats.kruskal(*groups).pvalue)
    assert smallest > 1e-3 / 9


def test_signs_persist_and_follow_price_changes():
    ticks = generate_ticks("session", 3, 2_000).ticks
    assert np.corrcoef(ticks.aggressor[1:], ticks.aggressor[:-1])[0, 1] > 0.3
    change = np.diff(ticks.price)
    moved = change != 0
    assert np.mean(np.sign(change[moved]) == ticks.aggressor[1:][moved]) > 0.58


@pytest.mark.parametrize("name", ["easy", "session"])
def test_there_are_many_prints_and_most_in_busy_hours(name):
    market = generate_ticks(name, 2, 3_000)
    count = np.bincount(base_row(market))
    assert count.min() >= 10
    hour = to_local_ns(market.bars.ts_open, "America/Chicago") // HOUR_NS % 24
    assert count[(hour >= 9) & (hour < 15)].mean() > (3 if name == "session" else 2) * count[hour >= 19].mean()
    assert np.mean(np.diff(market.ticks.ts) < 10_000_000) > 0.05  # bursts


def test_spreads_are_one_tick_mostly_and_wide_at_night_and_in_crashes(stress):
    market = stress
    spread = (market.ticks.ask - market.ticks.bid) / 0.25
    assert 0.7 < np.mean(spread == 1) < 0.99
    hour = to_local_ns(market.ticks.ts, "America/Chicago") // HOUR_NS % 24
    calm = (market.bars.high / market.bars.low - 1 < 0.002)[base_row(market)]
    assert spread[calm & (hour >= 19)].mean() > 1.1 * spread[calm & (hour >= 9) & (hour < 15)].mean()
    crashing = (market.bars.high / market.bars.low - 1 > 0.008)[base_row(market)]
    assert spread[crashing].mean() > 2 * spread[~crashing].mean()


def test_stress_has_halts_holes_rolls_and_the_exchange_calendar(stress):
    bars, ticks = stress.bars, stress.ticks
    missing = np.diff(bars.ts_open) // BASE_BAR_NS - 1
    inside = (missing > 0) & (missing < 12)
    assert inside.sum() > 20
    for row in np.flatnonzero(inside)[:20]:
        absent = (ticks.ts >= bars.ts_open[row] + BASE_BAR_NS) & (ticks.ts < bars.ts_open[row + 1])
        assert not absent.any()
    assert np.abs(bars.open[1:][inside] / bars.close[:-1][inside] - 1).max() > 5e-4  # reopening jumps
    local = to_local_ns(ticks.ts, "America/Chicago")
    assert not (local // HOUR_NS % 24 == 16).any()
    assert not ((local // (24 * HOUR_NS) + 3) % 7 == 5).any()
    assert np.unique(ticks.contract).tolist() == [0, 1]
    endless = generate("stress", 2, 20_000).bars
    old, new = bars.contract == 0, bars.contract == 1
    np.testing.assert_array_equal(bars.close[old], endless.close[old])
    basis = bars.close[new] - endless.close[new]
    assert np.unique(basis).size == 1
    assert basis[0] > 0


def test_the_contract_changes_on_the_monday_before_the_third_friday():
    hours = np.datetime64("2024-03-08", "ns").astype(np.int64) + np.arange(24 * 7) * HOUR_NS
    codes, names = contract_codes(hours)
    assert names == ["H24", "M24"]
    first = hours[np.flatnonzero(codes)[0]]
    assert np.datetime64(int(first), "ns") == np.datetime64("2024-03-10T22:00")  # Sunday 17:00 in Chicago


@pytest.mark.parametrize("ohlc", [
    (100.0, 103.0, 98.0, 99.0), (99.0, 103.0, 98.0, 100.0), (100.0, 101.0, 100.0, 101.0),
    (100.0, 100.0, 97.5, 98.0), (100.0, 100.0, 100.0, 100.0),
])
@pytest.mark.parametrize("n", [4, 5, 60])
def test_prints_of_a_minute_touch_its_extremes_and_stay_inside(ohlc, n):
    out = np.empty(n)
    for key in range(50):
        minute_prices(np.uint64(key), *ohlc, n, 0.25, out)
        assert (out[0], out.max(), out.min(), out[-1]) == ohlc
        assert (out == np.round(out / 0.25) * 0.25).all()


@pytest.mark.parametrize("wrong", [{"imbalance": 0.6}, {"persistence": 1.0}, {"late_rate": -1}, {"speed": 1}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ValidationError):
        TickOptions(**wrong)


@pytest.fixture
def app():
    root, data = typer.Typer(), typer.Typer()
    root.add_typer(data, name="data")
    add_synth_command(data)
    data.command("other")(lambda: None)
    return root


def _run(app, *arguments):
    return CliRunner().invoke(app, ["data", "synth", "--resolution", "ticks", *arguments])


def test_the_command_writes_ticks_truth_and_manifest(app, tmp_path):
    out = tmp_path / "easy"
    result = _run(app, "--scenario", "easy", "--seed", "7", "--bars", "300", "--out", str(out), "--json",
                  "--tick-option", "roll_basis_bp=50", "--tick-option", "latency_ms=1")
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["limit"]
    assert sorted(p.name for p in out.iterdir()) == ["manifest.json", "ticks.parquet", "truth.parquet"]
    assert pq.read_schema(out / "ticks.parquet").names == ["ts", "price", "size", "bid", "ask", "aggressor",
                                                           "ts_recv", "contract"]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["files"]["ticks.parquet"] == sha256_file(out / "ticks.parquet")
    expected = generate_ticks("easy", 7, 300, TickOptions(roll_basis_bp=50.0, latency_ms=1.0))
    ticks, truth = read_written_ticks(out)
    for column, values in expected.ticks.columns().items():
        np.testing.assert_array_equal(ticks.columns()[column], values, err_msg=column)
    np.testing.assert_array_equal(truth.limit_position, expected.truth.limit_position)


@pytest.mark.parametrize("wrong", [("--tick-option", "imbalance=2"), ("--tick-option", "latency"),
                                   ("--resolution", "5m", "--tick-option", "imbalance=0")])
def test_wrong_usage_is_one_clear_error_and_nothing_is_written(app, tmp_path, wrong):
    result = _run(app, "--scenario", "easy", "--bars", "10", "--out", str(tmp_path / "x"), *wrong)
    assert isinstance(result.exception, ConfigError)
    assert list(tmp_path.iterdir()) == []
