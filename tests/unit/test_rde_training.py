"""Training of the regime engine: it learns, repeats itself, stops early, resumes, and refuses bad input."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from agents.regime import RegimeNet
from agents.settings import RegimeConfig
from algospace.errors import BundleError, ConfigError, SchemaError
from algospace.types import Float32Array, IntArray
from training.checkpoints import CheckpointWarning
from training.mappo.finite import NonFiniteError
from training.rde import RDEResult, _Run, column_scale, load_rde, regime_vectors, save_rde, train_rde, window_ends
from training.rde_report import rde_report

TRAIN, VALIDATION, HELD_OUT = (0, 3000), (3100, 4000), (4100, 6000)
TINY = RegimeConfig(size="tiny", epochs=4, batch_size=64, windows_per_epoch=1280, learning_rate=3e-3, patience=4)


def two_regimes(rows: int = 6000, seed: int = 0) -> tuple[Float32Array, IntArray]:
    """Rows whose spread and correlations depend on a regime that lasts 150 rows on average."""
    rng = np.random.default_rng(seed)
    regime = np.cumsum(rng.random(rows) < 1 / 150) % 2
    noise = rng.standard_normal((rows, 12))
    noise[:, 4:] += 0.8 * np.where(regime, 1.0, -1.0)[:, None] * noise[:, :1]
    noise[:, :4] *= np.where(regime, 1.6, 0.6)[:, None]
    noise[:, 1] = np.abs(noise[:, 1]) - 0.8
    return noise.astype(np.float32), regime.astype(np.int64)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def trained() -> RDEResult:
    return train_rde(two_regimes()[0], TRAIN, VALIDATION, TINY, seed=1)


def weights(net: RegimeNet) -> Float32Array:
    return np.concatenate([value.numpy().ravel() for value in net.state_dict().values()])


def test_the_loss_falls_and_no_cluster_is_started(trained: RDEResult) -> None:
    assert not ray.is_initialized()
    first, last = trained.history[0], trained.history[-1]
    assert last["loss"] < first["loss"]
    assert trained.metrics["validation_reconstruction"] < 0.97 * first["reconstruction"]
    assert last["learning_rate"] < 0.01 * TINY.learning_rate
    assert last["beta"] == TINY.beta


def test_same_seed_same_weights_other_seed_other_weights(trained: RDEResult) -> None:
    again = train_rde(two_regimes()[0], TRAIN, VALIDATION, TINY, seed=1)
    assert np.array_equal(weights(trained.net), weights(again.net))
    assert trained.history == again.history
    short = TINY.model_copy(update={"epochs": 1})
    other = train_rde(two_regimes()[0], TRAIN, VALIDATION, short, seed=2)
    assert not np.array_equal(weights(trained.net), weights(other.net))


def test_callers_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    train_rde(two_regimes()[0], TRAIN, VALIDATION, TINY.model_copy(update={"epochs": 1}), seed=1)
    assert torch.equal(torch.rand(1), expected)


def test_rows_outside_the_splits_change_nothing() -> None:
    config = TINY.model_copy(update={"epochs": 2})
    rows, _ = two_regimes()
    changed = rows.copy()
    changed[TRAIN[1]:VALIDATION[0]] += 3.0
    changed[VALIDATION[1]:] = np.nan
    before, after = (train_rde(r, TRAIN, VALIDATION, config, seed=3) for r in (rows, changed))
    assert np.array_equal(weights(before.net), weights(after.net))
    assert before.history == after.history


def test_validation_rows_never_train() -> None:
    config = TINY.model_copy(update={"epochs": 1})
    rows, _ = two_regimes()
    changed = rows.copy()
    changed[VALIDATION[0]:VALIDATION[1]] *= 2.0
    before, after = (train_rde(r, TRAIN, VALIDATION, config, seed=3) for r in (rows, changed))
    assert np.array_equal(weights(before.net), weights(after.net))
    assert before.metrics["validation_loss"] != after.metrics["validation_loss"]


def test_early_stopping_keeps_the_best_epoch() -> None:
    """No epoch halves the loss, so patience ends the run two epochs after the first."""
    stopping = {"epochs": 12, "patience": 2, "min_improvement": 0.5, "windows_per_epoch": 256}
    config = TINY.model_copy(update=stopping)
    result = train_rde(two_regimes()[0], TRAIN, VALIDATION, config, seed=1)
    assert len(result.history) == result.metrics["epochs"] == 3  # the first epoch counts, two more are stale
    losses = [epoch["validation_loss"] for epoch in result.history]
    assert result.metrics["validation_loss"] == min(losses)
    assert result.metrics["best_epoch"] == 1 + losses.index(min(losses))


def test_stopping_and_resuming_equals_not_having_stopped(tmp_path: Path, trained: RDEResult) -> None:
    class Stop(Exception):
        pass

    def stop_after_two(step: int, figures: dict[str, float]) -> None:
        if figures["epoch"] == 3:
            raise Stop

    rows, checkpoint = two_regimes()[0], tmp_path / "rde.state"
    with pytest.raises(Stop):
        train_rde(rows, TRAIN, VALIDATION, TINY, seed=1, log=stop_after_two, checkpoint=checkpoint)
    seen: list[float] = []
    resumed = train_rde(rows, TRAIN, VALIDATION, TINY, seed=1, checkpoint=checkpoint,
                        log=lambda step, figures: seen.append(figures["epoch"]))
    assert seen == [3.0, 4.0]
    assert np.array_equal(weights(resumed.net), weights(trained.net))
    assert resumed.history == trained.history
    with pytest.raises(ConfigError, match="another configuration, seed or data"):
        train_rde(rows, TRAIN, VALIDATION, TINY, seed=2, checkpoint=checkpoint)


def test_progress_and_log_are_called_each_epoch() -> None:
    logged: list[int] = []
    progress: list[tuple[int, int]] = []
    config = TINY.model_copy(update={"epochs": 2})
    train_rde(two_regimes()[0], TRAIN, None, config, 0, lambda step, _: logged.append(step),
              lambda done, total: progress.append((done, total)))
    assert logged == [20, 40]
    assert progress == [(20, 40), (40, 40), (40, 40)]


def test_mirrored_training_sees_both_markets() -> None:
    """Windows of the mirrored market, never seen as such, are reconstructed better after mirrored training."""
    rng = np.random.default_rng(0)
    rows = (np.repeat(rng.random((60, 1)), 100, axis=0) + 0.1 * rng.standard_normal((6000, 12))).astype(np.float32)
    sign = -np.ones(12, np.float32)
    config = TINY.model_copy(update={"epochs": 3})
    errors = []
    for mirror in (None, sign):
        net = train_rde(rows, TRAIN, VALIDATION, config, 0, mirror_sign=mirror).net
        window = torch.from_numpy(rows[4100:4196][None] * sign)
        errors.append(float((net.decode(net.encode_mean(window))[0] - window).square().mean().detach()))
    assert errors[1] < 0.5 * errors[0]


def test_save_and_load_are_equal_and_damage_is_named(tmp_path: Path, trained: RDEResult) -> None:
    save_rde(tmp_path / "rde", trained.net, TINY, trained.metrics)
    net, metrics = load_rde(tmp_path / "rde")
    assert metrics == trained.metrics
    assert net.config == TINY
    rows = two_regimes(400)[0]
    assert np.array_equal(regime_vectors(net, rows, 96), regime_vectors(trained.net, rows, 96))
    file = tmp_path / "rde" / "regime.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(BundleError, match=r"regime\.pt: not the content that was saved"):
        load_rde(tmp_path / "rde")
    with pytest.raises(BundleError, match="is missing"):
        load_rde(tmp_path / "nowhere")


def test_linear_probe_on_two_regimes_beats_chance(trained: RDEResult) -> None:
    rows, truth = two_regimes()
    report = rde_report(trained.net, rows, TRAIN, HELD_OUT, truth, seed=0)
    assert report["rde_probe_accuracy"] > 0.8 > report["majority_accuracy"]
    assert report["supervised_accuracy"] > 0.8
    assert report["active_dims"] >= 1
    assert 0.0 < report["recent_explained_variance"] < 1.0
    assert report["explained_variance"] < report["recent_explained_variance"]
    for detector in ("rde", "gmm", "hmm"):
        assert {f"{detector}_nmi", f"{detector}_probe_accuracy", f"{detector}_persistence"} <= set(report)
    assert all(isinstance(value, float) and np.isfinite(value) for value in report.values())


def test_report_without_truth_has_no_accuracy(trained: RDEResult) -> None:
    report = rde_report(trained.net, two_regimes()[0], TRAIN, HELD_OUT, max_windows=500)
    assert not any("accuracy" in name or "nmi" in name for name in report)


def test_bfloat16_trains_as_float32_does_up_to_its_precision(trained: RDEResult) -> None:
    config = TINY.model_copy(update={"precision": "bf16", "epochs": 1})
    exact = TINY.model_copy(update={"epochs": 1})
    losses = [train_rde(two_regimes()[0], TRAIN, VALIDATION, c, seed=1).metrics["validation_loss"]
              for c in (config, exact)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert all(value.dtype == torch.float32 for value in trained.net.state_dict().values())


def test_columns_are_scaled_by_the_training_windows(trained: RDEResult) -> None:
    rows, _ = two_regimes()
    seen = rows[window_ends(rows, TRAIN, 96, TINY.predict_steps)]
    np.testing.assert_allclose(trained.net.centre.numpy(), seen.mean(axis=0, dtype=np.float64), atol=1e-5)
    np.testing.assert_allclose(trained.net.scale.numpy(), seen.std(axis=0, dtype=np.float64), rtol=1e-5)
    centre, scale = column_scale(rows[:500], np.array([-1.0] * 3 + [1.0] * 9, np.float32))
    both = np.concatenate((rows[:500], rows[:500] * ([-1] * 3 + [1] * 9)))
    np.testing.assert_allclose(centre, both.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(scale, both.std(axis=0), rtol=1e-4)


def test_bad_input_is_one_clear_error() -> None:
    rows = two_regimes()[0]
    with pytest.raises(SchemaError, match="12 features"):
        train_rde(rows[:, :5], TRAIN, VALIDATION, TINY, 0)
    with pytest.raises(ConfigError, match="training rows hold 0 complete regime windows"):
        train_rde(np.full_like(rows, np.nan), TRAIN, VALIDATION, TINY, 0)
    with pytest.raises(ConfigError, match=r"validation rows 3100\.\.9000 do not lie in"):
        train_rde(rows, TRAIN, (3100, 9000), TINY, 0)
    with pytest.raises(SchemaError, match="window is 48 rows, the network's 96"):
        regime_vectors(RegimeNet(TINY), rows, 48)


def test_window_ends_stay_inside_the_split_and_off_incomplete_rows() -> None:
    rows = np.ones((50, 12), np.float32)
    rows[20, 3] = np.nan
    rows[40] = 0.0  # how the market table marks a row of the warm-up
    rows[30, :11] = 0.0
    ends = window_ends(rows, (5, 45), window=6, ahead=2)
    expected = [j for j in range(10, 43) if not j - 5 <= 20 <= j + 2 and not j - 5 <= 40 <= j + 2]
    assert ends.tolist() == expected


def test_a_gradient_that_is_no_number_stops_with_its_name_and_spares_the_checkpoint(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, checkpoint = two_regimes()[0], tmp_path / "checkpoint.pt"
    draw = _Run._draw

    def poisoned(self: _Run, epoch: int) -> Any:
        batch = draw(self, epoch)
        if epoch == 1:
            batch.policy_batches["default_policy"]["noise"][70] = np.nan
        return batch

    whole = train_rde(rows, TRAIN, VALIDATION, TINY, seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(_Run, "_draw", poisoned)
        with pytest.raises(NonFiniteError, match=r"regime network: the gradient of \S+ is not finite"):
            train_rde(rows, TRAIN, VALIDATION, TINY, seed=1, checkpoint=checkpoint)
    resumed = train_rde(rows, TRAIN, VALIDATION, TINY, seed=1, checkpoint=checkpoint)
    assert np.array_equal(weights(resumed.net), weights(whole.net))


def test_a_learning_rate_that_blows_the_network_up_is_said() -> None:
    wild = TINY.model_copy(update={"learning_rate": 1e6})
    with pytest.raises(NonFiniteError, match=r"lower rde\.learning_rate"):
        train_rde(two_regimes()[0], TRAIN, VALIDATION, wild, seed=1)


def test_a_full_disk_does_not_stop_training_and_spares_the_checkpoint_before(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, checkpoint = two_regimes()[0], tmp_path / "checkpoint.pt"
    contents: list[bytes] = []
    write = Path.write_bytes

    def fills_up(path: Path, data: Any) -> int:
        if len(contents) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, data)

    def log(step: int, figures: dict[str, float]) -> None:
        if checkpoint.exists():
            contents.append(checkpoint.read_bytes())

    whole = train_rde(rows, TRAIN, VALIDATION, TINY, seed=1)
    monkeypatch.setattr(Path, "write_bytes", fills_up)
    with pytest.warns(CheckpointWarning, match=r"No space left on device.*the one before it is intact"):
        filled = train_rde(rows, TRAIN, VALIDATION, TINY, seed=1, log=log, checkpoint=checkpoint)
    assert contents[0] == contents[1] != contents[2]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert np.array_equal(weights(filled.net), weights(whole.net))
