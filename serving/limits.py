"""What one request may cost: time, size, repetition."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from algospace.config import FrozenConfig


class LimitsSettings(FrozenConfig):
    """Limits of the decision routes; times in milliseconds or seconds as their names say."""

    deadline_ms: float = Field(default=1000.0, gt=0, le=60_000)
    """For requests without x-deadline-ms, and the most that one may ask for."""
    batch_rows: int = Field(default=1024, ge=1, le=65_536)
    """Rows that one batch may hold."""
    batch_pass_rows: int = Field(default=256, ge=1, le=4096)
    """Rows in one forward pass; between two passes other requests get their turn."""
    batch_body_bytes: int = Field(default=8_388_608, ge=1024)
    stream_batches: bool = True
    """Whether rows of a batch are told to the stream and the shadow like single decisions."""
    idempotency_keys: int = Field(default=10_000, ge=1)
    idempotency_bytes: int = Field(default=33_554_432, ge=1024)
    idempotency_ttl_s: float = Field(default=600.0, gt=0)
    """How many answers are kept for a repeated Idempotency-Key, how much of them, and how long."""
    self_test_s: float = Field(default=5.0, ge=0)
    """Age at which readiness repeats the self-test's decision."""
    log_requests: Literal["all", "errors", "none"] = "errors"
    """Which requests leave a structured line in the log."""
    openapi: bool = True
    """Whether /v1/openapi.json is served; off in production."""
