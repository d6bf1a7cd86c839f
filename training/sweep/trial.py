"""One trial of a sweep: train up to the next rung, score on the validation split, save, report.

A trial's result depends on its configuration alone, so its folder is named by the configuration's hash and
remembers every rung: started again, it repeats what it has reported and trains on from its last rung. Its
checkpoints are those of `training.checkpoints`, one per rung, so a kill or a full disk spares the one before.
Members of a PBT population change their configuration and are saved by Ray Tune instead.

sweep/
    plan.json               base run, phases, rungs (this module's input)
    shared/                 tables, phases trained once, and the core's expert columns
    trials/<hash>/          checkpoint/ while it trains, rungs.json when it is over, own phases and tables where
                            the sweep searches them
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from ray import tune

from algospace.errors import InternalError
from algospace.files import write_json
from algospace.instruments import instrument
from envs.vector_core import risk_unit_of
from training.checkpoints import Checkpoint, last_checkpoint, save_checkpoint
from training.config import PHASES, RunConfig
from training.dataset import Dataset
from training.evaluation.validation_parts import scored_part
from training.evaluation.validation_score import ValidationScorer
from training.experts import expert_columns
from training.mappo.algorithm import MAPPO, MAPPOConfig
from training.mappo.tables import experts_hash
from training.phases import RUNNERS, PhaseContext, core_experts, core_spec
from training.sweep.config import TuneConfig, changed
from training.sweep.tables import open_search, search_dataset
from training.team_training import save_algorithm

PLAN, RUNGS, SWEEP, SHARED, TRIALS = "plan.json", "rungs.json", "sweep.json", "shared", "trials"
CHECKPOINT = "checkpoint"
FOLDER_KEY = "sweep_folder"
FINAL_STATES = ("finished", "pruned")
_LOCK_SECONDS = 60.0
Rung = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What all trials of a sweep have in common. `folder` is the sweep's."""

    folder: Path
    tune: TuneConfig
    base: RunConfig

    @classmethod
    def load(cls, folder: Path) -> Plan:
        """The plan that the driver wrote."""
        document = json.loads((folder / PLAN).read_text())
        return cls(folder, TuneConfig(**document["tune"]), RunConfig(**document["base"]))

    def save(self) -> None:
        """Write it for the trials."""
        write_json(self.folder / PLAN, {"tune": self.tune.model_dump(mode="json"),
                                        "base": self.base.model_dump(mode="json")})

    @property
    def bundles(self) -> list[dict[str, float]]:
        """What one trial takes, process by process: its own, remote runners, remote learners; as many as the most
        demanding phase has."""
        teams = (self.base.mrms.mappo, self.base.core.mappo)
        runners = max(team.num_env_runners for team in teams)
        learners = max(part.num_learners for part in (self.base.rde, *teams))
        gpus = max(part.gpus_per_learner for part in (self.base.rde, *teams))
        learner = {"GPU": gpus} if gpus else {}
        own = {"CPU": self.tune.cpus_per_trial} | ({} if learners else learner)
        return [own, *[{"CPU": 1.0}] * runners, *[{"CPU": 1.0} | learner] * learners]

    def changes(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Of a trial's values, those of searched keys."""
        return {key: _plain(values[key]) for key in self.tune.space}

    def trial_id(self, values: Mapping[str, Any]) -> str:
        """Name of a trial's folder: the hash of its whole configuration."""
        return changed(self.base, self.changes(values)).digest()[:12]


def _plain(value: Any) -> Any:
    """Numbers that came from numpy as Python's own."""
    return value.item() if hasattr(value, "item") else value


class _Silent:
    """A trial reports at rungs only."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Ignored."""

    def progress(self, done: int, total: int) -> None:
        """Ignored."""


def train_experts(config: RunConfig, dataset: Dataset, run_dir: Path, phases: tuple[str, ...]) -> None:
    """Train `phases` (of rde and mrms) below `run_dir`; finished ones stay."""
    for name in phases:
        folder = run_dir / name
        if not (folder / "done.json").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            context = PhaseContext(config, dataset, run_dir, folder, _Silent())
            write_json(folder / "done.json", RUNNERS[name](context))


def prepare_core(config: RunConfig, dataset: Dataset, run_dir: Path) -> None:
    """The frozen experts' columns of training and validation rows, below `run_dir/core`; finished ones stay."""
    core, marker = run_dir / "core", run_dir / "core" / "done.json"
    if marker.is_file():
        return
    core.mkdir(parents=True, exist_ok=True)
    core_experts(PhaseContext(config, dataset, run_dir, core, _Silent()))
    if dataset.validation.table != dataset.train.table:
        expert_columns(run_dir, dataset.validation.market(), dataset.validation.table, core / "validation")
    write_json(marker, {})


class TrialRun:
    """The core of one configuration, trained from rung to rung. `folder` is the trial's own."""

    def __init__(self, plan: Plan, values: Mapping[str, Any], folder: Path) -> None:
        self.plan, self.folder = plan, folder
        self.changes = plan.changes(values)
        self.config = changed(plan.base, self.changes)
        torch.set_num_threads(self.config.torch_threads)
        run_dir, dataset = self._phases_before()
        context = PhaseContext(self.config, dataset, run_dir, run_dir / "core", _Silent())
        self._spec = core_spec(context, experts_hash(run_dir / "core" / "experts"))
        validation = run_dir / "core" / ("experts" if dataset.validation.table == dataset.train.table
                                         else "validation")
        scored = scored_part(self.config, dataset.validation)
        judged = {**self._spec, "market": str(scored.table.resolve()),
                  "experts": str(validation.resolve()), "table_hash": experts_hash(validation),
                  "start": scored.start, "stop": scored.stop}
        self._scorer = ValidationScorer(judged, scored, plan.base.core.env, _judging_unit(plan))
        self._algorithm: MAPPO | None = None
        self.rungs: list[Rung] = []

    def _phases_before(self) -> tuple[Path, Dataset]:
        """The folder of tables and experts: the shared one, or the trial's own beside links to what is shared."""
        tune_, shared = self.plan.tune, self.plan.folder / SHARED
        before = tuple(name for name in tune_.phases if name != "core")
        if not before:
            return shared, open_search(shared)
        self.folder.mkdir(parents=True, exist_ok=True)
        dataset = open_search(shared)
        if _other_data(self.config, self.plan.base):
            dataset = search_dataset(self.config, self.folder, lambda _: None)
        for name in PHASES[: PHASES.index(before[0])]:  # type: ignore[arg-type]
            if not (self.folder / name).exists():
                os.symlink((shared / name).resolve(), self.folder / name, target_is_directory=True)
        train_experts(self.config, dataset, self.folder, before)
        prepare_core(self.config, dataset, self.folder)
        return self.folder, dataset

    @property
    def algorithm(self) -> MAPPO:
        """Built when it is first needed: a trial that only repeats its rungs does without."""
        if self._algorithm is None:
            self._algorithm = MAPPOConfig().train_team(self._spec, self.config.core.mappo).build_algo()
        return self._algorithm

    def advance(self) -> Rung:
        """Train up to the next rung and score there."""
        number, steps = len(self.rungs) + 1, self.config.core.mappo.env_steps
        target = -(-steps * number // self.plan.tune.rungs)
        algorithm = self.algorithm
        while algorithm.env_steps < target:
            algorithm.train()
        figures = self._scorer.score(algorithm.team_weights())
        rung: Rung = {"rung": number, "env_steps": algorithm.env_steps, **figures,
                      "changes": self.changes}
        self.rungs.append(rung)
        return rung

    def save(self, folder: Path) -> None:
        """Weights, optimiser and environments into `folder/rllib`, the rungs beside them."""
        self.algorithm.save_to_path(str((folder / "rllib").resolve()))
        write_json(folder / RUNGS, self.rungs)

    def load(self, folder: Path) -> None:
        """Go on from `save`, under this trial's own schedules."""
        self.resume(Checkpoint(folder / "rllib", json.loads((folder / RUNGS).read_text())))

    def resume(self, checkpoint: Checkpoint | None) -> None:
        """Go on from a checkpoint; InternalError where a trial that is over has kept none."""
        if checkpoint is None:
            raise InternalError(f"{self.folder}: this trial is over and its weights are gone; delete the folder "
                                f"to train it again")
        self.rungs = checkpoint.history
        self.algorithm.restore_from_path(str(checkpoint.rllib.resolve()))

    def close(self) -> None:
        """Release the algorithm."""
        if self._algorithm is not None:
            self._algorithm.stop()
            self._algorithm = None


def _judging_unit(plan: Plan) -> float:
    """The base's risk unit: a trial's own may be smaller by a searched size, which would raise its score."""
    train, base = open_search(plan.folder / SHARED).train, plan.base
    return risk_unit_of(train.market(), instrument(base.market.instrument), base.core.env, train.start, train.stop)


def _other_data(config: RunConfig, base: RunConfig) -> bool:
    names = ("market", "features", "matrices", "embargo_bars")
    return any(getattr(config, name) != getattr(base, name) for name in names)


class TeamTrial(tune.Trainable):
    """Ray Tune's handle on a TrialRun: one `step` is one rung."""

    def setup(self, config: dict[str, Any]) -> None:
        """Open the trial; what it has reported before is repeated first."""
        self._plan = Plan.load(Path(config[FOLDER_KEY]))
        self._memory = self._plan.tune.scheduler != "pbt"
        self._run: TrialRun | None = None
        self._lock: TextIO | None = None
        self._known: list[Rung] = []
        self._final = False
        self._values = dict(config)
        folder = self._plan.folder / TRIALS
        self._folder = folder / (self._plan.trial_id(config) if self._memory else self.trial_id)
        if self._memory:
            self._recall()

    def _recall(self) -> None:
        """Rungs of an earlier start of the same configuration, which no other process may be training."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self._folder / "lock")
        self._known = _rungs(self._folder)
        sweep = self._plan.folder / SWEEP
        known = json.loads(sweep.read_text())["trials"] if sweep.is_file() else {}
        self._final = known.get(self._folder.name, {}).get("state") in FINAL_STATES

    def step(self) -> dict[str, Any]:
        """The next rung's figures."""
        if self.iteration < len(self._known):
            rung, repeated = self._known[self.iteration], True
        else:
            rung, repeated = self._train_to_next(), False
        last = rung["rung"] >= self._plan.tune.rungs
        ended = repeated and self._final and rung["rung"] == len(self._known)
        return {**rung, "repeated": repeated, "done": last or ended}

    def _train_to_next(self) -> Rung:
        run = self._open()
        rung = run.advance()
        if self._memory:
            save_checkpoint(self._folder / CHECKPOINT, run.rungs, lambda path: save_algorithm(run.algorithm, path))
            self._known = list(run.rungs)
        return rung

    def _open(self) -> TrialRun:
        if self._run is None:
            self._run = TrialRun(self._plan, self._values, self._folder)
            if self._known:
                self._run.resume(last_checkpoint(self._folder / CHECKPOINT))
        return self._run

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """For PBT, which hands teams from member to member; other trials have their own folders."""
        if self._memory:
            raise InternalError("only members of a population are saved by Ray Tune")
        self._open().save(Path(checkpoint_dir))

    def load_checkpoint(self, checkpoint: Any) -> None:
        """A team from Ray Tune's checkpoint, under this member's configuration."""
        if not isinstance(checkpoint, str):
            raise InternalError(f"expected a checkpoint's folder, got {type(checkpoint).__name__}")
        self._open().load(Path(checkpoint))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The same process takes the next trial."""
        self.cleanup()
        self.setup(new_config)
        return True

    def cleanup(self) -> None:
        """Release the algorithm and the folder."""
        if self._run is not None:
            self._run.close()
            self._run = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """See Plan.bundles."""
        return tune.PlacementGroupFactory(Plan.load(Path(config[FOLDER_KEY])).bundles)


def _locked(path: Path) -> TextIO:
    """The file, locked until it is closed; two trials of one configuration, or a process left over from a killed
    driver, take turns."""
    lock = path.open("w")
    ends = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > ends:
                lock.close()
                raise InternalError(f"{path.parent}: another process trains this trial; end it first") from None
            time.sleep(0.2)
        else:
            return lock


def _rungs(folder: Path) -> list[Rung]:
    """What a trial has reached, as far as its weights or, where it is over, its record tell."""
    record = folder / RUNGS
    if record.is_file():
        return list(json.loads(record.read_text()))
    checkpoint = last_checkpoint(folder / CHECKPOINT)
    return [] if checkpoint is None else checkpoint.history


def forget_weights(folder: Path) -> None:
    """Of a trial that is over, keep the rungs."""
    if folder.is_dir():
        write_json(folder / RUNGS, _rungs(folder))
        shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)
