"""Reports name the markets they were made on; only `algospace evaluate`, which checks it, calls any unseen."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from algospace.config import load_config
from tests.conftest import REPOSITORY
from training import complete, quickstart
from training.config import RunConfig
from training.dataset import Dataset, Split


def test_test_rows_are_named() -> None:
    def split(seed: int | None) -> Split:
        return Split(Path("market"), 0, 10, seed)

    assert complete.place_of([split(701), split(702)]) == "test markets 701, 702"
    assert complete.place_of([split(9001)]) == "test market 9001"
    assert complete.place_of([split(None)]) == "the test split"


@pytest.mark.parametrize("name", ["easy", "mid", "hard", "martingale"])
def test_the_title_of_a_full_run_says_which_market_it_is(name: str, monkeypatch: pytest.MonkeyPatch,
                                                         tmp_path: Path) -> None:
    path = REPOSITORY / "configs" / "train" / f"{name}.yaml"
    config = load_config(RunConfig, path, ["backtest.supervised=false"])
    assert config.market.synthetic is not None
    tests = tuple(Split(tmp_path, 0, 10, seed) for seed in config.market.synthetic.test_seeds)
    made: dict[str, Any] = {}
    monkeypatch.setattr(Split, "market", lambda _: None)
    monkeypatch.setattr(complete, "load_regime", lambda _: None)
    monkeypatch.setattr(complete, "regime_columns", lambda *_, **__: [None])
    monkeypatch.setattr(complete, "backtest", lambda *_, **options: made.update(options) or {})
    dataset = Dataset(tests[0], tests[0], tests, "")
    complete._full_run(config, tmp_path, dataset, None, {}, None, Console(quiet=True))  # type: ignore[arg-type]
    assert made["title"] == f"{name}: full run on test market {tests[0].seed}"


def test_the_quickstart_names_its_markets(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"score": 1.0, "exposure": 0.5, "trades": 3.0}
    summary = {
        "backtest": {"policy": figures, "baselines": {}, "bayes_limit": figures,
                     "fractions": {"701": 0.5, "702": 0.6}, "full_run": {"trades": 1, "net_pnl": 2.0}},
        "gate": {"promise_kept": True, "threshold": 0.5}, "seconds": {"total": 1.0},
        "decision": {"bar": "", "verdict": "", "reason": "", "confidence": 0.5, "latency_ms": 1.0}}
    quickstart._print(Console(width=200), summary, Path("run"), Path("report"))
    printed = capsys.readouterr().out
    assert "test markets 701, 702" in printed
    assert "unseen" not in printed


@pytest.mark.parametrize("limit", [None, 0.0, 2.0])
def test_the_quickstart_ends_on_markets_without_a_limit_too(limit: float | None,
                                                           capsys: pytest.CaptureFixture[str]) -> None:
    """`session` has no solved limit, and a martingale's earns nothing."""
    figures = {"score": 1.0, "exposure": 0.5, "trades": 3.0}
    unit = None if limit is None else {
        "policy": figures, "baselines": {}, "bayes_limit": figures | {"score": limit}, "fraction_of_limit": None,
        "fractions": {"701": None}, "bars": 10}
    report = {"policy": {"trades": 1, "net_pnl": 2.0}, "gate": {"promise_kept": True, "threshold": 0.5}}
    done = SimpleNamespace(unit=unit, report=report, bundle=SimpleNamespace(directory="bundle"))
    decision = {"bar": "", "verdict": "", "reason": "", "confidence": 0.5, "latency_ms": 1.0}
    summary = quickstart._summary({}, done, decision, {"total": 1.0})
    quickstart._print(Console(width=200), summary, Path("run"), Path("report"))
    printed = capsys.readouterr().out
    assert "full run (brackets, M-RMS, gate): 1 trades" in printed
    assert ("Bayes limit" in printed) == (limit is not None)
    assert ("50%" in printed) == (limit is not None)
    assert ("of the limit" in printed) == (limit is not None)
