"""Market tables of a sweep: training and validation rows only. The test split is not generated, and recorded bars
behind the validation split are dropped before anything is computed from them, so no trial can see it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from algospace.errors import ConfigError
from algospace.features import build
from algospace.features.market_table import MarketTable
from algospace.features.matrices import Normaliser, assemble
from algospace.features.matrix_schema import MatrixSchema
from algospace.files import atomic_directory, atomic_path, write_json
from algospace.instruments import instrument
from algospace.marketdata import read_source
from algospace.marketdata.synthetic import SyntheticTruth, generate, scenario_named
from algospace.types import Bars
from training.config import RunConfig
from training.dataset import Dataset, SayFn, Split, data_path, nanoseconds, tables_digest
from training.evaluation.validation_parts import scored_part

_MANIFEST = "search.json"
_TEST_KEYS: Any = {"synthetic": {"test_seeds", "test_bars"}, "file": {"test_until"}}


def search_dataset(config: RunConfig, run_dir: Path, say: SayFn) -> Dataset:
    """The tables of `config` below `run_dir/tables` without a test split; finished ones are reused."""
    folder = run_dir / "tables"
    bars = None if config.market.file is None else _bars_before_test(config)
    digest = tables_digest(config, config.market.model_dump_json(exclude=_TEST_KEYS), bars)
    manifest = folder / _MANIFEST
    if not manifest.is_file() or json.loads(manifest.read_text())["hash"] != digest:
        with atomic_directory(folder) as part:
            splits = _synthetic(config, part, say) if bars is None else _recorded(config, bars, part, say)
            write_json(part / _MANIFEST, {"hash": digest, "splits": splits})
    dataset = open_search(run_dir)
    scored_part(config, dataset.validation)  # refused here, not when the experts have been trained
    return dataset


def open_search(run_dir: Path) -> Dataset:
    """The tables that `search_dataset` left in a folder."""
    folder = run_dir / "tables"
    document = json.loads((folder / _MANIFEST).read_text())
    train, validation = (Split(folder / split["table"], split["start"], split["stop"], split["seed"])
                         for split in (document["splits"]["train"], document["splits"]["validation"]))
    return Dataset(train, validation, (), document["hash"])


def _synthetic(config: RunConfig, folder: Path, say: SayFn) -> dict[str, Any]:
    """One market table per seed, normalised with the training market's statistics."""
    market = config.market.synthetic
    assert market is not None
    spec = instrument(config.market.instrument)
    schema: MatrixSchema | None = None
    splits = {}
    for part, seed, count in (("train", market.train_seed, market.train_bars),
                              ("validation", market.validation_seed, market.validation_bars)):
        say(f"data: synthetic market '{market.scenario}', seed {seed}, {count:,} bars ({part})")
        made = generate(scenario_named(market.scenario), seed, count)
        features = build(made.bars, spec, config.features)
        schema = schema or Normaliser.fit(features, config.matrices, int(features.ts_close[-1]))
        table = assemble(features, schema, spec)
        table.save(folder / part)
        _save_truth(folder / f"{part}.truth.npz", made.truth)
        splits[part] = {"table": part, "start": table.first_decision, "stop": len(table) - 1, "seed": seed}
    return splits


def _save_truth(path: Path, truth: SyntheticTruth) -> None:
    arrays = {name: getattr(truth, name) for name in SyntheticTruth.__dataclass_fields__}
    with atomic_path(path) as part, open(part, "wb") as stream:
        np.savez(stream, **{name: array for name, array in arrays.items() if array is not None})


def _bars_before_test(config: RunConfig) -> Bars:
    """Bars from `start` up to the end of validation."""
    market = config.market.file
    assert market is not None
    bars = read_source(data_path(market.path), config.market.instrument)
    first = 0 if market.start is None else int(np.searchsorted(bars.ts_open, nanoseconds(market.start)))
    return bars.slice(first, int(np.searchsorted(bars.ts_open, nanoseconds(market.validation_until))))


def _recorded(config: RunConfig, bars: Bars, folder: Path, say: SayFn) -> dict[str, Any]:
    """One market table, split by time with the embargo between."""
    market, spec = config.market.file, instrument(config.market.instrument)
    assert market is not None
    say(f"data: {len(bars):,} bars of {spec.symbol} from {market.path}, up to {market.validation_until}")
    features = build(bars, spec, config.features)
    train_end = nanoseconds(market.train_until)
    table: MarketTable = assemble(features, Normaliser.fit(features, config.matrices, train_end), spec)
    table.save(folder / "market")
    train_stop = int(np.searchsorted(table.ts_close, train_end))
    rows = {"train": (table.first_decision, train_stop),
            "validation": (train_stop + config.embargo_bars, len(table) - 1)}
    for name, (start, stop) in rows.items():
        if stop - start < config.core.env.episode_bars + 1:
            raise ConfigError(f"the {name} split of {spec.symbol} has {max(stop - start, 0)} rows, fewer than an "
                              f"episode of {config.core.env.episode_bars} bars; move its dates")
    return {name: {"table": "market", "start": start, "stop": stop, "seed": None}
            for name, (start, stop) in rows.items()}
