"""Explanations on request (serving.explainer): one at a time, in a thread that yields to decisions. One takes as
long as hundreds of those."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import structlog
from pydantic import Field

from algospace.config import FrozenConfig
from algospace.errors import BundleError
from serving.access import Refused
from serving.bundle import Bundle
from serving.decider import DecisionInputs

if TYPE_CHECKING:
    from serving.explainer import Explainer

_LOG = structlog.get_logger("serving")
_NICENESS = 10


class ExplainSettings(FrozenConfig):
    """Explanations of the decision service."""

    timeout_s: float = Field(default=5.0, gt=0, le=60)


class ExplainDesk:
    """One explanation at a time, in a thread of its own that yields to decisions."""

    def __init__(self, settings: ExplainSettings) -> None:
        self.settings = settings
        self._pool = ThreadPoolExecutor(1, "explain", initializer=_yield_to_others)
        self._busy = False
        self._explainer: Explainer | None = None

    async def explain(self, bundle: Bundle, inputs: DecisionInputs) -> dict[str, Any]:
        """The document; Refused (503) while another explanation is made or once
        the bundle's files are another model's, (504) if this one takes too long."""
        if self._busy:
            refusal = Refused(503, "another explanation is being made; they are made one at a time")
            refusal.retry_after = 1
            raise refusal
        self._busy = True  # until the thread is free again, not until the caller gives up
        stop = threading.Event()
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._pool, self._work, bundle, inputs, stop)
        future.add_done_callback(self._free)
        try:
            return await asyncio.wait_for(asyncio.shield(future), self.settings.timeout_s)
        except BundleError as error:
            _LOG.error("no_explanation", model=bundle.id, error=str(error))
            raise Refused(503, f"the networks of model {bundle.id[:12]} cannot be opened: its files are not those "
                               f"that it decides by, or of another version (the log says which); put them back, "
                               f"switch to the folder's model, or export it again") from None
        except TimeoutError:
            raise Refused(504, f"no explanation within {self.settings.timeout_s:g} s") from None
        finally:
            stop.set()

    def _free(self, future: asyncio.Future[dict[str, Any]]) -> None:
        self._busy = False
        if not future.cancelled():
            future.exception()  # a caller who gave up does not ask for it

    def _work(self, bundle: Bundle, inputs: DecisionInputs, stop: threading.Event) -> dict[str, Any]:
        import torch  # 200 MB, which a service that nobody asks for reasons does not need

        from serving.explainer import Explainer

        torch.set_num_threads(1)
        if self._explainer is None or self._explainer.bundle.id != bundle.id:
            self._explainer = Explainer(bundle)
        return self._explainer.explain(inputs, stop)


def _yield_to_others() -> None:
    """Linux gives every thread a niceness of its own."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
