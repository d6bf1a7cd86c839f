"""Decisions in process, on one thread: features ready -> verdict.

    decision   Decider.decide: embeddings, M-RMS of the wanted side, masked heads, limits, gate
    cold       the same with a regime window that was never seen: the RDE runs too
    cached     the same with a window that was seen before: what is asked for most of half an hour
    bare       the ONNX Runtime sessions that the cold decision calls, alone, in turn with it in the same loop
    graphs     vote + execute + mrms + rde as exported, masks carried in: what a decision would call
               without serving.heads
    batch      Decider.decide_batch, 256 instruments in one pass
    policy     BundlePolicy.decide over consecutive rows, as in a backtest

Prints figures and asserts nothing. Aims on 2 idle cores: small nets p99 < 5 ms; full nets p99 < 30 ms cold and
< 15 ms cached; cold at most bare + 0.3 ms, and less than graphs + 0.3 ms; batch >= 20,000 decisions/s with small
nets.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.core import CoreNet
from agents.gate import GateConfig
from agents.regime import RegimeNet
from agents.risk import RiskNet
from agents.settings import CoreConfig, RegimeConfig, RiskConfig
from algospace.types import AnyArray
from envs.config import CoreEnvConfig, RiskEnvConfig
from serving.backends import Backend, make_backend
from serving.batch import BatchInputs
from serving.bundle import Bundle, BundleSpec, network_shapes
from serving.decider import Decider, DecisionInputs
from serving.export import write_bundle
from serving.policy import BundlePolicy
from tests.serving_market import (
    FIRST_DECISION,
    REGIME_SIZE,
    accounts,
    full_schema,
    random_networks,
    serving_table,
)

SAMPLES = (30, 256)
BATCH = 256


def make_bundle(folder: Path, nets: str, samples: int) -> Bundle:
    """Random weights. small: the defaults (TCN, 64 hidden units, tiny RDE); full: Transformers, 256 units, the
    full RDE."""
    core, risk, regime = random_networks()
    if nets == "full":
        torch.manual_seed(0)
        shapes = network_shapes(full_schema(), REGIME_SIZE)
        sizes: dict[str, Any] = {"embedder": "transformer", "embed_dim": 64, "channels": 64, "hidden": 256}
        core = CoreNet(shapes, CoreConfig(pass_bias=0.0, **sizes))
        risk = RiskNet(shapes, RiskConfig(**sizes))
        regime = RegimeNet(RegimeConfig(size="full", latent=REGIME_SIZE))
        with torch.no_grad():
            core.head.mul_(40.0)
    spec = BundleSpec(
        instrument="SYNTH", mask_key=7, gate=GateConfig(iterations=samples, confidence_threshold=0.25),
        calibration=None, env=CoreEnvConfig(), risk_env=RiskEnvConfig(), risk_unit=2500.0, config_hash="c" * 64,
        data_hash="d" * 64, git_commit="0" * 40)
    return write_bundle(folder, spec, full_schema(), core, risk, regime)


class Recorder:
    """A backend that remembers what it was asked."""

    name = "recorder"

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.calls: list[tuple[str, dict[str, AnyArray]]] = []

    def infer(self, graph: str, inputs: Any) -> dict[str, AnyArray]:
        """See Backend."""
        self.calls.append((graph, {name: array.copy() for name, array in inputs.items()}))
        return self._backend.infer(graph, inputs)


def interleaved(calls: dict[str, Callable[[int], object]], times: int) -> dict[str, AnyArray]:
    """(2, times) milliseconds of each call by the clock and of this thread's processor time, all calls in turn,
    after a warm-up. On a machine that others use the second tells what an idle one would do."""
    taken = {name: np.empty((2, times)) for name in calls}
    for i in range(-20, times):
        for name, call in calls.items():
            started, used = time.perf_counter_ns(), time.thread_time_ns()
            call(i)
            if i >= 0:
                taken[name][:, i] = (time.perf_counter_ns() - started) / 1e6, (time.thread_time_ns() - used) / 1e6
    return taken


def windows_of(count: int) -> list[AnyArray]:
    """Regime windows that nobody has seen."""
    rng, spec = np.random.default_rng(1), full_schema().regime
    return [rng.normal(0, 1, (spec.window, spec.width)).astype(np.float32) for _ in range(count)]


def with_window(inputs: DecisionInputs, window: AnyArray) -> DecisionInputs:
    """The same decision with a regime window instead of the vector."""
    return DecisionInputs(inputs.strategic, inputs.tactical, window, inputs.market, inputs.account, inputs.seed)


def graph_inputs(decider: Decider, inputs: DecisionInputs,
                 window: AnyArray) -> list[tuple[str, dict[str, AnyArray]]]:
    """The exported graphs of one decision, masks carried in."""
    masks, regime = decider.masks(inputs.seed)[None], inputs.regime[None]
    windows = {"strategic": inputs.strategic[None], "tactical": inputs.tactical[None]}
    context = {"regime": regime, "synergy": inputs.market.synergy[None], "account": np.zeros((1, 8), np.float32)}
    one = np.ones((1, 3), np.float32)
    return [("rde", {"window": window[None]}),
            ("vote", {**windows, **context, "masks": np.ascontiguousarray(masks[:, :, :3])}),
            ("mrms", {**windows, "regime": regime, "direction": np.ones((1, 1), np.float32)}),
            ("execute", {"votes": np.eye(3, dtype=np.float32)[None], "proposal": one, **context, "allowed": one,
                         "masks": np.ascontiguousarray(masks[:, :, 3:])})]


def measure(nets: str, samples: int, times: int) -> dict[str, float]:
    """All figures of one size and number of masks."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_bundle(Path(folder) / "bundle", nets, samples)
        backend = make_backend("onnx", bundle)
        table = serving_table(n=FIRST_DECISION + 900)
        policy = BundlePolicy(bundle, table, backend)
        rows = np.flatnonzero(table.decision)
        account = accounts(table, int(rows[0]))[0]
        inputs = [policy.inputs(int(row), account) for row in rows[:BATCH]]
        decider, recorder = Decider(bundle, backend), Recorder(backend)
        recording, seen = Decider(bundle, recorder), windows_of(1)[0]
        per_row = []
        for one in inputs:
            recorder.calls = []
            recording._regimes.clear()
            recording.decide(with_window(one, seen))
            per_row.append(recorder.calls)
        graphs = [graph_inputs(decider, one, seen) for one in inputs[:32]]
        fresh = windows_of(times + 20)
        taken = interleaved({
            "decision": lambda i: decider.decide(inputs[i % BATCH]),
            "cold": lambda i: decider.decide(with_window(inputs[i % BATCH], fresh[i + 20])),
            "bare": lambda i: [backend.infer(*call) for call in per_row[i % BATCH]],
            "cached": lambda i: decider.decide(with_window(inputs[i % BATCH], seen)),
            "graphs": lambda i: [backend.infer(*call) for call in graphs[i % 32]],
            "policy": lambda i: policy.decide(int(rows[i % rows.size]), account)}, times)
        batch = BatchInputs.of(inputs, np.stack([one.regime for one in inputs]))
        many = interleaved({"batch": lambda _: decider.decide_batch(batch)}, max(10, times // 20))["batch"]
    figures = {f"{name}_{label}{kind}": float(np.percentile(values[at], share))
               for name, values in taken.items() for at, kind in enumerate(("_ms", "_cpu_ms"))
               for label, share in (("p50", 50), ("p99", 99))}
    rates = BATCH / np.median(many, 1) * 1e3
    for name in ("bare", "graphs"):
        over = np.median(taken["cold"] - taken[name], 1)
        figures |= {f"cold_minus_{name}_ms": float(over[0]), f"cold_minus_{name}_cpu_ms": float(over[1])}
    return figures | {"batch_per_s": float(rates[0]), "batch_per_cpu_s": float(rates[1])}


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=1000)
    parser.add_argument("--nets", nargs="+", choices=("small", "full"), default=["small", "full"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = {f"{nets}, K={samples}": measure(nets, samples, options.times)
              for nets in options.nets for samples in SAMPLES}
    shown: dict[str, Any] = {k: {n: float(f"{v:.4g}") for n, v in r.items()} for k, r in result.items()}
    print(json.dumps(shown | {"load_average": os.getloadavg()[0]}, indent=2))


if __name__ == "__main__":
    main()
