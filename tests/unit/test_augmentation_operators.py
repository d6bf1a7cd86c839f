"""What each operator does, and what it refuses."""

import numpy as np
import pytest
from pydantic import ValidationError

from algospace.errors import ConfigError, InputError
from algospace.marketdata.augmentation import AugmentationConfig, augment, feature_dropout, matrix_noise
from algospace.marketdata.augmentation_shapes import local_volatility, shapes_of
from algospace.marketdata.synthetic import generate
from algospace.types import BASE_BAR_NS, Bars


@pytest.fixture(scope="module")
def market():
    return generate("session", 3, 20_000)


def changed(history, name, seed=1, **section):
    return augment(history, AugmentationConfig(operators=(name,), **({name: section} if section else {})), seed)


def test_noise_keeps_the_local_volatility_and_correlates_as_stated(market):
    bars, s = market.bars, 0.5
    noisy = changed(bars, "noise", scale=s)
    old, new = shapes_of(bars), shapes_of(noisy)
    volatility = [local_volatility(b, x, 500) for b, x in ((bars, old), (noisy, new))]
    assert np.median(volatility[1] / volatility[0]) == pytest.approx(1.0, abs=0.05)
    assert np.corrcoef(old.body, new.body)[0, 1] == pytest.approx(1 / np.sqrt(1 + s * s), abs=0.03)
    np.testing.assert_allclose(changed(bars, "noise", scale=0.0, volume=0.0).close, bars.close, rtol=1e-12)


def test_bars_without_range_stay_without():
    flat = np.full(1_200, 100.0)
    bars = Bars(np.arange(1_200, dtype=np.int64) * BASE_BAR_NS, flat, flat, flat, flat, flat * 0, BASE_BAR_NS)
    for name in ("noise", "magnitude_warp", "time_warp", "block_bootstrap"):
        result = changed(bars, name)
        np.testing.assert_allclose(result.high, 100.0, rtol=1e-12)
        np.testing.assert_allclose(result.low, 100.0, rtol=1e-12)


def test_magnitude_warping_is_one_smooth_positive_curve(market):
    old, new = shapes_of(market.bars), shapes_of(changed(market.bars, "magnitude_warp"))
    moved = np.abs(old.body) > 1e-5
    curve = new.body[moved] / old.body[moved]
    assert curve.min() > 0.5
    assert 0.1 < curve.std() < 0.4
    assert np.abs(np.diff(curve)).max() < 0.1
    everywhere = np.interp(np.arange(len(old.body)), np.flatnonzero(moved), curve)
    np.testing.assert_allclose(new.upper, old.upper * everywhere, atol=1e-5)


def test_time_warping_keeps_variance_and_adds_no_autocorrelation(market):
    warped = changed(market.bars, "time_warp", sigma=0.3)
    for bars in (warped, market.bars):
        r = shapes_of(bars).body
        assert abs(np.corrcoef(r[1:], r[:-1])[0, 1]) < 0.08
    ratio = shapes_of(warped).body.var() / shapes_of(market.bars).body.var()
    assert ratio == pytest.approx(1.0, abs=0.12)
    assert np.corrcoef(shapes_of(warped).body, shapes_of(market.bars).body)[0, 1] < 0.9


def test_blocks_are_as_long_as_asked(market):
    """Neighbours in the result that were neighbours in the source: 1 - 1/L of all."""
    def fingerprints(bars):
        s = shapes_of(bars)
        return list(zip(*(np.round(x, 9).tolist() for x in (s.body, s.upper, s.lower, s.volume)), strict=True))

    place = {key: row for row, key in enumerate(fingerprints(market.bars))}
    result = changed(market.bars, "block_bootstrap", unit="bar", mean_length=20.0)
    rows = np.array([place.get(key, -5) for key in fingerprints(result)])
    known = (rows[1:] >= 0) & (rows[:-1] >= 0)
    follows = np.mean((np.diff(rows) == 1)[known])
    assert follows == pytest.approx(0.95, abs=0.03)
    assert np.unique(rows).size < 0.75 * rows.size  # with replacement


