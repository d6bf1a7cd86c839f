"""Training end to end, collection and update, on one core: our MAPPO beside stock RLlib PPO and a plain loop.

    python -m benchmarks.training [--bars 60000] [--rounds 3] [--tune]

    A  MAPPO on RLlib                 training.mappo, batched kernel, segments embedded in one causal pass
    B  stock RLlib PPO                default EnvRunner, connectors and Learner on the scalar environment
    C  plain PyTorch loop             the same update and sampler as A, without RLlib

All three train nets of the same sizes on the same market with the same number of epochs, one after another in one
process (A B C A B C ...), torch on one thread. Figures are team decisions (both half-steps) per second of
processor time and of wall time, medians over the rounds; only the ratios mean much on a machine with other work.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from algospace.features import build
from algospace.features.matrices import Normaliser, assemble
from algospace.features.matrix_schema import MatrixConfig
from algospace.instruments import instrument
from algospace.marketdata.synthetic import generate, scenario_named
from benchmarks._session import local_ray, options_of
from benchmarks._stock_ppo import stock_config
from envs.build import fixed_proposals
from envs.config import CoreEnvConfig
from envs.vector_core import risk_unit_of
from training.mappo.algorithm import MAPPOConfig
from training.mappo.core_team import CoreSampler
from training.mappo.gae import gae
from training.mappo.learner import pivotal
from training.mappo.loss import mappo_loss, standardise
from training.mappo.module import TeamModule, build_team_module
from training.mappo.settings import MAPPOSettings, Ramp
from training.mappo.tables import save_experts

REQUIRED_OVER_STOCK = 50.0
SETTINGS = MAPPOSettings(gae_lambda=0.5, learning_rate=Ramp(start=3e-3, end=3e-4),
                         entropy=Ramp(start=0.02, end=0.0))
"""The quickstart's core phase: 256 segments of 128 decisions, 2 epochs of 8 minibatches."""
STOCK_BATCH = 4_096
STOCK_CHOICE = (64, 512)
"""(environments per runner, minibatch rows): the best that `--tune` found for the peer."""
STOCK_CHOICES = ((16, 128), (16, 512), (64, 512), (64, 2_048), (256, 512))


class Rate(NamedTuple):
    """Team decisions per second of processor time and of wall time."""

    cpu: float
    wall: float


def write_market(folder: Path, bars: int) -> dict[str, Any]:
    """An `easy` synthetic market as a training table; the team specification for it."""
    spec = instrument("SYNTH")
    features = build(generate(scenario_named("easy"), 1, bars).bars, spec)
    matrices = MatrixConfig(tactical_extra=("return_1", "volatility_60", "autocorr1_60"))
    table = assemble(features, Normaliser.fit(features, matrices, int(features.ts_close[-1])), spec)
    table.save(folder / "market")
    vectors = np.random.default_rng(0).normal(size=(2, table.regime.shape[0], 8)).astype(np.float32)
    digest = save_experts(folder / "experts", folder / "market", vectors, fixed_proposals(table))
    env = CoreEnvConfig(mechanics="unit")
    start, stop = table.first_decision, len(table) - 1
    return {"kind": "core", "market": str(folder / "market"), "experts": str(folder / "experts"),
            "table_hash": digest, "instrument": "SYNTH", "start": start, "stop": stop, "seed": 7, "mask_key": 11,
            "net": {"pass_bias": 0.0}, "env": env.model_dump(),
            "risk_unit": risk_unit_of(table, spec, env, start, stop)}


