"""Several markets in one training run: one policy, which is told the instrument it trades.

    joint rows      market 0 | market 1 | ...  then the mirror images in the same order; 30-minute rows likewise
    instrument      a one-hot beside the regime vector, so the first layer's columns are the instruments' embedding
    shards          shard s plays market s mod M with that instrument's tick, multiplier, commission, risk unit

A batch holds joint rows, so the learner sees one long table. A sampler works on a view of its own market. After
training, `specialised` folds an instrument's column into the biases: a core of one market like any other.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import ray
import torch

from agents.core import CoreNet
from agents.dropout import MaskBank
from agents.settings import CoreConfig, Shapes
from algospace.errors import ConfigError, SchemaError
from algospace.types import AnyArray
from envs.config import CoreEnvConfig
from training.mappo.core_team import CoreSampler, CoreTeamModule
from training.mappo.node_tables import node_table, shared_arrays
from training.mappo.tables import (
    REGIME_DIM,
    TableTensors,
    TrainingTable,
    doubled_arrays,
    open_training_table,
)

PLACE = ("market", "experts", "table_hash", "instrument", "start", "stop", "risk_unit")
"""What the specification of a joint team says of each market, in its list `markets`."""


@dataclass(frozen=True)
class JointTable:
    """The training tables of all markets, in the order of the specification."""

    tables: tuple[TrainingTable, ...]

    def __post_init__(self) -> None:
        """SchemaError where the matrices hold different columns or windows: one network cannot read both."""
        first, *others = (_columns(table) for table in self.tables)
        for table, columns in zip(self.tables[1:], others, strict=True):
            if columns != first:
                raise SchemaError(f"the matrices of {table.market.symbol} hold other columns or windows than "
                                  f"{self.tables[0].market.symbol}'s; build all markets with one configuration")

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First joint row of each market, and the number of joint rows."""
        return tuple(np.cumsum([0, *(len(table.market) for table in self.tables)]).tolist())

    @cached_property
    def offsets_30m(self) -> tuple[int, ...]:
        """The same of 30-minute rows."""
        return tuple(np.cumsum([0, *(table.market.strategic.shape[0] for table in self.tables)]).tolist())

    @property
    def shapes(self) -> Shapes:
        """One market's sizes, the regime vector widened by the one-hot."""
        return self.tables[0].shapes._replace(regime=REGIME_DIM + len(self.tables))


def _columns(table: TrainingTable) -> tuple[Any, ...]:
    schema = table.market.schema
    return tuple((spec.window, spec.names) for spec in (schema.strategic, schema.tactical))


class JointTensors(TableTensors):
    """What TableTensors is to one table, over all of them; `of` gives one market's part without copying."""

    def __init__(self, table: JointTable, arrays: Mapping[str, AnyArray] | None = None) -> None:
        """arrays: what `joint_arrays` made of these tables, perhaps in another process."""
        self.offsets = table.offsets
        self.rows, self.rows_30m = table.offsets[-1], table.offsets_30m[-1]
        self.starts, self.starts_30m = torch.tensor(table.offsets), torch.tensor(table.offsets_30m)
        tensors = {name: torch.from_numpy(values) for name, values in (arrays or joint_arrays(table)).items()}
        self.tactical, self.strategic = tensors["tactical"], tensors["strategic"]
        self.regime, self.synergy, self.row_30m = tensors["regime"], tensors["synergy"], tensors["row_30m"]

    def of(self, market: int) -> JointTensors:
        """A view whose row r is row r of `market`, and whose row `rows` + r is its mirror image."""
        first, stop = self.offsets[market], self.offsets[market + 1]
        view = copy.copy(self)
        view.tactical, view.synergy = self.tactical[first:], self.synergy[first:]
        view.row_30m = self.row_30m[first:stop]  # these stay joint rows
        view.starts, view.starts_30m = torch.tensor((0, stop - first)), self.starts_30m[market:market + 2]
        return view


def joint_arrays(table: JointTable) -> dict[str, AnyArray]:
    """The arrays of JointTensors."""
    parts = [doubled_arrays(part) for part in table.tables]
    count = len(parts)
    for k, part in enumerate(parts):
        regime = part["regime"]
        part["regime"] = np.concatenate((regime, np.tile(np.eye(count, dtype=np.float32)[k], (len(regime), 1))), 1)
    joined = {name: _real_then_mirrored([part[name] for part in parts])
              for name in ("tactical", "strategic", "regime", "synergy")}
    row_30m = [part["row_30m"] + first for part, first in zip(parts, table.offsets_30m, strict=False)]
    return joined | {"row_30m": np.concatenate(row_30m)}


