"""A user's own indicator in one file: loading it, and holding it to the rules while it runs.

Step form: the file defines `INDICATOR = Indicator(...)`, a causal step over base bars, for history and live.
Frame form, for research: a function `compute(bars: DataFrame) -> DataFrame | Series` over the whole history, which
may look ahead without meaning to (`algospace check lookahead` tells); live refuses it. Where a file has both, the
step form counts. The version of the columns is the SHA-256 of the file's bytes.

Every fault in the file is a UserError of one line with file and line number.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numba as nb
import numpy as np
import pandas as pd
from numba.core.dispatcher import Dispatcher

from algospace.errors import InputError, UserError
from algospace.features import own_faults as faults
from algospace.features.config import FeatureConfig
from algospace.features.driver import build
from algospace.features.indicator import Indicator
from algospace.features.table import FeatureTable
from algospace.instruments import Instrument
from algospace.types import AnyArray, Bars, FloatArray, IntArray

_STEP, _FRAME = "INDICATOR", "compute"
_DIGITS = 12  # of the version in a module's name
# Room beside a compiled row, where a write past its end lands and is seen: compiled code checks no bounds.
_EDGE = 64
_UNTOUCHED = -6.02214076e23


class GuardedState(NamedTuple):
    """The state of a user's indicator and what the guard remembers: bars seen (1,), columns that have had a value
    (k,)."""

    seen: IntArray
    alive: AnyArray
    own: Any


@dataclass(frozen=True)
class OwnIndicator(Indicator):
    """A guarded step indicator of a user's file. It travels to other processes as the file's bytes."""

    path: str = ""
    source: bytes = b""

    def __reduce__(self) -> tuple[Any, ...]:
        return _defined_by, (self.path, self.source)


@dataclass(frozen=True)
class FrameIndicator:
    """A vectorised function over the whole history of base bars, one row per `ts_close` (the index, UTC): open,
    high, low, close (roll-adjusted), volume, filled, roll_factor, contract. For research; live refuses it."""

    name: str
    path: str
    line: int
    version: str
    compute: Callable[[pd.DataFrame], Any]
    source: bytes = b""

    @property
    def columns(self) -> tuple[str, ...]:
        """UserError: asked for by streams, where a function over the whole history cannot run."""
        raise self.refusal()

    def anew(self) -> FrameIndicator:
        """The same from its file, with nothing remembered of earlier runs."""
        again = _defined_by(self.path, self.source) if self.source else self
        assert isinstance(again, FrameIndicator)
        return again

    def refusal(self) -> UserError:
        """Why a stream does not take it."""
        return UserError(f"{self.path}, line {self.line}: compute() works on history only; for a stream write the "
                         f"step form, INDICATOR = Indicator(...), see docs/own-indicators.md")

    def values(self, table: FeatureTable) -> dict[str, FloatArray]:
        """Its columns (n,) over the bars of `table`; UserError names the line where it failed."""
        if len(table) == 0:
            return {}
        frame = bars_frame(table)
        try:
            result = self.compute(frame.copy())
        except Exception as error:
            raise faults.in_file(self.path, error, f"compute() over {len(table)} bars") from error
        return self._checked(result, frame)

    def _checked(self, result: Any, frame: pd.DataFrame) -> dict[str, FloatArray]:
        where = f"{self.path}, line {self.line}"
        if isinstance(result, pd.Series):
            # `bars.close.diff()` is still called "close": then the file gives the name
            own = isinstance(result.name, str) and result.name not in frame.columns
            result = result.to_frame(result.name if own else self.name)
        if not isinstance(result, pd.DataFrame):
            raise UserError(f"{where}: compute() returned {type(result).__name__}; return a DataFrame or a Series")
        if not result.index.equals(frame.index):
            raise UserError(f"{where}: compute() returned {len(result)} rows with another index than its "
                            f"{len(frame)} bars; keep the index of the bars")
        clash = sorted(set(map(str, result.columns)) & set(frame.columns))
        if clash or result.columns.has_duplicates:
            name = clash[0] if clash else str(result.columns[result.columns.duplicated()][0])
            raise UserError(f"{where}: compute() returned a column '{name}' that exists already; rename it")
        try:
            return {str(name): result[name].to_numpy(np.float64, na_value=np.nan) for name in result}
        except (TypeError, ValueError) as error:
            raise UserError(f"{where}: compute() returned values that are no numbers ({error})") from None


def bars_frame(table: FeatureTable) -> pd.DataFrame:
    """What `compute` is given."""
    names = ("open", "high", "low", "close", "volume", "roll_factor")
    index = pd.DatetimeIndex(table.ts_close.astype("datetime64[ns]"), tz="UTC", name="ts_close")
    columns: dict[str, AnyArray] = {name: table.base[name].copy() for name in names}
    columns |= {"filled": table.filled.copy(), "contract": table.contract.copy()}
    return pd.DataFrame(columns, index=index)


def load_indicator(path: Path | str) -> Indicator | FrameIndicator:
    """The indicator that the Python file at `path` defines.

    A step indicator comes back guarded: UserError (file, line, bar) where its update raises, writes beyond its
    columns, leaves a column without a number after the column's first one, or changes the shape of its state.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(path, "no such file", "give a Python file that defines INDICATOR or compute(bars)")
    return _defined_by(str(path), path.read_bytes())


