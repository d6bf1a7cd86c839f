"""What the quickstart's configuration learns: an edge where there is one, nothing where there is none.

Minutes each, so they are marked slow: pytest -m slow tests/integration/test_learning_quality.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from algospace.config import load_config
from tests.conftest import REPOSITORY
from training.config import RunConfig
from training.evaluation.units import evaluate_units
from training.pipeline import run_pipeline

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def trained(folder: Path, *overrides: str) -> dict[str, Any]:
    """Scores of the quickstart's configuration on unseen seeds."""
    config = load_config(RunConfig, REPOSITORY / "configs" / "quickstart.yaml", overrides)
    result = run_pipeline(config, folder)
    return evaluate_units(folder, result.dataset.test, config.seed)


def test_easy_reaches_at_least_45_percent_of_the_limit_and_beats_every_rule(tmp_path: Path) -> None:
    scores = trained(tmp_path)
    assert scores["bars"] >= 500_000
    assert scores["fraction_of_limit"] >= 0.45
    rules = {name: figures["score"] for name, figures in scores["baselines"].items() if name != "clairvoyant"}
    assert scores["policy"]["score"] > max(rules.values())


def test_without_an_edge_the_same_configuration_stays_out(tmp_path: Path) -> None:
    scores = trained(tmp_path, "market.synthetic.scenario=martingale")
    assert scores["policy"]["exposure"] <= 0.05
    assert scores["policy"]["score"] <= 0.0
