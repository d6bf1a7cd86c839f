"""Runners: the measured curve, and on paper to 1,000 cores.

    python -m benchmarks.scaling [--iterations 6] [--rounds 3] [--runners 0,1,2,4]

The same 256 segments of 128 decisions in 4 shards, sampled by the driver (0) or by remote runners; numbers of
runners take turns. Then bytes, messages and seconds per iteration are worked out for larger clusters with the
constants measured here (formulas: docs/cluster.md).
"""

from __future__ import annotations

import argparse
import os
import pickle
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from benchmarks.training import SETTINGS, write_market
from training.mappo.algorithm import MAPPO, MAPPOConfig
from training.mappo.settings import MAPPOSettings

NETWORK_BYTES = 1.25e9  # 10 Gbit/s into the driver
SHARDS = 4


@dataclass(frozen=True)
class Constants:
    """What the extrapolation takes from the measurement."""

    sample_per_decision: float   # seconds of one core
    update_per_decision: float   # seconds of one core, all epochs
    batch_bytes: float           # per decision
    state_bytes: float           # per environment, there and back
    weight_bytes: float
    call: float                  # seconds of the driver per shard call and answer
    join: float                  # seconds of the driver per byte received (unpack, join)


def settings_for(runners: int) -> MAPPOSettings:
    """The quickstart's batch in SHARDS shards."""
    return SETTINGS.model_copy(update={"num_shards": SHARDS, "envs_per_shard": 256 // SHARDS,
                                       "num_env_runners": runners})


def seconds(algorithm: MAPPO, iterations: int) -> tuple[float, float]:
    """Median seconds of sampling and of updating."""
    rows = []
    for _ in range(iterations):
        figures = algorithm.train()["env_runners"]
        rows.append((figures["sample_seconds"], figures["update_seconds"]))
    sampled, updated = zip(*rows, strict=True)
    return statistics.median(sampled), statistics.median(updated)


def call_seconds(algorithm: MAPPO) -> float:
    """Median seconds of an empty call to one remote runner."""
    taken = []
    for _ in range(50):
        started = time.perf_counter()
        algorithm.env_runner_group.foreach_env_runner(lambda runner: None, local_env_runner=False,
                                                      remote_worker_ids=[1])
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def join_seconds(columns: dict[str, Any]) -> float:
    """Seconds per byte to unpack SHARDS answers from the object store and join them."""
    parts = [{name: np.ascontiguousarray(value[first::SHARDS]) for name, value in columns.items()}
             for first in range(SHARDS)]
    references = [ray.put(part) for part in parts]
    taken = []
    for _ in range(10):
        started = time.perf_counter()
        answers = ray.get(references)
        joined = {name: np.concatenate([part[name] for part in answers]) for name in columns}
        taken.append(time.perf_counter() - started)
    return statistics.median(taken) / sum(value.nbytes for value in joined.values())


def measured(algorithms: dict[int, MAPPO], rates: dict[int, tuple[float, float]]) -> Constants:
    """Constants from the run without runners and from a remote one."""
    local, settings = algorithms[0], settings_for(0)
    decisions = settings.steps_per_iteration
    sampled = local._sampling.sample(local.env_runner_group, local.team_weights(), local._schedules(0))
    batch = sum(value.nbytes for value in sampled.columns.values())
    states = len(pickle.dumps(local._sampling.get_state()["env_states"]))
    weights = sum(value.numel() * value.element_size() for value in local.team_weights().values())
    remote = next(algorithm for runners, algorithm in algorithms.items() if runners)
    return Constants(rates[0][0] / decisions, rates[0][1] / decisions, batch / decisions,
                     states / settings.segments, weights, call_seconds(remote), join_seconds(sampled.columns))