def _defined_by(name: str, source: bytes) -> Indicator | FrameIndicator:
    """What the file `name` with these bytes defines; the file itself need not be there."""
    path = Path(name)
    version = hashlib.sha256(source).hexdigest()
    module = _execute(path, source, version)
    if hasattr(module, _STEP):
        return _guarded(getattr(module, _STEP), path, source, version)
    compute = getattr(module, _FRAME, None)
    if not callable(compute):
        raise UserError(f"{path}, line 1: it defines neither INDICATOR = Indicator(...) nor a function "
                        f"compute(bars); see docs/own-indicators.md")
    line = getattr(getattr(compute, "__code__", None), "co_firstlineno", 1)
    return FrameIndicator(path.stem, str(path), line, version, compute, source)


def step_indicators(loaded: Sequence[Indicator | FrameIndicator]) -> list[Indicator]:
    """The same indicators for a live stream; UserError if one is of the frame form."""
    for indicator in loaded:
        if isinstance(indicator, FrameIndicator):
            raise indicator.refusal()
    return [indicator for indicator in loaded if isinstance(indicator, Indicator)]


def build_with_own(
    bars: Bars, instrument: Instrument, config: FeatureConfig | None = None,
    loaded: Sequence[Indicator | FrameIndicator] = (),
) -> FeatureTable:
    """The feature table with the columns of all given indicators: step forms first, then frame forms."""
    steps = [indicator for indicator in loaded if isinstance(indicator, Indicator)]
    table = build(bars, instrument, config, steps)
    for indicator in loaded:
        if isinstance(indicator, FrameIndicator):
            values = indicator.values(table)
            taken = sorted(values.keys() & table.base.keys())
            if taken:
                raise UserError(f"{indicator.path}, line {indicator.line}: its column '{taken[0]}' exists "
                                f"already; rename it")
            table = table.with_columns(values, f"{indicator.name} {indicator.version}")
    return table


