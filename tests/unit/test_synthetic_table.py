"""The design's table of limits and baselines, ticks per bar after costs of 1.18 ticks a side."""

import numpy as np
import pytest

from algospace.analysis.unit_baselines import score_baselines
from algospace.analysis.unit_score import BARS_PER_YEAR
from algospace.marketdata.synthetic import generate

# scenario: limit, SMA 20/100, EMA 12/48, 24-bar momentum; realised on 1 M bars with a standard error of .014
TABLE = {
    "easy": (0.489, 0.187, 0.155, -0.196),
    "mid": (0.248, 0.085, 0.041, -0.265),
    "hard": (0.090, 0.030, -0.021, -0.258),
    "martingale": (0.0, -0.035, -0.083, -0.241),
}
NAMES = ("bayes_limit", "ma_cross", "ema_cross", "momentum")
TABLE_SE = 0.014
SHARPE = {"easy": 9.0, "mid": 4.7, "hard": 1.8}


def _compare(name, n_bars, seed):
    """Our noise-free score against the table's realised figure, whose error is nearly all of the difference.

    The table's rows share one draw of noise, so its errors are not independent: 4 standard errors for all 16.
    """
    market = generate(name, seed, n_bars)
    scores = score_baselines(market.truth, market.bars.close)
    for column, expected in zip(NAMES, TABLE[name], strict=True):
        error = np.hypot(TABLE_SE, scores[column].score_se)
        assert abs(scores[column].score - expected) < 4 * error, (column, scores[column])
        own_error = max(scores[column].noise_se, 1e-9)
        assert abs(scores[column].realised - scores[column].score) < 4 * own_error, (column, scores[column])
    return scores


@pytest.mark.parametrize("name", TABLE)
def test_the_table_on_a_short_market(name):
    _compare(name, 200_000, seed=31)


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_the_table_on_a_million_bars(name):
    limit = _compare(name, 1_000_000, seed=1)["bayes_limit"]
    assert limit.score == pytest.approx(TABLE[name][0], abs=0.02)
    if name in SHARPE:
        sharpe_error = limit.noise_se * limit.sharpe / limit.realised
        assert limit.sharpe == pytest.approx(SHARPE[name], abs=4 * sharpe_error)
    if name == "easy":
        assert limit.noise_se == pytest.approx(TABLE_SE, rel=0.15)
        assert BARS_PER_YEAR == 69_552
