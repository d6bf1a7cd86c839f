"""Annualising knows the width of the bars: a run over wider bars has fewer of them in a year."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from algospace.analysis.baselines import run_positions
from algospace.analysis.metrics import measure, rows_per_year
from algospace.execution.venue import SimulatedVenue
from algospace.instruments import instrument
from tests.session_market import random_table


def test_wider_bars_annualise_by_fewer_of_them() -> None:
    table = random_table(3, 400)
    run = run_positions(table, 0, 400, np.ones(400), SimulatedVenue(instrument("ES")))
    step = int(np.median(np.diff(run.ts_close)))
    assert rows_per_year(run) == pytest.approx(69_552 * 300e9 / step)
    slow = dataclasses.replace(run, ts_close=run.ts_close[0] + (run.ts_close - run.ts_close[0]) * 3)
    assert rows_per_year(slow) == pytest.approx(rows_per_year(run) / 3)
    fast_sharpe, slow_sharpe = measure(run).sharpe, measure(slow).sharpe
    assert fast_sharpe is not None
    assert slow_sharpe == pytest.approx(fast_sharpe / np.sqrt(3))
