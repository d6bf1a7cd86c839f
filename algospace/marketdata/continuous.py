"""One continuous series from the contracts of a future: forward ratio for features, raw for fills.

The forward factor starts at 1 and is multiplied, at the first bar of a new contract, by (last close of the old
contract / first open of the new one). It uses no future and is the factor of the feature pipeline, bit for bit.
Backward adjustment, common in research, rescales all history at every later roll: `research_backward` gives it,
marked as not causal, for charts and comparisons with other tools only.

A roll table states `roll_ratio_to_next` = new open / old close: DIVIDE by it. `check_ratios` compares a table with
the bars, and recognises a table that states the inverse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import numpy as np

from algospace.errors import InputError
from algospace.marketdata.roll_table import RollSchedule
from algospace.marketdata.rolls import ContractRows
from algospace.types import AnyArray, Bars, FloatArray, IntArray

Method = Literal["forward_ratio", "backward_ratio", "backward_difference"]
TOLERANCE = 1e-9  # relative; a ratio of two prices written with 15 digits agrees far better


@dataclass(frozen=True)
class ContinuousSeries:
    """Raw bars and the same bars adjusted: adjusted = raw · factor + offset, row by row.

    causal: False where a row depends on later rolls; such a series must feed no feature.
    """

    raw: Bars
    adjusted: Bars
    factor: FloatArray
    offset: FloatArray
    method: Method
    causal: bool


@dataclass(frozen=True)
class RatioMismatch:
    """A stated roll ratio that the bars do not confirm. `inverse`: its reciprocal would agree."""

    contract: str
    next_contract: str
    stated: float
    found: float
    inverse: bool

    def __str__(self) -> str:
        hint = "; the table states the inverse: it must hold new open / old close" if self.inverse else ""
        return (f"{self.contract} -> {self.next_contract}: stated {self.stated:.10g}, bars give {self.found:.10g} "
                f"({self.stated / self.found - 1:+.2g}){hint}")


def roll_rows(bars: Bars) -> IntArray:
    """Rows that are the first of a new contract."""
    return np.flatnonzero(bars.contract[1:] != bars.contract[:-1]) + 1


def continuous(bars: Bars, ratio_to_next: FloatArray | None = None) -> ContinuousSeries:
    """Forward ratio-adjusted bars of one contract at a time; causal.

    `ratio_to_next` (rolls,): new / old price of each roll, in order, instead of first open / last close, for
    example the spread of two contracts at one time (`overlap_ratios`) or a vendor's; it divides the factor.
    """
    rolls = roll_rows(bars)
    step: FloatArray = np.ones(len(bars))
    if ratio_to_next is None:
        step[rolls] = bars.close[rolls - 1] / bars.open[rolls]
    else:
        step[rolls] = 1.0 / _checked(ratio_to_next, rolls.size)
    factor = np.cumprod(step).astype(np.float64, copy=False)
    return ContinuousSeries(bars, _moved(bars, factor, np.zeros(len(bars))), factor, np.zeros(len(bars)),
                            "forward_ratio", True)


def research_backward(bars: Bars, kind: Literal["ratio", "difference"] = "ratio") -> ContinuousSeries:
    """NOT CAUSAL: history rescaled (or shifted) at every later roll, so that the last contract stays raw.

    A difference can make old prices negative and changes their returns; both are for research, never for features.
    """
    rolls = roll_rows(bars)
    old, new = bars.close[rolls - 1], bars.open[rolls]
    later = np.searchsorted(rolls, np.arange(len(bars)), side="right")  # rolls at or before each row
    factor, offset = np.ones(len(bars)), np.zeros(len(bars))
    if kind == "ratio":
        factor = np.r_[np.cumprod((new / old)[::-1])[::-1], 1.0][later]
    else:
        offset = np.r_[np.cumsum((new - old)[::-1])[::-1], 0.0][later]
    return ContinuousSeries(bars, _moved(bars, factor, offset), factor, offset,
                            "backward_ratio" if kind == "ratio" else "backward_difference", False)


def found_ratios(bars: Bars) -> FloatArray:
    """(rolls,) first open of the new contract / last close of the old one, as `roll_ratio_to_next` states it."""
    rolls = roll_rows(bars)
    return bars.open[rolls] / bars.close[rolls - 1]


def with_found_ratios(schedule: RollSchedule, bars: Bars, names: Sequence[str]) -> RollSchedule:
    """`schedule` with the ratios that front-contract `bars` give; NaN for rolls that they do not hold."""
    ratio = np.full(len(schedule), np.nan)
    rolls = roll_rows(bars)
    place = {name: k for k, name in enumerate(schedule.contracts)}
    for row, value in zip(rolls, found_ratios(bars), strict=True):
        before = place.get(names[bars.contract[row - 1]])
        if before is not None and place.get(names[bars.contract[row]]) == before + 1:
            ratio[before] = value
    return RollSchedule(schedule.contracts, schedule.first_ts, schedule.last_ts, ratio)


def overlap_ratios(schedule: RollSchedule, rows: ContractRows) -> FloatArray:
    """(entries,) new / old close of the last bar before each roll at which both contracts traded; NaN without one.

    Known before the roll, and free of what the market did between the two bars (a weekend, a thin first print).
    """
    if rows.close is None:
        raise InputError("rows", "ratios need closes", "give ContractRows with close")
    ratio = np.full(len(schedule), np.nan)
    number = {name: code for code, name in enumerate(rows.names)}
    for k in range(len(schedule) - 1):
        before = rows.ts_open < schedule.first_ts[k + 1]
        old, new = (np.flatnonzero(before & (rows.contract == number.get(schedule.contracts[j], -1)))
                    for j in (k, k + 1))
        both, at_old, at_new = np.intersect1d(rows.ts_open[old], rows.ts_open[new], return_indices=True)
        if both.size:
            ratio[k] = rows.close[new[at_new[-1]]] / rows.close[old[at_old[-1]]]
    return ratio


def stated_ratios(schedule: RollSchedule, bars: Bars, names: Sequence[str], source: object = "roll table"
                  ) -> FloatArray:
    """(rolls,) the ratios that `schedule` states for the rolls of `bars`, ready for `continuous`.

    InputError for a roll that the table does not know.
    """
    place = {name: k for k, name in enumerate(schedule.contracts)}
    found = np.empty(roll_rows(bars).size)
    for i, row in enumerate(roll_rows(bars)):
        old, new = (names[bars.contract[r]] for r in (row - 1, row))
        k = place.get(old)
        known = k is not None and place.get(new) == k + 1 and np.isfinite(schedule.ratio_to_next[k])
        if not known or k is None:
            raise InputError(source, f"no ratio for the roll {old} -> {new} on {_date(int(bars.ts_open[row]))}",
                             "add it, or adjust by the bars themselves")
        found[i] = schedule.ratio_to_next[k]
    return found


def check_ratios(schedule: RollSchedule, bars: Bars, names: Sequence[str],
                 tolerance: float = TOLERANCE) -> list[RatioMismatch]:
    """The stated ratios that differ from those of the bars by more than `tolerance` (relative); [] if all agree.

    Rolls that the table or the bars do not hold are not judged.
    """
    bars_say = with_found_ratios(schedule, bars, names).ratio_to_next
    wrong = []
    for k, (stated, found) in enumerate(zip(schedule.ratio_to_next, bars_say, strict=True)):
        if np.isfinite(stated) and np.isfinite(found) and abs(stated / found - 1.0) > tolerance:
            inverse = abs(stated * found - 1.0) < 0.1 * abs(stated / found - 1.0)
            wrong.append(RatioMismatch(schedule.contracts[k], schedule.contracts[k + 1], float(stated),
                                       float(found), bool(inverse)))
    return wrong


def _checked(ratio: FloatArray, rolls: int) -> FloatArray:
    if ratio.shape != (rolls,):
        raise InputError("roll ratios", f"{ratio.size} ratios for {rolls} rolls",
                         "give one for each roll, in order")
    bad = ~(np.isfinite(ratio) & (ratio > 0))
    if bad.any():
        raise InputError("roll ratios", f"ratio {int(np.argmax(bad)) + 1} is not a positive number",
                         "give new open / old close")
    return ratio


def _moved(bars: Bars, factor: FloatArray, offset: FloatArray) -> Bars:
    def move(price: AnyArray) -> FloatArray:
        return price * factor + offset

    return Bars(bars.ts_open, move(bars.open), move(bars.high), move(bars.low), move(bars.close), bars.volume,
                bars.width_ns, bars.contract)


def _date(ts: int) -> str:
    return datetime.fromtimestamp(ts // 10**9, UTC).strftime("%Y-%m-%d %H:%M")
