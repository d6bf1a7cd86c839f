"""The windows of a walk-forward: their dates, their rows, and their market tables.

Features are computed once over the file, up to the last test's end (every column is causal); each window cuts its
stretch out of them and normalises it with the statistics of its own training rows. Between the parts of a window
`embargo_bars` rows are left out at the *end* of training and of validation, so that tests follow each other
without a gap and no window of training, nor any trade that began in it, reaches into what judges it.

    window-K/tables/           as `training.dataset` leaves them: `algospace export --checkpoint window-K` works
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from algospace import __version__
from algospace.errors import ConfigError
from algospace.features import FeatureTable, build
from algospace.features.market_table import FORMAT as TABLE_FORMAT
from algospace.features.matrices import Normaliser, assemble
from algospace.files import atomic_directory, write_json
from algospace.instruments import instrument
from algospace.marketdata import read_source
from algospace.types import Bars
from training.config import FileMarketConfig, RunConfig
from training.dataset import Dataset, data_path, nanoseconds, open_dataset
from training.walk_forward.config import WalkForwardRun

_MANIFEST = "dataset.json"
SayFn = Callable[[str], None]


@dataclass(frozen=True)
class Window:
    """One window; `number` counts from 1. `config` is what `algospace train` would take for it.

    Times are UTC ns: training [start, train_until), validation up to `validation_until`, test up to `test_until`.
    """

    number: int
    config: RunConfig
    start: int
    train_until: int
    validation_until: int
    test_until: int

    @property
    def name(self) -> str:
        """Folder of the window."""
        return f"window-{self.number}"

    def dates(self) -> dict[str, str]:
        """The window's dates for people."""
        times = {"start": self.start, "train_until": self.train_until,
                 "validation_until": self.validation_until, "test_until": self.test_until}
        return {name: str(pd.Timestamp(value))[:16] for name, value in times.items() if value}


def plan_windows(run: WalkForwardRun) -> list[Window]:
    """The windows that `run` describes; ConfigError where their dates do not fit together."""
    windows = [_window(run, number) for number in range(1, run.walk_forward.windows + 1)]
    for window in windows:
        times = (window.start, window.train_until, window.validation_until, window.test_until)
        if any(later <= earlier for earlier, later in pairwise(times)):
            raise ConfigError(f"walk-forward {window.name}: start, train_until, validation_until and test_until "
                              f"must follow each other, got {', '.join(window.dates().values())}")
    for before, after in pairwise(windows):
        if after.validation_until < before.test_until:
            raise ConfigError(f"the tests of {before.name} and {after.name} overlap: one ends "
                              f"{before.dates()['test_until']}, the next begins "
                              f"{after.dates()['validation_until']}; raise walk_forward.step_months "
                              f"or step_days, or shorten the test")
    return windows


def _window(run: WalkForwardRun, number: int) -> Window:
    file = run.market.file
    assert file is not None
    step = _step(run, file)
    moved = {name: _moved(getattr(file, name), step, number - 1)
             for name in ("train_until", "validation_until", "test_until")}
    rolling = run.walk_forward.training == "rolling"
    start = _moved(file.start, step, number - 1) if rolling and file.start is not None else file.start
    config = run.window_config(f"{run.name}-window-{number}", {**moved, "start": start})
    return Window(number, config, 0 if start is None else nanoseconds(start),
                  *(nanoseconds(moved[name]) for name in ("train_until", "validation_until", "test_until")))


def _step(run: WalkForwardRun, file: FileMarketConfig) -> pd.DateOffset:
    settings = run.walk_forward
    if settings.step_months or settings.step_days:
        return pd.DateOffset(months=settings.step_months, days=settings.step_days)
    assert file.test_until is not None
    return pd.DateOffset(days=(pd.Timestamp(file.test_until) - pd.Timestamp(file.validation_until)).days)


def _moved(date: str, step: pd.DateOffset, times: int) -> str:
    """`date` moved; months are counted from the first date, so that month ends do not drift."""
    nanoseconds(date)  # refuses what is no date
    moved = pd.Timestamp(date) + step * times if times else pd.Timestamp(date)
    return moved.isoformat()


