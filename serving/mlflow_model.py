"""A bundle as an MLflow model from code: MLflow stores this script and the bundle's files, and no pickle.

    mlflow.pyfunc.log_model(name="policy", python_model="serving/mlflow_model.py",
                            artifacts={"bundle": "runs/quickstart/bundle"}, pip_requirements=[...])
    mlflow.pyfunc.load_model("models:/NAME@champion").predict([request, ...])

A request is the body of POST /v1/decide (serving.schemas.DecideRequest); the answers are those of the service.
"""

from __future__ import annotations

from typing import Any

import mlflow
from mlflow.pyfunc.model import PythonModel

from algospace.errors import InputError
from serving.bundle import load_bundle
from serving.service import AppSettings, Service


class BundleModel(PythonModel):  # type: ignore[misc]  # mlflow is untyped
    """Decides with the bundle in its artifacts."""

    def load_context(self, context: Any) -> None:
        """Verify and open the bundle."""
        self._service = Service(load_bundle(context.artifacts["bundle"]), AppSettings())

    def predict(self, context: Any, model_input: list[dict[str, Any]],
                params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """One answer per request; InputError names the first request and field that is wrong."""
        answers = []
        for row, request in enumerate(model_input, 1):
            status, answer = self._service.answer(request)
            if status != 200:
                fault = answer["detail"][0]
                raise InputError("decision requests", f"{'.'.join(map(str, fault['loc'][1:]))}: {fault['msg']}",
                                 "see serving.schemas.DecideRequest", row)
            answers.append(answer)
        return answers


mlflow.models.set_model(BundleModel())
