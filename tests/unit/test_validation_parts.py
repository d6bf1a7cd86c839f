"""A tuned configuration's gate is calibrated on rows that the sweep did not score on."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.errors import ConfigError
from tests.tune_sweep import RATE, tiny_base, tiny_tune
from training import bundling
from training.config import RunConfig, TuningConfig
from training.dataset import Dataset, Split
from training.evaluation.validation_parts import calibrated_part, gate_part, scored_part
from training.sweep import trial

BASE = tiny_base()
TUNED = BASE.model_copy(update={"tuning": TuningConfig(sweep="s", config_hash="0", trials=3)})
SPLIT = Split(Path("market"), 1_000, 9_000, 701)


@given(start=st.integers(0, 5_000), rows=st.integers(2, 30_000), embargo=st.integers(0, 3_000),
       shorter=st.integers(0, 1))
@settings(max_examples=100, deadline=None)
def test_both_parts_are_disjoint_with_the_embargo_between(start: int, rows: int, embargo: int,
                                                          shorter: int) -> None:
    """Also where the sweep's own table ends a row earlier than the run's."""
    config, split = BASE.model_copy(update={"embargo_bars": embargo}), Split(Path("m"), start, start + rows)
    least = config.core.env.episode_bars + 1
    sweeps = replace(split, stop=split.stop - shorter)
    if min((rows - shorter) // 2, rows - shorter - (rows - shorter) // 2 - embargo) < least:
        with pytest.raises(ConfigError, match="make the split longer"):
            scored_part(config, sweeps)
        return
    scored, left = scored_part(config, sweeps), calibrated_part(config, split)
    assert split.start == scored.start
    assert scored.stop + embargo <= left.start
    assert left.stop == split.stop
    assert min(scored.stop - scored.start, left.stop - left.start) >= least


def test_without_a_sweep_the_gate_has_the_whole_split() -> None:
    assert gate_part(BASE, SPLIT) == SPLIT
    assert gate_part(TUNED, SPLIT) == calibrated_part(TUNED, SPLIT)


@pytest.mark.parametrize("config", [BASE, TUNED], ids=["plain", "tuned"])
def test_the_bundle_is_calibrated_there(config: RunConfig, monkeypatch: pytest.MonkeyPatch,
                                        tmp_path: Path) -> None:
    used: list[Split] = []
    monkeypatch.setattr(bundling, "_write", lambda *_: None)
    monkeypatch.setattr(bundling, "calibrate", lambda *_: None)
    monkeypatch.setattr(bundling, "keep_promise", lambda *_: None)
    monkeypatch.setattr(bundling, "gate_figures", lambda *_: {})
    monkeypatch.setattr(bundling, "validation_trades", lambda *found: used.append(found[-1]) or (0, 0, 0))
    bundling.build_bundle(config, tmp_path, Dataset(SPLIT, SPLIT, (), ""), tmp_path)
    assert used == [gate_part(config, SPLIT)]


def test_a_trial_is_scored_on_the_other_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(trial.TrialRun, "_phases_before",
                        lambda _: (tmp_path, Dataset(SPLIT, SPLIT, (), "")))
    monkeypatch.setattr(trial, "core_spec", lambda *_: {})
    monkeypatch.setattr(trial, "experts_hash", lambda _: "")
    monkeypatch.setattr(trial, "_judging_unit", lambda _: 1.0)
    monkeypatch.setattr(trial, "ValidationScorer", lambda *found: seen.append(found) or SimpleNamespace())
    trial.TrialRun(trial.Plan(tmp_path, tiny_tune(), BASE), {RATE: 0.002}, tmp_path)
    (spec, split, *_), = seen
    assert split == scored_part(BASE, SPLIT)
    assert (spec["start"], spec["stop"]) == (split.start, split.stop)
    assert split.stop + BASE.embargo_bars <= gate_part(TUNED, SPLIT).start
