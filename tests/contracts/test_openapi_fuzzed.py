"""Schemathesis over the whole OpenAPI description, with and without a token: whatever is sent, no 5xx.

Slow: some thousand requests. 503 for a deadline is an answer, not a fault, so the deadline is made long.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings

from serving.app import create_app
from serving.auth import StaticToken, token_digest
from serving.service import AppSettings
from tests.serving_market import random_bundle

pytestmark = pytest.mark.slow
TOKEN = "a-token-of-enough-length"
_EXAMPLES = 60


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    bundle = random_bundle(tmp_path_factory.mktemp("fuzzed") / "bundle")
    values = AppSettings().model_dump() | {"service": {"deadline_ms": 60_000, "log_requests": "none"}}
    return create_app(bundle, AppSettings.model_validate(values), StaticToken(token_digest(TOKEN)))


@pytest.fixture(scope="module")
def schema(app: FastAPI) -> Any:
    schemathesis = pytest.importorskip("schemathesis", reason="no schemathesis: pip install -e '.[dev]'")
    found = schemathesis.openapi.from_asgi("/v1/openapi.json", app, headers={"Authorization": f"Bearer {TOKEN}"})
    return found


def fuzz(schema: Any, check: Callable[[Any, Any], None], headers: dict[str, str]) -> int:
    """Every operation with generated requests; how many operations there were."""
    count = 0
    for result in schema.get_all_operations():
        operation, count = result.ok(), count + 1

        @given(case=operation.as_strategy())
        @settings(max_examples=_EXAMPLES, deadline=None, database=None, derandomize=True,
                  suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate])
        def play(case: Any) -> None:
            check(case, case.call(headers=headers))

        play()
    return count


def test_no_request_with_a_token_is_answered_with_a_fault_of_ours(schema: Any) -> None:
    def check(case: Any, response: Any) -> None:
        if response.status_code == 503 and {"x-request-start", "x-deadline-ms"} & {*map(str.lower, case.headers)}:
            assert "past its deadline" in response.text  # it asked for that
            return
        assert response.status_code < 500, f"{case.path}: {response.status_code} {response.text[:200]}"

    assert fuzz(schema, check, {"Authorization": f"Bearer {TOKEN}"}) >= 8


@pytest.mark.parametrize("authorization", ["", "Bearer wrong-wrong-wrong-wrong", "Basic YTpi"])
def test_without_a_valid_token_only_open_routes_answer(schema: Any, authorization: str) -> None:
    def check(case: Any, response: Any) -> None:
        assert response.status_code < 500
        if case.path not in {"/v1/health", "/v1/ready", "/v1/login"}:
            assert response.status_code in (400, 401, 413, 431), f"{case.path}: {response.status_code}"

    assert fuzz(schema, check, {"Authorization": authorization}) >= 8
