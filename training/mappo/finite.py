"""Values that are not numbers, named before they spoil a run: in tables, rewards and gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch

from algospace.errors import AlgoSpaceError, SchemaError
from algospace.types import AnyArray
from training.mappo.tables import TrainingTable

_BLOCK = 65_536  # rows looked at in one go: a mapped table never lies in memory whole
_LATE = ("atr", "atr_30m")  # NaN until they exist, finite from then on


class NonFiniteError(AlgoSpaceError, FloatingPointError):
    """Training met NaN or infinity and stopped; the last checkpoint is intact."""


def refuse_nonfinite_table(table: TrainingTable, source: str) -> None:
    """SchemaError that names the first column and row of `table` that holds NaN or infinity."""
    market = table.market
    named: dict[str, tuple[AnyArray, tuple[str, ...]]] = {
        name: (getattr(market, name), ()) for name in ("open", "high", "low", "close", "roll", "atr", "atr_30m",
                                                       "clock", "synergy")}
    for name in ("tactical", "strategic", "regime"):
        named[name] = (getattr(market, name), tuple(getattr(market.schema, name).names))
    named["proposals"] = (table.proposals.reshape(len(table.proposals), -1), ())
    for side, vectors in enumerate(table.regime_vectors):
        named[f"regime_vectors[{side}]"] = (vectors, ())
    for name, (values, columns) in named.items():
        found = _first_nonfinite(values, skip_leading=name in _LATE)
        if found is not None:
            row, column = found
            label = f"'{columns[column]}' of {name}" if columns else f"'{name}'"
            value = values.reshape(len(values), -1)[row, column]
            raise SchemaError(f"{source}: column {label}, row {row} is {value}; build the table again from clean "
                              f"data")


def _first_nonfinite(values: AnyArray, skip_leading: bool) -> tuple[int, int] | None:
    """(row, column) of the first value that is no number; leading NaN may be allowed."""
    started = not skip_leading
    for first in range(0, len(values), _BLOCK):
        part = np.asarray(values[first: first + _BLOCK]).reshape(min(_BLOCK, len(values) - first), -1)
        good = np.isfinite(part)
        begin = 0
        if not started:
            begin = int(good[:, 0].argmax()) if good[:, 0].any() else len(part)
            started = begin < len(part)
        bad = np.argwhere(~good[begin:])
        if bad.size:
            return first + begin + int(bad[0, 0]), int(bad[0, 1])
    return None


def require_finite_rewards(columns: Mapping[str, AnyArray]) -> None:
    """NonFiniteError that names environment and table row of the first reward that is no number.

    columns: segments (B, T) of `rewards` and `rows`; segment b belongs to environment b.
    """
    rewards = columns["rewards"]
    if np.isfinite(rewards).all():
        return
    segment, step = (int(i) for i in np.argwhere(~np.isfinite(rewards))[0])
    raise NonFiniteError(f"the reward of environment {segment} at table row {int(columns['rows'][segment, step])} "
                         f"(step {step} of its segment) is {rewards[segment, step]}; the last checkpoint is "
                         f"intact: look at the table around this row")


def first_nonfinite_parameter(named: Iterable[tuple[str, torch.nn.Parameter]]) -> str | None:
    """Name of the first parameter whose gradient, or else whose value, holds NaN or infinity."""
    for name, parameter in named:
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            return f"gradient of {name}"
        if not torch.isfinite(parameter).all():
            return f"value of {name}"
    return None
