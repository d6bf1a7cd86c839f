"""Windows of a walk-forward: their dates follow the rules, and what does not fit is refused in one line."""

from itertools import pairwise
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.errors import ConfigError
from training.walk_forward import WalkForwardRun
from training.walk_forward.windows import plan_windows

FILE = {"path": "bars", "start": "2012-07-01", "train_until": "2016-07-01", "validation_until": "2017-01-01",
        "test_until": "2018-01-01"}


def run(walk: dict[str, Any] | None = None, file: dict[str, Any] | None = None, **changes: Any) -> WalkForwardRun:
    market = {"instrument": "NQ", "file": {**FILE, **(file or {})}}
    return WalkForwardRun.model_validate({"name": "nq", "market": market, "walk_forward": walk or {}, **changes})


def dates(window: Any) -> list[str]:
    return [value[:10] for value in window.dates().values()]


def test_rolling_windows_move_as_a_whole_by_calendar_months() -> None:
    windows = plan_windows(run({"windows": 3, "step_months": 12}))
    assert [dates(window) for window in windows] == [
        ["2012-07-01", "2016-07-01", "2017-01-01", "2018-01-01"],
        ["2013-07-01", "2017-07-01", "2018-01-01", "2019-01-01"],
        ["2014-07-01", "2018-07-01", "2019-01-01", "2020-01-01"]]
    assert [window.number for window in windows] == [1, 2, 3]


def test_expanding_windows_keep_their_start() -> None:
    windows = plan_windows(run({"windows": 4, "step_months": 12, "training": "expanding"}))
    assert {dates(window)[0] for window in windows} == {"2012-07-01"}
    from_the_first_bar = plan_windows(run({"training": "expanding", "step_months": 12}, {"start": None}))
    assert {window.start for window in from_the_first_bar} == {0}


def test_month_ends_do_not_drift() -> None:
    file = {"start": "2012-01-31", "train_until": "2012-03-31", "validation_until": "2012-05-31",
            "test_until": "2012-06-30"}
    windows = plan_windows(run({"windows": 4, "step_months": 1}, file))
    assert [dates(window)[0] for window in windows] == ["2012-01-31", "2012-02-29", "2012-03-31", "2012-04-30"]


@settings(max_examples=40, deadline=None)
@given(train=st.integers(1, 400), validation=st.integers(1, 100), test=st.integers(1, 100),
       extra=st.integers(0, 50), windows=st.integers(1, 8), rolling=st.booleans())
def test_tests_never_overlap_and_follow_their_own_training(train: int, validation: int, test: int, extra: int,
                                                           windows: int, rolling: bool) -> None:
    days = [0, train, train + validation, train + validation + test]
    file = {name: str((pd.Timestamp("2015-03-01") + pd.Timedelta(days=day)).date())
            for name, day in zip(("start", "train_until", "validation_until", "test_until"), days, strict=True)}
    step = {"step_days": test + extra} if extra else {}
    plan = plan_windows(run({"windows": windows, "training": "rolling" if rolling else "expanding", **step}, file))
    for window in plan:
        assert window.start < window.train_until < window.validation_until < window.test_until
    for before, after in pairwise(plan):
        assert before.test_until <= after.validation_until
        assert (before.test_until == after.validation_until) == (extra == 0)


def test_a_window_is_a_run_that_could_be_trained_alone() -> None:
    window = plan_windows(run({"windows": 2, "step_months": 12}, seed=11))[1]
    assert type(window.config).__name__ == "RunConfig"
    assert (window.config.name, window.config.seed) == ("nq-window-2", 11)
    file = window.config.market.file
    assert file is not None
    assert file.train_until == "2017-07-01T00:00:00"


@pytest.mark.parametrize(("changes", "message"), [
    ({"walk": {"step_months": 6}}, "the tests of window-1 and window-2 overlap"),
    ({"file": {"validation_until": "2016-01-01"}}, "must follow each other"),
    ({"file": {"start": "2017-01-01"}}, "must follow each other"),
])
def test_windows_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_windows(run(**changes))


@pytest.mark.parametrize(("changes", "message"), [
    ({"file": {"test_until": None}}, "needs market.file.test_until"),
    ({"file": {"start": None}}, "rolling training needs market.file.start"),
    ({"embargo_bars": 575}, "shorter than the longest window of the matrices"),
    ({"walk": {"pbo_blocks": 5}}, "pbo_blocks must be even"),
    ({"walk": {"sharpe": 1}}, "Extra inputs"),
])
def test_configurations_that_cannot_be_judged_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(**changes)


def test_a_synthetic_market_has_no_dates_to_walk_through() -> None:
    with pytest.raises(ValueError, match="needs recorded bars"):
        WalkForwardRun.model_validate({"name": "x", "market": {"instrument": "SYNTH", "synthetic": {}}})
