"""Trainings for an evaluation: whole pipelines, or only the core beside the experts of a run that is there.

out/
    seed-<k>/             a run folder of the pipeline (the first seed; every seed without shared experts)
    core-<name>/          a core trained with shared experts: core.json, market/, experts/, team/
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from algospace import __version__
from algospace.errors import ConfigError
from algospace.features.market_table import FORMAT, MarketTable
from algospace.files import write_json
from algospace.instruments import instrument
from algospace.marketdata.synthetic import scenario_named
from algospace.seeding import stream_key
from envs.vector_core import risk_unit_of
from training.config import PHASES, RunConfig, SyntheticMarketConfig
from training.dataset import open_dataset
from training.evaluation.markets import Experts, JudgingMarket, make_market
from training.pipeline import run_pipeline, stale_phase
from training.ray_session import ray_session
from training.team_training import TrainedTeam, load_team, train_team

_SPARE_BARS = 20_000
"""Bars of a run's own test market, which no evaluation reads."""


class Seeds(NamedTuple):
    """A training: its own seed and that of its market."""

    training: int
    market: int


def synthetic_market_of(config: RunConfig) -> SyntheticMarketConfig:
    """The configuration's synthetic market; ConfigError where it trains on recorded bars."""
    if config.market.synthetic is None:
        raise ConfigError(f"'{config.name}' trains on recorded bars; an evaluation trains on synthetic markets")
    return config.market.synthetic


def own_seeds(config: RunConfig) -> Seeds:
    """The seeds that the configuration names."""
    return Seeds(config.seed, synthetic_market_of(config).train_seed)


def seeded(config: RunConfig, seeds: Seeds, scenario: str | None = None) -> RunConfig:
    """`config` with other seeds (and scenario); its own test market is short: evaluations bring theirs."""
    market = synthetic_market_of(config)
    values = config.model_dump(mode="json")
    spare = next(s for s in (*market.test_seeds, 9991, 9992) if s not in (seeds.market, market.validation_seed))
    values["seed"] = seeds.training
    values["market"]["synthetic"] |= {
        "train_seed": seeds.market, "scenario": scenario or market.scenario, "test_seeds": [spare],
        "test_bars": min(market.test_bars, _SPARE_BARS)}
    return RunConfig.model_validate(values)


def trained_run(config: RunConfig, run_dir: Path, console: Console,
                phases: tuple[str, ...] = PHASES) -> Path:
    """`run_dir` with those phases finished; finished ones are reused."""
    run_pipeline(config, run_dir, phases, console)
    return run_dir


def finished_run(run_dir: Path) -> RunConfig:
    """The configuration of a run folder whose phases have all finished; ConfigError otherwise."""
    from algospace.config import load_config

    if not (run_dir / "config.yaml").is_file():
        raise ConfigError(f"{run_dir}: not a run's folder (no config.yaml); give the folder of a finished run")
    config = load_config(RunConfig, run_dir / "config.yaml")
    stale = stale_phase(config, open_dataset(run_dir), run_dir)
    if stale is not None:
        raise ConfigError(f"{run_dir}: phase '{stale}' has not finished with this run's configuration and "
                          f"experts; finish it first: algospace train --config {run_dir / 'config.yaml'} "
                          f"--run-dir {run_dir}")
    return config


def train_core(config: RunConfig, experts: Experts, seeds: Seeds, folder: Path, console: Console,
               scenario: str | None = None, oracle: bool = False) -> TrainedTeam:
    """The core alone, on a market of its own, beside frozen experts. A finished one of the same hash is reused.

    oracle: the next return is one of its columns; such a folder is no run folder, so nothing can be exported.
    """
    market = synthetic_market_of(config)
    name = scenario or market.scenario
    digest = _core_hash(config, experts, seeds, name, oracle)
    if _state(folder) == {"hash": digest, "status": "finished"}:
        console.print(f"core: reusing {folder.name} (same configuration, data and experts)")
        return load_team(folder / "team")
    console.print(f"core: training on '{name}', training seed {seeds.training}, market seed {seeds.market}"
                  f"{', ORACLE column' if oracle else ''}")
    if _state(folder).get("hash") != digest:
        made = make_market(config, experts, scenario_named(name), seeds.market, market.train_bars, folder,
                           mirror=True, oracle=oracle)
        spec = _core_spec(config, made, seeds)
        write_json(folder / "spec.json", spec)
        write_json(folder / "core.json", {"hash": digest, "status": "running"})
    spec = json.loads((folder / "spec.json").read_text())
    columns = (TextColumn("{task.description:>6}"), BarColumn(), TimeRemainingColumn())
    with ray_session(*config.actors), Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("core", total=config.core.mappo.env_steps)
        team = train_team(spec, config.core.mappo, folder, None,
                          lambda done, total: bar.update(task, completed=done, total=total))
    write_json(folder / "core.json", {"hash": digest, "status": "finished"})
    return team


def _core_spec(config: RunConfig, made: JudgingMarket, seeds: Seeds) -> dict[str, Any]:
    """What the pipeline's third phase gives its team, on this market."""
    env = config.core.env
    table = MarketTable.load(made.folder / "market", verify=False)
    unit = risk_unit_of(table, instrument(config.market.instrument), env, made.start, made.stop)
    return {"kind": "core", **made.places, "instrument": config.market.instrument, "start": made.start,
            "stop": made.stop, "seed": stream_key(seeds.training, "core") % 2**31,
            "mask_key": stream_key("dropout", config.name, seeds.training),
            "net": config.core.net.model_dump(), "env": env.model_dump(), "risk_unit": float(np.float64(unit))}


def _core_hash(config: RunConfig, experts: Experts, seeds: Seeds, scenario: str, oracle: bool) -> str:
    upstream = [json.loads((experts.run_dir / phase / "phase.json").read_text())["hash"]
                for phase in ("rde", "mrms")]
    parts = [__version__, str(FORMAT), *upstream, str(tuple(seeds)), scenario, str(oracle), config.name,
             str(synthetic_market_of(config).train_bars), config.features.digest(), str(config.torch_threads),
             config.market.instrument,
             config.core.model_dump_json(exclude={"mappo": {"num_env_runners", "checkpoint_every"}})]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _state(folder: Path) -> dict[str, Any]:
    path = folder / "core.json"
    return dict(json.loads(path.read_text())) if path.is_file() else {}
