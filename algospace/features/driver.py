"""The drivers of the compiled step: `build` for history, `FeatureStream` for live and for blocks of history."""

from __future__ import annotations

import math
import mmap
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from algospace.errors import InputError, SchemaError, UserError
from algospace.features import columns, pipeline
from algospace.features.bars import SourceBar
from algospace.features.checks import check_bars, check_contracts, check_width
from algospace.features.config import FeatureConfig
from algospace.features.indicator import Indicator, bars_of_rows, check_names, digest_with
from algospace.features.table import FeatureTable
from algospace.instruments import Instrument
from algospace.snapshots import pack_arrays, unpack_all
from algospace.types import MINUTE_NS, AnyArray, Bars, FloatArray, IntArray, Ticks

# Source rows per compiled call: bounds the copies made of the input, and is far above the call's overhead.
_BLOCK = 1 << 16
_NUMPY_HUGE = 1 << 22  # bytes


class FeatureRow(NamedTuple):
    """One emitted base row: `base` (columns,) in the order of `FeatureStream.base_columns`, and the 30-minute rows
    that first became visible with it: `ts_close_30m` (k,), `slow` (k, columns), k usually 0 or 1."""

    ts_close: int
    filled: bool
    contract: int
    row_30m: int
    base: FloatArray
    ts_close_30m: IntArray
    slow: FloatArray


