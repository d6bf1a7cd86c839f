"""What each part of the core's training is worth: one part changed at a time, over several seeds.

    python -m benchmarks.ablations --list
    python -m benchmarks.ablations --ablation lambda,mirror --seeds 3 --steps 2000000 --scenario easy

Tables, RDE and M-RMS of the scenario's configuration (configs/train/SCENARIO.yaml) are made once in a run folder
and shared; then only the core is trained, once with the configuration as it is and once per ablation and seed.
Figures are fractions of the exact Bayes limit on markets that are used for tuning, never for judging (701, 702),
unless `--markets` names others. Every result is also appended to `results.jsonl` in the run folder; results that
are there already (same ablation, seed and configuration) are not computed again, so a stopped run continues.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import yaml
from rich.console import Console

import configs
from algospace.analysis.unit_score import UnitScore, limit_score, score_unit_run
from algospace.config import parse_config
from algospace.errors import ConfigError
from algospace.instruments import instrument
from algospace.seeding import stream_key
from algospace.types import AnyArray, Float32Array
from envs.vector_core import VectorCoreEnv, risk_unit_of
from training.config import RunConfig
from training.dataset import Split
from training.evaluation.unit_run import unit_run
from training.experts import expert_columns
from training.mappo import learner
from training.mappo.core_rollout import Segments, decision_draws
from training.mappo.core_team import CoreSampler, CoreTeamModule
from training.mappo.loss import LossParts, policy_loss, policy_terms, value_loss
from training.mappo.module import build_team_module
from training.mappo.tables import experts_hash, save_experts
from training.pipeline import PipelineResult, run_pipeline
from training.ray_session import ray_session
from training.supervised import fit_supervised, positions
from training.team_training import TrainedTeam, train_team

TUNING_MARKETS = (701, 702)
_TEST_BARS = 150_000


@dataclass(frozen=True)
class Ablation:
    """A change of the configuration, of the experts' columns or of who votes.

    `remake`: the change reaches the tables, so tables, RDE and M-RMS are made again for it.
    `zero_regime`, `zero_proposals`: the experts' columns hold zeros, in training and in the test.
    `voters`: how many of the three decide; 2: strategic always passes, 1: arbitrage's vote stands for all three
    (the stored votes are those before that, so what is pivotal cannot be told from them).
    `one_agent`: the team's votes and execution are one action of one agent, its probability their product.
    `classifier`: no team at all, but the supervised baseline (training.supervised), given all training rows.
    """

    what: str
    overrides: tuple[str, ...] = ()
    remake: bool = False
    zero_regime: bool = False
    zero_proposals: bool = False
    voters: int = 3
    one_agent: bool = False
    classifier: bool = False


ABLATIONS: dict[str, Ablation] = {
    "none": Ablation("the configuration as it is"),
    "death_masking": Ablation("agents that were not asked count with their one choice",
                              ("core.mappo.death_masking=false",)),
    "value_norm": Ablation("values are not normalised", ("core.mappo.value_norm=false",)),
    "value_clip": Ablation("values are not clipped", ("core.mappo.value_clip=null",)),
    "huber": Ablation("squared errors of values", ("core.mappo.huber_delta=null",)),
    "mirror": Ablation("no mirror augmentation", ("core.mappo.mirror=false",)),
    "curriculum": Ablation("full cost from the first step", ("core.mappo.cost_scale=1.0",)),
    "entropy": Ablation("entropy bonus .01 throughout", ("core.mappo.entropy=0.01",)),
    "lambda": Ablation("lambda .95", ("core.mappo.gae_lambda=0.95",)),
    "gamma": Ablation("gamma .9", ("core.mappo.gamma=0.9",)),
    "dropout": Ablation("dropout .1 in the heads", ("core.net.dropout=0.1",)),
    "average": Ablation("the last weights, not averaged ones", ("core.mappo.average_over=0.0",)),
    "pass_bias": Ablation("voters start near passing", ("core.net.pass_bias=1.0",)),
    "pivotal": Ablation("votes that decide nothing are learnt from too", ("core.mappo.pivotal_votes=false",)),
    "execute_bias": Ablation("execution starts by executing (bias 4)", ("core.net.execute_bias=4.0",)),
    "rde": Ablation("regime vectors are zeros", zero_regime=True),
    "mrms": Ablation("proposals are zeros (unit mechanics show them to execution, no more)", zero_proposals=True),
    "voters_1": Ablation("arbitrage alone decides", ("core.mappo.pivotal_votes=false",), voters=1),
    "voters_2": Ablation("tactical and arbitrage must agree", ("core.mappo.pivotal_votes=false",), voters=2),
    "one_agent": Ablation("one-agent PPO on the joint action", ("core.mappo.pivotal_votes=false",),
                          one_agent=True),
    "classifier": Ablation("the supervised baseline: boosted trees on the same features", classifier=True),
    "synergy": Ablation("decisions where there is a synergy, not on every bar",
                        ("core.env.decision_points=synergy",)),
    "lstm": Ablation("LSTM embedders", ("core.net.embedder=lstm",)),
    "lstm_recurrent": Ablation("LSTM embedders that remember more in training than as served",
                               ("core.net.embedder=lstm_recurrent",)),
    "transformer": Ablation("Transformer embedders", ("core.net.embedder=transformer",)),
    "window": Ablation("tactical window 128", ("matrices.tactical_window=128",), remake=True),
    "columns": Ablation("no extra tactical columns", ("matrices.tactical_extra=[]",), remake=True),
}


@dataclass(frozen=True)
class Bench:
    """The shared part: configuration, dataset and experts of one scenario."""

    config: RunConfig
    result: PipelineResult

    @property
    def run_dir(self) -> Path:
        """Where tables and experts lie."""
        return self.result.run_dir


def main() -> None:
    """Train, score, print one table."""
    args = _arguments()
    if args.list:
        for name, ablation in ABLATIONS.items():
            print(f"{name:14s} {ablation.what}")
        return
    torch.set_num_threads(1)
    names = ["none", *[name for name in args.ablation.split(",") if name and name != "none"]]
    unknown = [name for name in names if name not in ABLATIONS]
    if unknown:
        raise ConfigError(f"unknown ablation '{unknown[0]}'; known: {', '.join(ABLATIONS)}")
    seeds = [args.first_seed + number for number in range(args.seeds)]
    markets = tuple(int(seed) for seed in args.markets.split(",")) if args.markets else TUNING_MARKETS
    with ray_session():
        rows = {name: [_cached(args, name, seed, markets) for seed in seeds] for name in names}
    _print(args, rows, markets)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the ablations")
    parser.add_argument("--ablation", default="", help="names, comma-separated; 'none' always runs")
    parser.add_argument("--seeds", type=int, default=3, help="training seeds")
    parser.add_argument("--first-seed", type=int, default=101)
    parser.add_argument("--steps", type=int, default=2_000_000, help="team decisions per training")
    parser.add_argument("--scenario", default="easy", help="configs/train/SCENARIO.yaml")
    parser.add_argument("--markets", default="", help="market seeds to score on (default: 701,702)")
    parser.add_argument("--run-dir", type=Path, help="default: runs/ablations-SCENARIO")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE",
                        help="changes the configuration that everything is measured from")
    args = parser.parse_args()
    args.run_dir = args.run_dir or Path("runs") / f"ablations-{args.scenario}"
    return args


def configuration(scenario: str, overrides: list[str], markets: tuple[int, ...]) -> RunConfig:
    """The scenario's configuration with overrides, tested on `markets`."""
    path = Path(configs.__file__).parent / "train" / f"{scenario}.yaml"
    test = [f"market.synthetic.test_seeds=[{','.join(map(str, markets))}]",
            f"market.synthetic.test_bars={_TEST_BARS}"]
    return parse_config(RunConfig, yaml.safe_load(path.read_text()), [*overrides, *test], source=str(path))


