"""What a trained regime network is worth: beside a Gaussian mixture, a hidden Markov model and, where the true
regimes are known, a supervised classifier, all fitted on training rows and scored on held-out rows.

Everything is causal: the hidden Markov model is filtered, not smoothed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from hmmlearn.hmm import GaussianHMM
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import normalized_mutual_info_score
from sklearn.mixture import GaussianMixture
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from agents.regime import RegimeNet
from algospace.errors import ConfigError
from algospace.types import AnyArray, Float32Array, FloatArray, IntArray
from training.rde import Rows, window_ends

ACTIVE_VARIANCE = 0.01
_DEFAULT_REGIMES = 4
_BATCH = 512
_RECENT_ROWS = 1
_SUMMARY_SPANS = (4, 12, 24, 48)


@dataclass(frozen=True)
class _Detector:
    """A regime detector's answer: hard labels, and soft coordinates for the linear probe, per window end."""

    train_labels: IntArray
    test_labels: IntArray
    train_soft: AnyArray
    test_soft: AnyArray


def rde_report(
    net: RegimeNet,
    regime_rows: Float32Array,
    train: Rows,
    held_out: Rows,
    truth: AnyArray | None = None,
    seed: int = 0,
    max_windows: int = 20_000,
) -> dict[str, float]:
    """Figures of the network and of its baselines on held-out rows.

    regime_rows (m, F) normalised; train, held_out half-open row ranges; truth (m,) the true regime of each row as
    an integer, negative where unknown. At most `max_windows` consecutive rows of each range are used: the last of
    the training rows and the first of the held-out rows.

    `reconstruction` mean square error; `explained_variance` 1 - that over the variance, of the
    whole window and (`recent_`) of its last row, which the loss weighs most; `active_dims` dimensions
    of μ whose variance exceeds 0.01; `autocorrelation` mean lag-1 autocorrelation of the active dimensions;
    `*_persistence` share of adjacent rows with one label; with truth also `*_probe_accuracy` (logistic regression
    on μ or on state probabilities), `*_nmi` (labels against truth), `supervised_accuracy` and
    `supervised_linear_accuracy` (gradient boosting and logistic regression on a summary of the same window) and
    `majority_accuracy`. The labels of the network are those of a Gaussian mixture on μ.
    """
    window = net.config.window
    train_ends = window_ends(regime_rows, train, window)[-max_windows:]
    test_ends = window_ends(regime_rows, held_out, window)[:max_windows]
    regimes = _DEFAULT_REGIMES if truth is None else max(2, len(np.unique(truth[truth >= 0])))
    if min(len(train_ends), len(test_ends)) < 10 * regimes:
        raise ConfigError(f"the regime report needs {10 * regimes} complete windows in each part, got "
                          f"{len(train_ends)} training and {len(test_ends)} held-out; give more data")
    with threadpool_limits(torch.get_num_threads()):
        train_mean, test_mean = (encode_ends(net, regime_rows, ends) for ends in (train_ends, test_ends))
        detectors = {"rde": _clusters(train_mean, test_mean, regimes, seed)}
        train_rows, test_rows = regime_rows[train_ends].astype(float), regime_rows[test_ends].astype(float)
        detectors["gmm"] = _mixture(train_rows, test_rows, regimes, seed)
        detectors["hmm"] = _markov(train_rows, test_rows, regimes, seed)
        figures = _network_figures(net, regime_rows, test_ends, test_mean)
        adjacent = np.diff(test_ends) == 1
        for name, detector in detectors.items():
            same = np.diff(detector.test_labels) == 0
            figures[f"{name}_persistence"] = float(same[adjacent].mean())
        if truth is not None:
            labels = np.asarray(truth)
            figures |= _truth_figures(detectors, regime_rows, window, train_ends, test_ends, labels, seed)
    return figures


@torch.inference_mode()
def encode_ends(net: RegimeNet, regime_rows: Float32Array, ends: IntArray) -> Float32Array:
    """μ (N, latent) of the windows that end at `ends`."""
    parts = [net.encode_mean(torch.from_numpy(_windows(regime_rows, ends[i : i + _BATCH], net.config.window)))
             for i in range(0, len(ends), _BATCH)]
    return torch.cat(parts).numpy()


def _windows(regime_rows: Float32Array, ends: IntArray, window: int) -> Float32Array:
    """(N, W, F)."""
    return regime_rows[ends[:, None] + np.arange(1 - window, 1)]


@torch.inference_mode()
def _network_figures(
    net: RegimeNet, regime_rows: Float32Array, ends: IntArray, mean: Float32Array
) -> dict[str, float]:
    """Reconstruction on at most 4,096 evenly spaced windows; spread and memory of μ on all."""
    picks = ends[np.linspace(0, len(ends) - 1, min(len(ends), 4096)).astype(np.int64)]
    squared_error = np.zeros(net.config.window)  # per row of the window
    for start in range(0, len(picks), _BATCH):
        window = torch.from_numpy(_windows(regime_rows, picks[start : start + _BATCH], net.config.window))
        reconstruction, _ = net.decode(net.encode_mean(window))
        squared_error += (reconstruction - window).square().mean(dim=2).sum(dim=0).double().numpy()
    variance = mean.var(axis=0)
    active = variance > ACTIVE_VARIANCE
    centred = mean - mean.mean(axis=0)
    memory = (centred[1:] * centred[:-1]).mean(axis=0)[active] / variance[active]
    scale = float(regime_rows[ends].var(axis=0, dtype=np.float64).mean())
    row_mse = squared_error / len(picks)
    mse, recent = float(row_mse.mean()), float(row_mse[-_RECENT_ROWS:].mean())
    return {"reconstruction": mse, "explained_variance": 1.0 - mse / scale if scale > 0 else 0.0,
            "recent_explained_variance": 1.0 - recent / scale if scale > 0 else 0.0,
            "active_dims": float(active.sum()), "autocorrelation": float(memory.mean()) if active.any() else 0.0}