def prepare_windows(run: WalkForwardRun, windows: Sequence[Window], out: Path, say: SayFn) -> list[Dataset]:
    """Every window's market table below `out`; those that are there with the same data are reused."""
    file = run.market.file
    assert file is not None
    bars = read_source(data_path(file.path), run.market.instrument)
    bars = bars.slice(0, int(np.searchsorted(bars.ts_open, windows[-1].test_until)))
    if not len(bars) or int(bars.ts_open[-1]) + bars.width_ns <= windows[-1].validation_until:
        reach = "no bar" if not len(bars) else f"bars up to {pd.Timestamp(int(bars.ts_open[-1]))}"
        raise ConfigError(f"{file.path}: {reach} before the end of the last of {len(windows)} windows, whose test "
                          f"begins {windows[-1].dates()['validation_until']}; ask for fewer windows or move the "
                          f"dates")
    digests = [_tables_hash(window, bars) for window in windows]
    missing = [(window, digest) for window, digest in zip(windows, digests, strict=True)
               if not _is_prepared(out / window.name, digest)]
    if missing:
        say(f"data: features of {len(bars):,} bars of {run.market.instrument}, shared by {len(windows)} windows")
        features = build(bars, instrument(run.market.instrument), run.features)
        for window, digest in missing:
            say(f"data: tables of {window.name}")
            write_tables(window, features, out / window.name, digest)
    else:
        say(f"data: reusing the tables of {len(windows)} windows (same data and configuration)")
    return [open_dataset(out / window.name) for window in windows]


def _is_prepared(folder: Path, digest: str) -> bool:
    manifest = folder / "tables" / _MANIFEST
    return manifest.is_file() and bool(json.loads(manifest.read_text())["hash"] == digest)


def _tables_hash(window: Window, bars: Bars) -> str:
    """What a window's tables depend on: its dates, the settings, and every bar before its test's end."""
    config = window.config
    digest = hashlib.sha256(b"walk-forward")
    for part in (config.market, config.features, config.matrices):
        digest.update(part.digest().encode())
    digest.update(f"{config.embargo_bars} {__version__} {TABLE_FORMAT}".encode())
    stop = int(np.searchsorted(bars.ts_open, window.test_until))
    for array in (bars.ts_open, bars.open, bars.high, bars.low, bars.close, bars.volume, bars.contract):
        digest.update(np.ascontiguousarray(array[:stop]).data)
    return digest.hexdigest()


def write_tables(window: Window, features: FeatureTable, folder: Path, digest: str) -> None:
    """Cut the window out of `features`, normalise it by its training rows, and write `folder/tables`.

    ConfigError if a part is too short to train or to be judged on.
    """
    config = window.config
    spec = instrument(config.market.instrument)
    cut = cut_features(features, window.start, window.test_until)
    train_stop, validation_stop = (int(np.searchsorted(cut.ts_close, bound))
                                   for bound in (window.train_until, window.validation_until))
    fit_rows = train_stop - config.embargo_bars
    if fit_rows < 1:
        raise ConfigError(f"{window.name}: {train_stop} rows of {spec.symbol} before "
                          f"{window.dates()['train_until']}, of which the embargo takes {config.embargo_bars}; "
                          f"widen the training or move the dates")
    schema = Normaliser.fit(cut, config.matrices, int(cut.ts_close[fit_rows - 1]))
    table = assemble(cut, schema, spec)
    rows = {"train": (table.first_decision, fit_rows),
            "validation": (train_stop, validation_stop - config.embargo_bars),
            "test": (validation_stop, len(table))}
    for name, (start, stop) in rows.items():
        if stop - start < config.core.env.episode_bars + 1:
            raise ConfigError(f"{window.name}: the {name} part of {spec.symbol} has {max(stop - start, 0)} rows "
                              f"(embargo {config.embargo_bars}), too few for episodes of "
                              f"{config.core.env.episode_bars} bars; move the dates "
                              f"({', '.join(window.dates().values())})")
    split = {name: {"table": "market", "start": start, "stop": stop, "seed": None}
             for name, (start, stop) in rows.items()}
    with atomic_directory(folder / "tables") as part:
        table.save(part / "market")
        write_json(part / _MANIFEST, {"hash": digest, "splits": {**split, "test": [split["test"]]}})


def cut_features(features: FeatureTable, start_ns: int, stop_ns: int) -> FeatureTable:
    """The rows with start_ns <= ts_close < stop_ns, and the 30-minute rows that are visible at them."""
    low, high = (int(row) for row in np.searchsorted(features.ts_close, (start_ns, stop_ns)))
    if high <= low:
        raise ConfigError(f"no bar of {features.symbol} from {pd.Timestamp(start_ns)} to {pd.Timestamp(stop_ns)}; "
                          f"move the dates of the walk-forward")
    first, last = max(int(features.row_30m[low]), 0), int(features.row_30m[high - 1]) + 1
    visible = features.row_30m[low:high]
    return FeatureTable(
        features.symbol, features.ts_close[low:high], features.filled[low:high], features.contract[low:high],
        {name: column[low:high] for name, column in features.base.items()}, features.ts_close_30m[first:last],
        {name: column[first:last] for name, column in features.slow.items()},
        np.where(visible >= 0, visible - first, -1).astype(np.int32), features.config_digest)