class FeatureStream:
    """Feature rows of one instrument, event by event or block by block, over one state.

    A row is emitted once its bar has closed; a bar still open is not. Late and invalid events change nothing and
    are counted in `late` and `invalid`. `source_width_ns`: width of the bars given to `push`. `indicators` add
    their columns after the built-in ones of every base row.
    """

    def __init__(
        self, instrument: Instrument, config: FeatureConfig | None = None, source_width_ns: int = MINUTE_NS,
        indicators: Sequence[Indicator] = (),
    ) -> None:  # fmt: skip
        self.instrument = instrument
        self.config = config or FeatureConfig()
        self.indicators = (*_library(self.config, instrument), *indicators)
        self._built_in = columns.base_columns(self.config.regime)
        check_names(self._built_in, self.indicators)
        self.base_columns = (*self._built_in, *(name for i in self.indicators for name in i.columns))
        # the library counts by its columns and version, however the configuration asks for them
        plain = self.config.model_copy(update={"library": ()})
        self.digest = digest_with(plain.digest(), self.indicators)
        self._indicator_states = [indicator.new_state() for indicator in self.indicators]
        self.slow_columns = columns.slow_columns(self.config.regime)
        self._source_width = source_width_ns
        self._params = pipeline.new_params(self.config, instrument)
        check_width(source_width_ns, self._params.width)
        self._state = pipeline.new_state(self.config, instrument)
        self._event_rows = self._params.max_fill + 2
        self._out = pipeline.new_output(self.config, self._event_rows, 2 * self._event_rows)
        self._failure: str | None = None

    @property
    def late(self) -> int:
        """Events dropped because their bar had closed or they were out of order."""
        return int(self._state.generator["late"][0])

    @property
    def invalid(self) -> int:
        """Events dropped because a price or size broke a rule."""
        return int(self._state.generator["invalid"][0])

    def push(self, bar: SourceBar) -> list[FeatureRow]:
        """Take one source bar, known at its close; the rows of all base bars that it completes."""
        return self._event(pipeline.BARS, bar)

    def push_tick(self, ts: int, price: float, size: float = float("nan"), contract: int = 0) -> list[FeatureRow]:
        """Take one trade print; the rows of all base bars that it completes."""
        return self._event(pipeline.TICKS, SourceBar(ts, price, price, price, price, size, contract))

    def advance(self, now: int) -> list[FeatureRow]:
        """The clock says `now` (ns UTC, after the grace period): close the open bar if it has ended."""
        return self._event(pipeline.CLOCK, SourceBar(now, 0.0, 0.0, 0.0, 0.0))

    def extend(self, bars: Bars) -> FeatureTable:
        """A block of history in compiled code; the rows that it completes. Blocks follow each other in time."""
        check_bars(bars, self._params.width)
        arrays = (bars.ts_open, bars.open, bars.high, bars.low, bars.close, bars.volume, bars.contract)
        return self._history(pipeline.BARS, bars.width_ns, arrays)

    def extend_ticks(self, ticks: Ticks, contract: int = 0) -> FeatureTable:
        """A block of ticks in compiled code; the rows that it completes."""
        code = np.broadcast_to(np.int32(contract), ticks.ts.shape) if ticks.contract is None else ticks.contract
        price = ticks.price
        return self._history(pipeline.TICKS, 0, (ticks.ts, price, price, price, price, ticks.size, code))

    def _event(self, kind: int, event: SourceBar) -> list[FeatureRow]:
        self._make_room(self._event_rows, self._event_rows + 1)
        arrays = [np.array([value], dtype) for value, dtype in zip(event, _DTYPES, strict=True)]
        pipeline.run(self._state, self._params, self._out, kind, self._source_width, *arrays)
        return self._emitted()

    def _history(self, kind: int, source_width: int, arrays: Sequence[AnyArray]) -> FeatureTable:
        bounds = [self._bound_rows(block[0]) for block in _blocks(arrays[:1])]
        out = self._output(*(sum(column) for column in zip(*bounds, strict=True)))
        for block, rows in zip(_blocks(arrays), bounds, strict=True):
            self._make_room(*rows)
            pipeline.run(self._state, self._params, out, kind, source_width, *block)
        return self._table(out)

    def _output(self, base_rows: int, slow_rows: int) -> pipeline.Output:
        """`pipeline.new_output` for a history, its large arrays in pages of their own."""
        out = pipeline.new_output(self.config, 0, 0)
        columns_of = {name: array for name, array in out._asdict().items() if name != "size"}
        rows_of = {name: slow_rows if name in ("ts_close_30m", "slow") else base_rows for name in columns_of}
        return out._replace(**{name: _pages((*array.shape[:-1], rows_of[name]), array.dtype)
                               for name, array in columns_of.items()})  # fmt: skip

    def snapshot(self) -> bytes:
        """The whole state; a stream of the same configuration that restores it continues to the bit."""
        self._require_sound()
        return pack_arrays(self._identity(), self._saved())

    def _saved(self) -> dict[str, AnyArray]:
        """All arrays of the state by name."""
        arrays: dict[str, AnyArray] = {}
        _flatten(self._state, "", arrays)
        for number, state in enumerate(self._indicator_states):
            _flatten(state, f"indicator{number}", arrays)
        used = int(self._state.mlmi.scalars["chunks"][0])
        arrays["mlmi.points"] = arrays["mlmi.points"][:used]
        # scratch of the last query, as long as the points: left out, so that equal states are equal bytes
        for name in ("distances", "near_labels", "selection"):
            arrays[f"mlmi.{name}"] = np.zeros(used, arrays[f"mlmi.{name}"].dtype)
        return arrays

    def restore(self, snapshot: bytes) -> None:
        """Continue from `snapshot`; SchemaError if it belongs to another configuration or instrument, or was saved
        by a version whose state has another layout."""
        arrays = unpack_all(self._identity(), snapshot, "feature state")
        if _layout(arrays) != _layout(self._saved()):
            raise SchemaError("feature state: it was saved by another version; build it anew from history")
        self._state = _unflatten(self._state, "", arrays)
        self._indicator_states = [_unflatten(state, f"indicator{number}", arrays)
                                  for number, state in enumerate(self._indicator_states)]
        self._failure = None

    def _require_sound(self) -> None:
        """UserError once an indicator has failed: it, or the ones after it, have missed bars, and all later rows
        would differ from history."""
        if self._failure is not None:
            raise UserError(f"features of {self.instrument.symbol} stopped when an indicator failed "
                            f"({self._failure}); repair it, then restore a snapshot or start from history")

    def _identity(self) -> dict[str, Any]:
        return {"symbol": self.instrument.symbol, "config": self.digest}

    def _make_room(self, base_rows: int, slow_rows: int) -> None:
        self._require_sound()
        self._state = pipeline.with_room(self._state, base_rows, slow_rows)

    def _bound_rows(self, ts: IntArray) -> tuple[int, int]:
        """At least as many base and 30-minute rows as a block at `ts` can emit, wherever the one before ended."""
        p = self._params
        # the gap before the block, and the bars that were open before it, may add rows
        extra = p.max_fill + 2
        filled_hours = p.max_fill * p.width // p.slow_width + 1
        base = pipeline.bound_rows(ts, p.width, p.max_fill) + extra
        slow = pipeline.bound_rows(ts, p.slow_width, filled_hours) + filled_hours + extra
        return int(base), int(slow)

    def _emitted(self) -> list[FeatureRow]:
        out = self._out
        n, m = (int(size) for size in out.size)
        further = self._further_columns(out)
        out.size[:] = 0
        first_slow = int(self._state.rows[1]) - m
        rows, taken = [], 0
        for i in range(n):
            visible = int(out.row_30m[i]) + 1 - first_slow
            rows.append(
                FeatureRow(
                    int(out.ts_close[i]), bool(out.filled[i]), int(out.contract[i]), int(out.row_30m[i]),
                    np.concatenate([out.base[:, i], *(values[:, i] for values in further)]),
                    out.ts_close_30m[taken:visible].copy(),
                    np.ascontiguousarray(out.slow[:, taken:visible].T),
                )
            )  # fmt: skip
            taken = visible
        return rows

    def _further_columns(self, out: pipeline.Output) -> list[FloatArray]:
        """Per indicator (columns, n): its values at the n base rows in `out`."""
        n = int(out.size[0])
        if n == 0 or not self.indicators:
            return []
        parts = []
        for start in range(0, n, _BLOCK):
            rows = slice(start, min(start + _BLOCK, n))
            bars = bars_of_rows(out.ts_close[rows], out.contract[rows], out.base[:, rows])
            try:
                # copies, because an indicator may write to its bar
                parts.append([indicator.history(state, bars.copy()) for indicator, state
                              in zip(self.indicators, self._indicator_states, strict=True)])  # fmt: skip
            except Exception as error:
                out.size[:] = 0  # or the next event would find these rows there
                self._failure = str(error)
                raise
        return [np.concatenate(blocks, axis=1) for blocks in zip(*parts, strict=True)]

    def _table(self, out: pipeline.Output) -> FeatureTable:
        n, m = (int(size) for size in out.size)
        base = {name: out.base[c, :n] for c, name in enumerate(self._built_in)}
        for indicator, values in zip(self.indicators, self._further_columns(out), strict=bool(n)):
            base |= dict(zip(indicator.columns, values, strict=True))
        if n == 0:
            base |= {name: np.zeros(0) for name in self.base_columns[len(self._built_in):]}
        return FeatureTable(
            self.instrument.symbol, out.ts_close[:n], out.filled[:n], out.contract[:n],
            base, out.ts_close_30m[:m],
            {name: out.slow[c, :m] for c, name in enumerate(self.slow_columns)}, out.row_30m[:n], self.digest,
        )  # fmt: skip