def on_paper(constants: Constants, runners: int, learners: int, decisions_per_runner: int, segment: int) -> str:
    """One line: a cluster where every runner samples one shard per iteration."""
    decisions = runners * decisions_per_runner
    environments = decisions / segment
    down = decisions * constants.batch_bytes + environments * constants.state_bytes
    up = environments * constants.state_bytes + runners * constants.weight_bytes
    sample = decisions_per_runner * constants.sample_per_decision
    driver = runners * constants.call + down * constants.join + (down + up) / NETWORK_BYTES
    spread = decisions * constants.batch_bytes / NETWORK_BYTES  # to the learners, over the driver's own link
    steps = SETTINGS.epochs * SETTINGS.minibatches
    reduce = steps * (2.0 * constants.weight_bytes / NETWORK_BYTES + 1e-3) if learners > 1 else 0.0
    update = decisions * constants.update_per_decision / learners + reduce + (spread if learners > 1 else 0.0)
    total = sample + driver + update
    return (f"{runners:>7}{learners:>9}{decisions:>12,}{(down + up) / 1e6:>10.1f}{2 * runners:>10}"
            f"{sample:>9.2f}{driver:>9.2f}{update:>9.2f}{decisions / total:>13,.0f}")


def runner_counts(text: str) -> list[int]:
    """`0,1,2` as numbers; the constants come from the driver alone (0) and from remote runners."""
    words = text.split(",")
    if not all(word.isdecimal() for word in words) or "0" not in words or set(words) == {"0"}:
        raise argparse.ArgumentTypeError(f"'{text}': give 0 and at least one more number, e.g. 0,1,2")
    return [int(word) for word in words]


def positive(text: str) -> int:
    """A count of at least one."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}': give a whole number from 1")
    return int(text)


def main() -> int:
    """Measure, then work out."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--iterations", type=positive, default=6)
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--runners", type=runner_counts, default="0,1,2,4", help="0 and at least one more")
    chosen = parser.parse_args()
    numbers = chosen.runners
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    ray.init(address="local", num_cpus=sum(numbers) + 1, include_dashboard=False, log_to_driver=False,
             logging_level="ERROR")
    with tempfile.TemporaryDirectory() as work:
        spec = write_market(Path(work), 60_000)
        algorithms = {n: MAPPOConfig().train_team(spec, settings_for(n)).build_algo() for n in numbers}
        readings: dict[int, list[tuple[float, float]]] = {n: [] for n in numbers}
        for n in numbers:
            algorithms[n].train()  # compiles
        for _ in range(chosen.rounds):
            for n in numbers:
                readings[n].append(seconds(algorithms[n], chosen.iterations))
        rates = {n: (statistics.median(r[0] for r in rows), statistics.median(r[1] for r in rows))
                 for n, rows in readings.items()}
        decisions = settings_for(0).steps_per_iteration
        print(f"{os.cpu_count()} cores, {decisions:,} decisions per iteration in {SHARDS} shards, median seconds")
        print(f"{'runners':>7}{'sample':>9}{'update':>9}{'decisions/s':>13}{'sampling':>10}")
        for n, (sample, update) in rates.items():
            print(f"{n:>7}{sample:>9.3f}{update:>9.3f}{decisions / (sample + update):>13,.0f}"
                  f"{rates[0][0] / sample:>9.2f}x")
        constants = measured(algorithms, rates)
        for algorithm in algorithms.values():
            algorithm.stop()
    ray.shutdown()
    print(f"\nconstants: {constants}")
    print(f"\non paper, one shard of {decisions // SHARDS:,} decisions per runner, 10 Gbit/s into the driver")
    print(f"{'runners':>7}{'learners':>9}{'decisions':>12}{'MB':>10}{'messages':>10}{'sample':>9}{'driver':>9}"
          f"{'update':>9}{'decisions/s':>13}")
    for runners, learners in ((4, 1), (16, 4), (64, 16), (240, 16), (240, 64), (800, 200)):
        print(on_paper(constants, runners, learners, decisions // SHARDS, SETTINGS.segment))
    return 0


if __name__ == "__main__":
    sys.exit(main())
