"""Where a unit run earns: its score, exposure and turnover by the true regime of the bar that the position is held
over. The rows add up to the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from algospace.analysis.unit_score import Segments, next_returns, unit_pnl
from algospace.marketdata.bayes_filter import N_STATES, STATES
from algospace.marketdata.synthetic import SyntheticTruth
from algospace.types import AnyArray, FloatArray, IntArray


@dataclass(frozen=True)
class RegimeSums:
    """Sums over decisions, arrays (4,) by true regime; `score`, `realised` and `limit` in ticks."""

    bars: FloatArray
    score: FloatArray
    realised: FloatArray
    limit: FloatArray
    held: FloatArray
    long: FloatArray
    changed: FloatArray

    def rows(self) -> dict[str, dict[str, Any]]:
        """Per regime, and `all`: per-bar figures, None where the regime never came.

        share_of_limit: this regime's part of score / the limit's whole score (the parts add up to the fraction of
        the limit); fraction_of_limit: score / limit inside the regime, None where the limit earns nothing there.
        """
        names = [*STATES, "all"]
        sums = {name: np.append(values, values.sum()) for name, values in vars(self).items()}
        return {name: _row({key: float(values[k]) for key, values in sums.items()},
                           float(sums["bars"][-1]), float(sums["limit"][-1])) for k, name in enumerate(names)}


def _row(sums: dict[str, float], bars: float, limit: float) -> dict[str, Any]:
    """One line of the table; `bars` and `limit` are those of the whole run."""
    here = sums["bars"]
    means = {name: sums[key] / here if here else None for name, key in (
        ("score", "score"), ("realised", "realised"), ("limit", "limit"), ("exposure", "held"), ("long", "long"),
        ("turnover", "changed"))}
    return {"bars": int(here), "share_of_bars": here / bars, **means,
            "share_of_limit": sums["score"] / limit if limit > 0.0 else None,
            "fraction_of_limit": sums["score"] / sums["limit"] if sums["limit"] > 0.0 else None}


def regime_sums(truth: SyntheticTruth, close: FloatArray, positions: AnyArray, segments: Segments) -> RegimeSums:
    """Sums of one market. A position decided at close t is held over bar t+1 and counted in that bar's regime."""
    if truth.expected_return is None or truth.limit_position is None:
        raise ValueError("this scenario has no known expected return; take a planted one")
    regime = _decided(np.append(truth.regime[1:], truth.regime[-1]), segments)
    held = _decided(positions, segments)

    def by_regime(values: AnyArray) -> FloatArray:
        return np.asarray(np.bincount(regime, np.asarray(values, np.float64), N_STATES), np.float64)

    returns = next_returns(close)
    changed = np.concatenate([np.abs(np.diff(np.asarray(positions[a:b], np.float64), prepend=0.0))
                              for a, b in segments])
    return RegimeSums(
        bars=by_regime(np.ones(regime.size)),
        score=by_regime(unit_pnl(positions, truth.expected_return, segments)),
        realised=by_regime(unit_pnl(positions, returns, segments)),
        limit=by_regime(unit_pnl(truth.limit_position, truth.expected_return, segments)),
        held=by_regime(held != 0), long=by_regime(held > 0), changed=by_regime(changed))


def pooled(sums: Sequence[RegimeSums]) -> RegimeSums:
    """All markets together."""
    return RegimeSums(**{name: np.sum([getattr(part, name) for part in sums], axis=0)
                         for name in RegimeSums.__dataclass_fields__})


def _decided(values: AnyArray, segments: Segments) -> IntArray:
    return np.concatenate([np.asarray(values[a:b], np.int64) for a, b in segments])
