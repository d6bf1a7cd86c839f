"""Models-from-code script of the registered networks of a phase: describes the artifact folder it came with.

MLflow copies this file into the model and runs it on loading, so it imports nothing of this project. Decisions are
not made here, but by the registered bundle (serving.mlflow_model): a network alone has no gate and no limits.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

_DESCRIPTIONS = ("manifest.json", "config.json")


class ModelCard(PythonModel):
    """Answers "files" with the folder's files and "config" with its manifest or configuration, as JSON texts."""

    def load_context(self, context: PythonModelContext) -> None:
        """Find the folder that came with the model."""
        self.directory = Path(context.artifacts["directory"])

    def files(self) -> dict[str, int]:
        """Path inside the folder -> bytes."""
        return {str(path.relative_to(self.directory)): path.stat().st_size
                for path in sorted(self.directory.rglob("*")) if path.is_file()}

    def config(self) -> dict[str, object]:
        """The folder's manifests and configurations by file."""
        return {str(path.relative_to(self.directory)): json.loads(path.read_text(encoding="utf-8"))
                for name in _DESCRIPTIONS for path in sorted(self.directory.rglob(name))}

    def predict(self, context: PythonModelContext, model_input: list[str], params: dict[str, Any] | None = None
                ) -> list[str]:
        """One JSON text per question ("files" or "config"); anything else is refused."""
        answers = {"files": self.files, "config": self.config}
        for question in model_input:
            if question not in answers:
                raise MlflowException.invalid_parameter_value(
                    f"a model card knows {sorted(answers)}, not '{question}'; for decisions load a registered "
                    f"bundle (models:/algospace-bundle@champion), this folder with its training phase's loader")
        return [json.dumps(answers[question](), sort_keys=True) for question in model_input]


set_model(ModelCard())
