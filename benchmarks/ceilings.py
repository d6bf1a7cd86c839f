"""What stands between the core and the limit: its inputs and embedders without a team, or without noise.

    python -m benchmarks.ceilings --list
    python -m benchmarks.ceilings [--row NAME[,NAME]] [--scenario easy] [--seed 0] [--share 1.0]

Three ways to train one agent that chooses the next position from {-1, 0, +1} at every bar:

    fit       supervised: the solved limit's own action values, which hold no noise of returns
    gradient  exact policy gradient: the expected P&L of the stochastic policy over each segment, differentiated
              through its distribution over positions; no sampled action, no critic
    critic    clipped actor-critic that scores all three positions at every bar: no sampled action either

Each is played greedily on market seeds 701 and 702; figures are fractions of the exact Bayes limit, one training
each. `--share` scales training market and samples, for a look at the code. Rewards are in units of `UNIT`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numba as nb
import numpy as np
import torch
from torch import nn

from agents.embedders import TCNEmbedder
from algospace.analysis.unit_score import limit_score, score_unit_run
from algospace.types import AnyArray, FloatArray
from benchmarks._planted import AVERAGES, COST, OWN, UNIT, Market, open_market

TRAIN_SEED, TEST_SEEDS, TEST_BARS = 1, (701, 702), 150_000
WARM, PLAYED = 2_000, 512   # rows after the first decision that averages need; rows of a stretch that is played
CHANGES = torch.tensor([[abs(a - b) for a in (-1.0, 0.0, 1.0)] for b in (-1.0, 0.0, 1.0)])  # (old, new)
SIDES = torch.tensor([-1.0, 0.0, 1.0])


@dataclass(frozen=True)
class Row:
    """One training: the way, its inputs and its size. `samples`: bars seen, repetitions included."""

    what: str
    way: str
    columns: tuple[str, ...] = OWN
    window: int = 60
    strategic: bool = True
    bars: int = 2_000_000
    samples: int = 8_000_000
    expected: bool = False
    """Reward: the true expected return instead of the realised one."""
    mirror: bool = False
    average: float = 0.0
    """Decay of averaged weights; 0: the last ones."""
    batch: int = 64


ROWS = {
    "fit_short": Row("limit's values, 1 M bars twice", "fit", bars=1_000_000, samples=2_000_000),
    "fit": Row("limit's values, 2 M bars four times", "fit"),
    "fit_raw": Row("and an unclipped return", "fit", (*OWN, "raw")),
    "fit_long": Row("and a tactical window of 128", "fit", (*OWN, "raw"), 128),
    "fit_averages": Row("and averages, no strategic matrix", "fit",
                        (*OWN, "raw", "ema20", "ema60", "ema120", "ac60", "ac30"), 128, False),
    "fit_return": Row("a return alone, 1 M bars twice", "fit", ("raw",), 60, False, 1_000_000, 2_000_000),
    "fit_return_long": Row("the same, window 128", "fit", ("raw",), 128, False, 1_000_000, 2_000_000),
    "gradient_expected": Row("exact gradient of expected returns", "gradient", samples=4_000_000, expected=True),
    "gradient": Row("exact gradient of realised returns", "gradient", samples=4_000_000),
    "gradient_small": Row("small batches, mirrored, averaged", "gradient", samples=2_500_000, mirror=True,
                          average=0.98, batch=32),
    "gradient_averages": Row("the same on averages, window 16", "gradient", AVERAGES, 16, False,
                             samples=2_500_000, mirror=True, average=0.98, batch=32),
    "critic": Row("all positions scored, realised returns", "critic", samples=4_000_000, mirror=True, batch=256),
}


class Agent(nn.Module):
    """The core's embedders with heads of `outputs` numbers per bar."""

    def __init__(self, market: Market, row: Row, outputs: tuple[int, ...]) -> None:
        super().__init__()
        self.tactical = TCNEmbedder(market.tactical.shape[2], row.window, 16)
        self.strategic = TCNEmbedder(market.strategic.shape[2], 48, 16) if row.strategic else None
        width = 32 if row.strategic else 16
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, size))
            for size in outputs)

    def forward(self, market: Market, starts: torch.Tensor, steps: int,
                mirrored: torch.Tensor) -> list[torch.Tensor]:
        """Every head on `steps` bars from each of `starts` (B,): (B, steps, outputs)."""
        side = mirrored.long()[:, None]
        span = starts[:, None] + torch.arange(-self.tactical.context, steps)
        parts = [self.tactical.embed_segment(market.tactical[side, span])]
        if self.strategic is not None:
            rows = market.row_30m[starts[:, None] + torch.arange(steps)]
            first, count = rows[:, :1], int((rows[:, -1] - rows[:, 0]).max()) + 1
            slow = (first + torch.arange(-self.strategic.context, count)).clamp(0, market.strategic.shape[1] - 1)
            embedded = self.strategic.embed_segment(market.strategic[side, slow])
            parts.append(embedded.gather(1, (rows - first)[..., None].expand(-1, -1, embedded.shape[-1])))
        joined = torch.cat(parts, -1)
        return [head(joined) for head in self.heads]

    def keep_positions(self) -> None:
        """A first policy near keeping whatever is held: heads of gain .01 and a bias."""
        last: Any = self.heads[0]
        nn.init.orthogonal_(last[-1].weight, 0.01)
        last[-1].bias.data.copy_(torch.eye(3).flatten() * torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(3))


