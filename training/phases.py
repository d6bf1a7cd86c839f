"""The three phases. Each consumes the frozen experts of the phases before it as columns.

    rde   -> regime vectors of every 30-minute row
    mrms  -> proposals for both sides of every base row
    core  -> the voting team and its execution agent
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from algospace.features.market_table import MarketTable
from algospace.instruments import Instrument, instrument
from algospace.seeding import stream_key
from algospace.types import Float32Array
from envs.vector_core import risk_unit_of
from training.config import RunConfig
from training.dataset import Dataset
from training.experts import load_regime, propose, regime_columns
from training.mappo.tables import save_experts
from training.rde import RDEResult, save_rde, train_rde
from training.rde_report import rde_report
from training.team_training import load_team, train_team


class PhaseLog(Protocol):
    """Where a phase reports: steps and figures to tracking, progress to the person watching."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Figures at a step."""
        ...

    def progress(self, done: int, total: int) -> None:
        """How far the phase is."""
        ...


@dataclass(frozen=True)
class PhaseContext:
    """What every phase gets. `folder` is the phase's own."""

    config: RunConfig
    dataset: Dataset
    run_dir: Path
    folder: Path
    log: PhaseLog

    @property
    def instrument(self) -> Instrument:
        """The traded instrument."""
        return instrument(self.config.market.instrument)


def rows_30m(table: MarketTable, start: int, stop: int) -> tuple[int, int]:
    """The 30-minute rows that become visible within base rows [start, stop)."""
    return max(int(table.row_30m[start]), 0), int(table.row_30m[stop - 1]) + 1


def run_rde(context: PhaseContext) -> dict[str, float]:
    """Phase 1: train the RDE on the training rows; validation rows decide when to stop."""
    config, dataset = context.config, context.dataset
    train, validation = dataset.train.market(), dataset.validation.market()
    result = _fit_rde(context, train, validation)
    save_rde(context.folder / "model", result.net, config.rde, result.metrics)
    report = rde_report(result.net, *_joined(dataset, train, validation), truth=_regimes_30m(dataset),
                        seed=config.seed)
    return {**result.metrics, **report}


def _fit_rde(context: PhaseContext, train: MarketTable, validation: MarketTable) -> RDEResult:
    config, dataset = context.config, context.dataset
    rows, train_rows, validation_rows = _joined(dataset, train, validation)
    return train_rde(rows, train_rows, validation_rows, config.rde, config.seed, context.log.metrics,
                     context.log.progress, mirror_sign=train.schema.regime.sign,
                     checkpoint=context.folder / "checkpoint.pt")


def _joined(dataset: Dataset, train: MarketTable,
            validation: MarketTable) -> tuple[Float32Array, tuple[int, int], tuple[int, int]]:
    """Regime rows of both splits as one array (a gap of NaN keeps windows from crossing), and their ranges."""
    first = rows_30m(train, dataset.train.start, dataset.train.stop)
    second = rows_30m(validation, dataset.validation.start, dataset.validation.stop)
    gap = np.full((1, train.regime.shape[1]), np.nan, np.float32)
    rows = np.concatenate((train.regime[first[0]: first[1]], gap, validation.regime[second[0]: second[1]]))
    middle = first[1] - first[0]
    return np.ascontiguousarray(rows, np.float32), (0, middle), (middle + 1, len(rows))


def _regimes_30m(dataset: Dataset) -> Any:
    """True regime of each joined 30-minute row, -1 on the gap; None without truth."""
    parts = []
    for split in (dataset.train, dataset.validation):
        truth, table = split.truth(), split.market()
        if truth is None:
            return None
        first, last = rows_30m(table, split.start, split.stop)
        seen = np.searchsorted(table.row_30m, np.arange(first, last))
        parts.append(np.asarray(truth.regime, np.int64)[np.minimum(seen, len(table) - 1)])
    return np.concatenate((parts[0], [-1], parts[1]))


def run_mrms(context: PhaseContext) -> dict[str, float]:
    """Phase 2: train the M-RMS on the training rows with the frozen RDE's vectors."""
    config, split = context.config, context.dataset.train
    table = split.market()
    experts = context.folder / "experts"
    vectors = regime_columns(load_regime(context.run_dir), table)
    digest = save_experts(experts, split.table, vectors, np.zeros((len(table), 2, 3), np.float32))
    settings = config.mrms.mappo
    spec = _team_spec(context, "risk", experts, digest) | {
        "net": config.mrms.net.model_dump(), "env": config.mrms.env.model_dump()}
    team = train_team(spec, settings, context.folder, context.log.metrics, context.log.progress)
    return team.metrics


def run_core(context: PhaseContext) -> dict[str, float]:
    """Phase 3: train the core with both experts frozen."""
    spec = core_spec(context, core_experts(context))
    team = train_team(spec, context.config.core.mappo, context.folder, context.log.metrics, context.log.progress)
    return team.metrics


def core_experts(context: PhaseContext) -> str:
    """Both frozen experts' columns of the training table, in the phase's folder; returns their hash."""
    split = context.dataset.train
    vectors = np.load(context.run_dir / "mrms" / "experts" / "regime_vectors.npy", mmap_mode="r")
    proposals = propose(load_team(context.run_dir / "mrms" / "team"), split.market(), vectors[0])
    return save_experts(context.folder / "experts", split.table, vectors, proposals)


def core_spec(context: PhaseContext, digest: str) -> dict[str, Any]:
    """The core team's specification; `digest` is that of the experts' columns in the phase's folder."""
    config, split = context.config, context.dataset.train
    return _team_spec(context, "core", context.folder / "experts", digest) | {
        "net": config.core.net.model_dump(), "env": config.core.env.model_dump(),
        "risk_unit": risk_unit_of(split.market(), context.instrument, config.core.env, split.start, split.stop)}


def _team_spec(context: PhaseContext, kind: str, experts: Path, digest: str) -> dict[str, Any]:
    config, split = context.config, context.dataset.train
    return {"kind": kind, "market": str(split.table.resolve()), "experts": str(experts.resolve()),
            "table_hash": digest, "instrument": config.market.instrument, "start": split.start,
            "stop": split.stop, "seed": stream_key(config.seed, kind) % 2**31,
            "mask_key": stream_key("dropout", config.name, config.seed)}


RUNNERS: dict[str, Callable[[PhaseContext], dict[str, float]]] = {
    "rde": run_rde, "mrms": run_mrms, "core": run_core,
}
