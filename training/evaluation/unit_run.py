"""The unit run: the trained core without brackets, sizing or gate, for scoring against the Bayes limit.

The test rows are cut into equal chunks that are played side by side, each starting flat; actions are the most
probable ones with dropout off.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from algospace.analysis.unit_score import Segments
from algospace.execution.mechanics import open_account
from algospace.types import FloatArray
from envs.vector_core import VectorCoreEnv, decision_rows
from training.mappo.core_team import CoreTeamModule, make_core_env

_EMBED_STEPS = 128


def unit_run(module: CoreTeamModule, spec: dict[str, Any], start: int, stop: int,
             chunks: int = 256, served: bool = True) -> tuple[FloatArray, Segments]:
    """Positions (n,) held over the bar after each row of [start, stop), 0 elsewhere, and the chunks' rows.

    `spec` is the team's specification; its environment must have unit mechanics. `served`: embeddings as serving
    computes them; without it as training does, which differs for recurrent embedders only.
    """
    length = (stop - start) // chunks
    starts = start + length * np.arange(chunks)
    env = _chunk_env(module, spec, starts, length, stop)
    positions = np.zeros(len(module.table.market))
    module.eval()
    if not module.contiguous:
        _play_on(module, env, starts + length, positions)
    else:
        for first in range(0, length, _EMBED_STEPS):
            steps = min(_EMBED_STEPS, length - first)
            positions[_rows(starts + first, steps)] = _play(module, env, steps, served)
    return positions, [(int(s), int(s) + length) for s in starts]


def _rows(starts: Any, steps: int) -> Any:
    return starts[:, None] + np.arange(steps)


def _chunk_env(module: CoreTeamModule, spec: dict[str, Any], starts: Any, length: int, stop: int) -> VectorCoreEnv:
    """One environment per chunk, placed on the chunk's first row, unmirrored."""
    chunks = len(starts)
    spec = {**spec, "start": int(starts[0]), "stop": min(stop + 1, len(module.table.market)),
            "envs_per_shard": chunks, "mirror": False, "env": {**spec["env"], "episode_bars": length}}
    env = make_core_env(module.table, spec, 0)
    state = env.get_state()
    market = module.table.market
    for record, row in zip(state["accounts"], starts, strict=True):
        open_account(record, 1.0, float(market.close[row]), int(market.day[row]))
    state["rows"][:] = starts
    state["ends"][:] = starts + length
    state["voting"][:] = decision_rows(market, env.config)[starts]
    env.set_state(state)
    return env


@torch.no_grad()
def _play(module: CoreTeamModule, env: VectorCoreEnv, steps: int, served: bool) -> FloatArray:
    """`steps` decisions of every chunk, one per row; positions (chunks, steps) after each."""
    straight = torch.zeros(env.num_envs, dtype=torch.bool)
    rows = torch.from_numpy(_rows(env.rows.astype(np.int64), steps))
    embedded, market = module.embed(rows, straight, served), module.market_context(rows, straight)
    positions = np.zeros((env.num_envs, steps))
    for t in range(steps):
        _decide(module, env, embedded[:, t], market[:, t])
        positions[:, t] = env.accounts["position"]
    return positions


@torch.no_grad()
def _play_on(module: CoreTeamModule, env: VectorCoreEnv, ends: Any, positions: FloatArray) -> None:
    """The same where a step runs on to the next decision: what was decided is held until then."""
    straight = torch.zeros(env.num_envs, dtype=torch.bool)
    while (env.rows < ends).any():
        before = env.rows.copy()
        rows = torch.from_numpy(before.astype(np.int64))[:, None]
        _decide(module, env, module.embed(rows, straight)[:, 0], module.market_context(rows, straight)[:, 0])
        for first, last, position in zip(before, env.rows, env.accounts["position"], strict=True):
            positions[first:last] = position


def _decide(module: CoreTeamModule, env: VectorCoreEnv, embedded: torch.Tensor, market: torch.Tensor) -> None:
    """Both half-steps of one decision of every chunk."""
    net = module.net
    account = np.zeros((env.num_envs, 8), np.float32)
    rewards, discounts = np.zeros(env.num_envs, np.float32), np.zeros(env.num_envs, np.float32)
    keep = torch.ones(())
    env.observe(account)
    shared = net.shared_input(torch.cat((market, torch.from_numpy(account)), -1))
    votes = net.voter_logits(net.voter_trunk(embedded, shared), keep).argmax(-1)
    votes = torch.where(torch.from_numpy(env.voting)[:, None], votes, 1)  # who is not asked passes
    env.vote(votes.numpy().astype(np.int8))
    one_hot = torch.nn.functional.one_hot(votes, 3).float()
    hidden = net.execution_trunk(one_hot, torch.from_numpy(env.proposal), shared)
    action = net.execution_logits(hidden, keep, torch.from_numpy(env.action_mask)).argmax(-1)[:, 0]
    env.execute(action.numpy().astype(np.int8), rewards, discounts)
