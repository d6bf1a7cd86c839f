"""Agreement and calibration of a shadow, by hand."""

from __future__ import annotations

import pytest

from serving.mlflow_source import CHECKS, recorded_checks
from serving.shadow_record import Reliability, ShadowRecord


def opinion(model: str, direction: int, confidence: float, verdict: str = "EXECUTE") -> dict[str, object]:
    return {"model": model, "verdict": verdict, "reason": verdict, "direction": direction,
            "confidence": confidence, "stop_distance": 2.0, "target_distance": 4.0}


def compared(price: float, champion: dict[str, object], shadow: dict[str, object]) -> dict[str, object]:
    return {"trace_id": "t", "instrument": "ES", "price": price, "champion": champion, "shadow": shadow}


def test_agreement_and_outcomes() -> None:
    record = ShadowRecord()
    assert record.summary() is None
    record.models("a", "b", 2)
    record.take(compared(100.0, opinion("a", 1, 0.8), opinion("b", -1, 0.6)))
    record.take(compared(100.0, opinion("a", 0, 0.0, "REJECT"), opinion("b", 0, 0.0, "REJECT")))
    record.take({"dropped": 3})
    record.take(compared(100.0, opinion("old", 1, 0.8), opinion("b", 1, 0.8)))  # of before a switch
    for price in (101.0, 99.0):
        record.price({"instrument": "ES", "price": price})
    record.price({"instrument": "NQ", "price": 1.0})
    found = record.summary()
    assert found is not None
    assert (found["compared"], found["dropped"]) == (2, 3)
    assert (found["verdict_agreement"], found["direction_agreement"]) == (1.0, 0.5)
    assert found["confidence_difference"] == pytest.approx(0.1)
    assert found["calibration"]["champion"] == {"resolved": 0, "gained": None, "ece": None, "brier": None}
    record.price({"instrument": "ES", "price": 104.0})  # the long reaches its target, the short its stop
    calibration = record.summary()["calibration"]  # type: ignore[index]
    assert calibration["champion"] == {"resolved": 1, "gained": 1.0, "ece": pytest.approx(0.2),
                                       "brier": pytest.approx(0.04)}
    assert calibration["shadow"] == {"resolved": 1, "gained": 0.0, "ece": pytest.approx(0.6),
                                     "brier": pytest.approx(0.36)}
    record.models("a", "b", 2)
    assert record.summary()["compared"] == 2  # type: ignore[index]
    record.models("b", None, 3)
    assert record.summary() is None


def test_reliability_is_by_bins() -> None:
    found = Reliability()
    for confidence, gained in ((0.9, True), (0.95, True), (1.0, False), (0.15, False)):
        found.add(confidence, gained)
    n, top = 4, abs(0.9 + 0.95 + 1.0 - 2)
    assert found.summary()["ece"] == pytest.approx((top + 0.15) / n)


def test_a_check_that_is_not_recorded_has_not_passed() -> None:
    tags = {"bundle": "b", **{f"check.{name}": "passed: fine" for name in CHECKS}}
    assert all(check.passed for check in recorded_checks(tags, "b"))
    assert [c.passed for c in recorded_checks(tags, "other")] == [False]
    assert [c.passed for c in recorded_checks({}, "b")] == [False]
    for name in CHECKS:
        failed = [c for c in recorded_checks(tags | {f"check.{name}": "failed: a: b"}, "b") if not c.passed]
        assert [(c.name, c.found) for c in failed] == [(name, "a: b")]
        without = {key: value for key, value in tags.items() if key != f"check.{name}"}
        assert [c.name for c in recorded_checks(without, "b") if not c.passed] == [name]
