"""The best any observer of returns can do: exact belief, and the trading rule that maximises mean P&L.

The market is exogenous, so the average-reward value function V(belief, last return, position) needs no gain:
its differences D_a = V(., a) - V(., 0) close on themselves,

    G_a(x)  = a·E[r' | x] + E[D_a(x')]                       (G_0 = 0)
    D_a(x)  = max_b {G_b - cost·|b - a|} - max_b {G_b - cost·|b|},

which is relative value iteration with the flat position as the reference. Beliefs live on a regular grid of
the 3-simplex with Freudenthal interpolation (Lovejoy 1991, doi:10.1287/opre.39.1.162); last returns on a
uniform grid that doubles as the quadrature of the next return, so that no interpolation in it is needed.
Up and down mirror each other: D_-1(belief, r) = D_+1(belief with up and down swapped, -r).
"""

from __future__ import annotations

import hashlib
import os
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numba as nb
import numpy as np

from algospace.errors import InternalError
from algospace.files import atomic_path
from algospace.marketdata.bayes_filter import (
    N_STATES,
    PlantedHmm,
    correct,
    next_mean,
    predict,
)
from algospace.types import AnyArray, FloatArray, IntArray

TICK_RETURN = 0.5e-4  # constant notional: one tick is half a basis point at every price
COST_TICKS = 1.18  # per unit of position change ("a side")
SOLVER_VERSION = 1
_RESOLUTION = 30  # belief grid: steps of 1/30, 5456 nodes; measured on `hard`: 20 earns .1050, 30 .1055, 44 .1055
_RETURN_LIMIT = 40e-4  # as a fraction; further out the continuation counts as constant
_RETURN_NODES = 21  # measured: 41 changes the earnings by less than .0003 ticks per bar
_TOLERANCE = 1e-6  # of the cost
_MAX_SWEEPS = 5000


@dataclass(frozen=True)
class LimitPolicy:
    """A solved rule: continuation advantages of being long and short over flat.

    `long`, `short` (nodes, returns) are E[D_a(x')]; `vertex` maps cumulative grid coordinates to node rows;
    `sweeps` is what the iteration took.
    """

    long: FloatArray
    short: FloatArray
    vertex: AnyArray
    return_grid: FloatArray
    cost: float
    sweeps: int


def simplex_nodes(resolution: int) -> tuple[FloatArray, AnyArray]:
    """(nodes (m, 4) with sum 1, vertex (N+1, N+1, N+1) int32: row of the node with cumulative sums k)."""
    vertex = np.full((resolution + 1,) * 3, -1, np.int32)
    nodes: list[tuple[int, int, int, int]] = []
    for first in range(resolution + 1):
        for second in range(first + 1):
            for third in range(second + 1):
                vertex[first, second, third] = len(nodes)
                nodes.append((resolution - first, first - second, second - third, third))
    return np.array(nodes, np.float64) / resolution, vertex


@nb.njit(inline="always", cache=True)
def simplex_weights(belief: AnyArray, vertex: AnyArray, rows: AnyArray, weights: AnyArray) -> None:
    """Barycentric weights of `belief` over the 4 corners of its Freudenthal cell; fills rows and weights."""
    n = vertex.shape[0] - 1
    x3 = min(max(belief[3], 0.0), 1.0) * n
    x2 = min(max(belief[2] * n + x3, x3), 1.0 * n)
    x1 = min(max(belief[1] * n + x2, x2), 1.0 * n)
    k1, k2, k3 = min(int(x1), n - 1), min(int(x2), n - 1), min(int(x3), n - 1)
    f1, f2, f3 = x1 - k1, x2 - k2, x3 - k3
    rows[0] = vertex[k1, k2, k3]
    # walk from the base corner along the coordinates in order of falling fraction; ties keep k1 >= k2 >= k3
    for corner in range(1, 4):
        if f1 >= f2 and f1 >= f3:
            weights[corner] = f1
            k1 += 1
            f1 = -1.0
        elif f2 >= f3:
            weights[corner] = f2
            k2 += 1
            f2 = -1.0
        else:
            weights[corner] = f3
            k3 += 1
            f3 = -1.0
        rows[corner] = vertex[k1, k2, k3]
    weights[0] = 1.0 - weights[1]
    weights[1] -= weights[2]
    weights[2] -= weights[3]