def _cached(args: argparse.Namespace, name: str, seed: int, markets: tuple[int, ...]) -> dict[str, Any]:
    """The result of one training, from `results.jsonl` if it is there."""
    ablation = ABLATIONS[name]
    config = configuration(args.scenario, [*args.overrides, *ablation.overrides,
                                           f"core.mappo.env_steps={args.steps}"], markets)
    key = {"ablation": name, "seed": seed, "config": config.digest()}
    results = args.run_dir / "results.jsonl"
    if results.is_file():
        for line in results.read_text().splitlines():
            known = json.loads(line)
            if {k: known[k] for k in key} == key:
                return dict(known)
    found = key | run_one(_bench(args, name, config), ablation, name, seed)
    args.run_dir.mkdir(parents=True, exist_ok=True)
    with results.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(found) + "\n")
    print(f"  {name} seed {seed}: {found['fraction']:.1%} of the limit" if found["fraction"] is not None
          else f"  {name} seed {seed}: {found['exposure']:.1%} of bars in the market", flush=True)
    return found


def _bench(args: argparse.Namespace, name: str, config: RunConfig) -> Bench:
    folder = args.run_dir / (name if ABLATIONS[name].remake else "shared")
    return Bench(config, run_pipeline(config, folder, ("rde", "mrms"), Console(quiet=True)))


