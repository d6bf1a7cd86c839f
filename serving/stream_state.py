"""What the decision stream adds up to: the state that a client is given before the first delta.

The state is a fold over the stream's events, so whoever holds the events, one process or the hub's actor, holds
the same state.
"""

from __future__ import annotations

import json
from collections import deque
from functools import cached_property
from typing import Any, Literal, get_args

from serving.shadow_record import ShadowRecord

Topic = Literal["decision", "market", "trade", "risk", "performance", "model", "shadow", "latency",
                "kill"]
TOPICS: frozenset[str] = frozenset(get_args(Topic))


def _rank(kill: dict[str, Any]) -> tuple[int, bool]:
    """What counts of two states of the kill switch, whichever was told last (serving.kill_state)."""
    return kill.get("revision", 0), kill.get("thrown", False)


def data_text(data: dict[str, Any]) -> str:
    """What an event carries as JSON; ValueError or TypeError if it is none."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False)


class Event:
    """One event of the stream: `seq` counts from 1 without gaps, `ts_ns` is UTC, `data` holds JSON values."""

    def __init__(self, seq: int, topic: str, ts_ns: int, data: dict[str, Any]) -> None:
        self.seq, self.topic, self.ts_ns, self.data = seq, topic, ts_ns, data

    @cached_property
    def data_text(self) -> str:
        """`data` as JSON, made when the first client needs it."""
        return data_text(self.data)

    @cached_property
    def text(self) -> str:
        """The delta message, the same for every client."""
        return (f'{{"type":"delta","seq":{self.seq},"topic":"{self.topic}","ts_ns":{self.ts_ns},'
                f'"data":{self.data_text}}}')

    def __reduce__(self) -> tuple[Any, ...]:
        return Event, (self.seq, self.topic, self.ts_ns, self.data)


class StreamState:
    """Model, the last decisions, regime, shadow, latency and kill switch, as of the last event taken."""

    def __init__(self, recent: int) -> None:
        self.decisions: deque[Event] = deque(maxlen=recent)
        self.model: dict[str, Any] | None = None
        self.regime: Any = None
        self.latency: dict[str, Any] | None = None
        self.kill: dict[str, Any] | None = None
        self.shadow = ShadowRecord()

    def take(self, event: Event) -> None:
        """Add one event; events come in the order of their numbers."""
        topic, data = event.topic, event.data
        if topic == "decision":
            self.decisions.append(event)
            self.regime = data.get("regime") or self.regime
            self.shadow.price(data)
        elif topic == "shadow":
            self.shadow.take(data)
        elif topic == "model":
            self.model = data
            self.shadow.models(data.get("champion"), data.get("shadow"), event.ts_ns)
        elif topic == "latency":
            self.latency = data
        elif topic == "kill":
            self.kill = data if self.kill is None else max(self.kill, data, key=_rank)

    def text(self) -> str:
        """The state as JSON."""
        rest = json.dumps({"model": self.model, "regime": self.regime, "shadow": self.shadow.summary(),
                           "latency": self.latency, "kill": self.kill}, separators=(",", ":"), allow_nan=False)
        decisions = ",".join(event.data_text for event in self.decisions)
        return f'{rest[:-1]},"decisions":[{decisions}]}}'
