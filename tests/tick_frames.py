"""Plausible trades as tables, and their import with its promises checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from algospace.marketdata.ticks import TickImportOptions, TickImportResult, import_ticks

START = pd.Timestamp("2024-03-04 15:00").value  # a Monday morning in Chicago
LENIENT = TickImportOptions(max_bad_fraction=0.9)


def frame(n: int = 300, step_ns: int = 250_000_000) -> pd.DataFrame:
    """n plausible trades on the tick grid."""
    rng = np.random.default_rng(5)
    return pd.DataFrame({"ts_event": START + np.arange(n) * step_ns,
                         "price": 5000 + 0.25 * np.cumsum(rng.integers(-1, 2, n)),
                         "size": rng.integers(1, 9, n).astype(float)})


def save(path: Path, data: pd.DataFrame) -> Path:
    if path.suffix == ".parquet":
        data.to_parquet(path)
    else:
        data.to_csv(path, index=False)
    return path


def read(tmp_path: Path, data: pd.DataFrame, symbol: str = "ES", kind: str = "parquet",
         **options: object) -> TickImportResult:
    result = import_ticks(save(tmp_path / f"t.{kind}", data), symbol, TickImportOptions(**options))  # type: ignore
    report = result.report
    assert report.rows_in == len(result.ticks) + report.filtered_rows + report.bad_rows == len(data)
    assert result.quarantine.num_rows == report.bad_rows
    return result
