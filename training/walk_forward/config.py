"""Configuration of a walk-forward: a training run's, with the first window's dates, and how it goes on."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from algospace.config import FrozenConfig
from training.config import RunConfig


class WalkForwardConfig(FrozenConfig):
    """How the windows follow each other, and what the tests are judged with.

    training: `rolling` moves the start of training with the rest, `expanding` keeps it. A window begins
    `step_months` and `step_days` after the one before it (calendar); both 0: the length of the test in days.
    trials: configurations that were tried before this one was chosen; `sweep` names a sweep's summary, from which
    the number is read instead. random_seeds: runs of random entries that stand for luck. daily_risk: standard
    deviation of a day's profit, in account currency, that the risk-matched figures are scaled to; max_scale: the
    largest factor of that scaling. fixed_stop_atr, fixed_target_r: brackets of the rule without M-RMS.
    """

    windows: int = Field(5, ge=1)
    training: Literal["rolling", "expanding"] = "rolling"
    step_months: int = Field(0, ge=0)
    step_days: int = Field(0, ge=0)
    trials: int = Field(1, ge=1)
    sweep: str | None = None
    random_seeds: int = Field(200, ge=1)
    daily_risk: float = Field(1_000.0, gt=0)
    max_scale: float = Field(10.0, gt=0)
    fixed_stop_atr: float = Field(2.0, gt=0)
    fixed_target_r: float = Field(2.0, gt=0)
    pbo_blocks: int = Field(10, ge=2)
    bootstrap_samples: int = Field(2_000, ge=1)

    @model_validator(mode="after")
    def _blocks_are_even(self) -> Self:
        if self.pbo_blocks % 2:
            raise ValueError(f"pbo_blocks must be even, got {self.pbo_blocks}")
        return self


class WalkForwardRun(RunConfig):
    """A run's configuration; `market.file` holds the dates of the first window."""

    walk_forward: WalkForwardConfig = WalkForwardConfig()

    @model_validator(mode="after")
    def _has_dates(self) -> Self:
        file = self.market.file
        if file is None:
            raise ValueError("a walk-forward needs recorded bars: give market.file, with the first window's dates")
        if file.test_until is None:
            raise ValueError("a walk-forward needs market.file.test_until, the end of the first window's test")
        if self.walk_forward.training == "rolling" and file.start is None:
            raise ValueError("rolling training needs market.file.start, where the first window's training begins; "
                             "or set walk_forward.training to expanding")
        longest = self.longest_window
        if self.embargo_bars < longest:
            raise ValueError(f"embargo_bars ({self.embargo_bars}) is shorter than the longest window of the "
                             f"matrices ({longest} base bars), so parts would overlap; raise it")
        return self

    @property
    def longest_window(self) -> int:
        """Base bars that the longest matrix window spans."""
        slow = max(self.matrices.strategic_window, self.matrices.regime_window)
        return max(self.matrices.tactical_window, slow * self.features.slow_minutes // self.features.base_minutes)

    def window_config(self, name: str, dates: dict[str, str | None]) -> RunConfig:
        """The plain configuration of one window: `dates` replace those of `market.file`."""
        values: dict[str, Any] = self.model_dump(mode="json", exclude={"walk_forward"})
        values["name"] = name
        values["market"]["file"] |= dates
        return RunConfig.model_validate(values)
