"""Ticks to bars of any frames at once: `build_bars` for history, `BarBuilder` for live, one result to the bit.

Every frame follows the acceptance and roll rules of `bars.push_tick` by itself, so that its bars do not depend on
which other frames are asked for: invalid ticks and late ones are counted and dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from algospace.errors import ConfigError, InputError
from algospace.features import tick_bars_kernels as kernels
from algospace.features.bar_frames import BarFrame, BarSeries, as_frames, new_states
from algospace.features.checks import check_contracts
from algospace.snapshots import pack_arrays, unpack_arrays
from algospace.types import AnyArray, Ticks

_ROOM = 1 << 14  # bars of a frame between two visits to Python; well above a block
_SNAPSHOT_VERSION = 1


class ClosedBar(NamedTuple):
    """One bar that an event closed; fields as in `BarSeries`."""

    frame: str
    ts_open: int
    ts_close: int
    open: float
    high: float
    low: float
    close: float
    volume: float
    count: int  # type: ignore[assignment]  # of ticks; hides tuple.count, which nobody asks of a bar
    factor: float
    contract: int
    first_row: int
    last_row: int


class BarBuilder:
    """Bars of several frames from one stream of ticks, tick by tick (`push`) or block by block (`extend`).

    max_disorder_ns: how much older than the last accepted tick a tick may be. adjust: scale prices over rolls
    (False: raw prices). `rows` counts the ticks given, dropped ones too.
    """

    def __init__(
        self, frames: Sequence[BarFrame | str], *, max_disorder_ns: int = 0, adjust: bool = True
    ) -> None:
        named = as_frames(frames)
        self.names, self.frames = tuple(named), tuple(named.values())
        self.rows = 0
        self._max_disorder, self._adjust = max_disorder_ns, adjust
        if max_disorder_ns < 0:
            raise ConfigError(f"max_disorder_ns {max_disorder_ns}: use 0 or more")
        self._states = new_states(self.frames)
        self._closed_bars = np.zeros(len(self.frames), kernels.TICK_BAR)
        self._closed_frames = np.zeros(len(self.frames), np.int64)

    @property
    def late(self) -> dict[str, int]:
        """Ticks dropped by each frame because their bar had closed or they were out of order."""
        return dict(zip(self.names, self._states["late"].tolist(), strict=True))

    @property
    def invalid(self) -> dict[str, int]:
        """Ticks dropped by each frame because a price or size broke a rule."""
        return dict(zip(self.names, self._states["invalid"].tolist(), strict=True))

    @property
    def accepted(self) -> list[bool]:
        """By frame, whether it took the last tick that was given to `push`."""
        return [bool(state["started"] and state["last_row"] == self.rows - 1) for state in self._states]

    def push(self, ts: int, price: float, size: float = float("nan"), contract: int = 0) -> list[ClosedBar]:
        """Take one tick (size NaN where unknown); the bars that it closes, in the order of the frames."""
        row = self.rows
        self.rows = row + 1
        n = kernels.push_all(
            self._states, self._closed_bars, self._closed_frames, self._max_disorder, self._adjust, row, ts,
            float(price), float(size), contract,
        )  # fmt: skip
        return self._emit(n) if n else []

    def advance(self, now: int) -> list[ClosedBar]:
        """The clock says `now` (ns UTC, after the grace period): the clock bars that it closes."""
        return self._emit(kernels.advance_all(self._states, self._closed_bars, self._closed_frames, now))

    def _emit(self, n: int) -> list[ClosedBar]:
        frames = self._closed_frames[:n].tolist()
        bars = self._closed_bars[:n].tolist()
        return [ClosedBar(self.names[k], *bar) for k, bar in zip(frames, bars, strict=True)]

    def extend(self, ticks: Ticks) -> dict[str, BarSeries]:
        """Take a block of ticks in compiled code; by name of the frame the bars that it closes."""
        ts = plain(ticks.ts, np.int64)
        price, size = plain(ticks.price, np.float64), plain(ticks.size, np.float64)
        contract = plain(np.zeros(0, np.int32) if ticks.contract is None else ticks.contract, np.int32)
        out = np.empty((len(self.frames), _ROOM), kernels.TICK_BAR)
        parts: list[list[AnyArray]] = [[] for _ in self.frames]
        done = 0
        while done < ts.size:
            sizes = np.zeros(len(self.frames), np.int64)
            done = kernels.run(
                self._states, out, sizes, self._max_disorder, self._adjust, self.rows, done, ts, price,
                price.view(np.int64), size, size.view(np.int64), contract,
            )  # fmt: skip
            for k, n in enumerate(sizes):
                parts[k].append(out[k, :n].copy())
        self.rows += ts.size
        return {
            name: BarSeries.of_records(self.frames[k], parts[k], self._states[k])
            for k, name in enumerate(self.names)
        }

    def snapshot(self) -> bytes:
        """The whole state; a builder of the same settings that restores it continues to the bit."""
        return pack_arrays(self._identity(), self._parts())

    def restore(self, snapshot: bytes) -> None:
        """Continue from `snapshot`; SchemaError if it belongs to other settings."""
        arrays = unpack_arrays(self._identity(), snapshot, "bar state", self._parts())
        self._states[:] = arrays["states"]
        self.rows = int(arrays["rows"][0])

    def _parts(self) -> dict[str, AnyArray]:
        return {"states": self._states, "rows": np.array([self.rows])}

    def _identity(self) -> dict[str, Any]:
        frames = [[frame.name, frame.multiplier] for frame in self.frames]
        return {"bars": _SNAPSHOT_VERSION, "frames": frames,
                "max_disorder_ns": self._max_disorder, "adjust": self._adjust}  # fmt: skip


def build_bars(
    ticks: Ticks, frames: Sequence[BarFrame | str], *, max_disorder_ns: int = 0, adjust: bool = True
) -> dict[str, BarSeries]:
    """Bars of every frame from a history of ticks in one pass, by name of the frame (as written, if as text).

    InputError if volume or dollar bars are asked of ticks without sizes, or if contracts trade side by side;
    ConfigError for an impossible frame.
    """
    check_contracts(ticks)
    builder = BarBuilder(frames, max_disorder_ns=max_disorder_ns, adjust=adjust)
    # of a whole history: a block of one that begins with ticks of unknown size is no fault
    needy = [frame.name for frame in builder.frames if frame.kind in ("volume", "dollar")]
    if needy and len(ticks) and np.isnan(ticks.size).all():
        raise InputError("ticks", f"no tick has a size, bars {needy[0]} need one", "use clock or tick bars")
    return builder.extend(ticks)


def plain(column: AnyArray, dtype: Any) -> AnyArray:
    """Contiguous, of that type, read-only: compiled code sees one type whatever the source."""
    view = np.ascontiguousarray(column, dtype).view()
    view.flags.writeable = False
    return view