class Optimiser:
    """Adam with a falling rate, clipped gradients and, if asked for, averaged weights."""

    def __init__(self, agent: Agent, end: float, clip: float, decay: float) -> None:
        self.parameters, self.end, self.clip, self.decay = list(agent.parameters()), end, clip, decay
        self.adam = torch.optim.Adam(self.parameters, lr=3e-3, eps=1e-5)
        self.mean = [p.detach().clone() for p in self.parameters]
        self.steps = 0

    def step(self, loss: torch.Tensor, progress: float) -> None:
        """One step at `progress` in [0, 1) of training."""
        for group in self.adam.param_groups:
            group["lr"] = 3e-3 * (self.end + (1.0 - self.end) * (1.0 - progress))
        self.adam.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.adam.step()
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 9.0))
        for mean, p in zip(self.mean, self.parameters, strict=True):
            mean.lerp_(p.detach(), 1.0 - decay)

    def finish(self) -> None:
        """Leave the averaged weights, if they were asked for."""
        if self.decay:
            for mean, p in zip(self.mean, self.parameters, strict=True):
                p.data.copy_(mean)


def _starts(market: Market, count: int, steps: int) -> torch.Tensor:
    return torch.randint(market.first + WARM, len(market.close) - steps - 2, (count,))


def _earned(returns: torch.Tensor, starts: torch.Tensor, steps: int, mirrored: torch.Tensor) -> torch.Tensor:
    """Returns (B, steps) of being long, negated where the segment is mirrored."""
    return returns[starts[:, None] + torch.arange(steps)] * (1.0 - 2.0 * mirrored.float())[:, None]


def _ramp(progress: float, since: float, until: float) -> float:
    """Cost in UNIT: none, then linearly all of it."""
    return COST / UNIT * min(max((progress - since) / (until - since), 0.0), 1.0)


