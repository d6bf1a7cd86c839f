"""Several instruments in one run: one regime network and one core for all, an M-RMS for each.

run_dir/
    rde/  core/            the joint phases: phase.json, model or team, checkpoint while running
    1-NQ/  2-ES/  ...      one run per instrument like any other (tables, rde, mrms, core, bundle, report); its
                           core is the joint one with the instrument's embedding folded in: training.mappo.markets

The regime network is shared because its vectors must mean the same in every market that the core sees. Everything
behind the core (evaluation, bundle, backtest, service) sees single runs.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from rich.console import Console

from algospace import __version__
from algospace.errors import ConfigError
from algospace.features.market_table import MarketTable
from algospace.files import write_json, write_text
from algospace.instruments import instrument
from algospace.seeding import stream_key
from algospace.types import Float32Array
from envs.vector_core import risk_unit_of
from training.complete import CompletedRun, complete_run
from training.config import MarketConfig, RunConfig
from training.dataset import Dataset, Split, prepare_dataset
from training.experts import load_regime, propose, regime_columns
from training.mappo.markets import joint_spec, specialised
from training.mappo.tables import save_experts
from training.phases import rows_30m
from training.pipeline import phase_hash, run_pipeline
from training.ray_session import ray_session
from training.rde import save_rde, train_rde
from training.team_training import check_table, load_team, save_team, train_team
from training.tracking import PhaseRun, Tracker

_RUNNERS = {"mappo": {"num_env_runners", "checkpoint_every"}}
"""Settings without effect on the result."""


@dataclass(frozen=True)
class MarketRun:
    """The part of a joint run that belongs to one instrument: a run of its own in `folder`."""

    config: RunConfig
    folder: Path
    dataset: Dataset

    @property
    def symbol(self) -> str:
        """The traded instrument."""
        return self.config.market.instrument


def run_joint(config: RunConfig, run_dir: Path, console: Console | None = None,
              complete: bool = True) -> dict[str, CompletedRun]:
    """Train on `market` and all `markets`; finished phases are reused, interrupted ones resumed.

    Returns the evaluated, bundled and backtested run of every instrument by its folder's name (none without
    `complete`).
    """
    console = console or Console()
    if not config.markets:
        raise ConfigError("`markets` is empty: a run of one market needs no joint training; use run_pipeline")
    torch.set_num_threads(config.torch_threads)
    parts = market_runs(config, run_dir, console)
    for line in check_times(parts):
        console.print(line)
    write_text(run_dir / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    done: dict[str, CompletedRun] = {}
    with Tracker.open(config.tracking, run_dir, config.name, config.model_dump(mode="json"),
                      config.digest()) as tracker, ray_session(*config.actors):
        joint = _Joint(config, run_dir, parts, tracker, console)
        joint.regime()
        results = [run_pipeline(part.config, part.folder, ("mrms",), console, part.dataset) for part in parts]
        joint.core()
        if complete:
            for part, result in zip(parts, results, strict=True):
                console.print(f"{part.folder.name}: evaluation, bundle and backtest")
                done[part.folder.name] = complete_run(part.config, result, console)
    return done


def market_runs(config: RunConfig, run_dir: Path, console: Console) -> list[MarketRun]:
    """Tables, splits and normalisation of every market, each by its own training rows.

    A part's name carries a hash of all data, so that nothing in its folder outlives a change of another market.
    """
    markets: tuple[MarketConfig, ...] = (config.market, *config.markets)
    folders = [run_dir / f"{k}-{market.instrument}" for k, market in enumerate(markets, 1)]
    alone = [config.model_copy(update={"market": market, "markets": ()}) for market in markets]
    datasets = [prepare_dataset(part, folder, console.print) for part, folder in zip(alone, folders, strict=True)]
    digest = _hash(config.name, *(dataset.data_hash for dataset in datasets), config.rde.digest())[:8]
    return [MarketRun(part.model_copy(update={"name": f"{config.name}-{folder.name}-{digest}"}), folder, dataset)
            for part, folder, dataset in zip(alone, folders, datasets, strict=True)]


def check_times(parts: Sequence[MarketRun]) -> list[str]:
    """Remarks where one instrument is trained on a later time than another is judged on.

    ConfigError where the times overlap: instruments move together, so a core that has seen one of them in
    training has half seen the others. Synthetic markets are worlds of their own.
    """
    remarks = []
    recorded = [part for part in parts if part.dataset.train.seed is None]
    for trained, judged in permutations(recorded, 2):
        first, last = _span(trained.dataset.train)
        for held_out in (judged.dataset.validation, *judged.dataset.test):
            start, stop = _span(held_out)
            if first <= stop and start <= last:
                raise ConfigError(f"{trained.symbol} is trained on {_day(first)} to {_day(last)}, while "
                                  f"{judged.symbol} is validated or tested on {_day(start)} to {_day(stop)}; "
                                  f"instruments move together, so move the dates apart")
        if first > _span(judged.dataset.test[-1])[1]:
            remarks.append(f"note: {judged.symbol} is tested on a time before {trained.symbol}'s training "
                           f"({_day(first)} to {_day(last)}); its figures are not those of an unknown future")
    return remarks


def _span(split: Split) -> tuple[int, int]:
    """First and last close of a split, ns."""
    ts_close = split.market().ts_close
    return int(ts_close[split.start]), int(ts_close[split.stop - 1])


def _day(ns: int) -> str:
    return str(np.datetime64(ns, "ns").astype("datetime64[D]"))


def joined_regime_rows(datasets: list[Dataset]) -> tuple[Float32Array, tuple[int, int], tuple[int, int]]:
    """Regime rows of all training splits, then of all validation splits, and the ranges of both. A row of NaN
    behind each split keeps windows from crossing."""
    pieces: list[Float32Array] = []
    middle = 0
    for part in ("train", "validation"):
        for dataset in datasets:
            split = getattr(dataset, part)
            table: MarketTable = split.market()
            first, last = rows_30m(table, split.start, split.stop)
            gap = np.full((1, table.regime.shape[1]), np.nan, np.float32)
            pieces += [np.asarray(table.regime[first:last]), gap]
        if part == "train":
            middle = sum(len(piece) for piece in pieces)
    rows = np.ascontiguousarray(np.concatenate(pieces), np.float32)
    return rows, (0, middle), (middle, len(rows))


@dataclass(frozen=True)
class _Joint:
    """The phases that all instruments share."""

    config: RunConfig
    run_dir: Path
    parts: list[MarketRun]
    tracker: Tracker
    console: Console

    def regime(self) -> None:
        """Phase 1 on the rows of all markets; a copy for every part."""
        data = [part.dataset.data_hash for part in self.parts]
        digest = _hash("joint rde", *data, self.config.rde.digest(), str(self.config.seed), self._threads)
        self._phase("rde", digest, self._train_regime)
        for part in self.parts:
            _copy(self.run_dir / "rde" / "model", part.folder / "rde" / "model")
            self._finish(part, "rde")

    def _train_regime(self, folder: Path, run: PhaseRun) -> dict[str, float]:
        rows, train, validation = joined_regime_rows([part.dataset for part in self.parts])
        sign = self.parts[0].dataset.train.market().schema.regime.sign
        result = train_rde(rows, train, validation, self.config.rde, self.config.seed, run.metrics,
                           mirror_sign=sign, checkpoint=folder / "checkpoint.pt")
        save_rde(folder / "model", result.net, self.config.rde, result.metrics)
        return dict(result.metrics)

    def core(self) -> None:
        """Phase 3 on all markets; each part gets the core that the joint one is on its market."""
        before = [_phase_state(part.folder / "mrms")["hash"] for part in self.parts]
        section = self.config.core.model_dump_json(exclude=_RUNNERS)  # type: ignore[arg-type]
        digest = _hash("joint core", *before, section, str(self.config.seed), self._threads)
        self._phase("core", digest, self._train_core)
        team = load_team(self.run_dir / "core" / "team")
        weights = team.module.state_dict()
        for k, part in enumerate(self.parts):
            own, spec = specialised(weights, team.spec, k)
            save_team(part.folder / "core" / "team", spec, own, team.metrics)
            self._finish(part, "core")

    def _train_core(self, folder: Path, run: PhaseRun) -> dict[str, float]:
        config = self.config
        places = [_place(part) for part in self.parts]
        for place in places:
            check_table(place)
        shared = {"seed": stream_key(config.seed, "core") % 2**31, "net": config.core.net.model_dump(),
                  "mask_key": stream_key("dropout", config.name, config.seed), "env": config.core.env.model_dump()}
        spec = joint_spec(shared, places, config.core.mappo.num_shards)
        return train_team(spec, config.core.mappo, folder, run.metrics).metrics

    @property
    def _threads(self) -> str:
        return str(self.config.torch_threads)

    def _phase(self, name: str, digest: str, work: Callable[[Path, PhaseRun], dict[str, float]]) -> None:
        """Run `work` in run_dir/name unless it has finished with the same hash; resume it if it had begun."""
        folder = self.run_dir / name
        state = _phase_state(folder)
        same = state.get("hash") == digest
        if same and state.get("status") == "finished":
            self.console.print(f"{name}: reusing the finished joint phase")
            return
        if not same:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        symbols = ", ".join(part.symbol for part in self.parts)
        self.console.print(f"{name}: training on {symbols} together")
        started = time.perf_counter()
        run = self.tracker.child(name, json.loads(getattr(self.config, name).model_dump_json()),
                                 {"phase": name, "markets": symbols, "phase_hash": digest},
                                 run_id=state.get("mlflow_run_id") if same else None)
        write_json(folder / "phase.json", {"hash": digest, "status": "running", "mlflow_run_id": run.run_id})
        with run:
            metrics = work(folder, run)
            run.metrics(0, {f"final/{key}": value for key, value in metrics.items()})
        write_json(folder / "phase.json", {"hash": digest, "status": "finished", "mlflow_run_id": run.run_id,
                                           "metrics": metrics, "seconds": time.perf_counter() - started})

    def _finish(self, part: MarketRun, name: str) -> None:
        """Mark a part's phase as finished with the figures of the joint one."""
        state = _phase_state(self.run_dir / name)
        write_json(part.folder / name / "phase.json",
                   state | {"hash": phase_hash(name, part.config, part.dataset, part.folder)})


def _place(part: MarketRun) -> dict[str, Any]:
    """Experts' columns of one market, written beside its core, and what joint_spec says of it."""
    split, experts = part.dataset.train, part.folder / "core" / "experts"
    table = split.market()
    vectors = regime_columns(load_regime(part.folder), table)
    proposals = propose(load_team(part.folder / "mrms" / "team"), table, vectors[0])
    env = part.config.core.env
    return {"market": str(split.table.resolve()), "experts": str(experts.resolve()),
            "table_hash": save_experts(experts, split.table, vectors, proposals), "instrument": part.symbol,
            "start": split.start, "stop": split.stop,
            "risk_unit": risk_unit_of(table, instrument(part.symbol), env, split.start, split.stop)}


def _phase_state(folder: Path) -> dict[str, Any]:
    path = folder / "phase.json"
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def _copy(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join((__version__, *parts)).encode()).hexdigest()