def test_regime_resampling_keeps_each_regimes_law(market):
    bars, regime = market.bars, market.truth.regime.astype(np.int64)
    result = augment(bars, AugmentationConfig(operators=("regime_resample",)), 4, regime)
    old, new = shapes_of(bars).body, shapes_of(result).body
    assert not np.array_equal(old, new)
    for state in range(4):
        assert new[regime == state].std() == pytest.approx(old[regime == state].std(), rel=0.1)
        assert set(np.round(new[regime == state], 9)) <= set(np.round(old[regime == state], 9))
    assert old[regime == 3].std() > 1.5 * old[regime == 0].std()


def test_a_crash_falls_by_its_size_with_heavy_volume(market):
    bars = market.bars
    result = changed(bars, "inject", kind="crash", at=0.5, bars=12, size_bp=-800, multiple=3.0)
    at = 10_000
    fall = result.close[at + 11] / result.close[at - 1]
    scaled = np.exp(3.0 * np.log(bars.close[at + 11] / bars.close[at - 1]))
    assert fall / scaled == pytest.approx(0.92, rel=1e-9)
    np.testing.assert_array_equal(result.volume[at:at + 12], 3 * bars.volume[at:at + 12])


def test_a_halt_removes_its_bars_and_reopens_with_a_jump(market):
    bars = market.bars
    at_ns = int(bars.ts_open[5_000])
    result = changed(bars, "inject", kind="halt", at_ns=at_ns, bars=3, size_bp=-150)
    np.testing.assert_array_equal(result.ts_open, np.delete(bars.ts_open, [5_000, 5_001, 5_002]))
    assert result.open[5_000] / result.close[4_999] == pytest.approx(0.985, rel=1e-9)


def test_feature_dropout_masks_whole_columns_and_says_which():
    matrices = np.random.default_rng(0).normal(size=(500, 12, 8)).astype(np.float32)
    masked, kept = feature_dropout(matrices, 0.25, seed=3, fill=-9.0)
    assert masked.dtype == np.float32
    assert kept.shape == (500, 8)
    assert kept.mean() == pytest.approx(0.75, abs=0.03)
    np.testing.assert_array_equal(masked, np.where(kept[:, None, :], matrices, np.float32(-9.0)))
    again, _ = feature_dropout(matrices, 0.25, seed=3, fill=-9.0)
    np.testing.assert_array_equal(masked, again)
    assert (feature_dropout(matrices, 0.25, seed=4)[1] != kept).any()
    single, mask = feature_dropout(matrices[0], 0.25, seed=3)
    assert single.shape == (12, 8)
    assert mask.shape == (8,)
    with pytest.raises(ConfigError, match="rate must lie"):
        feature_dropout(matrices, 1.0, seed=1)


def test_matrix_noise_scales_with_each_column():
    matrices = np.random.default_rng(0).normal(size=(50, 60, 3)) * np.array([1.0, 100.0, 0.0])
    noise = matrix_noise(matrices, 0.1, seed=1) - matrices
    np.testing.assert_allclose(noise.std(axis=(0, 1)), [0.1, 10.0, 0.0], rtol=0.05)


def test_what_does_not_fit_is_refused(market):
    with pytest.raises(ConfigError, match="needs a regime label"):
        augment(market.bars, AugmentationConfig(operators=("regime_resample",)), 1)
    with pytest.raises(ConfigError, match="one label >= -1 for each of 20000 bars"):
        augment(market.bars, AugmentationConfig(operators=("regime_resample",)), 1, np.zeros(5, np.int64))
    with pytest.raises(ConfigError, match="do not fit inside"):
        changed(market.bars, "inject", kind="halt", at=0.999, bars=300)
    with pytest.raises(ConfigError, match="after the last bar"):
        changed(market.bars, "inject", kind="gap", at_ns=2**62)
    broken = market.bars.slice(0, 100)
    broken = Bars(broken.ts_open, broken.open, broken.low, broken.high, broken.close, broken.volume, BASE_BAR_NS)
    with pytest.raises(InputError, match="bar 0: low, open, close, high break their order"):
        changed(broken, "noise")
    for wrong in ({"operators": ()}, {"operators": ("mixup",)}, {"noise": {"scal": 1}}):
        with pytest.raises(ValidationError):
            AugmentationConfig(**wrong)
