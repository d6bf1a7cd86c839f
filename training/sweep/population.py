"""Population based training in step: all members reach a rung, then teams are handed on.

Ray Tune's own default lets every member decide when it reports. A leader of that moment may have no checkpoint to
give, the hand-over is left out, and with fewer processors than members the order of reports decides everything.
"""

from __future__ import annotations

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining


class Population(PopulationBasedTraining):  # type: ignore[misc]
    """PopulationBasedTraining with synch=True that does not wait for those who never come."""

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
