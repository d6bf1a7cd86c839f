"""The columns of order flow for bars of any frame, information bars included; batch and tick by tick.

The columns are those of `flow`. The trades of a bar are exactly those that the bar was built from; `session_delta`
counts from the start of the trading day of the bar's last trade. Receive times are not looked at: what is in the
bar is in its flow.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numba as nb
import numpy as np

from algospace.errors import InputError
from algospace.features import flow_kernels as kernels
from algospace.features.bar_frames import BarFrame, BarSeries
from algospace.features.flow import FlowState, Sides, state_for
from algospace.features.tick_bars import BarBuilder, ClosedBar, plain
from algospace.features.unowned import unowned
from algospace.instruments import Instrument
from algospace.types import AnyArray, FloatArray, IntArray, Ticks


@nb.njit(cache=True)
def _begin(bars: Any) -> None:
    kernels.begin_bar(bars[0], bars[1], 0, bars[1].day)


@nb.njit(cache=True)
def _take(
    state: Any, bars: Any, params: Any, ts: int, price: float, size: float, bid: float, ask: float, aggressor: int,
    contract: int,
) -> None:  # fmt: skip
    """An accepted trade into the open bar."""
    day = kernels.day_of(ts + 1, params)
    if day != bars[0].day:
        bars[0].day, bars[0].delta = day, 0.0
    kernels.add_trade(state[0], bars[0], params.sides, ts, price, size, bid, ask, aggressor, contract)


@nb.njit(cache=True)
def _finish(bars: Any, params: Any, out: FloatArray) -> None:
    kernels.finish_bar(bars[0], bars[1])
    bars[1] = bars[0]
    kernels.write_row(bars[1], True, bars[1].day, params.tick_size, out)


@nb.njit(cache=True)
def _run(
    state: Any, bars: Any, params: Any, clock: bool, ts_open: IntArray, ts_close: IntArray, first: IntArray,
    last: IntArray, ts: IntArray, price: FloatArray, size: FloatArray, bid: FloatArray, ask: FloatArray,
    aggressor: AnyArray, contract: AnyArray, out: FloatArray,
) -> None:  # fmt: skip
    """Bars (n,) of ticks (m,) into out (n, columns); ticks between first and last that the frame dropped are not
    counted, by the rules of `tick_bars_kernels.push`."""
    state, bars, params = unowned(state), unowned(bars), unowned(params)
    trade = state[0]
    past = kernels.REFUSED
    for j in range(ts_open.size):
        _begin(bars)
        past = ts_open[j] if clock else past
        for i in range(first[j], last[j] + 1):
            impossible = not (price[i] > 0.0 and price[i] < np.inf) or size[i] < 0.0 or size[i] == np.inf
            if impossible or ts[i] < past or (trade.started and ts[i] + params.max_disorder < trade.last_ts):
                continue
            _take(state, bars, params, ts[i], price[i], size[i], bid[i] if bid.size else np.nan,
                  ask[i] if ask.size else np.nan, aggressor[i] if aggressor.size else 0,
                  contract[i] if contract.size else 0)  # fmt: skip
        _finish(bars, params, out[j])
        past = ts_close[j]


def with_flow(
    ticks: Ticks, series: BarSeries, instrument: Instrument | None = None, *,
    sides: Sides | Literal["auto"] | None = "auto", max_disorder_ns: int = 0,
) -> BarSeries:  # fmt: skip
    """The bars that `build_bars` made of these ticks, from their first on, with the flow columns that they allow.

    `max_disorder_ns` as for the bars. InputError if the bars reach beyond the ticks.
    """
    if len(series) and series.last_row[-1] >= len(ticks):
        raise InputError("bars", f"they were built from more than these {len(ticks)} ticks", "give the same ticks")
    flow = state_for(ticks, 1, instrument, sides=sides, max_disorder_ns=max_disorder_ns)
    out = np.empty((len(series), len(kernels.COLUMNS)))
    none = np.zeros(0)
    _run(
        flow.trade, flow.bars, flow.params, series.frame.kind == "clock", series.ts_open, series.ts_close,
        series.first_row, series.last_row, plain(ticks.ts, np.int64), plain(ticks.price, np.float64),
        plain(ticks.size, np.float64), plain(none if ticks.bid is None else ticks.bid, np.float64),
        plain(none if ticks.ask is None else ticks.ask, np.float64),
        plain(none if ticks.aggressor is None else ticks.aggressor, np.int8),
        plain(none if ticks.contract is None else ticks.contract, np.int32), out,
    )  # fmt: skip
    return replace(series, flow={name: out[:, kernels.COLUMNS.index(name)].copy() for name in flow.columns})


class FlowBarBuilder:
    """Bars of one frame with their flow, tick by tick; equal to `build_bars` and `with_flow` to the bit."""

    def __init__(
        self, frame: BarFrame | str, sides: Sides | None = None, quotes: bool = False,
        instrument: Instrument | None = None, *, max_disorder_ns: int = 0,
    ) -> None:  # fmt: skip
        self._builder = BarBuilder([frame], max_disorder_ns=max_disorder_ns)
        self._clock = self._builder.frames[0].kind == "clock"
        self._flow = FlowState(1, sides, quotes, instrument, max_disorder_ns=max_disorder_ns)
        self.columns = self._flow.columns
        self._row = np.empty(len(kernels.COLUMNS))
        _begin(self._flow.bars)

    def push(
        self, ts: int, price: float, size: float = float("nan"), bid: float = float("nan"),
        ask: float = float("nan"), aggressor: int = 0, contract: int = 0,
    ) -> list[tuple[ClosedBar, dict[str, float]]]:  # fmt: skip
        """Take one trade; the bar that it closes, if any, with its flow."""
        closed = self._builder.push(ts, price, size, contract)
        # a clock bar ends before the trade that closes it, an information bar with it
        found = self._finished(closed) if self._clock else []
        if self._builder.accepted[0]:
            _take(self._flow.trade, self._flow.bars, self._flow.params, ts, float(price), float(size), float(bid),
                  float(ask), aggressor, contract)  # fmt: skip
        return found if self._clock else self._finished(closed)

    def advance(self, now: int) -> list[tuple[ClosedBar, dict[str, float]]]:
        """The clock says `now` (ns UTC): the clock bar that it closes, if any, with its flow."""
        return self._finished(self._builder.advance(now))

    def _finished(self, closed: list[ClosedBar]) -> list[tuple[ClosedBar, dict[str, float]]]:
        found = []
        for bar in closed:
            _finish(self._flow.bars, self._flow.params, self._row)
            _begin(self._flow.bars)
            found.append((bar, self._flow.values(self._row)))
        return found
