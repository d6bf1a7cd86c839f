"""One decision in process: features ready -> verdict, small nets, one thread.

    complete   Decider.decide: embeddings, M-RMS of the wanted side, masked heads, limits, gate
    policy     BundlePolicy.decide over consecutive rows, embeddings computed in chunks, as in a backtest
    bare       the same graphs' ONNX Runtime calls alone, which is the least a decision can cost

Budget: p99 below 5 ms (required: 20 ms). `over_bare` is the price of everything around the graphs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from agents.gate import GateConfig
from algospace.types import AnyArray
from serving.backends import Backend, make_backend
from serving.decider import Decider, DecisionInputs
from serving.policy import BundlePolicy
from tests.serving_market import FIRST_DECISION, accounts, random_bundle, serving_table

SAMPLES = (30, 256)


def percentiles(call: Callable[[int], object], times: int) -> dict[str, float]:
    """Milliseconds of `call(i)`, after a warm-up."""
    for i in range(50):
        call(i)
    taken = np.empty(times)
    for i in range(times):
        started = time.perf_counter_ns()
        call(i)
        taken[i] = time.perf_counter_ns() - started
    return {"p50_ms": float(np.percentile(taken, 50)) / 1e6, "p99_ms": float(np.percentile(taken, 99)) / 1e6}


class Recorder:
    """A backend that remembers what it was asked."""

    name = "recorder"

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.calls: list[tuple[str, dict[str, AnyArray]]] = []

    def infer(self, graph: str, inputs: Any) -> dict[str, AnyArray]:
        self.calls.append((graph, {name: array.copy() for name, array in inputs.items()}))
        return self._backend.infer(graph, inputs)


def measure(samples: int, times: int) -> dict[str, float]:
    """All figures for one number of dropout masks."""
    with tempfile.TemporaryDirectory() as folder:
        gate = GateConfig(iterations=samples, confidence_threshold=0.25)
        bundle = random_bundle(Path(folder) / "bundle", gate=gate)
        backend = make_backend("onnx", bundle)
        table = serving_table(n=FIRST_DECISION + 900)
        policy = BundlePolicy(bundle, table, backend)
        rows = np.flatnonzero(table.decision)
        account = accounts(table, int(rows[0]))[0]
        inputs: list[DecisionInputs] = [policy.inputs(int(row), account) for row in rows[:200]]
        decider, recorder = Decider(bundle, backend), Recorder(backend)
        recording = Decider(bundle, recorder)
        for one in inputs:
            recording.decide(one)
        per_decision = len(recorder.calls) / len(inputs)
        complete = percentiles(lambda i: decider.decide(inputs[i % len(inputs)]), times)
        walk = percentiles(lambda i: policy.decide(int(rows[i % rows.size]), account), times)
        bare = percentiles(lambda i: backend.infer(*recorder.calls[i % len(recorder.calls)]), times)
        mean_bare = mean_ms(backend, recorder.calls) * per_decision
        mean_complete = mean_of(lambda one: decider.decide(one), inputs)
        return {"complete_p50_ms": complete["p50_ms"], "complete_p99_ms": complete["p99_ms"],
                "policy_p50_ms": walk["p50_ms"], "policy_p99_ms": walk["p99_ms"],
                "bare_call_p50_ms": bare["p50_ms"], "bare_per_decision_ms": mean_bare,
                "complete_over_bare": mean_complete / mean_bare}


def mean_ms(backend: Backend, calls: list[tuple[str, dict[str, AnyArray]]]) -> float:
    """Mean milliseconds of one recorded graph call."""
    return mean_of(lambda call: backend.infer(*call), calls)


def mean_of(function: Callable[[Any], object], items: list[Any]) -> float:
    """Mean milliseconds of `function` over `items`, best of three passes."""
    best = np.inf
    for _ in range(3):
        started = time.perf_counter()
        for item in items:
            function(item)
        best = min(best, (time.perf_counter() - started) / len(items) * 1e3)
    return float(best)


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=2000)
    options = parser.parse_args()
    result = {f"K={samples}": measure(samples, options.times) for samples in SAMPLES}
    print(json.dumps({k: {n: float(f"{v:.4g}") for n, v in r.items()} for k, r in result.items()}, indent=2))


if __name__ == "__main__":
    main()
