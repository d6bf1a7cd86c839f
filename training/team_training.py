"""Train one team: the loop around the MAPPO algorithm, with checkpoints that continue bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from algospace.errors import BundleError
from algospace.files import atomic_directory, sha256_file, write_json
from training.mappo.algorithm import MAPPO, MAPPOConfig
from training.mappo.module import MODULE_ID, TeamModule, build_team_module
from training.mappo.settings import MAPPOSettings

LogFn = Callable[[int, Mapping[str, float]], None]
ProgressFn = Callable[[int, int], None]
_WEIGHTS, _TEAM = "weights.pt", "team.json"


@dataclass(frozen=True)
class TrainedTeam:
    """A finished team: its specification, weights and last figures."""

    spec: dict[str, Any]
    module: TeamModule
    metrics: dict[str, float]


def train_team(spec: dict[str, Any], settings: MAPPOSettings, folder: Path, log: LogFn | None = None,
               progress: ProgressFn | None = None) -> TrainedTeam:
    """Train until `settings.env_steps`, from the checkpoint in `folder` if there is one of the same run.

    Writes `folder/checkpoint` every `checkpoint_every` iterations and `folder/team` at the end.
    """
    folder = folder.resolve()  # RLlib takes a relative path for a URI without a scheme
    algorithm = MAPPOConfig().train_team(spec, settings).build_algo()
    try:
        checkpoint = folder / "checkpoint"
        history = _restore(algorithm, checkpoint)
        figures: dict[str, float] = history[-1] if history else {}
        while algorithm.env_steps < settings.env_steps:
            figures = _figures(algorithm.train())
            history.append(figures)
            if log is not None:
                log(algorithm.env_steps, figures)
            if progress is not None:
                progress(min(algorithm.env_steps, settings.env_steps), settings.env_steps)
            if len(history) % settings.checkpoint_every == 0:
                _save(algorithm, checkpoint, history)
        weights = algorithm.team_weights()
        team = dict(algorithm.config.team)
    finally:
        algorithm.stop()
    metrics = _summary(history) | {"env_steps": float(len(history) * settings.steps_per_iteration)}
    save_team(folder / "team", team, weights, metrics)
    shutil.rmtree(checkpoint, ignore_errors=True)
    return load_team(folder / "team")


def _restore(algorithm: MAPPO, checkpoint: Path) -> list[dict[str, float]]:
    history_file = checkpoint / "history.json"
    if not history_file.is_file():
        return []
    algorithm.restore_from_path(str(checkpoint / "rllib"))
    return list(json.loads(history_file.read_text()))


def _save(algorithm: MAPPO, checkpoint: Path, history: list[dict[str, float]]) -> None:
    with atomic_directory(checkpoint) as part:
        algorithm.save_to_path(str(part / "rllib"))
        write_json(part / "history.json", history)


def _figures(result: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of one iteration, flat."""
    groups = (result.get("env_runners", {}), result.get("learners", {}).get(MODULE_ID, {}))
    return {name: float(value) for group in groups for name, value in group.items()
            if isinstance(value, int | float | np.number) and np.isfinite(value)}


def _summary(history: list[dict[str, float]]) -> dict[str, float]:
    """Last figures, with the speed over the whole run (its first iteration compiles and is left out)."""
    seconds = [h["sample_seconds"] + h["update_seconds"] for h in history]
    steady = seconds[1:] or seconds
    last = {f"final_{name}": history[-1][name] for name in
            ("reward_mean", "entropy", "kl", "explained_variance", "exposure") if name in history[-1]}
    per_second = history[-1]["env_steps_per_second"] * (history[-1]["sample_seconds"]
                                                        + history[-1]["update_seconds"])
    return last | {"env_steps_per_s": per_second * len(steady) / sum(steady), "train_seconds": sum(seconds)}


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
    module.load_state_dict(torch.load(folder / _WEIGHTS, weights_only=True))
    return TrainedTeam(spec, module, document["metrics"])


def _beside(folder: Path, spec: dict[str, Any]) -> dict[str, Any]:
    """`spec` with the tables of the run that `folder` lies in, which may have been moved or copied since it was
    trained; opening them checks their hashes."""
    phase = folder.resolve().parent
    places = {"market": phase.parent / "tables" / Path(spec["market"]).name, "experts": phase / "experts"}
    if not all(path.is_dir() for path in places.values()):
        return spec
    return spec | {name: str(path) for name, path in places.items()}
