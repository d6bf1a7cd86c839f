"""Memory over many iterations: driver, runners, learner and object store must stay where they are.

    python -m benchmarks.soak [--iterations 500] [--runners 2] [--learners 1]

Resident memory of every process and the bytes in Ray's object store, after every tenth iteration. Growth is the
median of the last 50 iterations less that of iterations 50 to 100; above 2 % of the latter and 1 MiB the exit code
is 1. The MiB is for the object store, which starts empty: 2 % of a process are more. A checkpoint is written every
50 iterations, as in a real run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import ray

from benchmarks.training import write_market
from training.checkpoints import save_checkpoint
from training.mappo.algorithm import MAPPO, MAPPOConfig
from training.mappo.settings import MAPPOSettings
from training.team_training import save_algorithm

EVERY = 10
LIMIT, ALLOWANCE = 0.02, 1.0  # of the early median; MiB
LEAST = 150  # iterations: the last 50 are not the early ones
Readings = dict[str, list[float]]


def processes(algorithm: MAPPO) -> dict[str, psutil.Process]:
    """Name -> process."""
    def pid(actor: Any) -> int:
        return int(ray.get(actor.__ray_call__.remote(lambda self: os.getpid())))

    found = {"driver": psutil.Process()}
    actors = algorithm.env_runner_group._worker_manager.actors()
    found |= {f"runner {number}": psutil.Process(pid(actor)) for number, actor in actors.items()}
    learners = algorithm.learner_group._workers or []
    return found | {f"learner {number}": psutil.Process(pid(actor)) for number, actor in enumerate(learners)}


def store_bytes() -> float:
    """Bytes that objects take in this machine's store."""
    name = "object_store_memory"
    return float(ray.cluster_resources()[name] - ray.available_resources().get(name, 0.0))


def soak(algorithm: MAPPO, iterations: int, folder: Path) -> Readings:
    """MiB after every EVERY-th iteration."""
    watched = processes(algorithm)
    readings: Readings = {name: [] for name in (*watched, "object store")}
    history: list[dict[str, float]] = []
    for iteration in range(1, iterations + 1):
        algorithm.train()
        history.append({"iteration": float(iteration)})
        if iteration % 50 == 0:
            save_checkpoint(folder, history, lambda path: save_algorithm(algorithm, path))
        if iteration % EVERY == 0:
            for name, process in watched.items():
                readings[name].append(process.memory_info().rss / 2**20)
            readings["object store"].append(store_bytes() / 2**20)
    return readings


def growth(values: list[float]) -> tuple[float, bool]:
    """MiB that the median of the last 50 iterations lies above that of iterations 50 to 100, and whether these are
    too many."""
    early, late = statistics.median(values[4:10]), statistics.median(values[-5:])
    return late - early, late - early > max(LIMIT * early, ALLOWANCE)


def main() -> int:
    """Print a table; 1 if anything grew too much."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument("--runners", type=int, default=2)
    parser.add_argument("--learners", type=int, default=1)
    chosen = parser.parse_args()
    if chosen.iterations < LEAST:
        parser.error(f"--iterations {chosen.iterations}: growth needs at least {LEAST}")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    ray.init(address="local", num_cpus=chosen.runners + chosen.learners + 1, include_dashboard=False,
             log_to_driver=False, logging_level="ERROR", object_store_memory=512 << 20)
    with tempfile.TemporaryDirectory() as work:
        spec = write_market(Path(work), 40_000)
        settings = MAPPOSettings(env_steps=10**9, num_shards=2, envs_per_shard=16, segment=32, minibatches=2,
                                 num_env_runners=chosen.runners, num_learners=chosen.learners)
        algorithm = MAPPOConfig().train_team(spec, settings).build_algo()
        try:
            readings = soak(algorithm, chosen.iterations, Path(work) / "checkpoints")
        finally:
            algorithm.stop()
    ray.shutdown()
    at = [n for n in (50, 100, 200, 300, 400, 500, 1000) if n <= chosen.iterations]
    print(f"{'MiB at iteration':<18}" + "".join(f"{n:>9}" for n in at) + f"{'growth':>10}")
    failed = False
    for name, values in readings.items():
        grown, too_much = growth(values)
        failed |= too_much
        print(f"{name:<18}" + "".join(f"{values[n // EVERY - 1]:9.1f}" for n in at) + f"{grown:+10.1f}"
              + "  too much" * too_much)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
