"""Configuration of a sweep: which keys of a run's configuration are searched, how, and by which score.

Words: a *trial* is one configuration trained; a *rung* is a point of its training at which it is scored on the
validation split and reported to Ray Tune; *shared* phases are trained once and reused by every trial.
"""

from __future__ import annotations

import difflib
import math
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from algospace.config import FrozenConfig, parse_config, read_yaml
from algospace.errors import ConfigError
from training.config import PHASES, Phase, RunConfig

METRIC = "validation_score"
MUTABLE = tuple(f"core.mappo.{name}" for name in (
    "learning_rate", "entropy", "cost_scale", "gae_lambda", "clip_param", "value_clip", "huber_delta",
    "value_coeff", "grad_clip", "epochs"))
"""What PBT may change while a team trains: the loss and the schedules. Everything else decides the shape of a
tensor, the meaning of the value function or the environments a checkpoint continues with."""
_WITHOUT_EFFECT = ("name", "gate", "backtest", "tracking", "tuning", "torch_threads")
_DECIDES_SCORE = ("markets", "embargo_bars", "market.instrument", "market.file", *(
    f"market.synthetic.{name}" for name in (
        "scenario", "validation_seed", "validation_bars", "test_seeds", "test_bars")))


class Choice(FrozenConfig):
    """One of `values`; they may be of any kind, sections too."""

    kind: Literal["choice"]
    values: tuple[Any, ...] = Field(min_length=1)

    def extremes(self) -> tuple[Any, ...]:
        """Values whose validity speaks for all others."""
        return self.values


class _Range(FrozenConfig):
    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        return self

    def extremes(self) -> tuple[Any, ...]:
        """Both bounds."""
        return self.low, self.high


class Uniform(_Range):
    """Any number in [low, high]."""

    kind: Literal["uniform"]


class LogUniform(_Range):
    """Any number in [low, high], its logarithm uniform."""

    kind: Literal["loguniform"]

    @model_validator(mode="after")
    def _positive(self) -> Self:
        if self.low <= 0.0:
            raise ValueError(f"low ({self.low:g}) of a loguniform must be positive")
        return self


class RandInt(_Range):
    """A whole number in [low, high], both included."""

    kind: Literal["randint"]
    low: int
    high: int


class Quantised(_Range):
    """A multiple of `step` in [low, high]; whole numbers where all three are."""

    kind: Literal["quantised"]
    low: int | float
    high: int | float
    step: int | float = Field(gt=0)

    @property
    def whole(self) -> bool:
        """Whether the values are integers."""
        return all(isinstance(value, int) for value in (self.low, self.high, self.step))

    @property
    def grid(self) -> list[int | float]:
        """All values, as Ray Tune computes them."""
        first, last = round(self.low / self.step), round(self.high / self.step)
        return [number * self.step for number in range(first, last + 1)]

    @model_validator(mode="after")
    def _bounds_are_multiples(self) -> Self:
        for name, bound in (("low", self.low), ("high", self.high)):
            if not math.isclose(bound / self.step, round(bound / self.step)):
                raise ValueError(f"{name} ({bound:g}) must be a multiple of step ({self.step:g})")
        return self


Parameter = Annotated[Choice | Uniform | LogUniform | RandInt | Quantised, Field(discriminator="kind")]


class AshaConfig(FrozenConfig):
    """`grace` rungs before a trial may be stopped; of `reduction` trials at a rung one goes on."""

    grace: int = Field(1, ge=1)
    reduction: float = Field(2.0, gt=1.0)


class PbtConfig(FrozenConfig):
    """Every `interval` rungs the worst `quantile` takes over a better member's team and a changed configuration;
    a value is drawn anew with probability `resample`, else multiplied by 0.8 or 1.2; one of a list or of multiples
    is exchanged for a neighbour."""

    interval: int = Field(1, ge=1)
    quantile: float = Field(0.25, gt=0.0, le=0.5)
    resample: float = Field(0.25, ge=0.0, le=1.0)


