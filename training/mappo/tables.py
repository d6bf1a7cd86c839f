"""The training table: a market table, the frozen experts' columns beside it, and torch views of both.

Row r of the mirrored market is row n + r of the doubled tensors, so a segment needs only its first row and sign.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import ray
import torch

from agents.settings import Shapes
from algospace.errors import SchemaError
from algospace.features.market_table import MANIFEST, MarketTable
from algospace.features.matrix_schema import MatrixSpec
from algospace.files import atomic_directory, sha256_file, write_json
from algospace.types import AnyArray, Float32Array
from training.mappo.node_tables import node_table, shared_arrays

REGIME_DIM = 8
_VECTORS, _PROPOSALS, EXPERTS = "regime_vectors.npy", "proposals.npy", "experts.json"


@dataclass(frozen=True)
class TrainingTable:
    """market: n base rows, m 30-minute rows. regime_vectors (2, m, 8): the frozen RDE on the market and on its
    mirror image. proposals (n, 2, 3): the frozen M-RMS (contracts, stop and target distance in points)."""

    market: MarketTable
    regime_vectors: Float32Array
    proposals: Float32Array

    @property
    def shapes(self) -> Shapes:
        """Sizes of the matrices for the networks."""
        schema = self.market.schema
        return Shapes(schema.strategic.width, schema.strategic.window, schema.tactical.width,
                      schema.tactical.window, REGIME_DIM)


def save_experts(experts: Path | str, market: Path | str, regime_vectors: Float32Array,
                 proposals: Float32Array) -> str:
    """Write the experts' columns for the market table in folder `market`; returns the hash of both together."""
    with atomic_directory(experts) as part:
        for name, values in ((_VECTORS, regime_vectors), (_PROPOSALS, proposals)):
            np.save(part / name, np.asarray(values, np.float32), allow_pickle=False)
        files = {name: sha256_file(part / name) for name in (_VECTORS, _PROPOSALS)}
        write_json(part / EXPERTS, {"market": sha256_file(Path(market) / MANIFEST), "files": files})
    return experts_hash(experts)


def experts_hash(experts: Path | str) -> str:
    """The hash that a run's configuration carries for its table and experts."""
    return sha256_file(Path(experts) / EXPERTS)


def open_training_table(market: Path | str, experts: Path | str,
                        expected_hash: str | None = None) -> TrainingTable:
    """Map a market table and its experts' columns; SchemaError if they are not those the run was started with."""
    experts = Path(experts)
    if not (experts / EXPERTS).is_file():
        raise SchemaError(f"{experts}: no expert columns here; run the earlier phases first")
    if expected_hash is not None and experts_hash(experts) != expected_hash:
        raise SchemaError(f"{experts}: the columns differ from those the run was started with; "
                          f"restore them or start a new run")
    if json.loads((experts / EXPERTS).read_text())["market"] != sha256_file(Path(market) / MANIFEST):
        raise SchemaError(f"{market}: the market table has changed since {experts} was computed; "
                          f"run the earlier phases again")
    table = MarketTable.load(market, mmap=True, verify=False)
    return TrainingTable(table, np.load(experts / _VECTORS, mmap_mode="r"),
                         np.load(experts / _PROPOSALS, mmap_mode="r"))


class TableTensors:
    """Torch tensors of a training table, the market above its mirror image."""

    def __init__(self, table: TrainingTable, arrays: Mapping[str, AnyArray] | None = None) -> None:
        """arrays: what `doubled_arrays` made of this table, perhaps in another process; made here by default."""
        self.rows, self.rows_30m = len(table.market), table.market.strategic.shape[0]
        self.starts, self.starts_30m = torch.tensor((0, self.rows)), torch.tensor((0, self.rows_30m))
        tensors = {name: torch.from_numpy(values) for name, values in (arrays or doubled_arrays(table)).items()}
        self.tactical, self.strategic = tensors["tactical"], tensors["strategic"]
        self.regime, self.synergy, self.row_30m = tensors["regime"], tensors["synergy"], tensors["row_30m"]


def own_rows(span: torch.Tensor, row: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """Row numbers `span` (B, S), those outside the market of `row` (B, 1) moved to its first or last row.

    starts (M + 1,): the first row of each of M markets in one table, and the number of rows. So no window holds
    another market's rows, whatever rows it is asked for.
    """
    market = torch.bucketize(row.contiguous(), starts[1:-1], right=True)
    return span.clamp(starts[market], starts[market + 1] - 1)


def doubled_arrays(table: TrainingTable) -> dict[str, AnyArray]:
    """The arrays of TableTensors."""
    market, schema = table.market, table.market.schema
    synergy = np.nan_to_num(np.asarray(market.synergy, np.float32))
    return {
        "tactical": _doubled(market.tactical, mirrored(market.tactical, schema.tactical)),
        "strategic": _doubled(market.strategic, mirrored(market.strategic, schema.strategic)),
        "regime": _doubled(table.regime_vectors[0], table.regime_vectors[1]),
        "synergy": _doubled(synergy, synergy * np.array([1.0, -1.0, 1.0], np.float32)),
        "row_30m": np.maximum(np.asarray(market.row_30m), 0).astype(np.int64),
    }


def mirrored(rows: Float32Array, spec: MatrixSpec) -> Float32Array:
    """Normalised rows (n, F) of the market whose up is down."""
    return np.asarray(rows)[:, spec.mirror] * spec.sign


def _doubled(real: Float32Array, image: Float32Array) -> Float32Array:
    """(n, F) and (n, F) -> (2n, F); rows of the warm-up, never decided on, become 0."""
    both = np.concatenate((np.asarray(real, np.float32), np.asarray(image, np.float32)))
    return np.nan_to_num(both)


@lru_cache(maxsize=2)
def cached_tensors(market: str, experts: str, expected_hash: str) -> tuple[TrainingTable, TableTensors]:
    """One copy per process, shared by its runner and its learner; Ray's actors map one copy per node."""
    table = open_training_table(*node_table(market, experts, expected_hash), expected_hash)
    in_actor = ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None
    arrays = shared_arrays(expected_hash, "doubled", lambda: doubled_arrays(table)) if in_actor else None
    return table, TableTensors(table, arrays)