@nb.njit(cache=True)
def _transitions(nodes: AnyArray, vertex: AnyArray, grid: AnyArray, transition: AnyArray, mu: AnyArray,
                 phi: AnyArray, sigma: AnyArray, columns: AnyArray, weights: AnyArray, mean: AnyArray) -> None:
    """Sparse one-bar transition rows over (node, return) pairs and E[r'] of each pair."""
    n_returns = grid.size
    prediction, posterior = np.empty(N_STATES), np.empty(N_STATES)
    corner_rows, corner_weights = np.empty(4, np.int64), np.empty(4)
    for node in range(nodes.shape[0]):
        predict(nodes[node], transition, prediction)
        for i in range(n_returns):
            row = node * n_returns + i
            mean[row] = next_mean(prediction, grid[i], mu, phi)
            total = 0.0
            for j in range(n_returns):
                density = correct(prediction, grid[j], grid[i], mu, phi, sigma, posterior)
                simplex_weights(posterior, vertex, corner_rows, corner_weights)
                total += density
                for c in range(4):
                    columns[row, 4 * j + c] = corner_rows[c] * n_returns + j
                    weights[row, 4 * j + c] = density * corner_weights[c]
            for k in range(4 * n_returns):
                weights[row, k] /= total


@nb.njit(cache=True)
def _sweep(columns: AnyArray, weights: AnyArray, mean: AnyArray, mirror: AnyArray, cost: float,
           advantage: AnyArray, following: AnyArray) -> float:
    """One value-iteration sweep over D_+1 in place; `following` receives E[D_+1(x')]; returns max change."""
    n = mean.size
    for row in range(n):
        total = 0.0
        for k in range(columns.shape[1]):
            total += weights[row, k] * advantage[columns[row, k]]
        following[row] = total
    change = 0.0
    for row in range(n):
        long = mean[row] + following[row]
        short = -mean[row] + following[mirror[row]]
        held = max(long, max(-cost, short - 2.0 * cost))
        flat = max(0.0, max(long, short) - cost)
        change = max(change, abs(held - flat - advantage[row]))
        advantage[row] = held - flat
    return change


def solve_limit(hmm: PlantedHmm, cost: float = COST_TICKS * TICK_RETURN, resolution: int = _RESOLUTION,
                return_nodes: int = _RETURN_NODES, tolerance: float = _TOLERANCE) -> LimitPolicy:
    """Relative value iteration; `cost` is a fraction of notional per unit of position change.

    The model must be mirror-symmetric (mu[up] = -mu[down], mu 0 elsewhere, equal sigma, phi, durations).
    """
    _require_mirror(hmm)
    nodes, vertex = simplex_nodes(resolution)
    grid = np.linspace(-_RETURN_LIMIT, _RETURN_LIMIT, return_nodes)
    size = len(nodes) * return_nodes
    columns, weights = np.empty((size, 4 * return_nodes), np.int32), np.empty((size, 4 * return_nodes))
    mean = np.empty(size)
    _transitions(nodes, vertex, grid, hmm.transition, hmm.mu, hmm.phi, hmm.sigma, columns, weights, mean)
    mirror = _mirror_rows(nodes, vertex, return_nodes)
    advantage, following = np.zeros(size), np.zeros(size)
    sweeps, change = 0, np.inf
    while change >= tolerance * cost:
        if sweeps == _MAX_SWEEPS:
            raise InternalError(f"the limit's value iteration did not settle in {_MAX_SWEEPS} sweeps")
        change = _sweep(columns, weights, mean, mirror, cost, advantage, following)
        sweeps += 1
    shape = (len(nodes), return_nodes)
    return LimitPolicy(following.reshape(shape), following[mirror].reshape(shape), vertex, grid, cost, sweeps)


def _require_mirror(hmm: PlantedHmm) -> None:
    symmetric = hmm.mu[0] == -hmm.mu[1] and not hmm.mu[2:].any() and hmm.phi[0] == hmm.phi[1]
    if not (symmetric and hmm.sigma[0] == hmm.sigma[1] and hmm.durations[0] == hmm.durations[1]):
        raise ValueError("the limit is solved for models in which up and down mirror each other")


