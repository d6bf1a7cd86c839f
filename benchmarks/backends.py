"""Backends side by side: largest difference from torch, and latency for batches of 1 to 1024, small nets.

Every backend that this machine can run is measured on the graphs a decision uses (embed, mrms, rde) and on vote;
the others are named with the reason. TensorRT runs as a CUDA graph between pinned buffers, in both precisions.
`--fp16` adds the parity report of FP16 graphs (ModelOpt's AutoCast), run with ONNX Runtime.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

import numpy as np

from agents.gate import Gate, GateConfig
from algospace.errors import AlgoSpaceError
from algospace.types import AnyArray
from serving.backends import Backend, make_backend
from serving.bundle import Bundle
from serving.engines import ENGINE_BACKENDS, Precision, fallback_code
from serving.half import confidences_of, parity_report
from tests.serving_market import REGIME_SIZE, full_schema, random_bundle

RUNS: tuple[tuple[str, Precision], ...] = (("torch", "fp32"), ("onnx", "fp32"), *(
    (name, precision) for name in ENGINE_BACKENDS for precision in get_args(Precision)))
GRAPHS = ("embed", "rde", "mrms", "vote")
BATCHES = (1, 8, 64, 256, 1024)


def graph_inputs(batch: int, samples: int, hidden: int, seed: int = 0) -> dict[str, dict[str, AnyArray]]:
    """Random inputs of every graph."""
    rng, schema = np.random.default_rng(seed), full_schema()

    def normal(*shape: int) -> AnyArray:
        return rng.normal(0.0, 1.0, shape).astype(np.float32)

    def masks(agents: int) -> AnyArray:
        kept = rng.random((batch, samples, agents, hidden)) < 0.9
        return kept.astype(np.float32) / np.float32(0.9)

    windows = {"strategic": normal(batch, schema.strategic.window, schema.strategic.width),
               "tactical": normal(batch, schema.tactical.window, schema.tactical.width)}
    regime = {"regime": normal(batch, REGIME_SIZE)}
    context = regime | {"synergy": normal(batch, 3), "account": normal(batch, 8)}
    side = np.where(rng.random((batch, 1)) < 0.5, -1.0, 1.0).astype(np.float32)
    return {"embed": windows, "mrms": windows | regime | {"direction": side},
            "rde": {"window": normal(batch, schema.regime.window, schema.regime.width)},
            "vote": windows | context | {"masks": masks(3)},
            "execute": context | {"votes": np.eye(3, dtype=np.float32)[rng.integers(0, 3, (batch, 3))],
                                  "proposal": normal(batch, 3), "allowed": np.ones((batch, 3), np.float32),
                                  "masks": masks(1)}}


def latency_ms(backend: Backend, graph: str, inputs: dict[str, AnyArray], seconds: float) -> dict[str, float]:
    """p50 and p99 of one call, after a warm-up, over about `seconds` (at least 5 calls)."""
    for _ in range(3):
        backend.infer(graph, inputs)
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < 5 or time.perf_counter() < end:
        started = time.perf_counter_ns()
        backend.infer(graph, inputs)
        taken.append((time.perf_counter_ns() - started) / 1e6)
    return {"p50_ms": float(np.percentile(taken, 50)), "p99_ms": float(np.percentile(taken, 99))}


def measure(bundle: Bundle, seconds: float, cache: Path) -> dict[str, Any]:
    """Figures of every backend, or why there are none."""
    samples, hidden = bundle.manifest.gate.iterations, bundle.manifest.networks.core.hidden
    given = {batch: graph_inputs(batch, samples, hidden) for batch in BATCHES}
    reference = make_backend("torch", bundle)
    result: dict[str, Any] = {}
    for name, precision in RUNS:
        title = name if precision == "fp32" else f"{name} {precision}"
        try:
            backend = make_backend(name, bundle, cache, precision)
        except AlgoSpaceError as error:
            result[title] = {"not_run": fallback_code(error)}
            continue
        result[title] = {"largest_difference": max(
            float(np.abs(value - backend.infer(graph, given[64][graph])[key]).max())
            for graph in GRAPHS for key, value in reference.infer(graph, given[64][graph]).items())}
        for graph in GRAPHS:
            result[title][graph] = {batch: latency_ms(backend, graph, given[batch][graph], seconds)
                                   for batch in BATCHES}
    return result


def half_precision(bundle: Bundle, count: int) -> dict[str, Any]:
    """FP16 against FP32 on `count` random decisions; the threshold is their median confidence, so that as many
    verdicts as possible could change."""
    inputs = graph_inputs(count, bundle.manifest.gate.iterations, bundle.manifest.networks.core.hidden, seed=1)
    gate = Gate(bundle.manifest.gate)
    backend = make_backend("onnx", bundle)
    full = {graph: backend.infer(graph, inputs[graph]) for graph in ("vote", "execute")}
    confidence = confidences_of(full, gate, 0.5)
    report = parity_report(bundle, inputs, gate, float(np.median(confidence)))
    return dataclasses.asdict(report)


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="per graph, batch and backend")
    parser.add_argument("--fp16", type=int, default=0, help="decisions in the FP16 report; 0: none")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = random_bundle(Path(folder) / "bundle", seed=3, gate=GateConfig(iterations=30))
        result = measure(bundle, options.seconds, Path(folder) / "engines")
        if options.fp16:
            result["fp16"] = half_precision(bundle, options.fp16)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
