"""A tiny sweep for tests: seconds per trial on a synthetic market of 30,000 bars."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

from rich.console import Console

from algospace.config import load_config, parse_config
from training.config import RunConfig
from training.sweep.config import TuneConfig, check_space
from training.tune import SweepResult, run_sweep

QUICKSTART = Path(__file__).resolve().parents[1] / "configs" / "quickstart.yaml"
RATE = "core.mappo.learning_rate.start"
TINY = [
    "name=tiny-best", "market.synthetic.train_bars=20000", "market.synthetic.validation_bars=12000",
    "market.synthetic.validation_seed=701", "rde.size=tiny", "rde.epochs=1", "rde.windows_per_epoch=128",
    "mrms.mappo.env_steps=2048", "core.net.embed_dim=4", "core.net.channels=4", "core.net.hidden=8",
    "core.net.critic_hidden=8", "core.mappo.env_steps=2048", "core.mappo.num_shards=1",
    "core.mappo.envs_per_shard=8", "core.mappo.segment=32", "core.mappo.minibatches=2", "core.env.episode_bars=64",
]


def tiny_base(*changes: str) -> RunConfig:
    """The run whose configuration is searched."""
    return load_config(RunConfig, QUICKSTART, [*TINY, *changes])


def tiny_tune(**changes: Any) -> TuneConfig:
    """Three trials of two rungs over the learning rate."""
    space = {RATE: {"kind": "loguniform", "low": 0.001, "high": 0.01}}
    values = {"name": "tiny", "base": str(QUICKSTART), "space": space, "scheduler": "none", "trials": 3,
              "rungs": 2, "seed": 3, **changes}
    return parse_config(TuneConfig, values)


def run_tiny(folder: Path, shared: Path | None, tune: TuneConfig, base: RunConfig) -> tuple[SweepResult, str]:
    """The result and what was said; experts are copied from `shared` where it is given."""
    check_space(tune, base)
    if shared is not None and not (folder / "shared").exists():
        shutil.copytree(shared, folder / "shared")
    said = io.StringIO()
    return run_sweep(tune, base, folder, Console(file=said, width=200)), said.getvalue()
