"""Train one team: the loop around the MAPPO algorithm, with checkpoints that continue bit for bit."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from algospace.errors import BundleError, InputError
from algospace.features.market_table import MarketTable
from algospace.files import atomic_directory, sha256_file, write_json
from training.checkpoints import History, last_checkpoint, save_checkpoint
from training.interruption import Interruption
from training.mappo.algorithm import MAPPO, MAPPOConfig
from training.mappo.finite import refuse_nonfinite_table
from training.mappo.module import MODULE_ID, TeamModule, build_team_module
from training.mappo.settings import MAPPOSettings
from training.mappo.tables import EXPERTS, open_training_table
from training.ray_session import own_errors

LogFn = Callable[[int, Mapping[str, float]], None]
ProgressFn = Callable[[int, int], None]
_WEIGHTS, _TEAM = "weights.pt", "team.json"
_LEARNER_FILES = ("state.pkl", f"rl_module/{MODULE_ID}/module_state.pkl")


@dataclass(frozen=True)
class TrainedTeam:
    """A finished team: its specification, weights and last figures."""

    spec: dict[str, Any]
    module: TeamModule
    metrics: dict[str, float]


def train_team(spec: dict[str, Any], settings: MAPPOSettings, folder: Path, log: LogFn | None = None,
               progress: ProgressFn | None = None) -> TrainedTeam:
    """Train until `settings.env_steps`, from the newest checkpoint in `folder` if there is one of the same run.

    Writes `folder/checkpoint/<iteration>` every `checkpoint_every` iterations and when a person (Ctrl-C) or a
    machine that is taken away (SIGTERM) ends the run, and `folder/team` at the end. SchemaError or InputError if
    the table is not the one the run was started with, or holds NaN; training.mappo.finite.NonFiniteError if a
    reward or a gradient does. The checkpoints stay in every case.
    """
    folder = folder.resolve()  # RLlib takes a relative path for a URI without a scheme
    check_table(spec)
    checkpoints = folder / "checkpoint"
    algorithm = MAPPOConfig().train_team(spec, settings).build_algo()
    try:
        history = _restore(algorithm, checkpoints)
        saved = len(history)
        with Interruption() as interruption:
            while algorithm.env_steps < settings.env_steps:
                with own_errors():
                    figures = _figures(algorithm.train())
                history.append(figures)
                if log is not None:
                    log(algorithm.env_steps, figures)
                if progress is not None:
                    progress(min(algorithm.env_steps, settings.env_steps), settings.env_steps)
                if interruption.asked or len(history) - saved >= settings.checkpoint_every:
                    if save_checkpoint(checkpoints, history, lambda path: save_algorithm(algorithm, path)):
                        saved = len(history)
                    interruption.obey()
        weights = algorithm.final_weights()
        team = dict(algorithm.config.team)
    finally:
        algorithm.stop()
    metrics = _summary(history, settings.steps_per_iteration)
    save_team(folder / "team", team, weights, metrics)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return load_team(folder / "team")


def check_table(spec: Mapping[str, Any]) -> None:
    """SchemaError or InputError if a table of the run is missing, shrunk or changed, or holds NaN or infinity."""
    for place in spec.get("markets", (spec,)):
        experts = Path(place["experts"])
        table = open_training_table(place["market"], experts, place["table_hash"])
        MarketTable.load(place["market"])  # reads every byte once against the manifest
        for name, digest in json.loads((experts / EXPERTS).read_text())["files"].items():
            if sha256_file(experts / name) != digest:
                raise InputError(experts / name, "the file does not match its checksum",
                                 "run the earlier phases again")
        refuse_nonfinite_table(table, str(place["market"]))


def save_algorithm(algorithm: MAPPO, path: Path) -> None:
    """RLlib's checkpoint; OSError if a learner could not write its part, about which RLlib keeps silent."""
    algorithm.save_to_path(str(path))
    for name in _LEARNER_FILES:
        file = path / "learner_group" / "learner" / name
        try:
            pickle.loads(file.read_bytes())
        except (EOFError, pickle.UnpicklingError):
            raise OSError(f"the learner could not write all of {file.name}") from None


def _restore(algorithm: MAPPO, checkpoints: Path) -> History:
    """Continue from the newest good checkpoint; the figures so far."""
    checkpoint = last_checkpoint(checkpoints)
    if checkpoint is None:
        return []
    algorithm.restore_from_path(str(checkpoint.rllib))
    return checkpoint.history


def _figures(result: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of one iteration, flat."""
    groups = (result.get("env_runners", {}), result.get("learners", {}).get(MODULE_ID, {}))
    return {name: float(value) for group in groups for name, value in group.items()
            if isinstance(value, int | float | np.number) and np.isfinite(value)}


def _summary(history: History, steps: int) -> dict[str, float]:
    """Last figures, with the speed over the whole run (its first iteration compiles and is left out); `steps` team
    decisions an iteration. Wall time: sampling beside the update is not counted twice."""
    seconds = [steps / h["env_steps_per_second"] for h in history]
    steady = seconds[1:] or seconds
    last = {f"final_{name}": history[-1][name] for name in
            ("reward_mean", "entropy", "kl", "explained_variance", "exposure") if name in history[-1]}
    return last | {"env_steps_per_s": steps * len(steady) / sum(steady), "train_seconds": sum(seconds),
                   "env_steps": float(len(history) * steps)}


def save_team(folder: Path, spec: dict[str, Any], weights: Mapping[str, torch.Tensor],
              metrics: Mapping[str, float]) -> None:
    """Weights and specification as one folder, whole or not at all."""
    with atomic_directory(folder) as part:
        torch.save(dict(weights), part / _WEIGHTS)
        write_json(part / _TEAM, {"spec": spec, "metrics": dict(metrics),
                                  "weights_sha256": sha256_file(part / _WEIGHTS)})


def load_team(folder: Path) -> TrainedTeam:
    """A saved team; BundleError where the folder is damaged."""
    try:
        document = json.loads((folder / _TEAM).read_text())
    except (OSError, ValueError) as error:
        raise BundleError(f"{folder}: not a trained team ({error}); train it again") from None
    if sha256_file(folder / _WEIGHTS) != document["weights_sha256"]:
        raise BundleError(f"{folder / _WEIGHTS}: not the content that was saved; train the team again")
    spec = _beside(folder, document["spec"])
    module = build_team_module(spec)
    try:
        module.load_state_dict(torch.load(folder / _WEIGHTS, weights_only=True))
    except RuntimeError as error:
        raise BundleError(f"{folder}: a team of networks that this version builds otherwise; train it again "
                          f"({str(error).splitlines()[-1].strip()})") from None
    return TrainedTeam(spec, module, document["metrics"])


def _beside(folder: Path, spec: dict[str, Any]) -> dict[str, Any]:
    """`spec` with the tables of the run that `folder` lies in, which may have been moved or copied since it was
    trained; opening them checks their hashes."""
    phase = folder.resolve().parent
    places = {"market": phase.parent / "tables" / Path(spec["market"]).name, "experts": phase / "experts"}
    if not all(path.is_dir() for path in places.values()):
        return spec
    return spec | {name: str(path) for name, path in places.items()}
