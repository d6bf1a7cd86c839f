"""What an evaluation does: which configuration, how many training seeds, which unseen markets, which controls."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from algospace.analysis.unit_judgement import require_limit
from algospace.config import FrozenConfig, parse_config, read_yaml
from algospace.errors import ConfigError
from algospace.marketdata.synthetic import scenario_named
from training.config import RunConfig

Control = Literal["martingale", "oracle"]
CONTROLS: tuple[Control, ...] = ("martingale", "oracle")
EVALUATION = "evaluation"
"""Folder of a run's own evaluation."""
UNSEEN_SEEDS = (9001, 9002, 9003, 9004, 9005)


class Judging(FrozenConfig):
    """The markets that judge, and what counts as passing."""

    seeds: tuple[int, ...] = Field(UNSEEN_SEEDS, min_length=1)
    bars: int = Field(260_000, ge=10_000)
    scenario: str | None = None
    """By default the scenario that was trained on."""
    confidence: float = Field(0.95, gt=0.0, lt=1.0)
    least_fraction: float | None = None
    """Fail if the mean fraction of the limit is lower."""
    max_idle_exposure: float = Field(0.02, ge=0.0, le=1.0)
    """Share of bars in the market that the martingale control may show."""
    oracle_multiple: float = Field(3.0, gt=1.0)
    """Times the limit that the oracle control must earn."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"judging seeds must differ, got {self.seeds}")
        return self


class EvaluateConfig(FrozenConfig):
    """One evaluation. `train` is a run configuration, relative to the file that names it."""

    name: str = Field(min_length=1)
    train: str
    overrides: tuple[str, ...] = ()
    """`key.path=value` changes of the run configuration."""
    train_seeds: tuple[int, ...] = ()
    """Seed k trains with seed k on market seed k; empty: the configuration's own two seeds."""
    share_experts: bool = True
    """RDE and M-RMS of the first training seed serve all others and the controls."""
    judging: Judging = Judging()
    controls: tuple[Control, ...] = ()
    control_overrides: tuple[str, ...] = ()
    """Further changes for the controls alone, e.g. fewer steps."""
    control_seeds: tuple[int, ...] = ()
    """Judging seeds of the controls; empty: those of `judging`."""


class Evaluation(FrozenConfig):
    """An evaluation resolved: the run configuration is read and checked."""

    plan: EvaluateConfig
    run: RunConfig

    @property
    def control_run(self) -> RunConfig:
        """The run configuration of the controls."""
        return changed(self.run, self.plan.control_overrides)

    @property
    def control_judging(self) -> Judging:
        """The markets that judge the controls."""
        seeds = self.plan.control_seeds or self.plan.judging.seeds
        return self.plan.judging.model_copy(update={"seeds": seeds})


def load_evaluation(path: Path | str, overrides: tuple[str, ...] = (), **changes: Any) -> Evaluation:
    """Read an evaluation, or a run configuration to be evaluated with the defaults.

    overrides: changes of the run configuration; changes: fields of `EvaluateConfig` that replace the file's.
    """
    path = Path(path)
    values = read_yaml(path)
    if "market" in values:  # a run configuration: it says what to train, not how to judge
        values = {"name": values.get("name", path.stem), "train": path.name}
    judging, chosen = values.get("judging", {}), changes.pop("judging", {})
    if isinstance(judging, dict):  # anything else is refused by name below
        judging = {**judging, **chosen}
    plan = parse_config(EvaluateConfig, {**values, **changes, "judging": judging}, source=str(path))
    source = path.parent / plan.train
    run = parse_config(RunConfig, read_yaml(source), [*plan.overrides, *overrides], source=str(source))
    check(run, plan.train_seeds, plan.judging)
    evaluation = Evaluation(plan=plan, run=run)
    if plan.controls:
        check(evaluation.control_run, plan.train_seeds[:1], evaluation.control_judging)
    return evaluation


def changed(config: RunConfig, overrides: tuple[str, ...]) -> RunConfig:
    """`config` with `key.path=value` changes."""
    return parse_config(RunConfig, config.model_dump(mode="json"), overrides, source=config.name)


def check(run: RunConfig, train_seeds: tuple[int, ...], judging: Judging) -> None:
    """ConfigError unless the judging markets are synthetic, have a limit, and were never seen in training."""
    market = run.market.synthetic
    if market is None:
        raise ConfigError(f"'{run.name}' trains on recorded bars, which have no known limit; `algospace backtest` "
                          "judges it, `algospace evaluate` takes a synthetic market")
    require_limit(scenario_named(judging.scenario or market.scenario))
    seen = {*(train_seeds or (market.train_seed,)), market.validation_seed}
    both = sorted(seen & set(judging.seeds))
    if both:
        raise ConfigError(f"judging seed {both[0]} is a training or validation market of '{run.name}'; choose "
                          "seeds that no training has seen")
    if market.validation_seed in train_seeds:
        raise ConfigError(f"training seed {market.validation_seed} is the validation market of '{run.name}'; "
                          "train on others, or move market.synthetic.validation_seed")
    if len(set(train_seeds)) < len(train_seeds):
        raise ConfigError(f"training seeds must differ, got {train_seeds}")
