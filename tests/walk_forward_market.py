"""A recorded market for tests of the walk-forward: generated 5-minute bars as a CSV, and a configuration on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from algospace.marketdata.synthetic import generate, scenario_named
from algospace.types import Bars
from training.walk_forward import WalkForwardRun

BARS = 20_000  # 72 trading days from 2020-01-01 on


def write_csv(bars: Bars, path: Path) -> Path:
    """Bars as a CSV, stamped by their open in UTC."""
    stamps = pd.to_datetime(bars.ts_open, utc=True).strftime("%Y-%m-%dT%H:%M:%SZ")
    pd.DataFrame({"timestamp": stamps, "open": bars.open, "high": bars.high, "low": bars.low, "close": bars.close,
                  "volume": bars.volume}).to_csv(path, index=False)
    return path


def recorded_bars() -> Bars:
    """The market."""
    return generate(scenario_named("easy"), 3, BARS).bars


def day_of(bars: Bars, row: int) -> str:
    """The date on which a row opens."""
    return pd.Timestamp(int(bars.ts_open[row])).strftime("%Y-%m-%d")


def walk_config(bars: Bars, path: Path, **changes: Any) -> WalkForwardRun:
    """Three windows: 9,000 rows of training, 3,000 of validation, tests of nine days."""
    first, validation = day_of(bars, 9_000), day_of(bars, 12_000)
    test = (pd.Timestamp(validation) + pd.Timedelta(days=9)).strftime("%Y-%m-%d")
    walk = {"windows": 3, "training": "expanding", "random_seeds": 5, "bootstrap_samples": 200,
            **changes.pop("walk_forward", {})}
    file = {"path": str(path), "train_until": first, "validation_until": validation, "test_until": test,
            **changes.pop("file", {})}
    values: dict[str, Any] = {
        "name": "walk", "seed": 5, "embargo_bars": 600, "market": {"instrument": "SYNTH", "file": file},
        "walk_forward": walk, "tracking": {"enabled": False}, "core": {"env": {"episode_bars": 128}},
        "backtest": {"supervised": False}, **changes}
    return WalkForwardRun.model_validate(values)
