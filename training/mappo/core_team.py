"""The main core as a MAPPO team: how segments are embedded, sampled and evaluated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from agents.core import AGENTS, NUM_ACCOUNT, NUM_PROPOSAL, CoreConfig, CoreNet
from agents.dropout import MaskBank, mask_rows
from algospace.instruments import instrument
from algospace.seeding import stream_key, uniforms
from algospace.types import AnyArray
from envs.config import CoreEnvConfig
from envs.vector_core import VectorCoreEnv
from training.mappo.module import TeamModule
from training.mappo.tables import TrainingTable, cached_tensors

_VOTERS = 3
View = Callable[[int], tuple[torch.Tensor, torch.Tensor]]


class CoreTeamModule(TeamModule):
    """CoreNet over the rows of a training table."""

    net: CoreNet

    def build(self, spec: dict[str, Any]) -> None:
        self.table, self.tensors = cached_tensors(spec["market"], spec["experts"], spec["table_hash"])
        config = CoreConfig(**spec["net"])
        self.net = CoreNet(self.table.shapes, config)
        self.bank = MaskBank(spec["mask_key"], config.hidden, config.dropout)
        self.contiguous = CoreEnvConfig(**spec["env"]).decision_points == "bar"

    def embed(self, rows: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
        """Rows (B, T) int64 and mirrored (B,) bool -> voters' embeddings (B, T, 3, D).

        Consecutive rows are embedded in one causal pass; scattered ones window by window.
        """
        if not self.contiguous:
            return self._embed_scattered(rows, mirrored)
        net, tensors = self.net, self.tensors
        fast = mirrored[:, None].long() * tensors.rows
        slow = mirrored[:, None].long() * tensors.rows_30m
        context = max(net.tactical.context, net.arbitrage_fast.context)
        span = rows[:, :1] + torch.arange(-context, rows.shape[1])
        tactical = tensors.tactical[span.clamp(min=0) + fast]
        rows_30m = tensors.row_30m[rows]
        first = rows_30m[:, :1]
        context_30m = max(net.strategic.context, net.arbitrage_slow.context)
        steps_30m = int((rows_30m[:, -1] - rows_30m[:, 0]).max()) + 1
        span_30m = (first + torch.arange(-context_30m, steps_30m)).clamp(0, tensors.rows_30m - 1)
        strategic = tensors.strategic[span_30m + slow]
        pick = (rows_30m - first).unsqueeze(-1).expand(-1, -1, net.config.embed_dim)
        return net.embed_voters(
            net.strategic.embed_segment(strategic).gather(1, pick), net.tactical.embed_segment(tactical),
            net.arbitrage_slow.embed_segment(strategic).gather(1, pick),
            net.arbitrage_fast.embed_segment(tactical))

    def _embed_scattered(self, rows: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
        strategic, tactical = gather_windows(self.tensors, self.net.shapes, rows.flatten(),
                                             mirrored[:, None].expand(rows.shape).flatten())
        return self.net.embed_windows(strategic, tactical).reshape(*rows.shape, _VOTERS, -1)

    def market_context(self, rows: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
        """Regime vector and synergy columns (B, T, 11) of rows (B, T)."""
        tensors = self.tensors
        rows_30m = tensors.row_30m[rows] + mirrored[:, None].long() * tensors.rows_30m
        return torch.cat((tensors.regime[rows_30m],
                          tensors.synergy[rows + mirrored[:, None].long() * tensors.rows]), -1)

    def evaluate(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        rows, mirrored = batch["rows"].long(), batch["mirrored"]
        embedded = self.embed(rows, mirrored)
        context = torch.cat((self.market_context(rows, mirrored), batch["account"]), -1)
        masks = self.bank.masks[batch["mask_rows"].long()]
        votes = torch.nn.functional.one_hot(batch["actions"][..., :_VOTERS].long(), 3).float()
        shared = self.net.shared_input(context)
        vote_logits = self.net.voter_logits(self.net.voter_trunk(embedded, shared), masks[:, :, :_VOTERS])
        execution_logits = self.net.execution_logits(
            self.net.execution_trunk(votes, batch["proposal"], shared), masks[:, :, _VOTERS:], batch["allowed"])
        return torch.cat((vote_logits, execution_logits), 2), self.net.value(embedded, context)


def gather_windows(tensors: Any, shapes: Any, rows: torch.Tensor,
                   mirrored: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows (R, Ws, Fs) and (R, Wt, Ft) of scattered rows (R,)."""
    rows_30m = tensors.row_30m[rows]
    span_30m = (rows_30m[:, None] + torch.arange(1 - shapes.strategic_window, 1)).clamp(min=0)
    span = (rows[:, None] + torch.arange(1 - shapes.tactical_window, 1)).clamp(min=0)
    flag = mirrored[:, None].long()
    return (tensors.strategic[span_30m + flag * tensors.rows_30m],
            tensors.tactical[span + flag * tensors.rows])