def _execute(path: Path, source: bytes, version: str) -> ModuleType:
    """Run the file as a module of its own; numba and NamedTuple need it in `sys.modules`."""
    module = ModuleType(f"algospace_own_{path.stem}_{version[:_DIGITS]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        raise faults.in_file(path, error, "the file cannot be loaded") from error
    return module


def _guarded(indicator: Any, path: Path, source: bytes, version: str) -> Indicator:
    where = f"{path}, line {faults.line_of(source, _STEP)}"
    if not isinstance(indicator, Indicator):
        raise UserError(f"{where}: INDICATOR is a {type(indicator).__name__}; make it an "
                        f"algospace.features.Indicator")
    names = indicator.columns
    if isinstance(names, str) or not names or not all(isinstance(n, str) and n for n in names):
        raise UserError(f"{where}: columns is {names!r}; give a tuple of names, for example ('my_column',)")
    if len(set(names)) != len(names):
        raise UserError(f"{where}: a column is named twice in {names}; rename it")
    _check_new_state(indicator, path, where)
    guard = _Guard(replace(indicator, version=version), str(path))
    return OwnIndicator(indicator.name, indicator.columns, guard.new_state, guard.update, guard.run, version,
                        str(path), source)  # fmt: skip


def _check_new_state(indicator: Indicator, path: Path, where: str) -> None:
    try:
        first, second = indicator.new_state(), indicator.new_state()
    except Exception as error:
        raise faults.in_file(path, error, "new_state()") from error
    shapes = faults.shapes_of(first, where)
    if shapes != faults.shapes_of(second, where):
        raise UserError(f"{where}: new_state() gives another shape each time; lengths must never change")
    parts = list(faults.arrays_of(first))
    if any(np.shares_memory(a, b) for a in parts for b in faults.arrays_of(second)):
        raise UserError(f"{where}: new_state() gives the same array each time; make a new one for every stream")
    if any(np.shares_memory(a, b) for i, a in enumerate(parts) for b in parts[:i]):
        raise UserError(f"{where}: two arrays of the state share memory, and would no longer once restored; give "
                        f"each its own")


@dataclass(frozen=True)
class _Guard:
    """Runs a user's indicator and names the bar and line of its first fault."""

    indicator: Indicator
    path: str

    def new_state(self) -> GuardedState:
        alive = np.zeros(len(self.indicator.columns), np.uint8)
        return GuardedState(np.zeros(1, np.int64), alive, self.indicator.new_state())

    def update(self, state: GuardedState, bar: Any, out: FloatArray) -> None:
        bars = np.array([bar if isinstance(bar, np.void) else tuple(bar)], bar.dtype)
        values = np.full((out.size, 1), np.nan)
        self.run(state, bars, values)
        out[:] = values[:, 0]

    def run(self, state: GuardedState, bars: AnyArray, out: FloatArray) -> None:
        before = faults.shapes_of(state.own, self.path)
        if self.indicator.run is not None:
            self._try(state, bars, lambda progress: self._run_own(state, bars, out))
        elif isinstance(self.indicator.update, Dispatcher):
            self._try(state, bars, lambda progress: self._run_compiled(state, bars, out, progress))
        else:
            self._try(state, bars, lambda progress: self._run_plain(state, bars, out, progress))
        if faults.shapes_of(state.own, self.path) != before:
            first = int(state.seen[0])
            raise UserError(f"{self._where()}: update changed the length of its state between bar {first} and bar "
                            f"{first + bars.size - 1}; lengths must never change")
        self._check_values(state, bars, out)
        state.seen[0] += bars.size

    def _try(self, state: GuardedState, bars: AnyArray, work: Callable[[IntArray], None]) -> None:
        progress = np.zeros(1, np.int64)
        try:
            work(progress)
        except UserError:
            raise
        except Exception as error:
            i = int(progress[0])
            bar = faults.bar_name(int(state.seen[0]) + i, int(bars["ts_close"][i]))
            raise faults.in_file(self.path, error, f"update at {bar}", self._line()) from error

    def _run_own(self, state: GuardedState, bars: AnyArray, out: FloatArray) -> None:
        assert self.indicator.run is not None
        shape = out.shape
        self.indicator.run(state.own, bars, out)
        if out.shape != shape:
            raise ValueError(f"run changed the shape of its output to {out.shape}")

    def _run_plain(self, state: GuardedState, bars: AnyArray, out: FloatArray, progress: IntArray) -> None:
        records = bars.view(np.recarray)
        for i in range(bars.size):
            progress[0] = i
            self.indicator.update(state.own, records[i], out[:, i])

    def _run_compiled(self, state: GuardedState, bars: AnyArray, out: FloatArray, progress: IntArray) -> None:
        room = np.full(out.shape[0] + 2 * _EDGE, _UNTOUCHED)
        broken = _run_between_edges(self.indicator.update, state.own, bars, out, room, progress)
        if broken >= 0:
            bar = faults.bar_name(int(state.seen[0]) + broken, int(bars["ts_close"][broken]))
            raise UserError(f"{self._where()}: update writes beyond its {out.shape[0]} columns at {bar}; name "
                            f"every column that it writes in `columns`")

    def _check_values(self, state: GuardedState, bars: AnyArray, out: FloatArray) -> None:
        """A column is NaN in its warm-up only, and never infinite."""
        fine = np.isfinite(out)
        started = np.logical_or.accumulate(fine, axis=1) | state.alive[:, None].astype(bool)
        bad = (started & ~fine) | np.isinf(out)
        if bad.any():
            i = int(np.argmax(bad.any(axis=0)))
            column = int(np.argmax(bad[:, i]))
            bar = faults.bar_name(int(state.seen[0]) + i, int(bars["ts_close"][i]))
            raise UserError(f"{self._where()}: column '{self.indicator.columns[column]}' is "
                            f"{out[column, i]} at {bar}, after its warm-up; give a finite number from the first "
                            f"value on")
        if bars.size:
            state.alive[:] = started[:, -1]

    def _where(self) -> str:
        return f"{self.path}, line {self._line()}"

    def _line(self) -> int:
        function: Any = getattr(self.indicator.update, "py_func", self.indicator.update)
        return int(getattr(getattr(function, "__code__", None), "co_firstlineno", 1))


@nb.njit
def _run_between_edges(
    update: Any, state: Any, bars: Any, out: FloatArray, room: FloatArray, progress: IntArray
) -> int:
    """`update` over bars; the first bar at which it wrote outside its row, or -1."""
    k = out.shape[0]
    row = room[_EDGE:_EDGE + k]
    for i in range(bars.size):
        progress[0] = i
        row[:] = np.nan
        update(state, bars[i], row)
        for e in range(_EDGE):
            if room[e] != _UNTOUCHED or room[_EDGE + k + e] != _UNTOUCHED:
                return i
        out[:, i] = row
    return -1


def original(indicator: Indicator) -> Indicator:
    """The user's own indicator behind its guard; any other one as it is."""
    guard = getattr(indicator.run, "__self__", None)
    return guard.indicator if isinstance(guard, _Guard) else indicator
