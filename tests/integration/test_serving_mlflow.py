"""A bundle stored as an MLflow model from code decides as the policy does, without a pickle."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
from mlflow.exceptions import MlflowException

import serving
from algospace.errors import InputError
from serving.client import request_of
from serving.policy import BundlePolicy
from tests.serving_market import accounts, random_bundle, rows, serving_table

SCRIPT = Path(serving.__file__).parent / "mlflow_model.py"


def test_a_bundle_comes_back_from_mlflow(tmp_path: Path) -> None:
    bundle, table = random_bundle(tmp_path / "bundle"), serving_table()
    mlflow.pyfunc.save_model(tmp_path / "model", python_model=str(SCRIPT),
                             artifacts={"bundle": str(bundle.directory)}, pip_requirements=["numpy"])
    assert not [p for p in (tmp_path / "model").rglob("*") if p.suffix in (".pkl", ".pickle")]
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    policy = BundlePolicy(bundle, table)
    chosen = rows(table, 5)
    requests = [request_of(bundle, policy.inputs(row, accounts(table, row)[1])) for row in chosen]
    for row, answer in zip(chosen, model.predict(requests), strict=True):
        expected = policy.decide(row, accounts(table, row)[1])
        assert answer["reason"] == expected.reason.value
        assert answer["confidence"] == pytest.approx(expected.confidence, abs=1e-5)
        assert answer["model"] == bundle.id
    with pytest.raises((InputError, MlflowException), match="row 2: seed"):
        model.predict([requests[0], requests[1] | {"seed": -1}])
