"""FP16 graphs keep the verdicts, except near the threshold. Skips where ModelOpt is not installed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from algospace.errors import ConfigError
from benchmarks.backends import half_precision
from serving.half import to_fp16
from tests.serving_market import random_bundle


@pytest.mark.slow
def test_fp16_changes_verdicts_only_within_the_band(tmp_path: Path) -> None:
    pytest.importorskip("modelopt.onnx.autocast", reason="extra fp16 is not installed", exc_type=ImportError)
    bundle = random_bundle(tmp_path / "bundle", seed=3)
    model = onnx.load_from_string(to_fp16(bundle.path("vote").read_bytes()))
    halves = [one for one in model.graph.initializer if one.data_type == onnx.TensorProto.FLOAT16]
    assert halves
    assert {one.type.tensor_type.elem_type for one in (*model.graph.input, *model.graph.output)} == {
        onnx.TensorProto.FLOAT}
    report = half_precision(bundle, 300)
    assert report["rows"] == 300
    assert 0.0 < report["confidence"] < 1e-2
    assert report["unexplained"] == 0  # a tie of votes may turn over, nothing else
    assert report["tied"] < 30  # so that almost every row was held to it
    assert np.isfinite(list(report["difference"].values())).all()
    json.dumps(report)


def test_without_modelopt_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelopt.onnx.autocast", None)
    with pytest.raises(ConfigError, match=r"pip install 'algospace\[fp16\]'"):
        to_fp16(b"")
