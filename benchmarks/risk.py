"""The M-RMS against fixed sizing, ATR stops, Kelly fractions and random proposals on markets of other seeds.

    python -m benchmarks.risk [--config configs/train/session.yaml] [--run-dir runs/session] [--judge]
                              [--json FILE] [key.path=value ...]

Trains the RDE and the M-RMS of the configuration if the run folder does not hold them, then plays every rule on
the same opportunities (training.evaluation.risk): by default those of the markets that tuning may look at (701 to
705; on recorded bars the validation split). `--judge` plays the markets that judge (9001 to 9005; the test split):
once, when everything is chosen. NQ: --config configs/train/nq.yaml --run-dir runs/nq, with ALGOSPACE_DATA set.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from algospace.config import load_config
from algospace.features import build
from algospace.features.matrices import assemble
from algospace.files import write_json
from algospace.instruments import instrument
from algospace.marketdata.synthetic import generate, scenario_named
from training.config import RunConfig
from training.dataset import Dataset, Split, open_dataset
from training.evaluation.config import UNSEEN_SEEDS
from training.evaluation.risk import TEAM, evaluate_risk
from training.pipeline import run_pipeline

TUNING_SEEDS = (701, 702, 703, 704, 705)
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


def seeds_of(judge: bool) -> tuple[int, ...]:
    """Seeds of the synthetic markets that are played."""
    return UNSEEN_SEEDS if judge else TUNING_SEEDS


def played(config: RunConfig, dataset: Dataset, folder: Path, judge: bool) -> tuple[Split, ...]:
    """What is played, those of a synthetic scenario made below `folder` with the training's normaliser; not the
    training market, should its seed be among them."""
    market = config.market.synthetic
    if market is None:
        return dataset.test if judge else (dataset.validation,)
    schema, spec = dataset.train.market().schema, instrument(config.market.instrument)
    splits = []
    for seed in seeds_of(judge):
        if seed != market.train_seed:
            made = generate(scenario_named(market.scenario), seed, market.test_bars)
            table = assemble(build(made.bars, spec, config.features), schema, spec)
            table.save(folder / f"market-{seed}")
            splits.append(Split(folder / f"market-{seed}", table.first_decision, len(table) - 1, seed))
    return tuple(splits)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    made.add_argument("--config", type=Path, default=Path("configs/train/session.yaml"))
    made.add_argument("--run-dir", type=Path, default=Path("runs/session"))
    made.add_argument("--judge", action="store_true", help="play the judging markets, or the test split")
    made.add_argument("--tours", type=int, default=8, help="walks through every market")
    made.add_argument("--json", type=Path, help="write the report here")
    made.add_argument("overrides", nargs="*", metavar="key.path=value")
    return made


def main() -> int:
    """Train where needed, play, print; 1 if a fixed rule has the better Sortino ratio."""
    options = parser().parse_args()
    config = load_config(RunConfig, options.config, options.overrides)
    run_pipeline(config, options.run_dir, ("rde", "mrms"), Console())
    dataset = open_dataset(options.run_dir)
    with tempfile.TemporaryDirectory() as scratch:
        splits = played(config, dataset, Path(scratch), options.judge)
        report = evaluate_risk(options.run_dir, dataset, splits, tours=options.tours)
    seeds = [split.seed for split in splits if split.seed is not None]
    where = ("judging " if options.judge else "tuning ") + (
        f"markets {', '.join(map(str, seeds))}" if seeds else "rows")
    print(f"{report['opportunities']:,} opportunities, {where}, config {config.digest()[:12]}")
    print(f"chosen on training rows: {json.dumps(report['choice'])}")
    print(f"what the M-RMS chooses: {json.dumps(report['choices'])}")
    print(table(report))
    if options.json is not None:
        write_json(options.json, report | {"config": config.digest(), "judge": options.judge,
                                           "seeds": seeds})
    worse = [name for name, score in report["rules"].items()
             if not name.startswith(TEAM) and (score["difference"] or 0.0) <= 0.0]
    print(f"better Sortino ratio than every fixed rule: {'no, not ' + ', '.join(worse) if worse else 'yes'}")
    return int(bool(worse))


if __name__ == "__main__":
    sys.exit(main())
