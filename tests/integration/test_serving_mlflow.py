"""A registered bundle is an MLflow model from code that decides as policy and service do, without a pickle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from packaging.requirements import Requirement

import algospace
from algospace.errors import InputError
from serving.bundle import Bundle
from serving.client import request_of
from serving.policy import BundlePolicy
from serving.service import AppSettings, Service
from tests.serving_market import accounts, random_bundle, rows, serving_table
from training.promotion import MODEL
from training.tracking import Tracker, TrackingConfig

CHAMPION = f"models:/{MODEL}@champion"
OWN = ("latency_ms", "trace_id")
LOADER = """
import json, sys, mlflow
mlflow.set_tracking_uri(sys.argv[1])
json.dump(mlflow.pyfunc.load_model(sys.argv[2]).predict(json.load(sys.stdin)), sys.stdout)
"""


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Bundle]:
    """(tracking URI, the bundle that training registered there as champion)."""
    folder = tmp_path_factory.mktemp("registered")
    bundle = random_bundle(folder / "bundle")
    with (warnings.catch_warnings(action="error", category=UserWarning),
          Tracker.open(TrackingConfig(), folder, "run", {}, "c" * 64) as tracker,
          tracker.child("backtest", {}, {"bundle": bundle.id}) as run):
        assert run.register_model(MODEL, bundle.directory, "champion", {"net_pnl": 1.0}, "tried") == "1"
    return f"sqlite:///{folder / 'mlflow.db'}", bundle


@pytest.fixture(scope="module")
def asked(registered: tuple[str, Bundle]) -> list[dict[str, Any]]:
    """Requests of several rows and accounts."""
    table = serving_table()
    policy = BundlePolicy(registered[1], table)
    return [request_of(registered[1], policy.inputs(row, accounts(table, row)[n % 4]))
            for n, row in enumerate(rows(table, 12))]


def without_own(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name not in OWN}


def test_a_registered_bundle_decides_as_policy_and_service_do(registered: tuple[str, Bundle],
                                                              asked: list[dict[str, Any]]) -> None:
    uri, bundle = registered
    mlflow.set_tracking_uri(uri)
    answers = mlflow.pyfunc.load_model(CHAMPION).predict(asked)
    service, table = Service(bundle, AppSettings()), serving_table()
    policy = BundlePolicy(bundle, table)
    for n, (row, request, answer) in enumerate(zip(rows(table, 12), asked, answers, strict=True)):
        status, served = service.answer(request)
        assert (status, without_own(served)) == (200, without_own(answer))
        expected = policy.decide(row, accounts(table, row)[n % 4])
        assert (answer["verdict"], answer["reason"]) == (expected.verdict, expected.reason.value)
        assert answer["confidence"] == pytest.approx(expected.confidence, abs=1e-5)
        assert answer["model"] == bundle.id
    assert len({answer["reason"] for answer in answers}) > 1
    service.life.close()


def test_a_wrong_request_is_named(registered: tuple[str, Bundle], asked: list[dict[str, Any]]) -> None:
    mlflow.set_tracking_uri(registered[0])
    model = mlflow.pyfunc.load_model(CHAMPION)
    for change, words in (({"seed": -1}, "row 2: seed"), ({"schema_hash": "0" * 64}, "row 2: schema_hash"),
                          ({"tactical": [[1.0]]}, "row 2: tactical")):
        with pytest.raises((InputError, MlflowException), match=words):
            model.predict([asked[0], asked[1] | change])


def test_what_is_registered_names_what_it_needs_and_holds_no_pickle(registered: tuple[str, Bundle],
                                                                    tmp_path: Path) -> None:
    mlflow.set_tracking_uri(registered[0])
    home = Path(mlflow.artifacts.download_artifacts(CHAMPION, dst_path=str(tmp_path)))
    assert not [path for path in home.rglob("*") if path.suffix in (".pkl", ".pickle")]
    needs = (home / "requirements.txt").read_text().split()
    assert needs == [f"mlflow=={mlflow.__version__}", f"algospace=={algospace.__version__}"]
    ours = {Requirement(line).name for line in requires("algospace") or []}  # so the rest comes with it
    assert {"onnxruntime", "numpy", "pydantic"} <= ours


@pytest.mark.slow
def test_another_process_elsewhere_loads_it(registered: tuple[str, Bundle], asked: list[dict[str, Any]],
                                            tmp_path: Path) -> None:
    uri, bundle = registered
    done = subprocess.run([sys.executable, "-c", LOADER, uri, CHAMPION], input=json.dumps(asked), cwd=tmp_path,
                          env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True, capture_output=True, check=True)
    service = Service(bundle, AppSettings())
    assert [without_own(answer) for answer in json.loads(done.stdout)] == [
        without_own(service.answer(request)[1]) for request in asked]
    service.life.close()