def _real_then_mirrored(doubled: Sequence[AnyArray]) -> AnyArray:
    """Doubled arrays (2n_k, F) of each market -> (2N, F)."""
    halves = [np.split(part, 2) for part in doubled]
    return np.concatenate([real for real, _ in halves] + [image for _, image in halves])


@lru_cache(maxsize=2)
def _cached(places: tuple[tuple[str, str, str], ...]) -> tuple[JointTable, JointTensors]:
    table = JointTable(tuple(open_training_table(*node_table(*place), place[2]) for place in places))
    in_actor = ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None
    digest = hashlib.sha256("\n".join(place[2] for place in places).encode()).hexdigest()
    arrays = shared_arrays(digest, "joint", lambda: joint_arrays(table)) if in_actor else None
    return table, JointTensors(table, arrays)


class JointCoreModule(CoreTeamModule):
    """CoreNet over the joint rows of several training tables."""

    tensors: JointTensors

    def build(self, spec: dict[str, Any]) -> None:
        """See TeamModule; `spec["markets"]` holds PLACE of every market."""
        places = tuple((place["market"], place["experts"], place["table_hash"]) for place in spec["markets"])
        joint, tensors = _cached(places)
        self.joint, self.tensors = joint, tensors
        config = CoreConfig(**spec["net"])
        self.net = CoreNet(joint.shapes, config)
        self.bank = MaskBank(spec["mask_key"], config.hidden, config.dropout)
        self.contiguous = CoreEnvConfig(**spec["env"]).decision_points == "bar"

    def view(self, market: int) -> JointCoreModule:
        """The same parameters over the rows of one market."""
        view = copy.copy(self)  # the dictionaries of parameters and sub-modules are shared
        view.table, view.tensors = self.joint.tables[market], self.tensors.of(market)
        return view


class JointCoreSampler:
    """A CoreSampler on the market of its shard, whose batches hold joint rows."""

    def __init__(self, module: JointCoreModule, spec: dict[str, Any], shard: int) -> None:
        self.market = shard % len(spec["markets"])
        own = {**spec, **{name: spec["markets"][self.market][name] for name in PLACE}}
        self._offset = module.joint.offsets[self.market]
        self._sampler = CoreSampler(module.view(self.market), own, shard)
        self.env = self._sampler.env

    def sample(self, steps: int, tick: int, cost_scale: float) -> dict[str, AnyArray]:
        """See CoreSampler."""
        batch = self._sampler.sample(steps, tick, cost_scale)
        return batch | {"rows": batch["rows"] + np.int32(self._offset)}


def joint_spec(team: Mapping[str, Any], places: Sequence[Mapping[str, Any]], num_shards: int) -> dict[str, Any]:
    """The specification of a joint team from what its markets share and PLACE of each; the first stands outside
    the list too, for whoever looks at one market only.

    ConfigError where shards cannot be dealt evenly, or a table cannot be addressed.
    """
    if num_shards % len(places):
        raise ConfigError(f"core.mappo.num_shards ({num_shards}) must be a multiple of the number of markets "
                          f"({len(places)}): every market gets the same share of the decisions")
    chosen = [{name: place[name] for name in PLACE} for place in places]
    return {**team, **chosen[0], "kind": "joint", "markets": chosen}


def specialised(weights: Mapping[str, torch.Tensor], spec: Mapping[str, Any],
                market: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(weights, specification) of the plain core team that the joint one is on one of its markets.

    The one-hot of a market is constant, so its weights belong to the biases: f(x, e_k) = f_k(x).
    """
    count, dim = len(spec["markets"]), CoreConfig(**spec["net"]).embed_dim
    out = dict(weights)
    for layer, own in (("net.trunk_in", dim), ("net.critic.0", 3 * dim)):
        first = own + REGIME_DIM
        weight, bias = weights[f"{layer}.weight"], weights[f"{layer}.bias"]
        out[f"{layer}.weight"] = torch.cat((weight[:, :first], weight[:, first + count:]), 1)
        out[f"{layer}.bias"] = bias + weight[:, first + market]
    shared = {name: value for name, value in spec.items() if name != "markets"}
    return out, {**shared, **spec["markets"][market], "kind": "core"}
