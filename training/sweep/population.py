"""Population based training in step: all members reach a rung, then teams are handed on.

Ray Tune's own default lets every member decide when it reports. A leader of that moment may have no checkpoint to
give, the hand-over is left out, and with fewer processors than members the order of reports decides everything.
Ray draws from Python's and numpy's global generators, which nobody has seeded in the process that runs the sweep;
here each member's draws have a seed of their own, so a sweep that is not interrupted repeats.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining


class Population(PopulationBasedTraining):  # type: ignore[misc]
    """PopulationBasedTraining with synch=True; draws from `seed` and does not wait for those who never come."""

    def __init__(self, seed: int, **settings: Any) -> None:
        super().__init__(synch=True, **settings)
        self._seed = seed

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """The next member to train.

        Ray (2.60) chooses nobody for ever if the member that all wait for has failed, or in a sweep that is
        restored: its scheduler begins anew and takes the rung just reached for the next meeting. Where all members
        wait, the meeting is moved on.
        """
        chosen = super().choose_trial_to_run(tune_controller)
        live = tune_controller.get_live_trials()
        while chosen is None and live and all(trial.status == Trial.PAUSED for trial in live):
            self._next_perturbation_sync += self._perturbation_interval
            chosen = super().choose_trial_to_run(tune_controller)
        return chosen

    def _checkpoint_or_exploit(self, trial: Trial, tune_controller: Any, upper_quantile: list[Trial],
                               lower_quantile: list[Trial]) -> None:
        """Whose team the member takes over and how its configuration changes: by seed, member and rung alone."""
        member = tune_controller.get_trials().index(trial)
        with _drawing(self._seed, member, int(self._trial_state[trial].last_train_time)):
            super()._checkpoint_or_exploit(trial, tune_controller, upper_quantile, lower_quantile)


@contextmanager
def _drawing(*key: int) -> Iterator[None]:
    """Python's and numpy's global generators, seeded with `key` inside, as they were before behind it."""
    kept, kept_numpy = random.getstate(), np.random.get_state()
    words = np.random.SeedSequence(key).generate_state(2)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    try:
        yield
    finally:
        random.setstate(kept)
        np.random.set_state(kept_numpy)
