"""What the registry says of one column."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Column:
    """One feature column.

    warm_up: bars before the first value, which stands in row `warm_up` (0: the first bar has one). The rows before
        are NaN, none after.
    talib: the TA-Lib call (o, h, l, c, v are open to volume) whose output the column equals after warm-up, `[i]`
        choosing one of several, or, for bands and channels, from whose outputs the formula takes it; None if
        TA-Lib has no such function.
    clock: the bars it counts and changes with: "base", or "30m" (30-minute bars; base rows hold the last).
    parity, centre, mirror: what the column becomes when prices are mirrored. `mirror` "difference" maps p to
        2c - p, "ratio" maps p to c²/p, both swapping high and low. "odd" columns become 2·centre - value, "even"
        ones stay, "none" has no such rule. Flat stretches, where a column has its neutral value, are exempt.
    """

    name: str
    family: str
    formula: str
    unit: str
    warm_up: int
    source: str
    talib: str | None = None
    clock: str = "base"
    parity: str = "none"
    centre: float = 0.0
    mirror: str = "difference"
