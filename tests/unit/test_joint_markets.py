"""Several markets in one configuration: what is refused before anything runs."""

import dataclasses
from pathlib import Path

import pytest
from typer.testing import CliRunner

from algospace.cli import build_app
from algospace.config import load_config
from algospace.errors import ConfigError
from algospace.types import BASE_BAR_NS
from tests.env_market import random_table
from training.config import RunConfig
from training.dataset import Dataset, Split
from training.joint import MarketRun, check_times, run_joint
from training.pipeline import run_pipeline

QUICKSTART = Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml"
SECOND = "{instrument: MES, synthetic: {scenario: mid, train_seed: 3}}"


def tiny(*changes: str) -> RunConfig:
    return load_config(RunConfig, QUICKSTART, [f"markets=[{SECOND}]", "core.mappo.num_shards=2", *changes])


def test_what_trains_one_market_refuses_several(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`algospace train` trains on several"):
        run_pipeline(tiny(), tmp_path)
    with pytest.raises(ConfigError, match="`markets` is empty"):
        run_joint(tiny("markets=[]"), tmp_path)
    with pytest.raises(ConfigError, match="multiple of the number of markets"):
        tiny("core.mappo.num_shards=3")


def test_phases_cannot_be_chosen(tmp_path: Path) -> None:
    words = ["train", "--config", str(QUICKSTART), "--phases", "rde", "--run-dir", str(tmp_path),
             f"markets=[{SECOND}]", "core.mappo.num_shards=2"]
    result = CliRunner().invoke(build_app(), words)
    assert isinstance(result.exception, ConfigError)
    assert "several markets are trained in one go" in str(result.exception)


def dated(start: int, cuts: tuple[int, int], symbol: str, folder: Path) -> MarketRun:
    """Splits of one table whose rows begin at bar `start` of an imagined history."""
    table = random_table(3, 400)
    shifted = dataclasses.replace(table, ts_close=table.ts_close + start * BASE_BAR_NS)
    shifted.save(folder / symbol)
    train, validation, test = (Split(folder / symbol, *rows) for rows in
                               ((0, cuts[0]), (cuts[0] + 10, cuts[1]), (cuts[1] + 10, 400)))
    config = tiny(f"market.instrument={symbol}", "markets=[]")
    return MarketRun(config, folder, Dataset(train, validation, (test,), ""))


def test_an_instrument_is_not_trained_on_while_another_is_judged(tmp_path: Path) -> None:
    early, same = dated(0, (200, 300), "NQ", tmp_path), dated(0, (200, 300), "ES", tmp_path)
    assert check_times([early, same]) == []
    longer = dated(0, (240, 300), "YM", tmp_path)
    with pytest.raises(ConfigError, match=r"YM is trained on .* while NQ is validated or tested"):
        check_times([early, longer])
    later = dated(5_000, (200, 300), "RTY", tmp_path)
    assert [line.split(" is tested")[0] for line in check_times([early, later])] == ["note: NQ"]
