"""The shadow: a second model that decides on the champion's requests, behind the answers, and is never obeyed.

It runs in a thread of its own with a decider of its own. What it cannot keep up with is dropped and counted; the
champion's answers do not wait for it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import structlog

from algospace.execution.decision import Decision
from serving.decider import DecisionInputs
from serving.models import Model

_LOG = structlog.get_logger("serving")
_STOP_TIMEOUT_S = 10.0

Publish = Callable[[str, dict[str, Any]], Any]
_Offer = tuple[DecisionInputs, Decision, str, str]


class ShadowRunner:
    """Decides with `model` beside the champion and publishes each comparison (topic shadow).

    publish: StreamHub.publish. agreed: told of every comparison whether the verdicts agree (a metric). `failures`:
    comparisons that failed so far; `error`: what the last one failed with, None if it went well.
    """

    def __init__(self, model: Model, publish: Publish, length: int,
                 agreed: Callable[[bool], None] | None = None) -> None:
        self.model = model
        self._publish, self._agreed = publish, agreed
        self._waiting: queue.Queue[_Offer | None] = queue.Queue(length)
        self._dropped = 0
        self.failures = 0
        self.error: str | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._thread.start()

    def offer(self, inputs: DecisionInputs, decision: Decision, champion: str, trace_id: str) -> None:
        """Have the shadow decide on the same inputs later, or drop them. Some microseconds."""
        try:
            self._waiting.put_nowait((inputs, decision, champion, trace_id))
        except queue.Full:
            self._dropped += 1

    def stop(self) -> None:
        """End the thread; what waits is not decided any more. Blocks for at most one decision."""
        self._stopping = True
        with suppress(queue.Full):  # then the thread is busy, and looks at the flag next
            self._waiting.put_nowait(None)
        self._thread.join(_STOP_TIMEOUT_S)

    def _run(self) -> None:
        while (offer := self._waiting.get()) is not None and not self._stopping:
            try:
                dropped, self._dropped = self._dropped, 0
                if dropped:
                    self._publish("shadow", {"dropped": dropped})
                self._compare(*offer)
                self.error = None
            except Exception as error:  # noqa: BLE001  # whatever it was, it does not end the shadow: it is counted
                self.failures += 1
                self._dropped += 1
                self.error = type(error).__name__
                _LOG.warning("shadow_failed", model=self.model.id, trace_id=offer[3], failures=self.failures,
                             error=f"{self.error}: {error}")

    def _compare(self, inputs: DecisionInputs, decision: Decision, champion: str, trace_id: str) -> None:
        own = self.model.decider.decide(replace(inputs, gate=None))  # the champion's trades correct its gate only
        if self._agreed is not None:
            self._agreed(own.verdict == decision.verdict)
        self._publish("shadow", {
            "trace_id": trace_id, "instrument": self.model.bundle.manifest.instrument,
            "price": inputs.market.close, "champion": _opinion(champion, decision),
            "shadow": _opinion(self.model.id, own)})


def _opinion(model: str, decision: Decision) -> dict[str, Any]:
    p = decision.proposal
    return {"model": model, "verdict": decision.verdict, "reason": decision.reason.value,
            "direction": decision.direction, "confidence": decision.confidence,
            "stop_distance": p.stop_distance, "target_distance": p.target_distance}
