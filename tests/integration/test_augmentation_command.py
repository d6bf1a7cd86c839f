"""`algospace data augment`, through its Typer command, and the scores on real NQ bars."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from algospace.analysis.similarity import similarity
from algospace.errors import ConfigError, InputError
from algospace.files import sha256_file
from algospace.marketdata.augment_commands import add_augment_command
from algospace.marketdata.augmentation import AugmentationConfig, augment
from algospace.marketdata.source import read_source
from algospace.marketdata.synthetic import generate, write_market
from algospace.marketdata.synthetic_ticks import base_bars, plan_ticks
from algospace.types import BASE_BAR_NS, Bars


@pytest.fixture
def app():
    root, data = typer.Typer(), typer.Typer()
    root.add_typer(data, name="data")
    add_augment_command(data)
    data.command("other")(lambda: None)
    return root


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("market") / "session"
    write_market(generate("session", 1, 3_000), folder)
    return folder


def _run(app, *arguments):
    return CliRunner().invoke(app, ["data", "augment", *map(str, arguments)])


def test_it_writes_bars_that_can_be_read_again_and_prints_the_score(app, source, tmp_path):
    out = tmp_path / "deep" / "bars"
    for _ in range(2):  # an earlier augmentation is replaced
        result = _run(app, source / "bars.parquet", "--instrument", "SYNTH", "--out", out, "--seed", "3",
                      "--operators", "block_bootstrap, noise", "--option", "noise.scale=0.2", "--json")
        assert result.exit_code == 0, result.output
    said, manifest = json.loads(result.output), json.loads((out / "manifest.json").read_text())
    assert said["rows"] == said["rows_in"] == 3_000
    assert 0.3 < said["similarity"]["overall"] < 1
    assert manifest["augmentation"]["noise"]["scale"] == 0.2
    assert manifest["files"]["bars.parquet"] == sha256_file(out / "bars.parquet")
    settings = AugmentationConfig(operators=("block_bootstrap", "noise"), noise={"scale": 0.2}, tick_size=0.25)
    expected = augment(read_source(source / "bars.parquet", "SYNTH"), settings, 3)
    bars = read_source(out / "bars.parquet", "SYNTH")
    for name in ("ts_open", "open", "high", "low", "close", "volume"):
        np.testing.assert_array_equal(getattr(bars, name), getattr(expected, name), err_msg=name)


def test_labels_come_from_the_truth(app, source, tmp_path):
    arguments = (source / "bars.parquet", "--instrument", "SYNTH", "--operators", "regime_resample", "--out",
                 tmp_path / "x")
    result = _run(app, *arguments, "--labels", source / "truth.parquet")
    assert result.exit_code == 0, result.output
    assert "clustering" in result.output
    bars = read_source(source / "bars.parquet", "SYNTH")
    regimes = pq.read_table(source / "truth.parquet").column("regime").to_numpy().astype(np.int64)
    settings = AugmentationConfig(operators=("regime_resample",), tick_size=0.25)
    np.testing.assert_array_equal(read_source(tmp_path / "x" / "bars.parquet", "SYNTH").close,
                                  augment(bars, settings, 0, regimes).close)


@pytest.mark.parametrize(("wrong", "word"), [
    ((), "name what to do"),
    (("--operators", "mixup"), "operators"),
    (("--operators", "noise", "--option", "noise.scal=1"), "unknown key"),
    (("--operators", "regime_resample"), "needs a regime label"),
    (("--operators", "regime_resample", "--labels", "missing.parquet"), "no labels"),
])
def test_wrong_usage_is_one_clear_error_and_nothing_is_written(app, source, tmp_path, wrong, word):
    result = _run(app, source / "bars.parquet", "--instrument", "SYNTH", "--out", tmp_path / "x", *wrong)
    assert isinstance(result.exception, ConfigError | InputError)
    assert result.exception.exit_code == 2
    assert word in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_things_is_left_alone(app, source, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    result = _run(app, source / "bars.parquet", "--instrument", "SYNTH", "--operators", "noise", "--out", tmp_path)
    assert isinstance(result.exception, ConfigError)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_augmented_nq_keeps_more_than_another_year_of_it(data_root):
    """One-minute NQ, a quarter: augmentation stays closer to it than the year before, a shuffle does not."""
    bars = read_source(data_root / "nq_1m" / "nq_1m_2021.parquet", "NQ").slice(0, 90_000)
    other = read_source(data_root / "nq_1m" / "nq_1m_2020.parquet", "NQ").slice(0, 90_000)
    yardstick = similarity(bars, other).overall
    assert 0.2 < yardstick < 0.9
    for name in ("noise", "magnitude_warp", "time_warp", "block_bootstrap"):
        score = similarity(bars, augment(bars, AugmentationConfig(operators=(name,), tick_size=0.25), 1)).overall
        assert score > yardstick, name
    single = AugmentationConfig(operators=("block_bootstrap",), block_bootstrap={"unit": "bar", "mean_length": 1})
    assert similarity(bars, augment(bars, single, 1)).components["clustering"] < 0.7


def test_a_synthetic_session_lies_between_a_gaussian_walk_and_another_quarter_of_nq(data_root):
    bars = read_source(data_root / "nq_1m" / "nq_1m_2021.parquet", "NQ").slice(0, 90_000)
    other = read_source(data_root / "nq_1m" / "nq_1m_2019.parquet", "NQ").slice(0, 90_000)
    r = np.random.default_rng(1).standard_normal(len(bars)) * np.diff(np.log(bars.close)).std()
    close = bars.close[0] * np.exp(np.cumsum(r))
    open_ = np.concatenate((close[:1], close[:-1]))
    walk = replace(bars, open=open_, close=close, high=np.maximum(open_, close), low=np.minimum(open_, close))
    session = base_bars(plan_ticks("session", 1, 18_000).minutes)
    real, quarter = five_minutes(bars), five_minutes(other)
    scores = [similarity(real, b).overall for b in (five_minutes(walk), session, quarter)]
    assert scores == sorted(scores)


def five_minutes(bars):
    """Base bars of one-minute bars, by plain numpy."""
    start = bars.ts_open // BASE_BAR_NS * BASE_BAR_NS
    first = np.flatnonzero(np.diff(start, prepend=start[0] - 1))
    last = np.append(first[1:], len(bars)) - 1
    return Bars(start[first], bars.open[first], np.maximum.reduceat(bars.high, first),
                np.minimum.reduceat(bars.low, first), bars.close[last], np.add.reduceat(bars.volume, first),
                BASE_BAR_NS, bars.contract[first])
