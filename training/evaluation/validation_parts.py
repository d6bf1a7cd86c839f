"""The validation split of a tuned configuration, in two: the sweep scores on the first half, the gate is
calibrated on the rest. The best of many trials fits what it was scored on partly by luck: a promise kept there
would be none.
"""

from __future__ import annotations

from algospace.errors import ConfigError
from training.config import RunConfig
from training.dataset import Split


def scored_part(config: RunConfig, validation: Split) -> Split:
    """What a sweep scores its trials on; ConfigError where either part would be too short."""
    calibrated_part(config, validation)
    return Split(validation.table, validation.start, _middle(validation), validation.seed)


def calibrated_part(config: RunConfig, validation: Split) -> Split:
    """The rows behind the first half and an embargo, which no sweep has looked at; ConfigError where too few."""
    start, least = _middle(validation) + config.embargo_bars, config.core.env.episode_bars + 1
    if min(validation.stop - start, _middle(validation) - validation.start) < least:
        rows = validation.stop - validation.start
        raise ConfigError(f"the validation split of '{config.name}' has {rows:,} rows: a sweep scores "
                          f"on the first half, the gate is calibrated behind it and an embargo of "
                          f"{config.embargo_bars:,}, and each needs {least:,}; make the split longer")
    return Split(validation.table, start, validation.stop, validation.seed)


def gate_part(config: RunConfig, validation: Split) -> Split:
    """What the gate is calibrated on: all of the split, unless a sweep chose the configuration by it."""
    return validation if config.tuning is None else calibrated_part(config, validation)


def _middle(validation: Split) -> int:
    return validation.start + (validation.stop - validation.start) // 2
