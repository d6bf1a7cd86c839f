"""The main core as a MAPPO team: how segments are embedded, sampled and evaluated."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from agents.core import CoreNet
from agents.dropout import MaskBank
from agents.embedders import Embedder
from agents.mask_rows import mask_rows
from agents.settings import AGENTS, NUM_ACCOUNT, NUM_PROPOSAL, CoreConfig
from algospace.instruments import instrument
from algospace.seeding import stream_key
from algospace.types import AnyArray
from envs.config import CoreEnvConfig
from envs.vector_core import VectorCoreEnv
from training.mappo.core_rollout import Segments, Weights, decision_draws, rollout
from training.mappo.module import TeamModule
from training.mappo.tables import TrainingTable, cached_tensors, own_rows

_VOTERS = 3


class CoreTeamModule(TeamModule):
    """CoreNet over the rows of a training table."""

    net: CoreNet

    def build(self, spec: dict[str, Any]) -> None:
        self.table, self.tensors = cached_tensors(spec["market"], spec["experts"], spec["table_hash"])
        config = CoreConfig(**spec["net"])
        self.net = CoreNet(self.table.shapes, config)
        self.bank = MaskBank(spec["mask_key"], config.hidden, config.dropout)
        self.contiguous = CoreEnvConfig(**spec["env"]).decision_points == "bar"

    def embed(self, rows: torch.Tensor, mirrored: torch.Tensor, served: bool = False) -> torch.Tensor:
        """Rows (B, T) int64 and mirrored (B,) bool -> voters' embeddings (B, T, 3, D).

        Consecutive rows are embedded in one causal pass; scattered ones window by window. `served`: as serving
        does, which differs from training for recurrent embedders.
        """
        if not self.contiguous:
            return self._embed_scattered(rows, mirrored)
        net, tensors = self.net, self.tensors
        fast = mirrored[:, None].long() * tensors.rows
        slow = mirrored[:, None].long() * tensors.rows_30m
        context = max(net.tactical.context, net.arbitrage_fast.context)
        span = own_rows(rows[:, :1] + torch.arange(-context, rows.shape[1]), rows[:, :1], tensors.starts)
        tactical = tensors.tactical[span + fast]
        rows_30m = tensors.row_30m[rows]
        first = rows_30m[:, :1]
        context_30m = max(net.strategic.context, net.arbitrage_slow.context)
        steps_30m = int((rows_30m[:, -1] - rows_30m[:, 0]).max()) + 1
        span_30m = own_rows(first + torch.arange(-context_30m, steps_30m), first, tensors.starts_30m)
        strategic = tensors.strategic[span_30m + slow]
        pick = (rows_30m - first).unsqueeze(-1).expand(-1, -1, net.config.embed_dim)
        tactical, strategic, pick = (x.to(net.head.device) for x in (tactical, strategic, pick))

        def along(embedder: Embedder, x: torch.Tensor) -> torch.Tensor:
            return embedder.embed_rows(x) if served else embedder.embed_segment(x)

        return net.embed_voters(
            along(net.strategic, strategic).gather(1, pick), along(net.tactical, tactical),
            along(net.arbitrage_slow, strategic).gather(1, pick), along(net.arbitrage_fast, tactical))

    def _embed_scattered(self, rows: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
        strategic, tactical = gather_windows(self.tensors, self.net.shapes, rows.flatten(),
                                             mirrored[:, None].expand(rows.shape).flatten())
        device = self.net.head.device
        return self.net.embed_windows(strategic.to(device), tactical.to(device)).reshape(*rows.shape, _VOTERS, -1)

    def market_context(self, rows: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
        """Regime vector and synergy columns (B, T, 11) of rows (B, T)."""
        tensors = self.tensors
        rows_30m = tensors.row_30m[rows] + mirrored[:, None].long() * tensors.rows_30m
        market = torch.cat((tensors.regime[rows_30m],
                            tensors.synergy[rows + mirrored[:, None].long() * tensors.rows]), -1)
        return market.to(self.net.head.device)

    def evaluate(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """See TeamModule. Row numbers stay on the CPU with the tables; what they pick goes to the network."""
        rows, mirrored = batch["rows"].long().cpu(), batch["mirrored"].cpu()
        size, device = rows.numel(), self.net.head.device
        embedded = self.embed(rows, mirrored).reshape(size, _VOTERS, -1)
        context = torch.cat((self.market_context(rows, mirrored), batch["account"]), -1).reshape(size, -1)
        votes = torch.nn.functional.one_hot(batch["actions"][..., :_VOTERS].long(), 3).float().to(device)
        decision = torch.cat((votes.flatten(-2), batch["proposal"]), -1).reshape(size, -1)
        logits = self.net.team_logits(
            embedded.transpose(0, 1), context, decision, batch["allowed"].reshape(size, -1),
            self.bank.masks.to(device), batch["mask_rows"].long().reshape(size, -1).to(device))
        values = self.net.central_value(torch.cat((embedded.flatten(1), context), -1))
        return logits.view(*rows.shape, -1, 3), values.view(rows.shape)


def gather_windows(tensors: Any, shapes: Any, rows: torch.Tensor,
                   mirrored: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows (R, Ws, Fs) and (R, Wt, Ft) of scattered rows (R,)."""
    rows_30m = tensors.row_30m[rows]
    span_30m = own_rows(rows_30m[:, None] + torch.arange(1 - shapes.strategic_window, 1), rows_30m[:, None],
                        tensors.starts_30m)
    span = own_rows(rows[:, None] + torch.arange(1 - shapes.tactical_window, 1), rows[:, None], tensors.starts)
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
        """One segment of `steps` decisions per environment; `tick` numbers segments over the whole run.

        Where decisions are made on every bar, the rows are known beforehand and one compiled loop decides.
        """
        env, module = self.env, self.module
        env.cost_scale = cost_scale
        env.begin_segment()
        mirrored = torch.from_numpy(np.asarray(env.signs) < 0.0)
        seed = stream_key("segment", self.spec["seed"], tick, self.shard)
        rows_of_masks = mask_rows(segment_seeds(seed, env.num_envs), steps, len(AGENTS))
        out = empty_segments(env.num_envs, steps)
        play = self.play_compiled if module.contiguous else self.play_stepwise
        embedded, market = play(out, rows_of_masks, seed, mirrored)
        context = torch.cat((market, torch.from_numpy(out.account)), -1)
        values = module.value_norm.denormalise(module.net.value(embedded, context)).numpy()
        return finish_segments(out, values) | {"mask_rows": rows_of_masks.astype(np.int16),
                                               "mirrored": mirrored.numpy()}

    def play_compiled(self, out: Segments, rows_of_masks: AnyArray, seed: int,
                      mirrored: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Fill `out`; returns embeddings (T + 1, E, 3, D) and market context (T + 1, E, 11)."""
        env, module = self.env, self.module
        net, steps = module.net, out.actions.shape[0]
        last = len(module.table.market) - 1
        rows = torch.from_numpy(np.minimum(env.rows[:, None] + np.arange(steps + 1, dtype=np.int64), last))
        embedded = module.embed(rows, mirrored).transpose(0, 1).contiguous()
        market = module.market_context(rows, mirrored).transpose(0, 1).contiguous()
        dim, known = net.config.embed_dim, market.shape[-1]
        first = net.trunk_in.weight
        voters = embedded[:steps].permute(2, 0, 1, 3) @ first[:, :dim].t()
        shared = market[:steps] @ first[:, dim: dim + known].t()
        rollout(env.game(), loop_weights(net, module.bank.masks, known), voters.numpy(), shared.numpy(),
                rows_of_masks, np.uint64(seed), out)
        return embedded, market

    def play_stepwise(self, out: Segments, rows_of_masks: AnyArray, seed: int,
                      mirrored: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same decision by decision in torch, for rows that depend on what was decided."""
        env, module = self.env, self.module
        steps = out.actions.shape[0]
        draws = torch.from_numpy(decision_draws(np.uint64(seed), env.num_envs, steps))
        masks = module.bank.masks[torch.from_numpy(rows_of_masks)]
        embeddings, markets = [], []
        for t in range(steps + 1):
            env.observe(out.account[t])
            out.rows[t] = env.rows
            row = torch.from_numpy(env.rows.astype(np.int64))[:, None]
            embeddings.append(module.embed(row, mirrored)[:, 0])
            markets.append(module.market_context(row, mirrored)[:, 0])
            if t < steps:
                context = torch.cat((markets[t], torch.from_numpy(out.account[t])), -1)
                self._step(embeddings[t], context, masks[:, t], draws[t], Segments(*(array[t] for array in out)))
        return torch.stack(embeddings), torch.stack(markets)

    def _step(self, embedded: torch.Tensor, context: torch.Tensor, masks: torch.Tensor, draws: torch.Tensor,
              out: Segments) -> None:
        """Both half-steps of one decision; `out` holds the arrays' rows of this step."""
        env, net = self.env, self.module.net
        out.alive[:] = env.alive
        voting = env.voting & env.alive
        shared = net.shared_input(context)
        logits = net.voter_logits(net.voter_trunk(embedded, shared), masks[:, :_VOTERS])
        votes, out.log_p[:, :_VOTERS] = drawn(logits, draws[:, :_VOTERS])
        votes = torch.where(torch.from_numpy(voting)[:, None], votes, 1)
        out.actions[:, :_VOTERS] = votes.numpy()
        out.valid[:, :_VOTERS] = voting[:, None]
        env.vote(out.actions[:, :_VOTERS].copy())
        out.proposal[:], out.allowed[:] = env.proposal, env.action_mask
        out.valid[:, _VOTERS] = env.asked
        one_hot = torch.nn.functional.one_hot(votes, 3).float()
        hidden = net.execution_trunk(one_hot, torch.from_numpy(env.proposal), shared)
        execution = net.execution_logits(hidden, masks[:, _VOTERS:], torch.from_numpy(env.action_mask))
        action, out.log_p[:, _VOTERS:] = drawn(execution, draws[:, _VOTERS:])
        out.actions[:, _VOTERS:] = action.numpy()
        env.execute(out.actions[:, _VOTERS].copy(), out.rewards, out.discounts)


def drawn(logits: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, AnyArray]:
    """Categorical draws (...) by u (...) in [0, 1) from logits (..., n), and their log-probabilities."""
    log_p = torch.log_softmax(logits, -1)
    reached = log_p.double().exp().cumsum(-1)  # up to 1 but for rounding: u is a share of what is there
    actions = (reached[..., :-1] <= u.unsqueeze(-1) * reached[..., -1:]).sum(-1)
    return actions, log_p.gather(-1, actions.unsqueeze(-1)).squeeze(-1).numpy()


def loop_weights(net: CoreNet, bank: torch.Tensor, market: int) -> Weights:
    """The network as the compiled loop reads it; `market`: columns of the context that the market gives."""
    dim, first = net.config.embed_dim, net.trunk_in.weight.detach()
    parts = (first[:, dim + market: -len(AGENTS)].t(), first[:, :dim].t(),
             first[:, -len(AGENTS):].t() + net.trunk_in.bias.detach(), net.execution.weight.detach().t(),
             net.execution.bias.detach(), net.trunk_out.weight.detach().t(), net.trunk_out.bias.detach(),
             net.head.detach().transpose(1, 2), net.head_bias.detach(), bank)
    return Weights(*(part.contiguous().numpy() for part in parts))


def segment_seeds(seed: int, size: int) -> AnyArray:
    """(B,) uint64 dropout seeds of segments."""
    return np.uint64(seed) + np.arange(1, size + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def empty_segments(size: int, steps: int) -> Segments:
    """One shard's segments, time first; the first two hold the row after the last decision too."""
    agents = len(AGENTS)
    return Segments(
        rows=np.zeros((steps + 1, size), np.int32), account=np.zeros((steps + 1, size, NUM_ACCOUNT), np.float32),
        actions=np.zeros((steps, size, agents), np.int8), log_p=np.zeros((steps, size, agents), np.float32),
        valid=np.zeros((steps, size, agents), np.bool_), alive=np.zeros((steps, size), np.bool_),
        proposal=np.zeros((steps, size, NUM_PROPOSAL), np.float32), allowed=np.zeros((steps, size, 3), np.bool_),
        rewards=np.zeros((steps, size), np.float32), discounts=np.ones((steps, size), np.float32))


def finish_segments(out: Segments, values: AnyArray) -> dict[str, AnyArray]:
    """Segments first, as they travel to the learner; `values_all` (T + 1, E) has the bootstrap value."""
    steps = out.actions.shape[0]
    columns = {name: array[:steps] for name, array in out._asdict().items()} | {"values_all": values}
    return {name: np.ascontiguousarray(array.swapaxes(0, 1)) for name, array in columns.items()}
