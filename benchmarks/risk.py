"""The M-RMS against fixed sizing, ATR stops, Kelly fractions and random proposals on markets it has never seen.

    python -m benchmarks.risk [--config configs/train/session.yaml] [--run-dir runs/session] [--split test]
                              [--json FILE] [key.path=value ...]

Trains the RDE and the M-RMS of the configuration if the run folder does not hold them, then plays every rule on
the same opportunities (training.risk_evaluation). `--split validation` is for tuning. NQ: --config
configs/train/nq.yaml --run-dir runs/nq, with ALGOSPACE_DATA set.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from algospace.config import load_config
from algospace.files import write_json
from training.config import RunConfig
from training.dataset import open_dataset
from training.pipeline import run_pipeline
from training.risk_evaluation import TEAM, evaluate_risk

_COLUMNS = (("sortino", 3), ("sharpe", 3), ("sortino_day", 2), ("sharpe_day", 2), ("net", 1), ("mean_drawdown", 3),
            ("drawdown", 3), ("win_rate", 2), ("size", 2), ("traded", 3), ("limited", 3), ("refused", 3),
            ("difference", 3), ("low", 3), ("high", 3))


def table(report: dict[str, Any]) -> str:
    """One line per rule; `difference` is the M-RMS's Sortino ratio less the rule's, with its 95 % interval."""
    lines = [" " * 36 + "".join(f"{name.replace('mean_drawdown', 'mean dd').replace('drawdown', 'max dd'):>12}"
                                for name, _ in _COLUMNS)]
    for name, score in report["rules"].items():
        cells = ("-" if score[key] is None else f"{score[key]:.{digits}f}" for key, digits in _COLUMNS)
        lines.append(f"{name:36}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


def main() -> int:
    """Train where needed, play, print; 1 if a fixed rule has the better Sortino ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--config", type=Path, default=Path("configs/train/session.yaml"))
    parser.add_argument("--run-dir", type=Path, default=Path("runs/session"))
    parser.add_argument("--split", choices=("test", "validation"), default="test")
    parser.add_argument("--tours", type=int, default=8, help="walks through every market")
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    options = parser.parse_args()
    config = load_config(RunConfig, options.config, options.overrides)
    run_pipeline(config, options.run_dir, ("rde", "mrms"), Console())
    dataset = open_dataset(options.run_dir)
    splits = dataset.test if options.split == "test" else (dataset.validation,)
    report = evaluate_risk(options.run_dir, dataset, splits, tours=options.tours)
    print(f"{report['opportunities']:,} opportunities, {options.split} split, config {config.digest()[:12]}")
    print(f"chosen on training rows: {json.dumps(report['choice'])}")
    print(f"what the M-RMS chooses: {json.dumps(report['choices'])}")
    print(table(report))
    if options.json is not None:
        write_json(options.json, report | {"config": config.digest(), "split": options.split})
    worse = [name for name, score in report["rules"].items()
             if not name.startswith(TEAM) and (score["difference"] or 0.0) <= 0.0]
    print(f"better Sortino ratio than every fixed rule: {'no, not ' + ', '.join(worse) if worse else 'yes'}")
    return int(bool(worse))


if __name__ == "__main__":
    sys.exit(main())