def build(
    bars: Bars, instrument: Instrument, config: FeatureConfig | None = None, indicators: Sequence[Indicator] = ()
) -> FeatureTable:
    """The feature table of a history of source bars; InputError names the first row that breaks a rule."""
    return FeatureStream(instrument, config, bars.width_ns, indicators).extend(bars)


def build_from_ticks(
    ticks: Ticks, instrument: Instrument, config: FeatureConfig | None = None, indicators: Sequence[Indicator] = ()
) -> FeatureTable:
    """The feature table of a history of ticks; a warning counts late and invalid ticks, which are dropped."""
    if len(ticks) == 0:
        raise InputError("ticks", "no ticks", "give a range that holds data")
    check_contracts(ticks)
    stream = FeatureStream(instrument, config, indicators=indicators)
    table = stream.extend_ticks(ticks)
    if stream.late or stream.invalid:
        warnings.warn(f"{stream.late} late and {stream.invalid} invalid ticks dropped", stacklevel=2)
    return table


def concatenate(tables: Sequence[FeatureTable]) -> FeatureTable:
    """Tables of consecutive blocks of one stream (`FeatureStream.extend`) as one table."""
    first = tables[0]

    def join(name: str) -> Any:
        return np.concatenate([getattr(table, name) for table in tables])

    return FeatureTable(
        first.symbol, join("ts_close"), join("filled"), join("contract"),
        {name: np.concatenate([table.base[name] for table in tables]) for name in first.base},
        join("ts_close_30m"),
        {name: np.concatenate([table.slow[name] for table in tables]) for name in first.slow},
        join("row_30m"), first.config_digest,
    )  # fmt: skip


def _library(config: FeatureConfig, instrument: Instrument) -> list[Indicator]:
    """The general library as the configuration wants it."""
    if not config.library:
        return []
    from algospace.features.library import library_indicator  # it needs this package

    return [library_indicator(None if config.library == ("all",) else config.library, instrument)]


# Of an event: ts, open, high, low, close, volume, contract.
_DTYPES: tuple[Any, ...] = (np.int64, *[np.float64] * 5, np.int32)


def _pages(shape: tuple[int, ...], dtype: Any) -> AnyArray:
    """`np.empty` in ordinary pages.

    numpy asks for huge pages from 4 MB on, for which the kernel compacts its memory where it is fragmented: the
    first touch of eleven years of columns then took 0.5 to 0.7 s of a second's work, in ordinary pages 0.1 to 0.2.
    """
    size = math.prod(shape)
    nbytes = size * np.dtype(dtype).itemsize
    if nbytes < _NUMPY_HUGE:
        return np.empty(shape, dtype)
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(memory, dtype, size).reshape(shape)


def _blocks(arrays: Sequence[AnyArray]) -> Iterator[list[AnyArray]]:
    """Consecutive blocks as writable contiguous copies: compiled code sees one type whatever the source."""
    for start in range(0, arrays[0].size, _BLOCK):
        part = slice(start, start + _BLOCK)
        yield [np.array(array[part], dtype) for array, dtype in zip(arrays, _DTYPES, strict=False)]


def _layout(arrays: dict[str, AnyArray]) -> dict[str, object]:
    """Names and types of the arrays of a snapshot; some lengths are the history's."""
    return {name: (array.dtype, array.ndim) for name, array in arrays.items()}


def _flatten(node: Any, name: str, into: dict[str, AnyArray]) -> None:
    if isinstance(node, np.ndarray):
        into[name] = node
        return
    for field in node._fields:
        _flatten(getattr(node, field), f"{name}.{field}" if name else field, into)


def _unflatten(template: Any, name: str, arrays: dict[str, AnyArray]) -> Any:
    if isinstance(template, np.ndarray):
        return arrays[name].view(template.dtype)  # a file forgets that records are aligned
    return type(template)(
        *(_unflatten(getattr(template, f), f"{name}.{f}" if name else f, arrays) for f in template._fields)
    )