def run_one(bench: Bench, ablation: Ablation, name: str, seed: int) -> dict[str, Any]:
    """Train the core once and score it on every test market."""
    if ablation.classifier:
        return classify(bench, seed)
    started = time.perf_counter()
    folder = bench.run_dir / "cores" / f"{name}-{seed}"
    with deciding_voters(ablation.voters), joint_action(ablation.one_agent):
        team = train_team(_spec(bench, ablation, seed), bench.config.core.mappo, folder)
        seconds = time.perf_counter() - started
        found = _summary([_score(bench, ablation, team, split) for split in bench.result.dataset.test])
        if bench.config.core.net.embedder == "lstm_recurrent":
            trained = [_score(bench, ablation, team, split, served=False) for split in bench.result.dataset.test]
            found["trained_fraction"] = _summary(trained)["fraction"]
    return found | {"steps_per_s": bench.config.core.mappo.env_steps / seconds}


def _summary(pairs: list[tuple[UnitScore, UnitScore]]) -> dict[str, Any]:
    """Means over the test markets; pairs of (policy, limit)."""
    policy, limit = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    earned, best = np.mean([s.score for s in policy]), np.mean([s.score for s in limit])
    return {"fraction": float(earned / best) if best > 0.0 else None, "score": float(earned),
            "exposure": float(np.mean([s.exposure for s in policy])),
            "turnover": float(np.mean([s.turnover for s in policy]))}


def classify(bench: Bench, seed: int) -> dict[str, Any]:
    """Fit the classifier and its thresholds on the training split and score it on every test market."""
    def vectors(of: Split) -> Float32Array:
        return _load(_experts(bench, ABLATIONS["none"], of))[0][0]

    train = bench.result.dataset.train
    model = fit_supervised(train.market(), vectors(train), train.start, train.stop, seed,
                           max_rows=train.stop - train.start)
    pairs = []
    for test in bench.result.dataset.test:
        held = positions(model, test.market(), test.start, test.stop, vectors(test))
        pairs.append(_judge(test, held, [(test.start, test.stop)]))
    return _summary(pairs)


def _spec(bench: Bench, ablation: Ablation, seed: int) -> dict[str, Any]:
    """The team's specification, as `training.phases.run_core` makes it, with the ablation's experts."""
    config, split = bench.config, bench.result.dataset.train
    experts = _experts(bench, ablation, split)
    unit = risk_unit_of(split.market(), instrument(config.market.instrument), config.core.env, split.start,
                        split.stop)
    return {"kind": "core", "market": str(split.table.resolve()), "experts": str(experts.resolve()),
            "table_hash": experts_hash(experts), "instrument": config.market.instrument, "start": split.start,
            "stop": split.stop, "seed": stream_key(seed, "core") % 2**31,
            "mask_key": stream_key("dropout", config.name, seed), "net": config.core.net.model_dump(),
            "env": config.core.env.model_dump(), "risk_unit": unit}


