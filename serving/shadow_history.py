"""What is known of shadows, kept where it outlives the pair of models, the stream and the service.

Every so often and when a pair ends: in the log, and where there is a registry as a tag of the shadow's version.

One tag per stretch of counting, so that none is overwritten by another pair or by a service that begins anew:

    shadow.20261122T061631.125Z = {"champion": ID, "until": TIME, "ended": true, "compared": 1200, ...}

Nobody waits for it. What the registry does not take is in the log.
"""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import structlog

from algospace.errors import AlgoSpaceError
from serving.aliases import ModelRef
from serving.mlflow_source import Registry

if TYPE_CHECKING:
    from serving.lifecycle import Lifecycle, Link

_LOG = structlog.get_logger("serving")
_DIGITS = 6

Known = tuple[ModelRef, dict[str, Any]]
"""A shadow and its figures (ShadowRecord.summary)."""


class ShadowHistory:
    """Tells log and registry of shadows, one after the other."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._writing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._told: dict[str, Any] | None = None

    async def watch(self, life: Lifecycle) -> None:
        """Tell of the present shadow every so often, for ever, where this replica speaks for all."""
        while True:
            await asyncio.sleep(life.settings.shadow_record_s)
            known = life.shadow_figures()
            if known is not None and known[1] != self._told and await _speaks(life.link):
                self._told = known[1]
                self.tell(*known, ended=False)

    def tell(self, shadow: ModelRef, figures: dict[str, Any], ended: bool) -> None:
        """Log the figures, and have them written behind what is told already. Nothing if there are none yet."""
        if not log_figures(figures, ended) or not self._registry.configured:
            return
        task = asyncio.create_task(self._write(shadow, tag_of(figures, ended)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def written(self) -> None:
        """Wait for all that has been told so far."""
        await asyncio.gather(*self._tasks)

    async def _write(self, shadow: ModelRef, tag: tuple[str, str]) -> None:
        async with self._writing:
            try:
                where = await asyncio.to_thread(self._registry.record, shadow, *tag)
            except (AlgoSpaceError, OSError, ValueError) as error:
                where, why = "", str(error)
            else:
                why = "the registry does not know this bundle"
            if where:
                _LOG.info("shadow_recorded", shadow=shadow.id, where=where, tag=tag[0])
            else:
                _LOG.warning("shadow_not_recorded", shadow=shadow.id, tag=tag[0], why=why)


async def _speaks(link: Link | None) -> bool:
    """Whether this replica is the one that tells for all."""
    if link is None:
        return True
    try:
        return link.replica == min(await link.replicas())
    except Exception:  # noqa: BLE001  # whoever does not hear from the others does not speak for them
        return False


def log_figures(figures: dict[str, Any], ended: bool) -> bool:
    """One line with all of them; whether there are any."""
    if figures["compared"] + figures["dropped"] == 0:
        return False
    _LOG.info("shadow_figures", ended=ended, **figures)
    return True


def tag_of(figures: dict[str, Any], ended: bool) -> tuple[str, str]:
    """(name, JSON text) of the tag for figures as they are now; MLflow shows both."""
    since = _time(figures["since_ns"])
    rest = {name: value for name, value in figures.items() if name not in ("champion", "shadow", "since_ns")}
    text = {"champion": figures["champion"], "until": _time(time.time_ns()), "ended": ended, **rest}
    return f"shadow.{since}", json.dumps(_rounded(text))


def _time(ts_ns: int) -> str:
    """UTC to the millisecond, without colons."""
    return f"{datetime.fromtimestamp(ts_ns // 10**9, UTC):%Y%m%dT%H%M%S}.{ts_ns // 10**6 % 1000:03d}Z"


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    return round(value, _DIGITS) if isinstance(value, float) else value
