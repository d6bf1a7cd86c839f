"""Numbers at the edge of what the service takes give finite decisions; what is not finite is told to nobody."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.errors import InternalError
from serving.batch import BatchDecisions
from serving.bundle import Bundle
from serving.calls import Call
from serving.routes.described import example_row
from serving.schemas import CONTRACTS_MOST, MONEY_MOST, PRICE_MOST, SMALLEST, STRENGTH_MOST
from serving.service import AppSettings, Service
from serving.stream import StreamHub, StreamSettings
from tests.serving_market import random_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return random_bundle(tmp_path_factory.mktemp("finite") / "bundle")


@pytest.fixture(scope="module")
def service(bundle: Bundle) -> Service:
    return Service(bundle, AppSettings())


def within(low: float, high: float) -> st.SearchStrategy[float]:
    """The edges more often than what is between."""
    return st.sampled_from([low, high]) | st.floats(low, high)


PRICES = within(-PRICE_MOST, PRICE_MOST)
MARKETS = st.fixed_dictionaries({
    "close": within(SMALLEST, PRICE_MOST), "atr": within(0.0, PRICE_MOST), "hour_sin": within(-1.0, 1.0),
    "hour_cos": within(-1.0, 1.0), "low_volume_node": st.none() | st.fixed_dictionaries(
        {"distance": PRICES, "strength": within(-STRENGTH_MOST, STRENGTH_MOST)})})
ACCOUNTS = st.fixed_dictionaries({
    "position": within(-CONTRACTS_MOST, CONTRACTS_MOST), "entry": within(SMALLEST, PRICE_MOST),
    "stop": st.none() | PRICES, "target": st.none() | PRICES, "equity": within(-MONEY_MOST, MONEY_MOST),
    "day_start": within(SMALLEST, MONEY_MOST), "bars_in_trade": st.sampled_from([0, 2**31 - 1])})


def numbers(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [n for inner in value.values() for n in numbers(inner)]
    if isinstance(value, list):
        return [n for inner in value for n in numbers(inner)]
    return [value]


@pytest.mark.parametrize("name", ["confidence", "orders", "votes", "uncertainty"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_any_number_of_a_row_that_is_none_spoils_that_row(name: str, value: float) -> None:
    decisions = BatchDecisions.of_nothing(3)
    getattr(decisions, name).reshape(3, -1)[1, -1] = value
    assert decisions.finite.tolist() == [True, False, True]


@settings(max_examples=150, deadline=None)
@given(market=MARKETS, account=ACCOUNTS, seed=st.integers(0, 99), feature=st.sampled_from([0.0, 1e6, -1e6]))
def test_what_is_taken_is_decided_in_finite_numbers(service: Service, bundle: Bundle, market: dict[str, Any],
                                                    account: dict[str, Any], seed: int, feature: float) -> None:
    row = example_row(bundle) | {"market": market, "account": account, "seed": seed}
    row["tactical"] = np.full(np.shape(row["tactical"]), feature).tolist()
    body = {"schema_hash": bundle.manifest.schema_hash}
    status, answer = service.answer(row | body)
    assert status == 200
    assert all(n is not None and (isinstance(n, str) or math.isfinite(n)) for n in numbers(answer))
    many = asyncio.run(service.decide_batch(json.dumps(body | {"rows": [row]}).encode(), "application/json",
                                            Call("t")))
    assert json.loads(bytes(many.body))["decided"] == 1
    service.hub.snapshot()


def test_a_decision_that_is_not_finite_is_told_to_nobody(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(bundle, AppSettings())
    good = example_row(bundle)
    bad = good | {"seed": 7}
    schema = {"schema_hash": bundle.manifest.schema_hash}
    before = service.hub.log.seq
    heads = service.champion.decider.heads
    votes = heads.votes

    def spoilt(embedded: Any, context: Any, starts: Any) -> Any:
        found = votes(embedded, context, starts)
        found[starts == heads.starts(np.array([7], np.uint64))[0]] = np.nan
        return found

    monkeypatch.setattr(heads, "votes", spoilt)
    with pytest.raises(InternalError, match="no finite decision"):
        service.answer(bad | schema)
    assert service.hub.log.seq == before
    body = json.dumps(schema | {"rows": [good, bad]}).encode()
    answer = json.loads(bytes(asyncio.run(service.decide_batch(body, "application/json", Call("t"))).body))
    assert (answer["decided"], answer["rows"][1]["errors"][0]["type"]) == (1, "not_finite")
    assert math.isfinite(answer["rows"][0]["confidence"])
    body = json.dumps(schema | {"rows": [bad]}).encode()
    answer = json.loads(bytes(asyncio.run(service.decide_batch(body, "application/json", Call("t"))).body))
    assert answer["decided"] == 0
    service.hub.snapshot()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, {"deep": [math.nan]}, object(), np.float32(1.0)])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_an_event_that_is_no_json_stays_with_its_publisher(value: Any, elsewhere: bool) -> None:
    hub, sent = StreamHub(StreamSettings()), []
    hub.publish("market", {"price": 1.0})
    if elsewhere:
        hub.forward_to(lambda *event: sent.append(event))
    for topic in ("decision", "latency", "shadow"):
        with pytest.raises(InternalError, match="not published"):
            hub.publish(topic, {"price": value})
    assert (hub.log.seq, sent) == (1, [])
    assert '"decisions":[]' in hub.snapshot()[2]