class PlainLoop:
    """A without RLlib: one process, one Adam, no actors, no batches of RLlib's, no metrics."""

    def __init__(self, spec: dict[str, Any], settings: MAPPOSettings) -> None:
        team = {**spec, "envs_per_shard": settings.envs_per_shard, "mirror": settings.mirror}
        self.settings = settings
        self.module: TeamModule = build_team_module(team)
        self.samplers = [CoreSampler(self.module, team, shard) for shard in range(settings.num_shards)]
        named = list(self.module.named_parameters())
        self.actor = [p for name, p in named if not name.startswith("net.critic")]
        self.critic = [p for name, p in named if name.startswith("net.critic")]
        self.optimizer = torch.optim.Adam(self.module.parameters(), lr=settings.learning_rate.start,
                                          eps=settings.adam_epsilon, fused=True)
        self.tick = 0

    def iterate(self) -> int:
        """Collect one batch and train on it; team decisions taken."""
        settings = self.settings
        parts = []
        for sampler in self.samplers:
            part = sampler.sample(settings.segment, self.tick, 1.0)
            values = part.pop("values_all")
            part["advantages"], part["value_targets"] = gae(
                part["rewards"], values, part["discounts"], part["alive"], settings.gamma,
                settings.gae_lambda.start)
            part["values"] = values[:, :-1]
            parts.append(part)
        self.tick += 1
        self.update({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
        return settings.steps_per_iteration

    def update(self, columns: dict[str, Any]) -> None:
        """All epochs over one batch."""
        settings = self.settings
        data = {name: torch.from_numpy(values) for name, values in columns.items()}
        for name in ("actions", "rows", "mask_rows"):
            data[name] = data[name].long()
        data["valid"] &= pivotal(data["actions"])
        norm = self.module.value_norm
        data["values"] = norm.normalise(data["values"])
        targets = data["value_targets"]
        norm.update(targets.mean(), targets.square().mean())
        data["value_targets"] = norm.normalise(targets)
        data["advantages"] = standardise(data["advantages"], data["valid"].any(-1))
        for _ in range(settings.epochs):
            for index in torch.randperm(settings.segments).chunk(settings.minibatches):
                self._descend({name: value[index] for name, value in data.items()})

    def _descend(self, data: dict[str, torch.Tensor]) -> None:
        settings = self.settings
        logits, values = self.module.evaluate(data)
        loss = mappo_loss(
            logits=logits, values=values, actions=data["actions"], log_p_old=data["log_p"], valid=data["valid"],
            advantages=data["advantages"], value_targets=data["value_targets"], values_old=data["values"],
            decided=data["alive"], clip_param=settings.clip_param, value_clip=settings.value_clip,
            huber_delta=settings.huber_delta, entropy_coeff=settings.entropy.start,
            value_coeff=settings.value_coeff).total
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group in (self.actor, self.critic):
            torch.nn.utils.clip_grad_norm_(group, settings.grad_clip, foreach=True)
        self.optimizer.step()


def stock_peer(spec: dict[str, Any], choice: tuple[int, int], batch: int) -> tuple[Callable[[], int], Any]:
    """(one iteration -> team decisions, algorithm) of stock PPO."""
    algorithm = stock_config(spec, SETTINGS, choice[0], batch, choice[1]).build_algo()

    def iterate() -> int:
        sampled = algorithm.train()["env_runners"]["num_agent_steps_sampled"]
        return int(sampled["strategic"])  # every team decision has exactly one vote of the strategic agent

    return iterate, algorithm


def measure(iterate: Callable[[], int], iterations: int) -> Rate:
    """Decisions per second over some iterations."""
    wall, cpu = time.perf_counter(), time.process_time()
    steps = sum(iterate() for _ in range(iterations))
    return Rate(steps / (time.process_time() - cpu), steps / (time.perf_counter() - wall))


def median(rates: list[Rate]) -> Rate:
    """Median of either time."""
    return Rate(statistics.median(r.cpu for r in rates), statistics.median(r.wall for r in rates))


def tuned(spec: dict[str, Any], batch: int) -> tuple[int, int]:
    """The peer's fastest choice, by processor time of one iteration after a first one."""
    rates = {}
    for choice in STOCK_CHOICES:
        iterate, algorithm = stock_peer(spec, choice, batch)
        iterate()
        rates[choice] = measure(iterate, 1)
        algorithm.stop()
        print(f"stock PPO, {choice[0]:3d} environments, minibatch {choice[1]:5d}: {rates[choice].cpu:8.0f} "
              f"decisions/s of processor time", flush=True)
    return max(rates, key=lambda choice: rates[choice].cpu)


def compare(spec: dict[str, Any], choice: tuple[int, int], rounds: int, batch: int) -> dict[str, Any]:
    """All three, interleaved."""
    ours = MAPPOConfig().train_team(spec, SETTINGS).build_algo()
    stock, peer = stock_peer(spec, choice, batch)
    loop = PlainLoop(spec, SETTINGS)

    def train_ours() -> int:
        before = ours.env_steps
        ours.train()
        return int(ours.env_steps - before)

    runs: dict[str, tuple[Callable[[], int], int]] = {
        "mappo": (train_ours, 2), "stock_ppo": (stock, 1), "plain_loop": (loop.iterate, 2)}
    for iterate, _ in runs.values():
        iterate()  # compiles, fills caches, resets environments
    rates: dict[str, list[Rate]] = {name: [] for name in runs}
    for number in range(rounds):
        for name, (iterate, iterations) in runs.items():
            rates[name].append(measure(iterate, iterations))
            print(f"round {number + 1}  {name:11s} {rates[name][-1].cpu:10.0f} decisions/s of processor time "
                  f"{rates[name][-1].wall:10.0f} of wall time", flush=True)
    ours.stop()
    peer.stop()
    return summary({name: median(values) for name, values in rates.items()}, choice)


def summary(rates: dict[str, Rate], choice: tuple[int, int]) -> dict[str, Any]:
    """Figures and ratios."""
    mappo, stock, loop = rates["mappo"], rates["stock_ppo"], rates["plain_loop"]
    figures = {f"{name}_per_{kind}_s": value for name, rate in rates.items()
               for kind, value in rate._asdict().items()}
    figures |= {"over_stock": mappo.cpu / stock.cpu, "over_stock_wall": mappo.wall / stock.wall,
                "over_required": mappo.cpu / stock.cpu / REQUIRED_OVER_STOCK,
                "over_plain_loop": mappo.cpu / loop.cpu, "over_plain_loop_wall": mappo.wall / loop.wall}
    return {"stock_envs": choice[0], "stock_minibatch": choice[1],
            **{name: float(f"{value:.4g}") for name, value in figures.items()}}


def main() -> None:
    """Measure and print one JSON object."""
    parser = options_of(__doc__, rounds=3)
    parser.add_argument("--batch", type=int, default=STOCK_BATCH, help="half-steps per iteration of stock PPO")
    parser.add_argument("--tune", action="store_true", help="look for the peer's fastest sizes first")
    options = parser.parse_args()
    with local_ray(1), tempfile.TemporaryDirectory() as folder:
        spec = write_market(Path(folder), options.bars)
        choice = tuned(spec, options.batch) if options.tune else STOCK_CHOICE
        print(json.dumps(compare(spec, choice, options.rounds, options.batch), indent=2))


if __name__ == "__main__":
    main()