class TuneConfig(FrozenConfig):
    """A sweep over `base` (a run's configuration file, relative to this file) with `overrides`."""

    name: str = Field(min_length=1)
    base: str
    overrides: tuple[str, ...] = ()
    phases: tuple[Phase, ...] = ("core",)
    """Trained by every trial, up to and including `core`; the phases before are shared."""
    space: dict[str, Parameter] = Field(min_length=1)
    search: Literal["random", "optuna"] = "random"
    scheduler: Literal["asha", "pbt", "none"] = "asha"
    asha: AshaConfig = AshaConfig()
    pbt: PbtConfig = PbtConfig()
    trials: int = Field(8, ge=1)
    max_concurrent: int = Field(1, ge=1)
    cpus_per_trial: float = Field(1.0, gt=0.0)
    rungs: int = Field(4, ge=1)
    """How often a trial is scored, the last time at its end."""
    metric: Literal["validation_score"] = "validation_score"
    mode: Literal["max"] = "max"
    seed: int = Field(0, ge=0, lt=2**32)
    max_failures: int = Field(2, ge=0)
    """How often a trial whose process dies is continued from its last rung."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.phases != PHASES[len(PHASES) - len(self.phases):] or not self.phases:
            raise ValueError(f"phases: {', '.join(self.phases) or 'none'}; one of [core], [mrms, core], "
                             f"[rde, mrms, core], as the core is what is scored")
        if self.scheduler == "asha" and self.asha.grace > self.rungs:
            raise ValueError(f"asha.grace ({self.asha.grace}) is more than the {self.rungs} rungs of a trial")
        if self.scheduler == "pbt":
            self._check_pbt()
        return self

    def _check_pbt(self) -> None:
        if self.search != "random" or self.phases != ("core",):
            raise ValueError("scheduler pbt mutates running cores: it needs search: random and phases: [core]")
        if self.trials < 2 or self.rungs < 2:
            raise ValueError("scheduler pbt needs at least 2 trials (its population) and 2 rungs")
        for key in self.space:
            if not any(_within(key, name) for name in MUTABLE):
                raise ValueError(f"'{key}' cannot change while a team trains, so pbt cannot search it; it can "
                                 f"search {', '.join(MUTABLE)}")


def load_tune(path: Path, overrides: typing.Sequence[str] = ()) -> tuple[TuneConfig, RunConfig]:
    """A sweep's configuration and its base run's, checked: keys, bounds, and every bound as part of a run.

    Raises ConfigError with one line that names the key.
    """
    tune = parse_config(TuneConfig, read_yaml(path), overrides, source=str(path))
    base_path = Path(tune.base)
    beside = path.resolve().parent / base_path
    found = beside if beside.is_file() else base_path
    values = {**read_yaml(found), "name": f"{tune.name}-best"}
    base = parse_config(RunConfig, values, tune.overrides, source=str(found))
    check_space(tune, base)
    return tune, base


def check_space(tune: TuneConfig, base: RunConfig) -> None:
    """Every key exists, may be searched, belongs to a phase that trials train, and has valid bounds."""
    if base.markets:
        raise ConfigError("a sweep scores one market: remove 'markets' from its base, tune on one, train on all")
    keys = list(tune.space)
    for key in keys:
        _check_key(key, tune)
        nested = [other for other in keys if other != key and _within(other, key)]
        if nested:
            raise ConfigError(f"search space: '{nested[0]}' lies within '{key}'; search one of them")
        for value in tune.space[key].extremes():
            changed(base, {key: value})
    for place in (0, -1):
        changed(base, {key: parameter.extremes()[place] for key, parameter in tune.space.items()})


def changed(base: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """`base` with dotted keys set; ConfigError names the values that do not fit."""
    values = base.model_dump(mode="json")
    for key, value in changes.items():
        *parents, leaf = key.split(".")
        node = values
        for name in parents:
            node[name] = node[name] if isinstance(node.get(name), dict) else {}
            node = node[name]
        node[leaf] = value
    said = ", ".join(f"{key}={value}" for key, value in changes.items())
    return parse_config(RunConfig, values, source=f"search space: {said}")


def _check_key(key: str, tune: TuneConfig) -> None:
    known = list(dotted_keys(RunConfig))
    if key not in known:
        near = difflib.get_close_matches(key, known, 1, 0.0)[0]
        raise ConfigError(f"search space: unknown key '{key}'; the nearest known key is '{near}'")
    if any(_within(key, name) for name in _WITHOUT_EFFECT):
        raise ConfigError(f"search space: '{key}' does not change what the validation score measures; remove it")
    if any(_within(key, name) or _within(name, key) for name in _DECIDES_SCORE):
        raise ConfigError(f"search space: '{key}' decides what trials are scored on, so scores could not be "
                          f"compared; remove it, or set it with overrides")
    phase = next((name for name in PHASES if _within(key, name)), PHASES[0])
    if phase not in tune.phases:
        reach = ", ".join(PHASES[PHASES.index(phase):])
        raise ConfigError(f"search space: '{key}' changes phase '{phase}', which this sweep trains once for all "
                          f"trials; write phases: [{reach}] to search it")


def dotted_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every section and value below a configuration model, as `a.b.c`."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        for section in _sections(field.annotation):
            yield from dotted_keys(section, f"{prefix}{name}.")


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models an annotation stands for, alone or as an alternative to None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif not isinstance(annotation, type) and typing.get_origin(annotation) not in (tuple, list, dict):
        for part in typing.get_args(annotation):
            yield from _sections(part)


def _within(key: str, section: str) -> bool:
    return key == section or key.startswith(f"{section}.")
