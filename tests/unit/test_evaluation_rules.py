"""What an evaluation accepts, and what makes it fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from algospace.analysis.unit_baselines import random_positions
from algospace.analysis.unit_judgement import judge
from algospace.analysis.unit_score import next_returns
from algospace.config import load_config
from algospace.errors import ConfigError
from algospace.marketdata.synthetic import generate
from tests.conftest import REPOSITORY
from training.commands.evaluate import seed_list
from training.config import RunConfig
from training.evaluation.config import Judging, check, load_evaluation
from training.evaluation.report import page
from training.evaluation.summary import (
    failures_of_martingale,
    failures_of_oracle,
    failures_of_run,
    oracle_figures,
    summary,
)
from training.evaluation.trainings import Seeds, own_seeds, seeded

QUICKSTART = REPOSITORY / "configs" / "quickstart.yaml"
JUDGING = Judging(seeds=(701, 702))
SEGMENTS = [(start, start + 500) for start in range(3_000, 29_000, 500)]


def judged(scenario: str, policy: str) -> dict[str, Any]:
    """The summary of a rule on two markets: limit, future, flat or random."""
    found = []
    for seed in JUDGING.seeds:
        market = generate(scenario, seed, 30_000)
        close, limit = market.bars.close, market.truth.limit_position
        rules = {"limit": limit, "future": np.nan_to_num(np.sign(next_returns(close))), "flat": 0 * limit,
                 "random": random_positions(generate("easy", seed, 30_000).truth.limit_position, seed)}
        found.append(judge(market.scenario, market.truth, close, rules[policy], SEGMENTS, seed))
    return summary(found, JUDGING)


def test_the_future_fails_an_honest_run_and_passes_only_the_oracle_control() -> None:
    document = judged("easy", "future")
    assert document["alarms"] == [701, 702]
    assert len(failures_of_run("run", document, JUDGING)) == 2
    assert failures_of_oracle(document, JUDGING) == []
    assert oracle_figures(document)["share_of_clairvoyant"] > 0.5


def test_the_best_honest_policy_passes_a_run_and_fails_the_oracle_control_twice() -> None:
    document = judged("easy", "limit")
    assert failures_of_run("run", document, JUDGING) == []
    assert document["fraction_of_limit"]["estimate"] == 1.0
    assert document["above_trend_bayes"]
    learner, alarm = failures_of_oracle(document, JUDGING)
    assert "the learner is broken" in learner
    assert "stays silent on market 701, 702" in alarm


def test_a_required_fraction_is_required() -> None:
    wanted = JUDGING.model_copy(update={"least_fraction": 0.5})
    assert "below the required 50.0%" in failures_of_run("run", judged("easy", "random"), wanted)[0]
    assert failures_of_run("run", judged("easy", "limit"), wanted) == []


def test_a_martingale_forgives_only_staying_out() -> None:
    assert failures_of_martingale(judged("martingale", "flat"), JUDGING) == []
    traded = failures_of_martingale(judged("martingale", "random"), JUDGING)
    assert len(traded) == 1
    assert "in the market on" in traded[0]
    seeing = "\n".join(failures_of_martingale(judged("martingale", "future"), JUDGING))
    for reason in ("leak alarm rings on market 701", "in the market on", "significant profit"):
        assert reason in seeing


def test_the_page_says_what_failed() -> None:
    document = {"name": "x", "scenario": "easy", **judged("easy", "future")}
    text = page(document | {"failures": failures_of_run("x", document, JUDGING)})
    assert "**Failed**" in text
    assert "| 701 |" in text
    assert "RANG" in text
    assert "trend_bayes" in text
    assert all(f"| {regime} |" in text for regime in ("up", "down", "range", "noise", "all"))
    assert "**Passed**" in page({"name": "x", "scenario": "easy", **judged("easy", "limit"), "failures": []})


def test_markets_that_training_has_seen_do_not_judge() -> None:
    run = load_config(RunConfig, QUICKSTART)
    for seen in (1, 501):
        with pytest.raises(ConfigError, match=f"judging seed {seen} is a training or validation market"):
            check(run, (), Judging(seeds=(9001, seen)))
    with pytest.raises(ConfigError, match="judging seed 3"):
        check(run, (3, 4), Judging(seeds=(3,)))
    with pytest.raises(ConfigError, match="training seeds must differ"):
        check(run, (2, 2), JUDGING)
    with pytest.raises(ConfigError, match="training seed 501 is the validation market"):
        check(run, (1, 501), JUDGING)
    with pytest.raises(ConfigError, match="no solved limit"):
        check(run, (), Judging(scenario="session"))
    with pytest.raises(ConfigError, match="unknown scenario"):
        check(run, (), Judging(scenario="esay"))
    with pytest.raises(ConfigError, match="recorded bars"):
        check(load_config(RunConfig, REPOSITORY / "configs" / "train" / "nq.yaml"), (), JUDGING)


def test_a_run_configuration_is_an_evaluation_with_defaults() -> None:
    evaluation = load_evaluation(QUICKSTART, ("core.mappo.gamma=0.9",), train_seeds=(1, 2),
                                 judging={"bars": 50_000})
    assert evaluation.run.core.mappo.gamma == 0.9
    assert evaluation.plan.train_seeds == (1, 2)
    judging = evaluation.plan.judging
    assert (judging.bars, judging.seeds) == (50_000, (9001, 9002, 9003, 9004, 9005))


@pytest.mark.parametrize("name", ["ci", "full"])
def test_shipped_evaluations_resolve(name: str) -> None:
    evaluation = load_evaluation(REPOSITORY / "configs" / "evaluate" / f"{name}.yaml")
    assert evaluation.plan.name == name
    assert evaluation.plan.controls == ("martingale", "oracle")
    assert evaluation.control_run.core.mappo.env_steps <= evaluation.run.core.mappo.env_steps
    assert not set(evaluation.plan.judging.seeds) & {*range(701, 711), *evaluation.plan.train_seeds}


def test_the_controls_markets_are_checked_before_anything_is_trained(tmp_path: Path) -> None:
    path = tmp_path / "seen.yaml"
    path.write_text(f"name: seen\ntrain: {QUICKSTART}\ncontrols: [martingale]\ncontrol_seeds: [1]\n")
    with pytest.raises(ConfigError, match="judging seed 1 is a training or validation market"):
        load_evaluation(path)


def test_unknown_keys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(f"name: bad\ntrain: {QUICKSTART}\njudging: {{seed: [1]}}\n")
    with pytest.raises(ConfigError, match=r"unknown key 'judging.seed'"):
        load_evaluation(path)
    path.write_text("name: bad\ntrain: absent.yaml\n")
    with pytest.raises(ConfigError, match="no such configuration file"):
        load_evaluation(path)


def test_training_and_market_seed_change_together_and_the_rest_stays() -> None:
    run = load_config(RunConfig, QUICKSTART)
    assert own_seeds(run) == (7, 1)
    other = seeded(run, Seeds(4, 4), "martingale")
    assert other.market.synthetic is not None
    assert (other.seed, other.market.synthetic.train_seed, other.market.synthetic.scenario) == (4, 4, "martingale")
    assert other.core == run.core
    assert other.market.synthetic.train_bars == run.market.synthetic.train_bars  # type: ignore[union-attr]


def test_seeds_are_lists_and_ranges() -> None:
    assert seed_list("9001-9003,9007", "--seeds") == (9001, 9002, 9003, 9007)
    for bad in ("", "a", "5-3", "1-", "-1", "1-100000"):
        with pytest.raises(ConfigError, match="--seeds"):
            seed_list(bad, "--seeds")
