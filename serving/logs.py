"""The service's log: JSON lines with a trace id, one per decision (sampled) and one per refusal.

No bodies and no secrets: events name their fields, tracebacks show no local variables, and whatever is called or
looks like a secret is blotted out.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Literal

import structlog
from pydantic import Field

from algospace.config import FrozenConfig

_LOG = structlog.get_logger("serving.decisions")
_SECRET_NAME = re.compile(r"(^|_)(token|password|passwd|secret|authorization|private_?key|api_?key)$", re.I)
_SECRET_VALUE = re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]*|[Bb]earer\s+[\w.~+/=-]{8,}|-----BEGIN [^-]+-----")
_BLOT = "***"
_TRACEBACKS = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False))
"""Without local variables, which hold bodies, accounts and positions."""
_LONGEST_TEXT = 2000
_HASH = 2**32


class LogSettings(FrozenConfig):
    """`decisions`: the share of decisions that leave a line at level info, chosen by their trace id, so that all
    replicas and services choose the same ones. Where it is above 0, EXECUTE and CLOSE always leave one; at 0 no
    decision does."""

    format: Literal["json", "console"] = "json"
    level: Literal["debug", "info", "warning", "error"] = "info"
    decisions: float = Field(default=0.0, ge=0, le=1)


def configure_logs(settings: LogSettings) -> None:
    """Every structlog event of this process goes to its own stderr, one per line, from now on.

    Not to sys.stderr, nor by print: in a replica both are Serve's, which takes each line for news of level INFO
    and drops it.
    """
    render: Any = structlog.processors.JSONRenderer() if settings.format == "json" else (
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback))
    faults = [_TRACEBACKS] if settings.format == "json" else []
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, structlog.processors.add_log_level,
                    structlog.processors.TimeStamper(fmt="iso", utc=True), *faults, blot_secrets, render],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, settings.level.upper())),
        logger_factory=lambda *_: structlog.WriteLogger(sys.__stderr__ or sys.stderr),
        cache_logger_on_first_use=False)


def blot_secrets(_: Any, __: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """A structlog processor: secrets become ***, long texts are cut."""
    return {name: _BLOT if _SECRET_NAME.search(name) and value else _clean(value) for name, value in event.items()}


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return _SECRET_VALUE.sub(_BLOT, value)[:_LONGEST_TEXT]
    if isinstance(value, Mapping):
        return {name: _BLOT if _SECRET_NAME.search(str(name)) and inner else _clean(inner)
                for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(inner) for inner in value]
    return value


def is_sampled(trace_id: str, share: float) -> bool:
    """Whether a trace is among the `share` that is logged: a fixed function of its id."""
    if share in (0.0, 1.0):
        return share == 1.0
    mixed = 0
    for byte in trace_id.encode():  # FNV-1a: trace ids of callers need not be random
        mixed = ((mixed ^ byte) * 0x01000193 + 0x9E3779B9) % _HASH
    mixed = ((mixed ^ mixed >> 15) * 0x2C1B3C6D) % _HASH
    return (mixed ^ mixed >> 13) / _HASH < share


def log_decision(settings: LogSettings, data: Mapping[str, Any]) -> None:
    """The line of one decision, if it is to have one; `data` as the stream tells it (serving.lifecycle)."""
    if data["verdict"] == "REJECT" and not is_sampled(data["trace_id"], settings.decisions):
        return
    if settings.decisions == 0.0:
        return
    _LOG.info("decision", trace_id=data["trace_id"], instrument=data["instrument"], verdict=data["verdict"],
              reason=data["reason"], direction=data["direction"], confidence=round(data["confidence"], 6),
              model=data["model"][:12], latency_ms=round(data["latency_ms"], 3))
