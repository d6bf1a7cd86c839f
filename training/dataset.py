"""From a configuration to market tables on disk: the first stage of every run.

    run_dir/tables/<name>/        market tables, normalised with training statistics only
    run_dir/tables/dataset.json   splits, data hash; a finished dataset with the same hash is reused
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from algospace import __version__
from algospace.errors import ConfigError
from algospace.features import FeatureTable, build
from algospace.features.market_table import FORMAT as TABLE_FORMAT
from algospace.features.market_table import MarketTable
from algospace.features.matrices import Normaliser, assemble
from algospace.features.matrix_schema import MatrixSchema
from algospace.files import atomic_directory, atomic_path, write_json
from algospace.instruments import Instrument, instrument
from algospace.marketdata import read_source
from algospace.marketdata.synthetic import SyntheticTruth, generate, scenario_named
from algospace.memory import release_unused
from algospace.types import Bars
from training.config import FileMarketConfig, RunConfig, SyntheticMarketConfig

_MANIFEST = "dataset.json"
SayFn = Callable[[str], None]


@dataclass(frozen=True)
class Split:
    """Rows [start, stop) of one market table. `seed` is set on synthetic markets."""

    table: Path
    start: int
    stop: int
    seed: int | None = None

    def market(self) -> MarketTable:
        """The mapped table."""
        return MarketTable.load(self.table, verify=False)

    def truth(self) -> SyntheticTruth | None:
        """What is true of a synthetic market's rows."""
        path = self.table.parent / f"{self.table.name}.truth.npz"
        if not path.is_file():
            return None
        with np.load(path) as arrays:
            names = SyntheticTruth.__dataclass_fields__
            return SyntheticTruth(**{name: arrays.get(name) for name in names})


@dataclass(frozen=True)
class Dataset:
    """Training, validation and test rows of one run."""

    train: Split
    validation: Split
    test: tuple[Split, ...]
    data_hash: str

    def tables(self) -> list[Path]:
        """Every market table once, the training table first."""
        return list(dict.fromkeys(split.table for split in (self.train, self.validation, *self.test)))


def prepare_dataset(config: RunConfig, run_dir: Path, say: SayFn) -> Dataset:
    """Build the run's market tables, or reuse finished ones with the same hash; InputError if one of these was
    changed since."""
    folder = run_dir / "tables"
    bars = None if config.market.file is None else _read_bars(config)
    digest = tables_digest(config, config.market.digest(), bars)
    manifest = folder / _MANIFEST
    if manifest.is_file() and json.loads(manifest.read_text())["hash"] == digest:
        say(f"data: reusing {folder} (same data and configuration)")
        dataset = _open_tables(folder)
        for table in dataset.tables():
            MarketTable.load(table)  # reads every byte once against the manifest
        return dataset
    with atomic_directory(folder) as part:
        if config.market.synthetic is not None:
            splits = _synthetic_tables(config, config.market.synthetic, part, say)
        else:
            assert config.market.file is not None
            assert bars is not None
            say(f"data: {len(bars):,} bars of {config.market.instrument} from {config.market.file.path}")
            features = build(bars, instrument(config.market.instrument), config.features)
            bars = None  # the matrices need the memory
            release_unused()
            splits = _file_table(config, config.market.file, features, part)
        write_json(part / _MANIFEST, {"hash": digest, "splits": splits})
    return _open_tables(folder)


def open_dataset(run_dir: Path) -> Dataset:
    """The dataset of a run that has one; ConfigError otherwise."""
    folder = run_dir / "tables"
    if not (folder / _MANIFEST).is_file():
        raise ConfigError(f"{run_dir}: this run has no market tables; train it first")
    return _open_tables(folder)


def _open_tables(folder: Path) -> Dataset:
    document = json.loads((folder / _MANIFEST).read_text())

    def split(values: dict[str, Any]) -> Split:
        return Split(folder / values["table"], values["start"], values["stop"], values["seed"])

    splits = document["splits"]
    return Dataset(split(splits["train"]), split(splits["validation"]), tuple(split(v) for v in splits["test"]),
                   document["hash"])