def make_core_env(table: TrainingTable, spec: dict[str, Any], shard: int) -> VectorCoreEnv:
    """Shard number `shard` of the run's environments."""
    envs = int(spec["envs_per_shard"])
    return VectorCoreEnv(table.market, instrument(spec["instrument"]), CoreEnvConfig(**spec["env"]),
                         table.proposals, spec["start"], spec["stop"], envs, spec["seed"], spec["risk_unit"],
                         mirror=spec["mirror"], first_env=shard * envs)


class CoreSampler:
    """Rolls one shard of the core environment forward by one segment."""

    def __init__(self, module: CoreTeamModule, spec: dict[str, Any], shard: int) -> None:
        self.module, self.spec, self.shard = module, spec, shard
        self.env = make_core_env(module.table, spec, shard)

    @torch.no_grad()
    def sample(self, steps: int, tick: int, cost_scale: float) -> dict[str, AnyArray]:
        """One segment of `steps` decisions per environment; `tick` numbers segments over the whole run."""
        env, module = self.env, self.module
        env.cost_scale = cost_scale
        env.begin_segment()
        mirrored = torch.from_numpy(np.asarray(env.signs) < 0.0)
        base = stream_key("segment", self.spec["seed"], tick, self.shard)
        noise = gumbel(base, env.num_envs, steps)
        bank_rows = np.ascontiguousarray(mask_rows(segment_seeds(base, env.num_envs), steps, len(AGENTS))
                                         .swapaxes(0, 1))
        masks = module.bank.masks[torch.from_numpy(bank_rows)]
        out = empty_segments(env.num_envs, steps)
        out["mask_rows"] = bank_rows.astype(np.int16)
        views = self._segment_views(steps, mirrored)
        embeddings, contexts = [], []
        for t in range(steps + 1):
            env.observe(out["account_all"][t])
            out["rows_all"][t] = env.rows
            embedded, market = views(t)
            context = torch.cat((market, torch.from_numpy(out["account_all"][t])), -1)
            embeddings.append(embedded)
            contexts.append(context)
            if t < steps:
                self._step(embedded, context, masks[t], noise[t], {k: v[t] for k, v in out.items()})
        values = module.net.value(torch.stack(embeddings), torch.stack(contexts))
        out["values_all"] = module.value_norm.denormalise(values).numpy()
        return finish_segments(out) | {"mirrored": mirrored.numpy()}

    def _segment_views(self, steps: int, mirrored: torch.Tensor) -> View:
        """t -> (embeddings (E, 3, D), market context (E, 11)) of step t's rows."""
        env, module = self.env, self.module
        if not module.contiguous:
            def scattered(t: int) -> tuple[torch.Tensor, torch.Tensor]:
                row = torch.from_numpy(env.rows.astype(np.int64))[:, None]
                return module.embed(row, mirrored)[:, 0], module.market_context(row, mirrored)[:, 0]
            return scattered
        last = len(module.table.market) - 1
        rows = torch.from_numpy(np.minimum(env.rows[:, None] + np.arange(steps + 1, dtype=np.int64), last))
        embedded = module.embed(rows, mirrored).transpose(0, 1).contiguous()
        market = module.market_context(rows, mirrored).transpose(0, 1).contiguous()
        return lambda t: (embedded[t], market[t])

    def _step(self, embedded: torch.Tensor, context: torch.Tensor, masks: torch.Tensor, noise: torch.Tensor,
              out: dict[str, AnyArray]) -> None:
        """Both half-steps of one decision; `out` holds the arrays' rows of this step."""
        env, net = self.env, self.module.net
        out["alive"][:] = env.alive
        voting = env.voting & env.alive
        shared = net.shared_input(context)
        logits = net.voter_logits(net.voter_trunk(embedded, shared), masks[:, :_VOTERS])
        votes = torch.where(torch.from_numpy(voting)[:, None], (logits + noise[:, :_VOTERS]).argmax(-1), 1)
        ballots = votes.numpy().astype(np.int8)
        out["valid"][:, :_VOTERS] = voting[:, None]
        env.vote(ballots)
        out["proposal"][:], out["allowed"][:] = env.proposal, env.action_mask
        out["valid"][:, _VOTERS] = env.asked
        one_hot = torch.nn.functional.one_hot(votes, 3).float()
        hidden = net.execution_trunk(one_hot, torch.from_numpy(env.proposal), shared)
        execution = net.execution_logits(hidden, masks[:, _VOTERS:], torch.from_numpy(env.action_mask))
        action = (execution + noise[:, _VOTERS:]).argmax(-1)[:, 0].numpy().astype(np.int8)
        out["actions"][:, :_VOTERS], out["actions"][:, _VOTERS] = ballots, action
        out["logits"][:, :_VOTERS], out["logits"][:, _VOTERS:] = logits.numpy(), execution.numpy()
        env.execute(action, out["rewards"], out["discounts"])