def _experts(bench: Bench, ablation: Ablation, split: Split) -> Path:
    """The experts' columns for a table, or zeros in their place; made once."""
    folder = bench.run_dir / "experts"
    full = folder / split.table.name
    if not full.is_dir():
        expert_columns(bench.run_dir, split.market(), split.table, full)
        vectors, proposals = _load(full)
        if split == bench.result.dataset.train:  # the mirror image's vectors are known from phase 2
            vectors = np.load(bench.run_dir / "mrms" / "experts" / "regime_vectors.npy")
            save_experts(full, split.table, vectors, proposals)
    if not (ablation.zero_regime or ablation.zero_proposals):
        return full
    suffix = "-regime" * ablation.zero_regime + "-proposals" * ablation.zero_proposals
    changed = folder / f"{split.table.name}{suffix}"
    if not changed.is_dir():
        vectors, proposals = _load(full)
        save_experts(changed, split.table, vectors * (not ablation.zero_regime),
                     proposals * (not ablation.zero_proposals))
    return changed


def _load(folder: Path) -> tuple[Float32Array, Float32Array]:
    return np.load(folder / "regime_vectors.npy"), np.load(folder / "proposals.npy")


def _score(bench: Bench, ablation: Ablation, team: TrainedTeam, split: Split,
           served: bool = True) -> tuple[UnitScore, UnitScore]:
    """Unit scores of the policy, as it is served or as it was trained, and of the limit on one market."""
    experts = _experts(bench, ablation, split)
    spec = {**team.spec, "market": str(split.table.resolve()), "experts": str(experts.resolve()),
            "table_hash": experts_hash(experts)}
    module = build_team_module(spec)
    module.load_state_dict(team.module.state_dict())
    assert isinstance(module, CoreTeamModule)
    return _judge(split, *unit_run(module, spec, split.start, split.stop, served=served))


def _judge(split: Split, held: AnyArray, segments: Sequence[tuple[int, int]]) -> tuple[UnitScore, UnitScore]:
    truth, close = split.truth(), np.asarray(split.market().close)
    if truth is None or truth.expected_return is None:
        raise ConfigError(f"{split.table}: ablations need a planted market with a solved limit")
    return (score_unit_run(held, truth.expected_return, close, segments),
            limit_score(truth, close, segments))


@contextmanager
def deciding_voters(count: int) -> Iterator[None]:
    """Let only `count` voters decide; the others' votes are replaced and teach nothing."""
    if count == 3:
        yield
        return
    vote, step = VectorCoreEnv.vote, CoreSampler._step
    silent = [0] if count == 2 else [0, 1]

    def fewer(env: VectorCoreEnv, votes: Any) -> None:
        votes = votes.copy()
        votes[:, silent] = votes[:, 2:] if count == 1 else 1
        vote(env, votes)

    def unheard(sampler: CoreSampler, *args: Any) -> None:
        step(sampler, *args)
        args[-1].valid[:, silent] = False

    with ExitStack() as stack:
        stack.enter_context(patch.object(VectorCoreEnv, "vote", fewer))
        stack.enter_context(patch.object(CoreSampler, "_step", unheard))
        stack.enter_context(patch.object(CoreSampler, "play_compiled", _play_in_steps))
        yield


@contextmanager
def joint_action(enabled: bool) -> Iterator[None]:
    """Train the team as one agent (PPO on the joint action): one ratio and one clip per decision."""
    with patch.object(learner, "mappo_loss", joint_loss) if enabled else nullcontext():
        yield


