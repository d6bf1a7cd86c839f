"""One iteration of MAPPO by stage; RLlib's overhead per minibatch, the cost of dropout, what a second core gives.

    python -m benchmarks.learner [--bars 60000] [--rounds 5] [--cores]

    stages    processor time of each part of one iteration in the plain loop of benchmarks.training
    overhead  MAPPOLearner.update on RLlib against the same minibatches in the plain loop, in turns
    dropout   an iteration with counter-based masks against one in which every mask is the same row
    cores     wall-clock decisions per second: one process, sampling beside the update, two torch threads, two
              threads with segments of their own, two learners, two learners and two runners (needs two idle cores)
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME

from benchmarks._session import local_ray, options_of
from benchmarks.training import SETTINGS, PlainLoop, write_market
from training.mappo import core_team
from training.mappo.algorithm import MAPPOConfig
from training.mappo.module import MODULE_ID

CORE_CHOICES: dict[str, dict[str, Any]] = {
    "one_process": {}, "overlap": {"overlap": True}, "two_torch_threads": {"torch_threads": 2},
    "two_threads": {"threads": 2, "num_shards": 2, "envs_per_shard": 128},
    "two_threads_overlap": {"threads": 2, "num_shards": 2, "envs_per_shard": 128, "overlap": True},
    "two_learners": {"num_learners": 2, "num_shards": 2, "envs_per_shard": 128},
    "two_learners_two_runners": {"num_learners": 2, "num_env_runners": 2, "num_shards": 2, "envs_per_shard": 128},
}


class Stages:
    """Processor seconds by name; `within` counts what runs inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def within(self, name: str) -> Iterator[None]:
        """Add the block's time to `name`."""
        begun = time.process_time()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - begun

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, timed."""
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.within(name):
                return function(*args, **kwargs)
        return timed


def stages(loop: PlainLoop, iterations: int) -> dict[str, float]:
    """Share of an iteration's processor time, and the whole in milliseconds."""
    found, module = Stages(), loop.module
    parts = ((core_team, "rollout", "sample: heads and environment"), (module, "embed", "embedders forward"),
             (module.net, "team_logits", "update: heads forward"), (torch.Tensor, "backward", "update: backward"),
             (loop.optimizer, "step", "update: Adam"),
             (torch.nn.utils, "clip_grad_norm_", "update: gradient norms"))
    with ExitStack() as stack:
        for owner, attribute, name in parts:
            stack.enter_context(mock.patch.object(owner, attribute, found.wrap(name, getattr(owner, attribute))))
        stack.enter_context(found.within("whole"))
        for _ in range(iterations):
            loop.iterate()
    whole = found.seconds.pop("whole")
    shares = {name: seconds / whole for name, seconds in found.seconds.items()}
    shares["everything else"] = 1.0 - sum(shares.values())
    return {"iteration_ms": 1e3 * whole / iterations} | shares


def overhead(spec: dict[str, Any], loop: PlainLoop, rounds: int) -> dict[str, float]:
    """Milliseconds per minibatch of RLlib's Learner with our update, of the plain loop, and their difference."""
    algorithm = MAPPOConfig().train_team(spec, SETTINGS).build_algo()
    minibatches = SETTINGS.epochs * SETTINGS.minibatches
    columns = algorithm._sampling.sample(algorithm.env_runner_group, algorithm.team_weights(),
                                         algorithm._schedules(0)).columns
    times: dict[str, list[float]] = {"rllib": [], "plain": []}

    def rllib() -> None:
        batch = MultiAgentBatch({MODULE_ID: SampleBatch(dict(columns))}, env_steps=SETTINGS.segments)
        algorithm.learner_group.update(batch=batch, timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: 1})

    def plain() -> None:
        loop.update(columns)

    for number in range(rounds + 1):
        for name, update in (("rllib", rllib), ("plain", plain)):
            begun = time.process_time()
            update()
            if number:  # the first fills caches
                times[name].append(1e3 * (time.process_time() - begun) / minibatches)
    algorithm.stop()
    median = {f"{name}_ms": statistics.median(values) for name, values in times.items()}
    return median | {"overhead_ms": statistics.median(a - b for a, b in zip(*times.values(), strict=True))}


def dropout_cost(loop: PlainLoop, rounds: int) -> float:
    """Time with masks over time with one mask row for all, medians of interleaved iterations, minus 1."""
    def same_row(seeds: Any, steps: int, agents: int) -> Any:
        return np.zeros((len(seeds), steps, agents), np.int64)

    ratios = []
    for _ in range(rounds):
        begun = time.process_time()
        loop.iterate()
        middle = time.process_time()
        with mock.patch.object(core_team, "mask_rows", same_row):
            loop.iterate()
        ratios.append((middle - begun) / (time.process_time() - middle))
    return statistics.median(ratios) - 1.0


def cores(spec: dict[str, Any], rounds: int) -> dict[str, float]:
    """Wall-clock decisions per second of each choice, in turns, and their ratio to one process."""
    settings = {name: SETTINGS.model_copy(update=changes) for name, changes in CORE_CHOICES.items()}
    rates: dict[str, list[float]] = {name: [] for name in settings}
    for _ in range(rounds):
        for name, chosen in settings.items():
            algorithm = MAPPOConfig().train_team(spec, chosen).build_algo()
            algorithm.train()
            begun, before = time.perf_counter(), algorithm.env_steps
            for _ in range(4):
                algorithm.train()
            rates[name].append((algorithm.env_steps - before) / (time.perf_counter() - begun))
            algorithm.stop()
    median = {name: statistics.median(values) for name, values in rates.items()}
    ratios = {f"{name}_ratio": value / median["one_process"] for name, value in median.items()}
    return median | ratios


def main() -> None:
    """Measure and print one JSON object."""
    parser = options_of(__doc__, rounds=5)
    parser.add_argument("--cores", action="store_true", help="also measure two cores")
    options = parser.parse_args()
    with local_ray(4), tempfile.TemporaryDirectory() as folder:
        spec = write_market(Path(folder), options.bars)
        loop = PlainLoop(spec, SETTINGS)
        loop.iterate()
        found: dict[str, Any] = {"stages": stages(loop, options.rounds),
                                 "overhead": overhead(spec, loop, options.rounds),
                                 "dropout_cost": dropout_cost(loop, options.rounds)}
        if options.cores:
            found["cores"] = cores(spec, max(options.rounds // 2, 1))
    print(json.dumps(rounded(found), indent=2))


def rounded(value: Any) -> Any:
    """Three digits are more than the machine's noise allows."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    return float(f"{value:.3g}")


if __name__ == "__main__":
    main()
