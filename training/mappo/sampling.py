"""Sampling of every shard, before an update or beside it.

The driver owns the environment states, so a runner can be lost at any time: its shards are sent again. Shards are
fixed, whatever the number of runners, and so are the weights that each batch is sampled with; batches are
therefore equal to the bit on 0, 1 or 2 runners, and whether they were sampled beside an update or before it.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch

from algospace.types import AnyArray
from training.mappo.recovery import RecoveryWarning
from training.mappo.runner import EnvState, TeamRunner

_ATTEMPTS = 100
Columns = dict[str, AnyArray]
ShardResult = tuple[int, tuple[Columns, EnvState]]


@dataclass(frozen=True)
class Sampled:
    """One batch (segments first), what it was sampled with, and the processor's time for it."""

    columns: Columns
    tick: int
    seconds: float


class ShardSampling:
    """Environment states of all shards, and the batch that is being sampled, if any."""

    def __init__(self, num_shards: int) -> None:
        self.num_shards = num_shards
        self.tick = 0
        self._env_states: dict[int, EnvState | None] = {}
        self._thread: ThreadPoolExecutor | None = None
        self._ahead: Future[Sampled] | None = None
        self._alone = False  # whether the driver had to sample for lost runners last time

    def sample(self, group: Any, weights: dict[str, Any], schedules: dict[str, float]) -> Sampled:
        """The batch of this tick: the one begun before, if there is one. `schedules`: cost_scale, gae_lambda."""
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            return ahead.result()
        return self._sample_all(group, weights, schedules)

    def begin(self, group: Any, weights: dict[str, Any], schedules: dict[str, float]) -> None:
        """Sample the next batch beside the caller, with these weights."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "sampling")
        self._ahead = self._thread.submit(self._sample_all, group, weights, schedules)

    def stop(self) -> None:
        """Wait for what is under way and end the thread."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)
            self._thread, self._ahead = None, None

    def get_state(self) -> dict[str, Any]:
        """Environment states, the tick and the batch sampled ahead, which is waited for."""
        ahead = None if self._ahead is None else self._ahead.result()
        return {"env_states": dict(self._env_states), "tick": self.tick, "ahead": ahead}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue bit for bit from a `get_state`."""
        self.stop()
        self._env_states, self.tick = state["env_states"], state["tick"]
        if state["ahead"] is not None:
            self._ahead = Future()
            self._ahead.set_result(state["ahead"])

    def _sample_all(self, group: Any, weights: dict[str, Any], schedules: dict[str, float]) -> Sampled:
        """Every shard's segments in shard order; shards of lost runners are sent again."""
        started = time.perf_counter()
        tick, todo = self.tick, set(range(self.num_shards))
        done: dict[int, tuple[Columns, EnvState]] = {}
        for _ in range(1 if self._alone else _ATTEMPTS):
            calls = [{"shard": s, "env_state": self._env_states.get(s), "tick": tick, **schedules}
                     for s in sorted(todo)]
            done.update(_dispatch(group, calls, weights))
            todo -= done.keys()
            if not todo:
                break
        if todo and not self._alone:
            warnings.warn("no runner answers; the driver samples in their place until one comes back",
                          RecoveryWarning, stacklevel=2)
        self._alone = bool(todo)
        if todo:  # no runner is left for these shards, and none came back: the driver samples them itself
            done.update(_local(group, [call for call in calls if call["shard"] in todo], weights))
        self._env_states = {shard: state for shard, (_, state) in done.items()}
        self.tick += 1
        parts = [done[shard][0] for shard in range(self.num_shards)]
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return Sampled(columns, tick, time.perf_counter() - started)


def _dispatch(group: Any, calls: list[dict[str, Any]], weights: dict[str, Any]) -> Iterable[ShardResult]:
    """What the runners answered; a lost runner's answer is missing."""
    if not group.num_remote_env_runners():
        return _local(group, calls, weights)
    workers = group.healthy_env_runner_ids()
    if not workers:
        time.sleep(0.5)
        group.probe_unhealthy_env_runners()
        return []
    reference = ray.put(weights)
    results: list[ShardResult] = []
    for first in range(0, len(calls), len(workers)):
        part = calls[first: first + len(workers)]
        results += group.foreach_env_runner([_remote_sample(call, reference) for call in part],
                                            local_env_runner=False, remote_worker_ids=workers[: len(part)])
    return results


def _local(group: Any, calls: list[dict[str, Any]], weights: dict[str, Any]) -> list[ShardResult]:
    """The driver's own runner, one thread per shard where it may use several."""
    runner: TeamRunner = group.local_env_runner
    runner.module.load_state_dict(weights)
    threads = min(runner.settings.threads, len(calls))
    if threads == 1:
        return [(call["shard"], runner.sample(**call)) for call in calls]
    with ThreadPoolExecutor(threads, "shard", torch.set_num_threads, (1,)) as pool:
        answers = [(call["shard"], pool.submit(runner.sample, **call)) for call in calls]
        return [(shard, answer.result()) for shard, answer in answers]


def _remote_sample(call: dict[str, Any], weights: Any) -> Any:
    """A function for one remote runner: sample one shard."""
    shard = call["shard"]

    def sample(runner: TeamRunner) -> ShardResult:
        return shard, runner.sample(**call, weights=ray.get(weights))

    return sample
