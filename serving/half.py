"""FP16 graphs through ModelOpt's AutoCast, and what the conversion costs in accuracy.

TensorRT is strongly typed: precision is a property of the graph. AutoCast leaves in float32 what would overflow
and keeps the inputs and outputs float32. The report runs on ONNX Runtime, so no GPU is needed for it.
"""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from agents.gate import Gate, count_votes, execution_probabilities
from algospace.types import AnyArray, FloatArray
from serving.bundle import Bundle
from serving.engines import BackendUnavailable
from serving.graphs import graph_model

BAND = 1e-2
"""Confidences closer than this to the threshold may change the verdict in FP16 (design: serving.md)."""
TIE = 1e-3
"""So may votes whose two likeliest choices are closer than this: which of them is chosen is then a matter of
rounding, and the confidence that of another direction."""
Answers = Mapping[str, Mapping[str, AnyArray]]
"""Graph -> its outputs by name."""
LARGEST = 100.0
"""A masked logit is a huge constant in both graphs; differences are taken below this magnitude only."""


@dataclass(frozen=True)
class ParityReport:
    """Largest differences of FP16 against FP32; verdicts that changed, within BAND of the threshold and outside.

    `confidence` is the largest difference where no voter was tied, `tied` the rows where one was (within TIE),
    `unexplained` the verdicts that changed outside BAND without a tie, which must be none.
    """

    rows: int
    difference: Mapping[str, float]
    confidence: float
    tied: int
    changed_within_band: int
    changed_outside_band: int
    unexplained: int


def to_fp16(model: bytes) -> bytes:
    """A float32 graph with float16 inside; ConfigError without ModelOpt."""
    try:
        from modelopt.onnx.autocast import convert_to_mixed_precision
    except ImportError as error:
        raise BackendUnavailable("no_package", f"FP16 needs ModelOpt: run `pip install 'algospace[fp16]'` "
                                               f"({' '.join(str(error).split())})") from error
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory() as scratch, redirect_stdout(io.StringIO()):
            source = Path(scratch) / "graph.onnx"
            source.write_bytes(model)
            converted = convert_to_mixed_precision(onnx_path=str(source), low_precision_type="fp16",
                                                   keep_io_types=True, providers=["cpu"])
    finally:
        logging.disable(level)
    onnx.checker.check_model(converted)
    raw: bytes = converted.SerializeToString(deterministic=True)
    return raw


def parity_report(bundle: Bundle, inputs: Mapping[str, Mapping[str, AnyArray]], gate: Gate,
                  threshold: float) -> ParityReport:
    """Compare the two precisions on the same inputs and masks, both run with ONNX Runtime.

    inputs: graph -> inputs of N rows; `vote` and `execute` are needed, others are compared if given.
    """
    exact, rounded = ({graph: _run(_model(bundle, graph, precision), given) for graph, given in inputs.items()}
                      for precision in ("fp32", "fp16"))
    return compare(exact, rounded, gate, threshold)


def compare(exact: Answers, rounded: Answers, gate: Gate, threshold: float) -> ParityReport:
    """What float32 and a coarser precision answered to the same inputs, `vote` and `execute` among them."""
    difference = {f"{graph}.{name}": _largest(value, rounded[graph][name])
                  for graph, found in exact.items() for name, value in found.items()}
    full, half = (confidences_of(answers, gate, threshold) for answers in (exact, rounded))
    tied = np.array([vote_margin(vote) for vote in exact["vote"]["logits"]]) <= TIE
    changed = (full >= threshold) != (half >= threshold)
    near = np.abs(full - threshold) <= BAND
    return ParityReport(len(full), difference, float(np.abs(full - half)[~tied].max(initial=0.0)),
                        int(tied.sum()), int((changed & near).sum()), int((changed & ~near).sum()),
                        int((changed & ~near & ~tied).sum()))


def vote_margin(logits: AnyArray) -> float:
    """How much likelier the least decided voter's choice is than its second; logits (K, 3, 3)."""
    mean = np.sort(count_votes(logits).mean, -1)
    return float((mean[:, -1] - mean[:, -2]).min())


def confidences_of(answers: Answers, gate: Gate, threshold: float) -> FloatArray:
    """(N,): what the gate compares with its threshold."""
    votes, execution = answers["vote"]["logits"], answers["execute"]["logits"]
    return np.array([gate.decide(count_votes(vote), execution_probabilities(answer), threshold).confidence
                     for vote, answer in zip(votes, execution, strict=True)])


def _model(bundle: Bundle, graph: str, precision: str) -> bytes:
    model = graph_model(bundle.read(f"{'vote' if graph in ('embed', 'heads') else graph}.onnx"), graph)
    return to_fp16(model) if precision == "fp16" else model


def _run(model: bytes, inputs: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, dict(inputs)), strict=True))


def _largest(expected: AnyArray, found: AnyArray) -> float:
    meaning = np.abs(expected) < LARGEST
    return float(np.abs(expected[meaning] - found[meaning]).max(initial=0.0))
