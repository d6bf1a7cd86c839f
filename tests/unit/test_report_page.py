"""The report says what happened: a loss as a loss, undefined as undefined, and needs nothing from outside."""

import json
import re

import numpy as np
import pytest

from algospace.analysis.baselines import run_baselines
from algospace.analysis.report import backtest_result, compare, curves_of, monthly_table, verdict, write_report
from algospace.execution.replay import OrderArrays, run_precomputed
from algospace.execution.venue import SimulatedVenue
from algospace.instruments import instrument
from algospace.risk.limits import LimitsConfig
from tests.session_market import random_orders, random_table

ES = instrument("ES")
GATE = {
    "threshold": 0.61, "ece": 0.04, "lift": None,
    "reliability": {"predicted": [0.1, 0.5, 0.9], "observed": [0.2, 0.0, 0.8], "counts": [4, 0, 9]},
    "risk_coverage": {"coverage": [0.1, 0.5, 1.0], "risk": [0.3, 0.4, 0.48], "base_risk": 0.48},
}


def backtest(seed=11, n=2000, orders=None, **kwargs):
    table = random_table(seed, n=n)
    orders = random_orders(seed, table, 0, n) if orders is None else orders
    policy = run_precomputed(table, 0, n, orders, SimulatedVenue(ES), LimitsConfig())
    others = run_baselines(table, 0, n, ES, turnover=0.1)
    return policy, others, backtest_result(policy, others, **kwargs)


def test_report_is_complete_and_self_contained(tmp_path):
    policy, others, result = backtest(gate=GATE, unit={"policy": {"score": 0.2}, "fraction_of_limit": 0.5},
                                      hashes={"config": "ab12", "data": "<cd>"}, notes=("a note & more",),
                                      trial_sharpes=np.array([0.01, 0.02, -0.01]))
    page = write_report(tmp_path / "out", result, curves_of(policy, others))
    assert sorted(p.name for p in page.parent.iterdir()) == ["report.html", "report.json"]
    text = page.read_text()
    assert not re.search(r"(?:src|href)=\"(?!data:)", text), "the page must load nothing"
    assert "<script" not in text
    assert text.count("data:image/png;base64,") == 6
    for words in ("&lt;cd&gt;", "a note &amp; more", "momentum", "fraction of limit",
                  "deflated Sharpe (3 trials)"):
        assert words in text, words
    stored = json.loads((page.parent / "report.json").read_text())
    assert stored == json.loads(json.dumps(result))
    assert set(stored["baselines"]) == set(others)
    assert stored["policy"]["net_pnl"] == pytest.approx(policy.equity[-1] - 100_000.0)
    assert sum(stored["reasons"].values()) == policy.decisions.size


def test_a_loss_is_written_as_a_loss():
    policy, others, result = backtest()
    assert policy.equity[-1] < 100_000.0
    assert re.match(r"The policy lost [\d,]+ USD after costs\.", result["verdict"][0])
    for name, line in zip(others, result["verdict"][1:], strict=True):
        behind = policy.equity[-1] < others[name].equity[-1]
        assert ("loses to" in line) == behind
        assert ("within chance" in line) == (not result["against"][name]["significant"])


def test_a_policy_that_never_trades_is_reported_as_such(tmp_path):
    nothing = OrderArrays.build(np.zeros(2000), np.zeros(2000, bool))
    policy, others, result = backtest(orders=nothing)
    assert result["verdict"][0] == "The policy did not trade."
    assert result["policy"]["sharpe"] is None
    page = write_report(tmp_path, result, curves_of(policy, others)).read_text()
    assert "No trade was closed." in page
    assert "NaN" not in page
    assert ">nan" not in page


def test_an_equal_run_is_level_with_it():
    policy = backtest()[0]
    found = verdict(policy, {"buy_and_hold": compare(policy, policy)})
    assert found[1:] == ["It ends level with buy and hold after costs."]


def test_months_add_up_to_the_net_profit():
    policy, _, result = backtest(n=20_000)
    months = [value for year in monthly_table(policy).values() for value in year.values()]
    assert len(months) > 2
    assert sum(months) == pytest.approx(result["policy"]["net_pnl"])


def test_baselines_over_other_rows_are_refused():
    policy, others, _ = backtest()
    other = backtest(n=1000)[1]["random"]
    with pytest.raises(ValueError, match="covers other rows"):
        curves_of(policy, {**others, "random": other})


def test_a_broken_result_leaves_no_half_report(tmp_path):
    policy, others, result = backtest()
    result["significance"]["probabilistic_sharpe"] = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_report(tmp_path / "out", result, curves_of(policy, others))
    assert not list(tmp_path.iterdir()), "not even an empty folder"


def test_equal_runs_give_equal_pages(tmp_path):
    policy, others, result = backtest()
    first = write_report(tmp_path / "a", result, curves_of(policy, others)).read_bytes()
    assert write_report(tmp_path / "b", result, curves_of(policy, others)).read_bytes() == first
