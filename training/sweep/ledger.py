"""The record of a sweep: `sweep.json`, rewritten whenever a trial starts, reports or ends, and its MLflow runs.

One parent run per sweep, one child per trial. A sweep that is started again goes on in the same runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, ClassVar

from ray.tune import Callback

from algospace.files import write_json
from training.sweep.config import METRIC
from training.sweep.tables import open_search
from training.sweep.trial import FINAL_STATES, SHARED, SWEEP, TRIALS, Plan, Rung, forget_weights
from training.tracking import PhaseRun, Tracker

_NUMBERS = (METRIC, "sharpe_per_bar", "exposure", "turnover")
_MLFLOW_STATUS = {"finished": "FINISHED", "pruned": "FINISHED", "failed": "FAILED", "running": "KILLED"}


class Ledger:
    """Every trial that was started: id -> number, changes, state, rungs, MLflow run.

    State: running, finished (all rungs), pruned (stopped by the scheduler) or failed.
    """

    def __init__(self, plan: Plan, config_hash: str, say: Callable[[str], None]) -> None:
        self.plan, self._say = plan, say
        self.path = plan.folder / SWEEP
        known = json.loads(self.path.read_text()) if self.path.is_file() else {}
        self.document: dict[str, Any] = known or {
            "name": plan.tune.name, "config_hash": config_hash, "mlflow_run_id": "", "trials": {},
            "data_hash": open_search(plan.folder / SHARED).data_hash}
        self._runs: dict[str, PhaseRun] = {}
        base = plan.base
        self.tracker = Tracker.open(base.tracking, plan.folder, plan.tune.name, plan.tune.model_dump(mode="json"),
                                    config_hash, parent_run_id=self.document["mlflow_run_id"] or None)
        self.document["mlflow_run_id"] = self.tracker.run_id
        self.write()

    @property
    def trials(self) -> dict[str, dict[str, Any]]:
        """All trials by id, in the order of their start."""
        trials: dict[str, dict[str, Any]] = self.document["trials"]
        return dict(sorted(trials.items(), key=lambda item: int(item[1]["number"])))

    def start(self, key: str, changes: dict[str, Any]) -> None:
        """A trial starts, or goes on."""
        trial = self.document["trials"].setdefault(key, {
            "number": len(self.document["trials"]) + 1, "changes": changes, "rungs": [], "mlflow_run_id": ""})
        if trial.get("state") in FINAL_STATES or key in self._runs:
            return
        trial["state"] = "running"
        run = self.tracker.child(f"trial {trial['number']}", changes, {"trial": key},
                                 run_id=trial["mlflow_run_id"] or None)
        self._runs[key], trial["mlflow_run_id"] = run, run.run_id
        self.write()

    def report(self, key: str, rung: Rung) -> None:
        """A trial has reached a rung; one that is known already changes nothing."""
        trial = self.document["trials"][key]
        if rung["rung"] <= len(trial["rungs"]):
            return
        kept = {name: rung[name] for name in ("rung", "env_steps", *_NUMBERS) if name in rung}
        trial["rungs"].append({**kept, "changes": rung["changes"]})
        trial["changes"] = rung["changes"]
        figures = {name: float(kept[name]) for name in _NUMBERS if name in kept}
        if key in self._runs:
            self._runs[key].metrics(int(rung["env_steps"]), figures)
        self.write()
        self._say(f"trial {trial['number']}/{self.plan.tune.trials}: rung {rung['rung']}/{self.plan.tune.rungs}, "
                  f"{METRIC} {figures[METRIC]:+.4f}  ({_said(trial['changes'])})")

    def end(self, key: str, error: str = "") -> None:
        """A trial has ended: by its last rung, by the scheduler, or by an error."""
        trial = self.document["trials"][key]
        if trial.get("state") in FINAL_STATES:
            return
        whole = len(trial["rungs"]) >= self.plan.tune.rungs
        trial["state"] = "failed" if error else "finished" if whole else "pruned"
        if error:
            trial["error"] = error
            self._say(f"trial {trial['number']} failed: {error}")
        self._close(key, trial["state"])
        self.write()
        if trial["state"] in FINAL_STATES:
            forget_weights(self.plan.folder / TRIALS / key)

    def best(self) -> tuple[str, dict[str, Any]] | None:
        """Of the trials trained to the end, the one with the best last validation score."""
        whole = [(key, trial) for key, trial in self.trials.items() if trial["state"] == "finished"]
        return max(whole, key=lambda item: float(item[1]["rungs"][-1][METRIC]), default=None)

    def sharpes(self) -> tuple[float, ...]:
        """Sharpe ratio per bar on the validation split of every configuration that was scored: a trial's last
        rung, and each configuration that a PBT member has left behind."""
        values = []
        for trial in self.trials.values():
            rungs = trial["rungs"]
            values += [float(rung["sharpe_per_bar"]) for place, rung in enumerate(rungs)
                       if place + 1 == len(rungs) or rungs[place + 1]["changes"] != rung["changes"]]
        return tuple(values)

    def tried(self) -> int:
        """How many configurations were started, pruned and failed ones included."""
        unscored = sum(not trial["rungs"] for trial in self.document["trials"].values())
        return len(self.sharpes()) + unscored

    def close(self, status: str) -> None:
        """End every run; those of trials that still ran are taken up when the sweep goes on."""
        for key in list(self._runs):
            self._close(key, self.document["trials"][key]["state"])
        self.tracker.close(status)

    def write(self) -> None:
        """Atomically, with the number of trials."""
        self.document["trials_started"] = len(self.document["trials"])
        write_json(self.path, self.document)

    def _close(self, key: str, state: str) -> None:
        run = self._runs.pop(key, None)
        if run is not None:
            if state in FINAL_STATES:
                run.curves()
            run.close(_MLFLOW_STATUS[state])


def _said(changes: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
                     for key, value in changes.items())


class LedgerCallback(Callback):  # type: ignore[misc]
    """Tells a ledger what Ray Tune sees. `over`: trials that have ended in this start, by Tune's ids.

    Tune pickles callbacks into the state it restores PBT from, so the ledger is looked up by its folder.
    """

    open_ledgers: ClassVar[dict[str, Ledger]] = {}
    over: ClassVar[dict[str, set[str]]] = {}

    def __init__(self, folder: str) -> None:
        self.folder = folder

    @property
    def _ledger(self) -> Ledger:
        return self.open_ledgers[self.folder]

    def _key(self, trial: Any) -> str:
        plan = self._ledger.plan
        return str(trial.trial_id) if plan.tune.scheduler == "pbt" else plan.trial_id(trial.config)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Also when a paused trial goes on."""
        self._ledger.start(self._key(trial), self._ledger.plan.changes(trial.config))

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any],
                        **info: Any) -> None:
        """A rung."""
        self._ledger.report(self._key(trial), result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Finished or pruned."""
        self.over.setdefault(self.folder, set()).add(str(trial.trial_id))
        self._ledger.end(self._key(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Failed more often than allowed."""
        self.over.setdefault(self.folder, set()).add(str(trial.trial_id))
        text = str(trial.get_pickled_error() or "its process died").strip().splitlines()
        self._ledger.end(self._key(trial), error=text[-1] if text else "its process died")
