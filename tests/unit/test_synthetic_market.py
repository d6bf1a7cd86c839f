"""What a synthetic market looks like, and that its truth is true."""

import hashlib
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats

from algospace.errors import ConfigError
from algospace.marketdata.schema import table_to_bars
from algospace.marketdata.synthetic import SCENARIOS, generate, read_truth, write_market
from algospace.types import BASE_BAR_NS, HOUR_NS

PLANTED = [name for name, scenario in SCENARIOS.items() if scenario.has_limit]


@pytest.fixture(scope="module")
def easy():
    return generate("easy", seed=5, n_bars=300_000)


def _returns(bars):
    return np.concatenate(([np.nan], bars.close[1:] / bars.close[:-1] - 1.0))


def _assert_bars_are_sound(bars):
    assert (np.diff(bars.ts_open) >= bars.width_ns).all()
    assert (bars.low > 0).all()
    assert (bars.low <= np.minimum(bars.open, bars.close)).all()
    assert (bars.high >= np.maximum(bars.open, bars.close)).all()
    assert (bars.volume > 0).all()


@pytest.mark.parametrize("name", PLANTED)
def test_planted_bars_are_continuous_from_a_monday(name):
    market = generate(name, seed=1, n_bars=2_000)
    bars = market.bars
    _assert_bars_are_sound(bars)
    assert (np.diff(bars.ts_open) == BASE_BAR_NS).all()
    assert np.datetime64(int(bars.ts_open[0]), "ns").astype("datetime64[D]").item().weekday() == 0
    assert bars.ts_open[0] % (24 * HOUR_NS) == 0
    assert bars.open[0] == 5000.0
    assert (bars.open[1:] == bars.close[:-1]).all()
    assert (market.truth.ts_close == bars.ts_open + BASE_BAR_NS).all()


def test_the_same_seed_gives_the_same_market_on_every_machine():
    market = generate("easy", seed=1, n_bars=1_000)
    digest = hashlib.sha256()
    for array in (market.bars.close, market.bars.high, market.bars.volume, market.truth.regime):
        digest.update(np.ascontiguousarray(array).tobytes())
    assert digest.hexdigest() == "10966eecb0c6ece312b96c7852c814353658dc9f5c90fbf75fce943d79b27726"


def test_regimes_last_and_alternate_as_planted(easy):
    regime = easy.truth.regime
    shares = np.bincount(regime, minlength=4) / regime.size
    np.testing.assert_allclose(shares, np.array([80, 80, 120, 80]) / 360, atol=0.03)
    changes = np.flatnonzero(np.diff(regime))
    for state, duration in enumerate((80, 80, 120, 80)):
        leave = np.mean(regime[1:][regime[:-1] == state] != state)
        assert 1 / leave == pytest.approx(duration, rel=0.12)
        following = np.bincount(regime[changes + 1][regime[changes] == state], minlength=4)
        assert following[state] == 0
        others = np.delete(following, state)
        assert stats.chisquare(others).pvalue > 1e-3


def test_returns_have_the_planted_moments(easy):
    regime, r = easy.truth.regime[1:], _returns(easy.bars)[1:] * 1e4
    for state, (mu, sigma) in enumerate(((0.65, 5), (-0.65, 5), (0.0, 6.0), (0.0, 11.0))):
        inside = (regime == state)[1:]
        innovation = r[1:][inside] - (-0.25 * r[:-1][inside] if state == 2 else 0.0)
        assert innovation.mean() == pytest.approx(mu, abs=4 * sigma / np.sqrt(inside.sum()))
        assert innovation.std() == pytest.approx(sigma, rel=0.03)
        assert stats.kstest((innovation - mu) / sigma, stats.t(6, scale=np.sqrt(4 / 6)).cdf).pvalue > 1e-3


def test_expected_return_is_an_unbiased_forecast(easy):
    forecast, r_next = easy.truth.expected_return[:-1], _returns(easy.bars)[1:]
    fit = stats.linregress(forecast, r_next)
    assert abs(fit.slope - 1.0) < 4 * fit.stderr
    assert fit.slope > 5 * fit.stderr
    assert abs(fit.intercept) < 4 * fit.intercept_stderr


def test_beliefs_are_calibrated(easy):
    belief, regime = easy.truth.belief, easy.truth.regime
    np.testing.assert_allclose(belief.sum(axis=1), 1.0, atol=1e-12)
    for state in range(4):
        for low in (0.1, 0.4, 0.7):
            chosen = (belief[:, state] >= low) & (belief[:, state] < low + 0.1)
            share = np.mean(regime[chosen] == state)
            assert share == pytest.approx(belief[chosen, state].mean(), abs=0.05)
    assert np.mean(belief.argmax(axis=1) == regime) == pytest.approx(0.73, abs=0.015)  # the design's figure


