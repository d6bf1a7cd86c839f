"""Synthetic markets of ticks on disk: ticks.parquet, truth.parquet and manifest.json, written block by block."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import algospace
from algospace.files import atomic_directory, sha256_file, write_json
from algospace.marketdata.schema import CONTRACT_TYPE
from algospace.marketdata.synthetic import SyntheticTruth, read_truth, truth_table
from algospace.marketdata.synthetic_ticks import TickPlan
from algospace.types import Ticks

_TS = pa.timestamp("ns", tz="UTC")
TICK_SCHEMA = pa.schema([
    ("ts", _TS), ("price", pa.float64()), ("size", pa.float64()), ("bid", pa.float64()), ("ask", pa.float64()),
    ("aggressor", pa.int8()), ("ts_recv", _TS), ("contract", CONTRACT_TYPE),
])


def write_ticks(plan: TickPlan, folder: Path | str) -> int:
    """Write the market's prints and truth, the folder whole or not at all; returns the number of prints.

    Memory holds the one-minute bars and one block of prints, never all prints.
    """
    rows = 0
    with atomic_directory(folder) as part:
        with pq.ParquetWriter(part / "ticks.parquet", TICK_SCHEMA, compression="zstd") as writer:
            for block in plan.blocks():
                writer.write_table(_table(block, plan.contracts))
                rows += len(block)
        pq.write_table(truth_table(plan.truth), part / "truth.parquet", compression="zstd")
        write_json(part / "manifest.json", {
            "algospace": algospace.__version__,
            "instrument": "SYNTH",
            "scenario": plan.scenario.model_dump(mode="json"),
            "scenario_sha256": plan.scenario.digest(),
            "options": plan.options.model_dump(mode="json"),
            "seed": plan.seed,
            "base_bars": len(plan.truth),
            "rows": rows,
            "contracts": list(plan.contracts),
            "files": {name: sha256_file(part / name) for name in ("ticks.parquet", "truth.parquet")},
        })
    return rows


def read_written_ticks(folder: Path | str) -> tuple[Ticks, SyntheticTruth]:
    """What `write_ticks` wrote; contract codes count from 0 in the manifest's order."""
    table = pq.read_table(Path(folder) / "ticks.parquet").unify_dictionaries()
    held = {name: table.column(name).to_numpy() for name in ("price", "size", "bid", "ask", "aggressor")}
    times = {name: table.column(name).cast(pa.int64()).to_numpy() for name in ("ts", "ts_recv")}
    contract = table.column("contract").combine_chunks()
    codes = contract.indices.to_numpy().astype("int32")
    return Ticks(**times, **held, contract=codes), read_truth(Path(folder) / "truth.parquet")


def _table(ticks: Ticks, contracts: tuple[str, ...]) -> pa.Table:
    names = pa.array(contracts, pa.string())
    columns = {name: column for name, column in ticks.columns().items() if name != "contract"}
    arrays = [pa.array(columns[field.name], field.type) for field in list(TICK_SCHEMA)[:-1]]
    contract = pa.DictionaryArray.from_arrays(pa.array(ticks.contract), names)
    return pa.Table.from_arrays([*arrays, contract], schema=TICK_SCHEMA)
