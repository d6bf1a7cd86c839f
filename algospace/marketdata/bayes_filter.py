"""The planted hidden Markov model and its exact Bayes filter.

Words: belief `b_t` is P(s_t | r_0..r_t), the filter after bar t; prediction is P(s_{t+1} | r_0..r_t).
Everything here uses +, -, *, / and square roots only, which IEEE 754 rounds the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba as nb
import numpy as np

from algospace.types import AnyArray, FloatArray

STATES = ("up", "down", "range", "noise")
N_STATES = 4
_DENSITY_SCALE = 15.0 / 32.0  # Γ(7/2) / (√(4π) Γ(3)): Student-t(6) scaled to unit variance


@dataclass(frozen=True)
class PlantedHmm:
    """Parameters of r_t = mu[s] + phi[s]·r_{t-1} + sigma[s]·ε, as fractions per base bar, arrays (4,).

    `durations` are mean stays in bars; leaving a state goes to each other one with probability 1/3.
    """

    mu: FloatArray
    phi: FloatArray
    sigma: FloatArray
    durations: FloatArray

    @property
    def leave(self) -> FloatArray:
        """Probability of leaving each state in one bar."""
        return 1.0 / self.durations

    @property
    def transition(self) -> FloatArray:
        """(from, to) one-bar transition matrix."""
        matrix = np.repeat(self.leave[:, None] / (N_STATES - 1), N_STATES, axis=1)
        np.fill_diagonal(matrix, 1.0 - self.leave)
        return matrix

    @property
    def stationary(self) -> FloatArray:
        """Long-run state probabilities: each state is entered equally often, so they go with the durations."""
        return self.durations / self.durations.sum()


@nb.njit(inline="always", cache=True)
def unit_t6_density(x: float) -> float:
    """Density of Student-t(6) scaled to unit variance: 15/32 · (1 + x²/4)^(-7/2)."""
    q = 1.0 + 0.25 * x * x
    return _DENSITY_SCALE / (q * q * q * np.sqrt(q))


@nb.njit(inline="always", cache=True)
def predict(belief: AnyArray, transition: AnyArray, out: AnyArray) -> None:
    """out[s'] = Σ_s belief[s] · transition[s, s']."""
    for to in range(N_STATES):
        total = 0.0
        for origin in range(N_STATES):
            total += belief[origin] * transition[origin, to]
        out[to] = total


@nb.njit(inline="always", cache=True)
def correct(prediction: AnyArray, r_t: float, r_tm1: float, mu: AnyArray, phi: AnyArray, sigma: AnyArray,
            out: AnyArray) -> float:
    """out = belief after return `r_t`; returns the density of `r_t` given the past."""
    density = 0.0
    for s in range(N_STATES):
        z = (r_t - mu[s] - phi[s] * r_tm1) / sigma[s]
        out[s] = prediction[s] * unit_t6_density(z) / sigma[s]
        density += out[s]
    for s in range(N_STATES):
        out[s] /= density
    return density


@nb.njit(inline="always", cache=True)
def next_mean(prediction: AnyArray, r_t: float, mu: AnyArray, phi: AnyArray) -> float:
    """E[r_{t+1}] under the predicted states."""
    total = 0.0
    for s in range(N_STATES):
        total += prediction[s] * (mu[s] + phi[s] * r_t)
    return total


@nb.njit(cache=True)
def _filter(returns: AnyArray, start: AnyArray, transition: AnyArray, mu: AnyArray, phi: AnyArray,
            sigma: AnyArray, beliefs: AnyArray, expected: AnyArray) -> None:
    prediction = start.copy()
    r_tm1 = 0.0
    for t in range(returns.size):
        r_t = returns[t]
        correct(prediction, r_t, r_tm1, mu, phi, sigma, beliefs[t])
        predict(beliefs[t], transition, prediction)
        expected[t] = next_mean(prediction, r_t, mu, phi)
        r_tm1 = r_t


def bayes_filter(hmm: PlantedHmm, returns: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(beliefs (n, 4), E[r_{t+1} | r_0..r_t] (n,)) with the true parameters.

    The chain starts in its stationary distribution and the return before the first one counts as 0.
    """
    beliefs = np.empty((returns.size, N_STATES))
    expected = np.empty(returns.size)
    _filter(np.ascontiguousarray(returns, np.float64), hmm.stationary, hmm.transition, hmm.mu, hmm.phi, hmm.sigma,
            beliefs, expected)
    return beliefs, expected

