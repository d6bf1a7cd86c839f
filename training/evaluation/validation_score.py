"""The score a sweep is judged by: the core's greedy play on the validation split.

Synthetic markets with a solved limit: the noise-free unit score as a fraction of the Bayes limit. Other markets:
the net reward per bar in risk units, in consecutive episodes, with all costs and without shaping.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from algospace.analysis.unit_score import BARS_PER_YEAR, limit_score, score_unit_run
from algospace.execution.mechanics import open_account
from algospace.types import FloatArray
from envs.config import CoreEnvConfig
from envs.vector_core import VectorCoreEnv, decision_rows
from training.dataset import Split
from training.evaluation.unit_run import unit_run
from training.mappo.core_team import CoreTeamModule, make_core_env
from training.mappo.module import build_team_module

_MAX_CHUNKS, _MIN_CHUNK_BARS, _EMBED_STEPS = 256, 100, 128


class ValidationScorer:
    """Plays given weights on the validation rows. `spec` is the core team's, over the validation table.

    `judge` is the environment whose mechanics and costs count and `unit` the risk unit that rewards are given in,
    the same for every trial of a sweep; what the team observes stays in the unit it was trained with.
    """

    def __init__(self, spec: dict[str, Any], split: Split, judge: CoreEnvConfig, unit: float) -> None:
        own = CoreEnvConfig(**spec["env"])
        truth = split.truth()
        solved = truth is not None and truth.limit_position is not None and truth.expected_return is not None
        changes: dict[str, Any] = {"shaping": "none", "reverse": own.reverse,
                                   "decision_points": own.decision_points}
        if solved:
            changes |= {"mechanics": "unit", "decision_points": "bar"}
        env = CoreEnvConfig(**{**judge.model_dump(), **changes})
        self._spec = {**spec, "env": env.model_dump()}
        self._scale = float(spec["risk_unit"]) / unit
        module = build_team_module(self._spec)
        assert isinstance(module, CoreTeamModule)
        self._module, self._split, self._truth = module, split, truth if solved else None

    def score(self, weights: dict[str, torch.Tensor]) -> dict[str, float]:
        """`validation_score` and what explains it: Sharpe ratio per bar, exposure, and for a unit run turnover."""
        self._module.load_state_dict(weights)
        self._module.eval()
        return self._net_reward() if self._truth is None else self._unit_score()

    def _unit_score(self) -> dict[str, float]:
        truth, split = self._truth, self._split
        assert truth is not None
        assert truth.expected_return is not None
        chunks = max(1, min(_MAX_CHUNKS, (split.stop - split.start) // _MIN_CHUNK_BARS))
        positions, segments = unit_run(self._module, self._spec, split.start, split.stop, chunks)
        close = np.asarray(self._module.table.market.close)
        score = score_unit_run(positions, truth.expected_return, close, segments)
        limit = limit_score(truth, close, segments)
        # a martingale's limit earns nothing, and there is no fraction of nothing
        value = score.score / limit.score if limit.score > 0.0 else score.score
        return {"validation_score": value, "sharpe_per_bar": score.sharpe / math.sqrt(BARS_PER_YEAR),
                "exposure": score.exposure, "turnover": score.turnover}

    def _net_reward(self) -> dict[str, float]:
        rewards, exposure = greedy_rewards(self._module, self._spec, self._split.start, self._split.stop)
        episodes, bars = rewards.shape[0], int(self._spec["env"]["episode_bars"])
        totals = self._scale * rewards.sum(1)
        spread = float(totals.std(ddof=1)) if episodes > 1 else 0.0
        sharpe = float(totals.mean()) / spread / math.sqrt(bars) if spread > 0.0 else 0.0
        return {"validation_score": float(totals.mean()) / bars, "sharpe_per_bar": sharpe, "exposure": exposure}


@torch.no_grad()
def greedy_rewards(module: CoreTeamModule, spec: dict[str, Any], start: int,
                   stop: int) -> tuple[FloatArray, float]:
    """Rewards (episodes, steps) of the most probable actions, and the share of steps with a position.

    Rows [start, stop) are cut into consecutive episodes of the environment's length, each starting flat; one that
    terminates earns nothing more. With decisions at synergies a step may span many bars.
    """
    env = _episodes(module, spec, start, stop)
    steps = int(spec["env"]["episode_bars"])
    rewards, held = np.zeros((env.num_envs, steps)), 0
    reward, discount = np.zeros(env.num_envs, np.float32), np.zeros(env.num_envs, np.float32)
    block = _EMBED_STEPS if module.contiguous else 1  # consecutive rows are embedded in one causal pass
    done = 0
    while done < steps and env.alive.any():
        size = min(block, steps - done)
        rows = torch.from_numpy(env.rows.astype(np.int64)[:, None] + np.arange(size))
        straight = torch.zeros(env.num_envs, dtype=torch.bool)
        embedded, market = module.embed(rows, straight), module.market_context(rows, straight)
        for t in range(size):
            _decide(module, env, embedded[:, t], market[:, t], reward, discount)
            rewards[:, done + t] = reward
            held += int(np.count_nonzero(env.accounts["position"]))
        done += size
    return rewards, held / (env.num_envs * max(done, 1))


def _episodes(module: CoreTeamModule, spec: dict[str, Any], start: int, stop: int) -> VectorCoreEnv:
    """One environment per episode, placed on its first row, unmirrored."""
    config, market = CoreEnvConfig(**spec["env"]), module.table.market
    count = max((stop - start) // config.episode_bars, 1)
    starts = start + config.episode_bars * np.arange(count)
    env = make_core_env(module.table, {**spec, "start": start, "stop": min(stop + 1, len(market)),
                                       "envs_per_shard": count, "mirror": False}, 0)
    equity = 1.0 if config.mechanics == "unit" else config.initial_equity
    state = env.get_state()
    for record, row in zip(state["accounts"], starts, strict=True):
        open_account(record, equity, float(market.close[row]), int(market.day[row]))
    state["rows"][:] = starts
    state["ends"][:] = starts + config.episode_bars
    state["voting"][:] = decision_rows(market, config)[starts]
    env.set_state(state)
    return env


def _decide(module: CoreTeamModule, env: VectorCoreEnv, embedded: torch.Tensor, market: torch.Tensor,
            rewards: Any, discounts: Any) -> None:
    """Both half-steps of one decision in every environment, dropout off; fills `rewards` and `discounts`."""
    net, keep = module.net, torch.ones(())
    account = np.zeros((env.num_envs, 8), np.float32)
    env.observe(account)
    shared = net.shared_input(torch.cat((market, torch.from_numpy(account)), -1))
    logits = net.voter_logits(net.voter_trunk(embedded, shared), keep)
    votes = torch.where(torch.from_numpy(env.voting & env.alive)[:, None], logits.argmax(-1), 1)
    env.vote(votes.numpy().astype(np.int8))
    one_hot = torch.nn.functional.one_hot(votes, 3).float()
    hidden = net.execution_trunk(one_hot, torch.from_numpy(env.proposal), shared)
    action = net.execution_logits(hidden, keep, torch.from_numpy(env.action_mask)).argmax(-1)[:, 0]
    env.execute(action.numpy().astype(np.int8), rewards, discounts)
