"""The M-RMS as a MAPPO team: one decision per opportunity, three agents at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from agents.dropout import MaskBank
from agents.mask_rows import mask_rows
from agents.risk import RiskNet
from agents.settings import NUM_CRITIC, NUM_RISK_ACCOUNT, RISK_ACTIONS, RISK_AGENTS, RiskConfig
from algospace.instruments import instrument
from algospace.seeding import stream_key, uniforms
from algospace.types import AnyArray
from envs.config import RiskEnvConfig
from envs.vector_risk import VectorRiskEnv
from training.mappo.core_team import gather_windows, segment_seeds
from training.mappo.module import TeamModule
from training.mappo.tables import cached_tensors


class RiskTeamModule(TeamModule):
    """RiskNet over scattered rows of a training table."""

    net: RiskNet

    def build(self, spec: dict[str, Any]) -> None:
        self.table, self.tensors = cached_tensors(spec["market"], spec["experts"], spec["table_hash"])
        config = RiskConfig(**spec["net"])
        self.net = RiskNet(self.table.shapes, config)
        self.bank = MaskBank(spec["mask_key"], config.hidden, config.dropout)

    def state(self, rows: torch.Tensor, mirrored: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
        """Rows and mirrored flags on the CPU, like the tables, and directions (R,) -> network states (R, S)."""
        device = self.net.head.device
        strategic, tactical = (x.to(device) for x in gather_windows(self.tensors, self.net.shapes, rows, mirrored))
        rows_30m = self.tensors.row_30m[rows] + mirrored.long() * self.tensors.rows_30m
        return self.net.state(strategic, tactical, self.tensors.regime[rows_30m].to(device),
                              directions[:, None].to(device))

    def evaluate(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        rows, device = batch["rows"].long().cpu(), self.net.head.device
        mirrored = batch["mirrored"].cpu()[:, None].expand(rows.shape)
        state = self.state(rows.flatten(), mirrored.flatten(), batch["directions"].flatten())
        state = state.reshape(*rows.shape, -1)
        masks = self.bank.masks[batch["mask_rows"].long().cpu()].to(device)
        return self.net.logits(self.net.trunk(state), masks), self.net.value(state, batch["account"])


class RiskSampler:
    """Rolls one shard of the risk environment forward by one segment of trades."""

    def __init__(self, module: RiskTeamModule, spec: dict[str, Any], shard: int) -> None:
        self.module, self.spec, self.shard = module, spec, shard
        envs = int(spec["envs_per_shard"])
        self.env = VectorRiskEnv(module.table.market, instrument(spec["instrument"]),
                                 RiskEnvConfig(**spec["env"]), spec["start"], spec["stop"], envs, spec["seed"],
                                 mirror=spec["mirror"], first_env=shard * envs)
        self._account = np.empty((envs, NUM_RISK_ACCOUNT), np.float32)
        self._hindsight = np.empty((envs, NUM_CRITIC - NUM_RISK_ACCOUNT), np.float32)

    @torch.no_grad()
    def sample(self, steps: int, tick: int, cost_scale: float) -> dict[str, AnyArray]:
        """One segment of `steps` trades per environment."""
        env, module, net = self.env, self.module, self.module.net
        env.cost_scale = cost_scale
        env.begin_segment()
        size, agents = env.num_envs, len(RISK_AGENTS)
        mirrored = torch.from_numpy(np.asarray(env.signs) < 0.0)
        base = stream_key("segment", self.spec["seed"], tick, self.shard)
        noise = gumbel(base, size, steps)
        bank_rows = np.ascontiguousarray(mask_rows(segment_seeds(base, size), steps, agents).swapaxes(0, 1))
        masks = module.bank.masks[torch.from_numpy(bank_rows)]
        out = _empty(size, steps)
        out["mask_rows"] = bank_rows.astype(np.int16)
        for t in range(steps + 1):
            self._observe(out["account_all"][t])
            out["rows_all"][t], out["directions_all"][t] = env.rows, env.directions
            state = module.state(torch.from_numpy(env.rows.astype(np.int64)), mirrored,
                                 torch.from_numpy(np.asarray(env.directions, np.float32)))
            value = net.value(state, torch.from_numpy(out["account_all"][t]))
            out["values_all"][t] = module.value_norm.denormalise(value).numpy()
            if t == steps:
                break
            logits = net.logits(net.trunk(state), masks[t])
            actions = (logits + noise[t]).argmax(-1)
            out["log_p"][t] = torch.log_softmax(logits, -1).gather(-1, actions.unsqueeze(-1)).squeeze(-1).numpy()
            out["actions"][t] = actions.numpy()
            out["alive"][t] = env.alive
            out["valid"][t] = np.asarray(env.alive)[:, None]
            env.step(out["actions"][t], out["rewards"][t], out["discounts"][t])
        for name in ("rows", "account", "directions"):
            out[name] = out.pop(f"{name}_all")[:-1]
        segments = {name: np.ascontiguousarray(array.swapaxes(0, 1)) for name, array in out.items()}
        return segments | {"mirrored": mirrored.numpy()}

    def _observe(self, out: AnyArray) -> None:
        """What the critic sees beside the market: the account, and the opportunity in hindsight."""
        self.env.observe(self._account)
        self.env.hindsight(self._hindsight)
        out[:, :NUM_RISK_ACCOUNT], out[:, NUM_RISK_ACCOUNT:] = self._account, self._hindsight


def gumbel(seed: int, size: int, steps: int) -> torch.Tensor:
    """Gumbel noise (T, B, agents, actions): argmax(logits + noise) is a sample of the categorical."""
    agents, actions = len(RISK_AGENTS), max(RISK_ACTIONS)
    u = np.empty((size, steps * agents * actions))
    uniforms(np.uint64(seed), 1, u)
    noise = -np.log(-np.log(np.clip(u, 1e-12, 1.0 - 1e-12))).astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(noise.reshape(size, steps, agents, actions).swapaxes(0, 1)))


def _empty(size: int, steps: int) -> dict[str, AnyArray]:
    agents = len(RISK_AGENTS)
    return {
        "rows_all": np.zeros((steps + 1, size), np.int32),
        "directions_all": np.zeros((steps + 1, size), np.float32),
        "account_all": np.zeros((steps + 1, size, NUM_CRITIC), np.float32),
        "values_all": np.zeros((steps + 1, size), np.float32),
        "actions": np.zeros((steps, size, agents), np.int8),
        "log_p": np.zeros((steps, size, agents), np.float32),
        "valid": np.zeros((steps, size, agents), np.bool_),
        "alive": np.zeros((steps, size), np.bool_),
        "rewards": np.zeros((steps, size), np.float32),
        "discounts": np.ones((steps, size), np.float32),
    }