def joint_loss(*, logits: torch.Tensor, values: torch.Tensor, actions: torch.Tensor, log_p_old: torch.Tensor,
               valid: torch.Tensor, advantages: torch.Tensor, value_targets: torch.Tensor,
               values_old: torch.Tensor, decided: torch.Tensor, clip_param: float, value_clip: float | None,
               huber_delta: float | None, entropy_coeff: float, value_coeff: float,
               counts: torch.Tensor) -> LossParts:
    """`mappo_loss` with the sum of the agents' log-probabilities in place of each."""
    terms = policy_terms(logits, actions)
    log_p, entropy = (torch.where(valid, part, 0.0).sum(-1, keepdim=True) for part in terms)
    before = torch.where(valid, log_p_old, 0.0).sum(-1, keepdim=True)
    asked = valid.any(-1, keepdim=True)
    policy, mean_entropy, kl, clipped = policy_loss(log_p, before, entropy, asked, advantages, clip_param,
                                                    asked.sum().clamp(min=1))
    value = value_loss(values, value_targets, values_old, decided, value_clip, huber_delta, counts[1])
    total = policy + value_coeff * value - entropy_coeff * mean_entropy
    return LossParts(total, policy, value, mean_entropy, kl, clipped)


def _play_in_steps(sampler: CoreSampler, out: Segments, rows_of_masks: AnyArray, seed: int,
                   mirrored: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`CoreSampler.play_compiled` with its decisions made one by one in Python, where votes can be replaced."""
    env, module = sampler.env, sampler.module
    steps = out.actions.shape[0]
    last = len(module.table.market) - 1
    rows = torch.from_numpy(np.minimum(env.rows[:, None] + np.arange(steps + 1, dtype=np.int64), last))
    embedded = module.embed(rows, mirrored).transpose(0, 1).contiguous()
    market = module.market_context(rows, mirrored).transpose(0, 1).contiguous()
    draws = torch.from_numpy(decision_draws(np.uint64(seed), env.num_envs, steps))
    masks = module.bank.masks[torch.from_numpy(rows_of_masks)]
    for t in range(steps + 1):
        env.observe(out.account[t])
        out.rows[t] = env.rows
        if t < steps:
            context = torch.cat((market[t], torch.from_numpy(out.account[t])), -1)
            sampler._step(embedded[t], context, masks[:, t], draws[t], Segments(*(array[t] for array in out)))
    return embedded, market


def _print(args: argparse.Namespace, rows: dict[str, list[dict[str, Any]]], markets: tuple[int, ...]) -> None:
    """One line per ablation: mean and standard error over seeds."""
    print(f"\n{args.scenario}, {args.steps:,} decisions, {args.seeds} seeds from {args.first_seed}, markets "
          f"{', '.join(map(str, markets))}; fraction of the Bayes limit (mean ± standard error over seeds)\n")
    print(f"{'ablation':14s} {'what':62s} {'fraction':>15s} {'seeds':>24s} {'exposure':>9s} {'turnover':>9s} "
          f"config")
    for name, found in rows.items():
        mean, each = _mean_and_each([row["fraction"] for row in found])
        exposure, turnover = (np.mean([row[key] for row in found]) for key in ("exposure", "turnover"))
        print(f"{name:14s} {ABLATIONS[name].what:62s} {mean:>15s} {each:>24s} {exposure:9.1%} {turnover:9.3f} "
              f"{found[0]['config'][:12]}")
        if "trained_fraction" in found[0]:
            mean, each = _mean_and_each([row["trained_fraction"] for row in found])
            print(f"{'':14s} {'the same played with what it remembers in training':62s} {mean:>15s} {each:>24s}")


def _mean_and_each(values: Sequence[float | None]) -> tuple[str, str]:
    """Mean with its standard error over seeds, and every seed's value."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "-", "-"
    error = np.std(known, ddof=1) / np.sqrt(len(known)) if len(known) > 1 else float("nan")
    return f"{np.mean(known):.1%} ± {error:.1%}", " ".join(f"{value:.1%}" for value in known)


if __name__ == "__main__":
    main()