def test_nothing_but_the_return_tells_the_regime(easy):
    """Range, wick and volume have the same law in every regime once the return is given."""
    bars, regime = easy.bars, easy.truth.regime
    r = bars.close / bars.open - 1.0
    smallest = 1.0
    for centre in (-6e-4, 0.0, 6e-4):
        near = np.abs(r - centre) < 0.3e-4
        for column in ((bars.high - bars.low) / bars.open, (bars.high - bars.close) / bars.open, bars.volume):
            groups = [column[near & (regime == state)] for state in range(4)]
            smallest = min(smallest, stats.kruskal(*groups).pvalue)
    assert smallest > 1e-3 / 9


def test_a_martingale_expects_nothing_and_its_limit_is_to_stay_out():
    truth = generate("martingale", seed=3, n_bars=50_000).truth
    assert not truth.expected_return.any()
    assert not truth.limit_position.any()


@pytest.mark.parametrize("name", ["session", "stress"])
def test_session_markets_respect_the_exchange_calendar(name):
    market = generate(name, seed=2, n_bars=60_000)
    bars = market.bars
    _assert_bars_are_sound(bars)
    local = np.array(bars.ts_open, "datetime64[ns]").astype("datetime64[s]").tolist()
    hours = {(t.weekday(), t.hour) for t in
             (u.replace(tzinfo=ZoneInfo("UTC")).astimezone(ZoneInfo("America/Chicago")) for u in local)}
    assert not [h for day, h in hours if h == 16]
    assert not [day for day, _ in hours if day == 5]
    assert min(h for day, h in hours if day == 6) == 17
    assert max(h for day, h in hours if day == 4) == 15
    for prices in (bars.open, bars.high, bars.low, bars.close):
        assert (prices == np.round(prices / 0.25) * 0.25).all()
    assert market.truth.expected_return is None


def test_session_markets_are_busier_by_day_and_gap_over_the_break():
    bars = generate("session", seed=2, n_bars=60_000).bars
    hour = (bars.ts_open // HOUR_NS) % 24
    us_day, night = (hour >= 15) & (hour < 20), (hour >= 2) & (hour < 6)  # UTC
    assert bars.volume[us_day].mean() > 3 * bars.volume[night].mean()
    spread = (bars.high - bars.low) / bars.open
    assert spread[us_day].mean() > 1.3 * spread[night].mean()
    after_break = np.flatnonzero(np.diff(bars.ts_open) > BASE_BAR_NS) + 1
    gap = bars.open[after_break] / bars.close[after_break - 1] - 1.0
    assert gap.std() > 5e-4
    inside = np.flatnonzero(np.diff(bars.ts_open) == BASE_BAR_NS) + 1
    assert (bars.open[inside] == bars.close[inside - 1]).all()


def test_stress_markets_lose_bars_halt_and_crash():
    calm, stress = (generate(name, seed=2, n_bars=100_000).bars for name in ("session", "stress"))
    missing = np.diff(stress.ts_open) // BASE_BAR_NS
    assert np.sum((missing > 1) & (missing < 12)) > 100
    assert np.sum((np.diff(calm.ts_open) // BASE_BAR_NS > 1) & (np.diff(calm.ts_open) // BASE_BAR_NS < 12)) == 0
    worst = [np.min(b.close[12:] / b.close[:-12] - 1.0) for b in (calm, stress)]
    assert worst[1] < -0.05 < worst[0]


def test_files_hold_the_market(tmp_path, easy):
    market = generate("mid", seed=9, n_bars=500)
    write_market(market, tmp_path / "mid")
    bars = table_to_bars(pq.read_table(tmp_path / "mid" / "bars.parquet"), BASE_BAR_NS)
    for name in ("ts_open", "open", "high", "low", "close", "volume"):
        np.testing.assert_array_equal(getattr(bars, name), getattr(market.bars, name))
    truth = read_truth(tmp_path / "mid" / "truth.parquet")
    for name in ("ts_close", "regime", "belief", "expected_return", "limit_position"):
        np.testing.assert_array_equal(getattr(truth, name), getattr(market.truth, name))
    write_market(generate("session", seed=9, n_bars=500), tmp_path / "session")
    assert read_truth(tmp_path / "session" / "truth.parquet").belief is None


@pytest.mark.parametrize(("arguments", "word"), [
    (("esay", 1, 100), "unknown scenario 'esay'"),
    (("easy", 1, 1), "2 to"),
    (("easy", 1, 10, "7m"), "choose one of 5m, 1m"),
])
def test_wrong_requests_say_so(arguments, word):
    with pytest.raises(ConfigError, match=word):
        generate(*arguments)