def fit(market: Market, row: Row) -> Agent:
    """Regression on the limit's values."""
    agent, steps, batch = Agent(market, row, (2,)), 256, 32
    optimiser = Optimiser(agent, 0.03, 1.0, 0.0)
    updates, straight = max(row.samples // (steps * batch), 1), torch.zeros(batch, dtype=torch.bool)
    for update in range(updates):
        starts = _starts(market, batch, steps)
        (guess,) = agent(market, starts, steps, straight)
        best = market.values[starts[:, None] + torch.arange(steps)]
        optimiser.step(nn.functional.smooth_l1_loss(guess, best), update / updates)
    return agent


def occupancy(policy: torch.Tensor) -> torch.Tensor:
    """Policy (B, T, old, new) -> probability (B, T, old) of each position before the decision; any at first."""
    held, found = torch.full((policy.shape[0], 3), 1.0 / 3.0), []
    for t in range(policy.shape[1]):
        found.append(held)
        held = (held[:, :, None] * policy[:, t]).sum(1)
    return torch.stack(found, 1)


def gradient(market: Market, row: Row) -> Agent:
    """Ascent on the expected P&L of the stochastic policy."""
    agent, steps = Agent(market, row, (9,)), 128
    agent.keep_positions()
    optimiser = Optimiser(agent, 0.05, 1.0, row.average)
    returns = market.expected if row.expected else market.realised
    updates = max(row.samples // (steps * row.batch), 1)
    for update in range(updates):
        progress, starts = update / updates, _starts(market, row.batch, steps)
        mirrored = torch.full((row.batch,), row.mirror and update % 2 == 1)
        (logits,) = agent(market, starts, steps, mirrored)
        log_p = torch.log_softmax(logits.unflatten(-1, (3, 3)), -1)
        policy = log_p.exp()
        before = occupancy(policy)
        joint = before[..., None] * policy
        earned = (joint.sum(2) * SIDES).sum(-1) * _earned(returns, starts, steps, mirrored)
        gain = earned - _ramp(progress, 0.1, 0.4) * (joint * CHANGES).sum((-1, -2))
        entropy = (before.detach() * -(policy * log_p).sum(-1)).sum(-1).mean()
        optimiser.step(-gain.mean() - 0.02 * (1.0 - progress) * entropy, progress)
    optimiser.finish()
    return agent


class Scored(NamedTuple):
    """A batch of segments for the actor-critic."""

    log_p: torch.Tensor       # (B, T, old, new)
    weight: torch.Tensor      # (B, T, old)
    advantage: torch.Tensor   # (B, T, old, new)
    target: torch.Tensor      # (B, T, old)


@torch.no_grad()
def score(logits: torch.Tensor, values: torch.Tensor, earned: torch.Tensor, cost: float) -> Scored:
    """logits (B, T + 1, 9), values (B, T + 1, 3) of each position before the decision, earned (B, T); λ .5 in the
    values' targets, 0 in the advantages."""
    log_p = torch.log_softmax(logits.unflatten(-1, (3, 3)), -1)[:, :-1]
    policy, steps = log_p.exp(), earned.shape[1]
    gain = SIDES * earned[..., None, None] - cost * CHANGES
    action = gain + 0.99 * values[:, 1:, None, :]
    target, following = torch.empty_like(values[:, :-1]), values[:, -1]
    for t in range(steps - 1, -1, -1):
        blended = 0.5 * values[:, t + 1] + 0.5 * following
        target[:, t] = following = (policy[:, t] * (gain[:, t] + 0.99 * blended[:, None])).sum(-1)
    advantage, weight = action - (policy * action).sum(-1, keepdim=True), occupancy(policy)
    spread = (weight[..., None] * policy * advantage.square()).sum((-1, -2)).mean().sqrt()
    return Scored(log_p, weight, advantage / (spread + 1e-8), target)


def critic(market: Market, row: Row) -> Agent:
    """Clipped policy updates with the advantage of every position from every position."""
    agent, steps, mean, spread = Agent(market, row, (9, 3)), 128, 0.0, 1.0
    agent.keep_positions()
    optimiser, updates = Optimiser(agent, 0.1, 10.0, row.average), max(row.samples // (steps * row.batch), 1)
    for update in range(updates):
        progress, starts = update / updates, _starts(market, row.batch, steps)
        mirrored = torch.randint(0, 2, (row.batch,)).bool() & row.mirror
        with torch.no_grad():
            parts = [agent(market, starts[i: i + 64], steps + 1, mirrored[i: i + 64])
                     for i in range(0, row.batch, 64)]
        logits, values = (torch.cat(both) for both in zip(*parts, strict=True))
        earned = _earned(market.realised, starts, steps, mirrored)
        seen = score(logits, values * spread + mean, earned, _ramp(progress, 0.25, 0.55))
        rate = 0.1 if update else 1.0
        mean += rate * (float(seen.target.mean()) - mean)
        spread += rate * (float(seen.target.std()) - spread)
        for index in [part for _ in range(2) for part in torch.randperm(row.batch).chunk(8)]:
            logits, values = agent(market, starts[index], steps, mirrored[index])
            log_p, old = torch.log_softmax(logits.unflatten(-1, (3, 3)), -1), seen.log_p[index]
            ratio, advantage, weight = (log_p - old).exp(), seen.advantage[index], seen.weight[index]
            clipped = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
            policy = -(weight[..., None] * old.exp() * clipped).sum((-1, -2)).mean()
            entropy = -(weight * (log_p.exp() * log_p).sum(-1)).sum(-1).mean()
            error = (values - (seen.target[index] - mean) / spread).square() * (weight + 0.1)
            optimiser.step(policy + 0.25 * error.sum(-1).mean() - 0.02 * (1.0 - progress) * entropy, progress)
    optimiser.finish()
    return agent


WAYS: dict[str, Callable[[Market, Row], Agent]] = {"fit": fit, "gradient": gradient, "critic": critic}


@torch.no_grad()
def fraction(agent: Agent, market: Market, way: str) -> float:
    """Share of the limit on a market that is played greedily."""
    start = market.first + WARM
    stop = start + (len(market.close) - 1 - start) // PLAYED * PLAYED
    starts, parts = torch.arange(start, stop, PLAYED), []
    for few in starts.split(64):
        found = agent(market, few, PLAYED, torch.zeros(len(few), dtype=torch.bool))[0].flatten(0, 1)
        parts.append(by_value(found) if way == "fit" else found)
    held = np.zeros(len(market.close))
    held[start:stop] = greedy(torch.cat(parts).numpy())
    assert market.truth.expected_return is not None
    stretch = [(start, stop)]
    return (score_unit_run(held, market.truth.expected_return, market.close, stretch).score
            / limit_score(market.truth, market.close, stretch).score)


def by_value(values: torch.Tensor) -> torch.Tensor:
    """Values (n, 2) of long and short over flat, in costs of a side -> (n, 9): a new position's, less its cost."""
    sides = torch.stack((values[:, 1], torch.zeros(len(values)), values[:, 0]), -1)
    return (sides[:, None] - CHANGES).flatten(1)


@nb.njit(cache=True)
def greedy(logits: AnyArray) -> FloatArray:
    """Logits (n, 9) of new positions by old ones -> positions (n,), flat at first."""
    out, place = np.zeros(logits.shape[0]), 1
    for t in range(logits.shape[0]):
        place = np.argmax(logits[t, 3 * place: 3 * place + 3])
        out[t] = place - 1
    return out


def measure(name: str, scenario: str, seed: int, share: float) -> dict[str, Any]:
    """Train one row and play it."""
    row = ROWS[name]
    bars = max(int(row.bars * share), 20_000)
    small = Row(**{**vars(row), "samples": max(int(row.samples * share), 1)})
    market, schema = open_market(scenario, TRAIN_SEED, bars, None, row.columns)
    tests = [open_market(scenario, s, max(int(TEST_BARS * share), 20_000), schema, row.columns)[0]
             for s in TEST_SEEDS]
    torch.manual_seed(seed)
    begun = time.perf_counter()
    agent = WAYS[row.way](market, small)
    seconds = time.perf_counter() - begun
    each = [fraction(agent, test, row.way) for test in tests]
    return {"row": name, "what": row.what, "fraction": round(float(np.mean(each)), 4),
            "each": [round(f, 4) for f in each], "seconds": round(seconds)}


def main() -> None:
    """One line of JSON per row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--row", default=",".join(ROWS))
    parser.add_argument("--scenario", default="easy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of bars and samples")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.list:
        print("\n".join(f"{name:18s} {row.what}" for name, row in ROWS.items()))
        return
    unknown = [name for name in options.row.split(",") if name not in ROWS]
    if unknown:
        parser.error(f"unknown row '{unknown[0]}'; known: {', '.join(ROWS)}")
    for name in options.row.split(","):
        print(json.dumps(measure(name, options.scenario, options.seed, options.share)), flush=True)


if __name__ == "__main__":
    main()
