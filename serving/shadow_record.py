"""What is known of a shadow model: how often it agrees with the champion, and how well each one's confidence
foretells the outcome.

An opportunity is open from its decision until a later decision's price of the same instrument has reached its
target (a gain) or its stop (a loss). Prices are those of decision requests, so an opportunity that touches a level
between two of them is seen late, for both models alike.
"""

from __future__ import annotations

from collections import deque
from typing import Any

BINS = 10
"""Equal parts of [0, 1] for the reliability of confidences."""
_MOST_OPEN = 512


class Reliability:
    """Confidences and outcomes of one model's opportunities, in bins."""

    def __init__(self) -> None:
        self.count = [0] * BINS
        self.gained = [0] * BINS
        self.confidence = [0.0] * BINS
        self.squared = 0.0

    def add(self, confidence: float, gained: bool) -> None:
        """One resolved opportunity."""
        place = min(int(confidence * BINS), BINS - 1)
        self.count[place] += 1
        self.gained[place] += gained
        self.confidence[place] += confidence
        self.squared += (confidence - gained) ** 2

    def summary(self) -> dict[str, Any]:
        """resolved, gained (share), ece (expected calibration error), brier; null where nothing is resolved."""
        n = sum(self.count)
        if n == 0:
            return {"resolved": 0, "gained": None, "ece": None, "brier": None}
        error = sum(abs(c - g) for c, g in zip(self.confidence, self.gained, strict=True))
        return {"resolved": n, "gained": sum(self.gained) / n, "ece": error / n, "brier": self.squared / n}


class ShadowRecord:
    """Agreement and calibration since the pair of models last changed."""

    def __init__(self) -> None:
        self._pair: tuple[Any, Any] = (None, None)
        self.since_ns = 0
        self._clear()

    def _clear(self) -> None:
        self.compared = self.same_verdict = self.same_direction = self.dropped = 0
        self.difference = self.largest = 0.0
        self.reliability = {"champion": Reliability(), "shadow": Reliability()}
        self._open: dict[str, deque[tuple[str, float, float, float, float]]] = {}

    def models(self, champion: Any, shadow: Any, ts_ns: int) -> None:
        """The models are these now, as of `ts_ns` (UTC); figures of another pair are forgotten."""
        if (champion, shadow) != self._pair:
            self._pair, self.since_ns = (champion, shadow), ts_ns
            self._clear()

    def take(self, data: dict[str, Any]) -> None:
        """One comparison (serving.shadow), or the number of those that were dropped."""
        if "dropped" in data:
            self.dropped += data["dropped"]
            return
        champion, shadow = data["champion"], data["shadow"]
        if (champion["model"], shadow["model"]) != self._pair:
            return  # decided before a switch, told after it
        self.compared += 1
        self.same_verdict += champion["verdict"] == shadow["verdict"]
        self.same_direction += champion["direction"] == shadow["direction"]
        difference = abs(champion["confidence"] - shadow["confidence"])
        self.difference += difference
        self.largest = max(self.largest, difference)
        waiting = self._open.setdefault(data["instrument"], deque(maxlen=_MOST_OPEN))
        for who, opinion in (("champion", champion), ("shadow", shadow)):
            side, stop, target = opinion["direction"], opinion["stop_distance"], opinion["target_distance"]
            if side and stop > 0.0 and target > 0.0:
                price = data["price"]
                waiting.append((who, opinion["confidence"], float(side), price - side * stop,
                                price + side * target))

    def price(self, data: dict[str, Any]) -> None:
        """A decision's price resolves what it has reached."""
        waiting = self._open.get(data["instrument"])
        if not waiting:
            return
        price = data["price"]
        left = []
        for item in waiting:
            who, confidence, side, stop, target = item
            if side * (price - target) >= 0.0:
                self.reliability[who].add(confidence, True)
            elif side * (price - stop) <= 0.0:
                self.reliability[who].add(confidence, False)
            else:
                left.append(item)
        waiting.clear()
        waiting.extend(left)

    def summary(self) -> dict[str, Any] | None:
        """Figures for clients; None where no shadow decides."""
        champion, shadow = self._pair
        if shadow is None:
            return None
        n = self.compared
        return {"champion": champion, "shadow": shadow, "since_ns": self.since_ns,
                "compared": n, "dropped": self.dropped,
                "verdict_agreement": self.same_verdict / n if n else None,
                "direction_agreement": self.same_direction / n if n else None,
                "confidence_difference": self.difference / n if n else None,
                "largest_confidence_difference": self.largest if n else None,
                "calibration": {who: found.summary() for who, found in self.reliability.items()}}
