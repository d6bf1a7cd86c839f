"""Decisions from raw bars: features are the backtest's, to the bit, however the bars came, and after a loss."""

from __future__ import annotations

import dataclasses
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from algospace.features import FeatureConfig, build
from algospace.features.market_table import MarketTable
from algospace.features.matrices import assemble
from algospace.instruments import INSTRUMENTS
from algospace.marketdata.catalog import Catalog
from algospace.marketdata.synthetic import generate, scenario_named
from algospace.types import Bars
from serving.bundle import Bundle
from serving.decider import account_record
from serving.feature_state import Building, FeatureSettings, FeatureState, FeatureStates, UnknownState, row_inputs
from serving.policy import BundlePolicy
from serving.routes import state as routes
from serving.service import AppSettings, Service
from tests.feature_bundle import bars_bundle

BARS, HELD = 4000, 3940
INSTRUMENT = INSTRUMENTS["SYNTH"]
ACCOUNT = {"position": 0.0, "equity": 100_000.0, "day_start": 100_000.0}


@pytest.fixture(scope="module")
def bars() -> Bars:
    return generate(scenario_named("easy"), 701, BARS).bars


@pytest.fixture(scope="module")
def catalog(bars: Bars, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("catalog")
    Catalog(folder).write("SYNTH", bars.slice(0, HELD))
    return folder


@pytest.fixture(scope="module")
def bundle(bars: Bars, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bars_bundle(bars, tmp_path_factory.mktemp("bundle") / "bundle")


@pytest.fixture(scope="module")
def market(bars: Bars, bundle: Bundle) -> MarketTable:
    return assemble(build(bars, INSTRUMENT, FeatureConfig()), bundle.schema, INSTRUMENT)


def states(bundle: Bundle, catalog: Path, **settings: Any) -> FeatureStates:
    return FeatureStates(bundle, FeatureSettings(catalog=catalog, **settings))


def assert_same_inputs(found: Any, policy: BundlePolicy, row: int) -> None:
    account = account_record(**ACCOUNT)
    expected, table = policy.inputs(row, account), policy.table
    np.testing.assert_array_equal(found.strategic, expected.strategic)
    np.testing.assert_array_equal(found.tactical, expected.tactical)
    np.testing.assert_array_equal(found.market.synergy, expected.market.synergy)
    np.testing.assert_array_equal([found.market.close, found.market.atr, *found.market.clock, *found.market.lvn],
                                  [expected.market.close, expected.market.atr, *expected.market.clock,
                                   *expected.market.lvn])
    slow = int(table.row_30m[row])
    np.testing.assert_array_equal(found.regime, table.regime[slow - table.schema.regime.window + 1:slow + 1])


def test_features_are_the_backtests_however_the_bars_come(bars: Bars, bundle: Bundle, catalog: Path,
                                                          market: MarketTable) -> None:
    policy = BundlePolicy(bundle, market)
    held = states(bundle, catalog)
    at_once = held.advance(held.base(), bars.slice(HELD, BARS))
    one_by_one, checked = held.base(), 0
    for n in range(HELD, BARS):
        one_by_one = held.advance(one_by_one, bars.slice(n, n + 1))
        seen = held.market(one_by_one)
        row = int(np.searchsorted(market.ts_close, seen.ts_close[-1]))
        assert market.ts_close[row] == seen.ts_close[-1]
        assert bool(seen.decision[-1]) == bool(market.decision[row])
        if seen.decision[-1] and n % 5 == 0:
            assert_same_inputs(row_inputs(seen, len(seen) - 1, account_record(**ACCOUNT), policy.seed_of(row)),
                               policy, row)
            checked += 1
    assert checked > 0
    assert one_by_one.id == at_once.id
    assert one_by_one.through_ns == int(bars.ts_open[-1]) + bars.width_ns


def assert_same_state(found: FeatureState, expected: FeatureState) -> None:
    """The same id, and the same feature rows to the bit."""
    assert (found.id, found.tail.slow_first) == (expected.id, expected.tail.slow_first)
    a, b = found.tail.table, expected.tail.table
    np.testing.assert_array_equal(a.ts_close, b.ts_close)
    np.testing.assert_array_equal(a.row_30m, b.row_30m)
    for ours, theirs in ((a.base, b.base), (a.slow, b.slow)):
        assert {k: v.tobytes() for k, v in ours.items()} == {k: v.tobytes() for k, v in theirs.items()}


def test_a_lost_state_is_built_anew_to_the_bit(bars: Bars, bundle: Bundle, catalog: Path, tmp_path: Path) -> None:
    first, second = states(bundle, catalog), states(bundle, catalog)
    base = first.base()
    assert_same_state(second.get(base.id), base)
    assert second.get(base.id).snapshot == base.snapshot
    further = first.advance(base, bars.slice(HELD, HELD + 30))
    with pytest.raises(UnknownState):
        second.get(further.id)
    assert second.advance(second.base(), bars.slice(HELD, HELD + 30)).id == further.id
    Catalog(tmp_path).write("SYNTH", bars)  # the catalog has grown meanwhile
    third = states(bundle, tmp_path)
    rebuilt = third.get(further.id)
    assert_same_state(rebuilt, further)
    rest = bars.slice(HELD + 30, BARS)
    assert_same_state(third.advance(rebuilt, rest), first.advance(further, rest))  # and all that follows
    assert third.get(base.id).id == base.id
    for wrong in ("x", "1-x", f"{base.through_ns}-{'0' * 32}", f"{'9' * 50}-0"):
        with pytest.raises(UnknownState):
            third.get(wrong)


def test_few_states_are_kept(bars: Bars, bundle: Bundle, catalog: Path) -> None:
    held = states(bundle, catalog, states=2)
    base = held.base()
    for n in range(4):
        held.advance(base, bars.slice(HELD, HELD + 1 + n))
    assert len(held._known) == 2
    assert held.get(base.id).id == base.id


def test_ids_that_nobody_gave_cost_one_build_at_a_time_and_no_known_state(
        bars: Bars, bundle: Bundle, catalog: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = states(bundle, catalog, states=2)
    base = held.base()
    built, go, begun, build = [], threading.Event(), threading.Event(), held._build

    def slow(until_ns: int | None) -> FeatureState:
        built.append(until_ns)
        begun.set()
        assert go.wait(60)
        return build(until_ns)

    monkeypatch.setattr(held, "_build", slow)
    wrong = [f"{base.through_ns - n * bars.width_ns}-{'0' * 32}" for n in range(1, 4)]
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(held.get, wrong[0])
        assert begun.wait(60)
        assert held.get(base.id) is base  # not behind the lock of the one that is built
        for state_id in wrong[1:]:
            with pytest.raises(Building):
                held.get(state_id)
        go.set()
        assert isinstance(first.exception(60), UnknownState)
    for _ in range(3):
        with pytest.raises(UnknownState):
            held.get(wrong[0])
    assert len(built) == 1
    assert list(held._known) == [base.id]  # what was built for a wrong id pushes nothing out
    monkeypatch.setattr("serving.feature_state._MOST_ABSENT", 1)
    with pytest.raises(UnknownState):
        held.get(wrong[1])
    assert list(held._absent) == wrong[1:2]


def test_the_route_tells_to_try_again_while_another_state_is_built(bundle: Bundle, catalog: Path) -> None:
    app = FastAPI()
    routes.add_routes(app, Service(bundle, AppSettings(features=FeatureSettings(catalog=catalog))))

    def busy(*_: Any) -> None:
        raise Building

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureStates, "get", busy)
        answer = TestClient(app).post("/v1/decide/bars", json={"state_id": "1-x", "bars": [], "account": ACCOUNT})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def bar(bars: Bars, n: int) -> dict[str, Any]:
    return {"ts_open": int(bars.ts_open[n]), **{name: float(getattr(bars, name)[n])
                                                for name in ("open", "high", "low", "close", "volume")}}


def test_the_most_bars_fit_the_body() -> None:
    """With all 17 digits of every number."""
    one = {"ts_open": 2**62 - 1, **dict.fromkeys(("open", "high", "low", "close"), 12345.678901234567),
           "volume": 1234567.1234567891, "contract": 2**31 - 1}
    settings = AppSettings()
    account = {"position": 1.0, "entry": 1.0, "stop": 1.0, "target": 1.0, "equity": 1.0, "day_start": 1.0}
    body = json.dumps({"state_id": "x" * 100, "bars": [one] * settings.features.bars, "account": account})
    assert len(body) <= settings.max_body_bytes


def test_the_route(bars: Bars, bundle: Bundle, catalog: Path, market: MarketTable) -> None:
    service = Service(bundle, AppSettings(features=FeatureSettings(catalog=catalog, bars=100)))
    app = FastAPI()
    routes.add_routes(app, service)
    client = TestClient(app)
    given = [bar(bars, n) for n in range(HELD, BARS)]
    lacking = client.post("/v1/decide/bars", json={"bars": given, "account": ACCOUNT})
    assert lacking.status_code == 422
    assert "GET /v1/state" in lacking.json()["detail"][0]["msg"]
    base = client.get("/v1/state").json()
    body = {"state_id": base["state_id"], "bars": given, "account": ACCOUNT, "seed": 5}
    answer = client.post("/v1/decide/bars", json=body).json()
    again = client.post("/v1/decide/bars", json=body).json()
    assert {**again, "decision": None} == {**answer, "decision": None}
    assert market.decision[-1]
    policy = BundlePolicy(bundle, market)
    inputs = policy.inputs(len(market) - 1, account_record(**ACCOUNT))
    expected = policy.decider.decide(dataclasses.replace(inputs, seed=5))
    assert answer["decision"]["model"] == bundle.id
    assert answer["decision"]["reason"] == expected.reason.value
    assert answer["decision"]["confidence"] == pytest.approx(expected.confidence, abs=1e-6)
    assert service.hub.log.state.decisions[-1].data["price"] == market.close[-1]
    unknown = client.post("/v1/decide/bars", json=body | {"state_id": "1-x"})
    assert (unknown.status_code, unknown.json()["state_id"]) == (409, base["state_id"])
    for wrong, field in ((body | {"bars": given[:1] * 101}, "bars"), (body | {"bars": given[::-1]}, "bars"),
                         (body | {"bars": [bar(bars, 0)]}, "bars"), (body | {"surprise": 1}, "surprise"),
                         (body | {"bars": [given[0] | {"close": -1.0}]}, "bars")):
        refused = client.post("/v1/decide/bars", json=wrong)
        assert refused.status_code == 422, wrong
        assert field in refused.json()["detail"][0]["loc"]
    without = FastAPI()
    routes.add_routes(without, Service(bundle, AppSettings()))
    assert "features.catalog" in TestClient(without).get("/v1/state").json()["detail"][0]["msg"]
