"""Which bars: by the clock, or by an amount of ticks, volume or money; and a series of them.

A clock bar covers [ts_open, ts_close), aligned to the clock (UTC), and is closed by the first tick at or after
ts_close, or by the clock. An information bar (López de Prado, Advances in Financial Machine Learning, ch. 2) is
closed by the tick that brings its sum to the threshold, with the whole of that tick: nothing is split or carried
over. Its ts_open is the time of its first tick, its ts_close that of its last, from which on it is known (where
disorder is allowed: of its newest). Ticks of one instant may belong to several information bars, and a session's
end does not close one. A bar still open at the end of the input is not emitted; clock bars without a tick are
absent.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from algospace.errors import ConfigError
from algospace.features import tick_bars_kernels as kernels
from algospace.types import DAY_NS, HOUR_NS, MINUTE_NS, SECOND_NS, AnyArray, Bars, FloatArray, Int32Array, IntArray

_UNITS = {"ns": 1, "us": 1000, "ms": 1_000_000, "s": SECOND_NS, "m": MINUTE_NS, "h": HOUR_NS, "d": DAY_NS}
_KINDS = {"clock": kernels.CLOCK, "tick": kernels.TICK, "volume": kernels.VOLUME, "dollar": kernels.DOLLAR}


@dataclass(frozen=True)
class BarFrame:
    """One kind of bar. `width_ns` of a clock frame; `threshold` of the others: ticks, size, or price · size ·
    `multiplier`. Written as text: `30s`, `5m`, `1h`, `tick:500`, `volume:2000`, `dollar:1e6`."""

    kind: Literal["clock", "tick", "volume", "dollar"]
    width_ns: int = 0
    threshold: float = 0.0
    multiplier: float = 1.0

    def __post_init__(self) -> None:
        amount = self.width_ns if self.kind == "clock" else self.threshold
        if not 0 < amount < np.inf or not 0 < self.multiplier < np.inf:
            raise ConfigError(
                f"a {self.kind} bar of {amount:g} (multiplier {self.multiplier:g}): use positive numbers"
            )
        if self.kind == "tick" and self.threshold != int(self.threshold):
            raise ConfigError(f"a tick bar of {self.threshold:g} ticks: use a whole number")

    @classmethod
    def clock(cls, width_ns: int) -> BarFrame:
        """Bars of `width_ns`, aligned to multiples of it since 1970."""
        return cls("clock", width_ns=width_ns)

    @classmethod
    def ticks(cls, count: int) -> BarFrame:
        """A bar every `count` ticks."""
        return cls("tick", threshold=count)

    @classmethod
    def volume(cls, size: float) -> BarFrame:
        """A bar whenever at least `size` has traded since the last one."""
        return cls("volume", threshold=size)

    @classmethod
    def dollars(cls, value: float, multiplier: float = 1.0) -> BarFrame:
        """A bar whenever price · size · multiplier since the last one comes to at least `value`; raw prices."""
        return cls("dollar", threshold=value, multiplier=multiplier)

    @classmethod
    def parse(cls, text: str, multiplier: float = 1.0) -> BarFrame:
        """The frame written as `text`; ConfigError names the forms."""
        clock = re.fullmatch(r"(\d+)(ns|us|ms|s|m|h|d)", text)
        if clock:
            return cls.clock(int(clock[1]) * _UNITS[clock[2]])
        kind, _, amount = text.partition(":")
        try:
            if kind in ("tick", "volume", "dollar"):
                return cls(kind, threshold=float(amount), multiplier=multiplier if kind == "dollar" else 1.0)  # type: ignore[arg-type]
        except ValueError:
            pass  # falls through to the one message
        raise ConfigError(f"bar frame '{text}' is unknown; write 30s, 5m, 1h, tick:500, volume:2000 or dollar:1e6")

    @property
    def name(self) -> str:
        """The frame as text, in the largest unit that divides the width."""
        if self.kind != "clock":
            return f"{self.kind}:{self.threshold:.15g}"
        unit = max((unit for unit in _UNITS if self.width_ns % _UNITS[unit] == 0), key=lambda unit: _UNITS[unit])
        return f"{self.width_ns // _UNITS[unit]}{unit}"


def as_frames(frames: Sequence[BarFrame | str]) -> dict[str, BarFrame]:
    """Frames by name, the text itself where they are given as text; ConfigError if none, or one is there twice."""
    found = {frame if isinstance(frame, str) else frame.name: BarFrame.parse(frame) if isinstance(frame, str)
             else frame for frame in frames}  # fmt: skip
    if not frames or len(set(found.values())) != len(frames):
        raise ConfigError(f"bar frames {list(found) or 'empty'}: give at least one, each once")
    return found


def new_states(frames: Sequence[BarFrame]) -> AnyArray:
    """State (F,) of `tick_bars_kernels.FRAME` before the first tick."""
    states = np.zeros(len(frames), kernels.FRAME)
    for state, frame in zip(states, frames, strict=True):
        state["kind"], state["width"] = _KINDS[frame.kind], max(frame.width_ns, 1)
        state["threshold"], state["multiplier"] = frame.threshold, frame.multiplier
    states["end"] = states["last_ts"] = np.iinfo(np.int64).min
    states["factor"] = 1.0
    return states


@dataclass(frozen=True)
class BarSeries:
    """Closed bars of one frame as parallel arrays of length n.

    Prices carry the roll factor (raw price = price / factor at the close). volume is NaN where no size was known.
    first_row, last_row: places of the first and last accepted tick, counted from the first tick ever given.
    flow: further columns (n,), see `flow`. late, invalid: ticks dropped so far, by this frame's rules.
    open_start: ts_open of the bar still open at the end of the input, None without one.
    """

    frame: BarFrame
    ts_open: IntArray
    ts_close: IntArray
    open: FloatArray
    high: FloatArray
    low: FloatArray
    close: FloatArray
    volume: FloatArray
    count: IntArray
    factor: FloatArray
    contract: Int32Array
    first_row: IntArray
    last_row: IntArray
    late: int = 0
    invalid: int = 0
    open_start: int | None = None
    flow: dict[str, FloatArray] = field(default_factory=dict)

    @classmethod
    def of_records(cls, frame: BarFrame, parts: Sequence[AnyArray], state: AnyArray) -> BarSeries:
        """From consecutive records of `tick_bars_kernels.TICK_BAR` and the frame's state after them."""
        parts = parts or [np.zeros(0, kernels.TICK_BAR)]
        names = kernels.TICK_BAR.names or ()
        columns: dict[str, Any] = {name: np.concatenate([part[name] for part in parts]) for name in names}
        columns["contract"] = columns["contract"].astype(np.int32)
        start = int(state["start"]) if state["is_open"] else None
        return cls(frame, **columns, late=int(state["late"]), invalid=int(state["invalid"]), open_start=start)

    def __len__(self) -> int:
        return int(self.ts_open.size)

    def to_bars(self) -> Bars:
        """A clock frame's bars as source bars; ConfigError for others.

        Where the factor moved, prices are continuous already, so no contract code is passed on that would adjust
        them again; with `adjust=False` prices are raw and the codes go with them.
        """
        if self.frame.kind != "clock":
            raise ConfigError(f"bars {self.frame.name} have no width; only clock frames become source bars")
        raw = bool((self.factor == 1.0).all())
        contract = self.contract if raw else np.zeros(len(self), np.int32)
        return Bars(self.ts_open, self.open, self.high, self.low, self.close, self.volume, self.frame.width_ns,
                    contract)  # fmt: skip