def _clusters(train: Float32Array, test: Float32Array, regimes: int, seed: int) -> _Detector:
    """Labels of μ from a Gaussian mixture on it; the probe sees μ itself.

    μ is no cloud of balls: k-means would cut it into slices of its widest direction.
    """
    scaler = StandardScaler().fit(train)
    model = GaussianMixture(regimes, reg_covar=1e-3, random_state=seed).fit(scaler.transform(train))
    labels = [model.predict(scaler.transform(part)) for part in (train, test)]
    return _Detector(labels[0], labels[1], train, test)


def _mixture(train: FloatArray, test: FloatArray, regimes: int, seed: int) -> _Detector:
    """A Gaussian mixture on single rows."""
    model = GaussianMixture(regimes, reg_covar=1e-3, random_state=seed).fit(train)
    soft = model.predict_proba(train), model.predict_proba(test)
    return _Detector(soft[0].argmax(1), soft[1].argmax(1), *soft)


def _markov(train: FloatArray, test: FloatArray, regimes: int, seed: int) -> _Detector:
    """A hidden Markov model with diagonal Gaussian emissions, as a causal filter."""
    model = GaussianHMM(regimes, covariance_type="diag", n_iter=25, random_state=seed).fit(train)
    soft = filter_markov(model, train), filter_markov(model, test)
    return _Detector(soft[0].argmax(1), soft[1].argmax(1), *soft)


def filter_markov(model: GaussianHMM, rows: FloatArray) -> FloatArray:
    """P(state of row t | rows up to t), (N, states); hmmlearn's own posteriors look ahead."""
    variance = np.stack([np.diag(c) for c in model.covars_])  # (S, F)
    log_emission = -0.5 * (np.log(2 * np.pi * variance).sum(axis=1)
                           + ((rows[:, None] - model.means_) ** 2 / variance).sum(axis=2))
    emission = np.exp(log_emission - log_emission.max(axis=1, keepdims=True))
    belief, out = model.startprob_, np.empty_like(emission)
    for t, likelihood in enumerate(emission):
        joint = (belief if t == 0 else belief @ model.transmat_) * likelihood
        total = joint.sum()
        # a row that is impossible in every reachable state says nothing but its own likelihood
        belief = joint / total if total > 0 else likelihood / likelihood.sum()
        out[t] = belief
    return out


def _truth_figures(
    detectors: dict[str, _Detector], regime_rows: Float32Array, window: int, train_ends: IntArray,
    test_ends: IntArray, truth: AnyArray, seed: int,
) -> dict[str, float]:
    """Probes, NMI and the supervised classifier, where the true regime is known."""
    y_train, y_test = truth[train_ends], truth[test_ends]
    known, scored = y_train >= 0, y_test >= 0
    y_train, y_test = y_train[known], y_test[scored]
    values, counts = np.unique(y_train, return_counts=True)
    if len(values) < 2 or not len(y_test):
        raise ConfigError("the true regimes need at least two values among the training rows and one held-out row")
    figures = {"majority_accuracy": float((y_test == values[counts.argmax()]).mean())}
    for name, detector in detectors.items():
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
        probe.fit(detector.train_soft[known], y_train)
        figures[f"{name}_probe_accuracy"] = float(probe.score(detector.test_soft[scored], y_test))
        figures[f"{name}_nmi"] = float(normalized_mutual_info_score(y_test, detector.test_labels[scored]))
    boosting = HistGradientBoostingClassifier(max_iter=40, learning_rate=0.15, early_stopping=False,
                                              random_state=seed)
    seen, unseen = (_summary(regime_rows, ends, window) for ends in (train_ends[known], test_ends[scored]))
    figures["supervised_accuracy"] = float(boosting.fit(seen, y_train).score(unseen, y_test))
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(seen, y_train)
    figures["supervised_linear_accuracy"] = float(linear.score(unseen, y_test))
    return figures


def _summary(regime_rows: Float32Array, ends: IntArray, window: int) -> Float32Array:
    """The last row, means over growing spans and the deviation of the whole window: (N, features)."""
    parts = []
    for start in range(0, len(ends), _BATCH):
        windows = _windows(regime_rows, ends[start : start + _BATCH], window)
        spans = [windows[:, -span:].mean(axis=1) for span in (*_SUMMARY_SPANS, window)]
        parts.append(np.concatenate([windows[:, -1], *spans, windows.std(axis=1)], axis=1))
    return np.concatenate(parts)
