"""A bundle as an MLflow model from code, which decides: MLflow stores this script and the bundle's files, and no
pickle. Every registered bundle is one (training.tracking_store).

    model = mlflow.pyfunc.load_model("models:/algospace-bundle@champion")     # AlgoSpace must be installed there
    model.predict([request, ...])

A request is the body of POST /v1/decide (serving.schemas.DecideRequest); an answer is that of the service, without
its kill switch and its other conditions, which are no part of a model.
"""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

import mlflow
from mlflow.pyfunc.model import PythonModel
from pydantic import ValidationError

from algospace.errors import InputError
from serving.bundle import load_bundle
from serving.models import Model
from serving.reading import FieldError, decision_inputs, faults
from serving.schemas import DecideRequest, DecideResponse


class BundleModel(PythonModel):  # type: ignore[misc]  # mlflow is untyped
    """Decides with the bundle in its artifacts."""

    def load_context(self, context: Any) -> None:
        """Verify and open the bundle."""
        self._model = Model(load_bundle(context.artifacts["bundle"]), ("onnx", "torch"))

    def predict(self, context: Any, model_input: list[dict[str, Any]],
                params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """One answer per request; InputError names the first request and field that is wrong."""
        return [self._answer(row, request) for row, request in enumerate(model_input, 1)]

    def _answer(self, row: int, values: dict[str, Any]) -> dict[str, Any]:
        started = time.perf_counter_ns()
        try:
            request = DecideRequest.model_validate_json(json.dumps(values))
            inputs = decision_inputs(self._model, request)
        except (ValidationError, FieldError) as error:
            fault = error.fault if isinstance(error, FieldError) else faults(error)[0]
            raise InputError("decision requests", f"{'.'.join(map(str, fault['loc'][1:]))}: {fault['msg']}",
                             "see serving.schemas.DecideRequest", row) from None
        decision = self._model.decider.decide(inputs)
        latency_ms = (time.perf_counter_ns() - started) / 1e6
        answer = DecideResponse.of(decision, self._model.id, request.trace_id or uuid.uuid4().hex, latency_ms,
                                   inputs.gate)
        return answer.model_dump(mode="json", exclude_none=True)


mlflow.models.set_model(BundleModel())
