"""The regime network beside a Gaussian mixture, an HMM and supervised classifiers on the same 96x12 input.

    python -m benchmarks.regimes [--scenario easy] [--size small] [--seeds 701,702,703] [--network-steps 0]

Trains as the quickstart's phase does, on a market of its own seed, and scores every test seed: linear-probe
accuracy and NMI against the true regime. Only probes and supervised figures use labels to train, those of the
training market, all of them the same ones.
"""

from __future__ import annotations

import argparse
import math
import time

import numpy as np
import torch

from agents.regime import RegimeNet
from agents.settings import RegimeConfig
from algospace.features import build
from algospace.features.config import FeatureConfig
from algospace.features.matrices import Normaliser, assemble
from algospace.features.matrix_schema import MatrixConfig, MatrixSchema
from algospace.instruments import instrument
from algospace.marketdata.synthetic import generate, scenario_named
from algospace.types import Float32Array, IntArray
from training.rde import Rows, train_rde, window_ends
from training.rde_report import encode_ends, rde_report

VALIDATION_SEED, VALIDATION_BARS, TEST_BARS = 501, 60_000, 140_000
_BATCH = 128
_COLUMNS = ("rde", "gmm", "hmm")


def market(scenario: str, seed: int, bars: int, schema: MatrixSchema | None
           ) -> tuple[Float32Array, IntArray, MatrixSchema]:
    """Regime rows (m, F), the true regime of each, and the schema, fitted here if there is none yet."""
    spec = instrument("SYNTH")
    made = generate(scenario_named(scenario), seed, bars)
    features = build(made.bars, spec, FeatureConfig())
    schema = schema or Normaliser.fit(features, MatrixConfig(), int(features.ts_close[-1]))
    table = assemble(features, schema, spec)
    start, stop = table.first_decision, len(table) - 1
    first, last = max(int(table.row_30m[start]), 0), int(table.row_30m[stop - 1]) + 1
    seen = np.minimum(np.searchsorted(table.row_30m, np.arange(first, last)), len(table) - 1)
    return np.array(table.regime[first:last]), np.asarray(made.truth.regime, np.int64)[seen], schema


def joined(*parts: tuple[Float32Array, IntArray]) -> tuple[Float32Array, IntArray, list[Rows]]:
    """Parts one after another, a row of NaN between them, and the rows of each."""
    rows, truth, ranges, place = [], [], [], 0
    for part, regimes in parts:
        ranges.append((place, place + len(part)))
        rows += [part, np.full((1, part.shape[1]), np.nan, np.float32)]
        truth += [regimes, np.array([-1])]
        place += len(part) + 1
    return np.concatenate(rows), np.concatenate(truth), ranges


def supervised_network(
    net: RegimeNet, rows: Float32Array, truth: IntArray, ends: IntArray, seed: int, steps: int
) -> RegimeNet:
    """The regime network's encoder trained on the labels themselves: its μ are logits."""
    torch.manual_seed(seed)
    config = RegimeConfig.model_validate({**net.config.model_dump(), "latent": int(truth.max()) + 1})
    classifier = RegimeNet(config)
    classifier.set_scale(net.centre, net.scale)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=1e-3)
    generator = np.random.default_rng(seed)
    inputs, labels = torch.from_numpy(np.nan_to_num(rows)), torch.from_numpy(truth)
    offsets = torch.arange(1 - config.window, 1)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 5e-4 * (1.0 + math.cos(math.pi * step / steps))
        picks = torch.from_numpy(generator.choice(ends, _BATCH))
        logits = classifier.encode_mean(inputs[picks[:, None] + offsets])
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(torch.nn.functional.cross_entropy(logits, labels[picks]))
        optimizer.step()
    return classifier.eval()


def measure(
    scenario: str, config: RegimeConfig, train_bars: int, train_seed: int, seeds: list[int], seed: int, steps: int,
    most: int,
) -> list[dict[str, float]]:
    """One dict of figures per test seed. most: windows of either part that the figures are of."""
    rows, truth, schema = market(scenario, train_seed, train_bars, None)
    held_out, held_out_truth, _ = market(scenario, VALIDATION_SEED, VALIDATION_BARS, schema)
    table, _, (train, validation) = joined((rows, truth), (held_out, held_out_truth))
    started = time.perf_counter()
    result = train_rde(table, train, validation, config, seed, mirror_sign=schema.regime.sign)
    seconds = time.perf_counter() - started
    print(f"{scenario}: {config.size}, {result.metrics['parameters']:,.0f} parameters, "
          f"{result.metrics['steps']:.0f} steps, {seconds:.0f} s")
    ends = window_ends(rows, (0, len(rows)), config.window)[-most:]
    classifier = supervised_network(result.net, rows, truth, ends, seed, steps) if steps else None
    figures = []
    for test_seed in seeds:
        table, labels, (train, test) = joined((rows, truth), market(scenario, test_seed, TEST_BARS, schema)[:2])
        report = rde_report(result.net, table, train, test, labels, seed, most)
        if classifier is not None:
            ends = window_ends(table, test, config.window)[:most]
            guess = encode_ends(classifier, table, ends).argmax(axis=1)
            report["supervised_network_accuracy"] = float((guess == labels[ends]).mean())
        figures.append(report)
        show(f"{scenario} {test_seed}", report)
    if len(figures) > 1:
        show(f"{scenario} mean", {name: float(np.mean([f[name] for f in figures])) for name in figures[0]})
    return figures


def show(name: str, figures: dict[str, float]) -> None:
    """One line of the table."""
    probes = "  ".join(f"{c} {figures[f'{c}_probe_accuracy']:.3f}/{figures[f'{c}_nmi']:.3f}" for c in _COLUMNS)
    supervised = "  ".join(f"{label} {figures[key]:.3f}" for label, key in (
        ("boosting", "supervised_accuracy"), ("linear", "supervised_linear_accuracy"),
        ("network", "supervised_network_accuracy"), ("majority", "majority_accuracy")) if key in figures)
    print(f"{name:12} probe/NMI: {probes}   accuracy: {supervised}", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", default="easy,mid")
    parser.add_argument("--size", default="small", choices=("tiny", "small", "full"))
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seeds", default="701")
    parser.add_argument("--train-seed", type=int, default=1)
    parser.add_argument("--train-bars", type=int, default=800_000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--network-steps", type=int, default=1000, help="of the supervised network; 0: none")
    parser.add_argument("--windows", type=int, default=1_000_000,
                        help="labelled windows of each part, for probes and classifiers alike")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = RegimeConfig(size=options.size, epochs=options.epochs, windows_per_epoch=10_240,
                          learning_rate=options.learning_rate, patience=3)
    print(f"regime configuration {config.digest()[:12]}")
    for scenario in options.scenario.split(","):
        measure(scenario, config, options.train_bars, options.train_seed,
                [int(part) for part in options.seeds.split(",")], options.seed, options.network_steps,
                options.windows)


if __name__ == "__main__":
    main()