def gumbel(seed: int, size: int, steps: int, agents: int = len(AGENTS), actions: int = 3) -> torch.Tensor:
    """Gumbel noise (T, B, agents, actions): argmax(logits + noise) is a sample of the categorical."""
    u = np.empty((size, steps * agents * actions))
    uniforms(np.uint64(seed), 1, u)
    noise = -np.log(-np.log(np.clip(u, 1e-12, 1.0 - 1e-12))).astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(noise.reshape(size, steps, agents, actions).swapaxes(0, 1)))


def segment_seeds(seed: int, size: int) -> AnyArray:
    """(B,) uint64 dropout seeds of segments."""
    return np.uint64(seed) + np.arange(1, size + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def empty_segments(size: int, steps: int) -> dict[str, AnyArray]:
    """Arrays of one shard's segments, time first; the `_all` ones hold the row after the last decision too."""
    agents = len(AGENTS)
    return {
        "rows_all": np.zeros((steps + 1, size), np.int32),
        "account_all": np.zeros((steps + 1, size, NUM_ACCOUNT), np.float32),
        "actions": np.zeros((steps, size, agents), np.int8),
        "logits": np.zeros((steps, size, agents, 3), np.float32),
        "valid": np.zeros((steps, size, agents), np.bool_),
        "alive": np.zeros((steps, size), np.bool_),
        "proposal": np.zeros((steps, size, NUM_PROPOSAL), np.float32),
        "allowed": np.zeros((steps, size, 3), np.bool_),
        "rewards": np.zeros((steps, size), np.float32),
        "discounts": np.ones((steps, size), np.float32),
    }


def finish_segments(out: dict[str, AnyArray]) -> dict[str, AnyArray]:
    """Log-probabilities of the actions taken; segments first, as they travel to the learner."""
    logits = torch.from_numpy(out.pop("logits"))
    chosen = torch.from_numpy(out["actions"].astype(np.int64)).unsqueeze(-1)
    out["log_p"] = torch.log_softmax(logits, -1).gather(-1, chosen).squeeze(-1).numpy()
    for name in ("rows", "account"):
        out[name] = out.pop(f"{name}_all")[:-1]
    return {name: np.ascontiguousarray(array.swapaxes(0, 1)) for name, array in out.items()}