def _mirror_rows(nodes: FloatArray, vertex: AnyArray, n_returns: int) -> IntArray:
    """Row of (belief with up and down swapped, -return) for every row."""
    n = vertex.shape[0] - 1
    counts = np.rint(nodes * n).astype(np.int64)
    swapped = vertex[n - counts[:, 1], counts[:, 2] + counts[:, 3], counts[:, 3]].astype(np.int64)
    return np.ascontiguousarray((swapped[:, None] * n_returns + np.arange(n_returns)[None, ::-1]).ravel())


@nb.njit(cache=True)
def _positions(beliefs: AnyArray, expected: AnyArray, returns: AnyArray, long: AnyArray, short: AnyArray,
               vertex: AnyArray, grid: AnyArray, cost: float, out: AnyArray) -> None:
    rows, weights = np.empty(4, np.int64), np.empty(4)
    step = grid[1] - grid[0]
    position = 0
    for t in range(returns.size):
        simplex_weights(beliefs[t], vertex, rows, weights)
        x = min(max((returns[t] - grid[0]) / step, 0.0), grid.size - 1.0)
        i = min(int(x), grid.size - 2)
        f = x - i
        g_long, g_short = expected[t], -expected[t]
        for c in range(4):
            g_long += weights[c] * ((1.0 - f) * long[rows[c], i] + f * long[rows[c], i + 1])
            g_short += weights[c] * ((1.0 - f) * short[rows[c], i] + f * short[rows[c], i + 1])
        held = position
        best = g_long * (held == 1) + g_short * (held == -1)
        for action in range(-1, 2):
            gain = g_long * (action == 1) + g_short * (action == -1) - cost * abs(action - held)
            if gain > best:
                best, position = gain, action
        out[t] = position


def limit_positions(policy: LimitPolicy, beliefs: FloatArray, expected: FloatArray,
                    returns: FloatArray) -> AnyArray:
    """Position (n,) int8 decided at each close, held over the next bar; flat before the first bar."""
    out = np.empty(returns.size, np.int8)
    _positions(beliefs, expected, returns, policy.long, policy.short, policy.vertex, policy.return_grid,
               policy.cost, out)
    return out


def cached_limit(hmm: PlantedHmm, cost: float = COST_TICKS * TICK_RETURN) -> LimitPolicy:
    """`solve_limit`, kept in the user's cache folder under a hash of everything that defines the problem.

    A damaged file is solved again and replaced; a folder that cannot be written only costs the seconds.
    """
    path = _cache_path(hmm, cost)
    policy = _load_policy(path)
    if policy is None:
        policy = solve_limit(hmm, cost)
        _store_policy(path, policy)
    return policy


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/algospace/limits`, by default under ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "algospace" / "limits"


def _cache_path(hmm: PlantedHmm, cost: float) -> Path:
    digest = hashlib.sha256()
    for array in (hmm.mu, hmm.phi, hmm.sigma, hmm.durations):
        digest.update(np.ascontiguousarray(array, "<f8").tobytes())
    digest.update(repr((SOLVER_VERSION, cost, _RESOLUTION, _RETURN_LIMIT, _RETURN_NODES, _TOLERANCE)).encode())
    return cache_folder() / f"{digest.hexdigest()[:32]}.npz"


def _load_policy(path: Path) -> LimitPolicy | None:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return LimitPolicy(stored["long"], stored["short"], stored["vertex"], stored["return_grid"],
                               float(stored["cost"]), int(stored["sweeps"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _store_policy(path: Path, policy: LimitPolicy) -> None:
    try:
        with atomic_path(path) as part, part.open("wb") as stream:
            np.savez(stream, long=policy.long, short=policy.short, vertex=policy.vertex,
                     return_grid=policy.return_grid, cost=policy.cost, sweeps=policy.sweeps)
    except OSError as error:
        warnings.warn(f"the solved limit was not cached in {path.parent}: {error.strerror}", stacklevel=2)