def tables_digest(config: RunConfig, market: str, bars: Bars | None) -> str:
    """SHA-256 of all that market tables are made of; `market` is what counts of `config.market`, as text."""
    digest = hashlib.sha256(market.encode())
    for part in (config.features, config.matrices):
        digest.update(part.digest().encode())
    digest.update(f"{config.embargo_bars} {__version__} {TABLE_FORMAT}".encode())
    if bars is not None:
        for array in (bars.ts_open, bars.open, bars.high, bars.low, bars.close, bars.volume, bars.contract):
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def data_path(path: str) -> Path:
    """`path` below ALGOSPACE_DATA unless absolute; ConfigError says what to set."""
    if Path(path).is_absolute():
        return Path(path)
    root = os.environ.get("ALGOSPACE_DATA")
    if not root:
        raise ConfigError(f"market.file.path '{path}' is relative: set ALGOSPACE_DATA to the folder that "
                          f"holds it, or give an absolute path")
    return Path(root) / path


def _read_bars(config: RunConfig) -> Bars:
    assert config.market.file is not None
    bars = read_source(data_path(config.market.file.path), config.market.instrument)
    if config.market.file.start is None:
        return bars
    return bars.slice(int(np.searchsorted(bars.ts_open, nanoseconds(config.market.file.start))), len(bars))


def nanoseconds(date: str) -> int:
    """An ISO date or time, UTC unless it names a zone, as int64 ns; ConfigError if it is none."""
    try:
        stamp = pd.Timestamp(date)
    except ValueError:
        raise ConfigError(f"'{date}' is not a date; write YYYY-MM-DD") from None
    stamp = stamp.tz_localize("UTC") if stamp.tzinfo is None else stamp.tz_convert("UTC")
    return int(stamp.as_unit("ns").value)


def _synthetic_tables(config: RunConfig, market: SyntheticMarketConfig, folder: Path,
                      say: SayFn) -> dict[str, Any]:
    scenario = scenario_named(market.scenario)
    spec = instrument(config.market.instrument)
    schema: MatrixSchema | None = None
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    plan = [("train", market.train_seed, market.train_bars), ("validation", market.validation_seed,
            market.validation_bars), *(("test", seed, market.test_bars) for seed in market.test_seeds)]
    for part, seed, bars in plan:
        name = f"{part}-{seed}"
        say(f"data: synthetic market '{scenario.name}', seed {seed}, {bars:,} bars ({part})")
        made = generate(scenario, seed, bars)
        features = build(made.bars, spec, config.features)
        if schema is None:
            schema = Normaliser.fit(features, config.matrices, int(features.ts_close[-1]))
        table = assemble(features, schema, spec)
        table.save(folder / name)
        _save_truth(folder / f"{name}.truth.npz", made.truth)
        splits[part].append({"table": name, "start": table.first_decision, "stop": len(table) - 1, "seed": seed})
    return {"train": splits["train"][0], "validation": splits["validation"][0], "test": splits["test"]}


def _save_truth(path: Path, truth: SyntheticTruth) -> None:
    arrays = {name: getattr(truth, name) for name in SyntheticTruth.__dataclass_fields__}
    with atomic_path(path) as part, open(part, "wb") as stream:
        np.savez(stream, **{name: array for name, array in arrays.items() if array is not None})


def _file_table(config: RunConfig, market: FileMarketConfig, features: FeatureTable,
                folder: Path) -> dict[str, Any]:
    spec = instrument(config.market.instrument)
    table = _assembled(features, config, nanoseconds(market.train_until), spec)
    table.save(folder / "market")
    bounds = [nanoseconds(date) for date in (market.train_until, market.validation_until)]
    last = len(table) if market.test_until is None else int(
        np.searchsorted(table.ts_close, nanoseconds(market.test_until)))
    train_stop, validation_stop = (int(np.searchsorted(table.ts_close, bound)) for bound in bounds)
    rows = {"train": (table.first_decision, train_stop),
            "validation": (train_stop + config.embargo_bars, validation_stop),
            "test": (validation_stop + config.embargo_bars, last - 1)}
    for name, (start, stop) in rows.items():
        if stop - start < config.core.env.episode_bars + 1:
            raise ConfigError(f"the {name} split of {spec.symbol} has {max(stop - start, 0)} rows; move its "
                              f"dates: the data reaches from {pd.Timestamp(int(table.ts_close[0]))} to "
                              f"{pd.Timestamp(int(table.ts_close[-1]))}")
    split = {name: {"table": "market", "start": start, "stop": stop, "seed": None}
             for name, (start, stop) in rows.items()}
    return {"train": split["train"], "validation": split["validation"], "test": [split["test"]]}


def _assembled(features: FeatureTable, config: RunConfig, train_end: int, spec: Instrument) -> MarketTable:
    return assemble(features, Normaliser.fit(features, config.matrices, train_end), spec)
