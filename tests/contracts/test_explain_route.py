"""Explanations: complete attributions, the decision they explain, and decisions that do not wait for them."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from agents.gate import count_votes
from algospace.errors import BundleError
from algospace.features.market_table import MarketTable
from serving.access import Refused
from serving.app import create_app
from serving.auth import StaticToken, token_digest
from serving.backends import OnnxBackend
from serving.bundle import Bundle
from serving.client import request_of
from serving.explain import ExplainDesk, ExplainSettings
from serving.explainer import TOLERANCE, Abandoned, Explainer, deciding
from serving.heads import Heads
from serving.policy import BundlePolicy
from serving.service import AppSettings
from serving.torch_backend import TorchBackend
from tests.serving_market import accounts, random_bundle, rows, serving_table

TOKEN = "a-token-of-enough-length"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return random_bundle(tmp_path_factory.mktemp("explain") / "bundle")


@pytest.fixture(scope="module")
def table() -> MarketTable:
    return serving_table()


@pytest.fixture(scope="module")
def explainer(bundle: Bundle) -> Explainer:
    return Explainer(bundle)


def inputs(bundle: Bundle, table: MarketTable, number: int = 0, account: int = 0) -> Any:
    row = rows(table)[number]
    return BundlePolicy(bundle, table).inputs(row, accounts(table, row)[account])


def test_a_folder_that_was_exported_into_explains_and_runs_no_other_model(tmp_path: Path,
                                                                         table: MarketTable) -> None:
    held = random_bundle(tmp_path / "bundle", seed=0)
    asked = inputs(held, table)
    running = OnnxBackend(held)
    embed = {"strategic": asked.strategic[None], "tactical": asked.tactical[None]}
    before = OnnxBackend(held).infer("embed", embed)["embedded"]
    random_bundle(tmp_path / "bundle", seed=1)
    np.testing.assert_array_equal(running.infer("embed", embed)["embedded"], before)  # cut from what was verified
    for read in (OnnxBackend, TorchBackend, Heads, Explainer):
        with pytest.raises(BundleError, match="any more"):
            read(held)
    with pytest.raises(Refused) as refused:
        asyncio.run(ExplainDesk(ExplainSettings()).explain(held, asked))
    assert (refused.value.status, str(tmp_path) in str(refused.value)) == (503, False)


def test_the_description_names_the_time_limit(bundle: Bundle) -> None:
    app = create_app(bundle, AppSettings(), StaticToken(token_digest(TOKEN)))
    described = TestClient(app, headers={"Authorization": f"Bearer {TOKEN}"}).get("/v1/openapi.json").json()
    assert "504" in described["paths"]["/v1/explain"]["post"]["responses"]


def test_attributions_sum_to_the_difference_that_they_explain(bundle: Bundle, table: MarketTable,
                                                              explainer: Explainer) -> None:
    differences = []
    for number in range(0, 20, 5):
        asked = inputs(bundle, table, number)
        found = explainer.explain(asked)["attribution"]
        cells = [np.array(found["cells"][name]) for name in ("strategic", "tactical")]
        assert [part.shape for part in cells] == [asked.strategic.shape, asked.tactical.shape]
        moved = found["value"] - found["baseline"]
        differences.append(abs(moved))
        assert sum(part.sum() for part in cells) + found["residual"] == pytest.approx(moved, abs=1e-9)
        assert abs(found["residual"]) <= TOLERANCE * max(0.01, abs(moved))
    assert max(differences) > 1e-3


def test_the_difference_is_the_decisions_own_mean_over_masks(bundle: Bundle, table: MarketTable,
                                                             explainer: Explainer) -> None:
    asked, decider = inputs(bundle, table, 3), explainer.decider
    found = explainer.explain(asked)
    embedded = decider.backend.infer("embed", {"strategic": asked.strategic[None],
                                               "tactical": asked.tactical[None]})["embedded"]
    logits = decider.heads.votes(embedded, explainer._context(asked),
                                 decider.heads.starts(np.array([asked.seed], np.uint64)))[0]
    votes = count_votes(logits)
    voter, target, against = deciding(votes)
    mean = logits[:, voter].mean(0)
    assert found["attribution"]["value"] == pytest.approx(float(mean[target] - mean[against]), abs=1e-4)
    assert found["attribution"]["voter"] == ("strategic", "tactical", "arbitrage")[voter]
    for place, name in enumerate(("strategic", "tactical", "arbitrage")):
        spread = found["votes"][name]
        assert spread["mean"] == pytest.approx(votes.mean[place].tolist())
        assert spread["std"] == pytest.approx(votes.probabilities[:, place].std(0).tolist())
        assert sum(spread["share"]) == pytest.approx(1.0)
        assert all(low <= high for low, high in zip(spread["low"], spread["high"], strict=True))


def test_a_voter_is_not_credited_with_what_it_does_not_see(bundle: Bundle, table: MarketTable,
                                                           explainer: Explainer) -> None:
    asked = inputs(bundle, table, 1)
    context = explainer._context(asked)
    strategic, tactical, both = (explainer.attribute(asked, context, voter, 2, 1) for voter in range(3))
    assert not strategic.tactical.any()
    assert strategic.strategic.any()
    assert not tactical.strategic.any()
    assert both.strategic.any()
    assert both.tactical.any()
    flipped = explainer.attribute(asked, context, 2, 1, 2)
    np.testing.assert_allclose(flipped.tactical, -both.tactical, atol=1e-12)


def test_an_explanation_is_of_the_decision_and_names_the_limit(bundle: Bundle, table: MarketTable,
                                                               explainer: Explainer) -> None:
    policy, limits = BundlePolicy(bundle, table, "torch"), set()
    for number in range(0, 40, 3):
        row = rows(table)[number]
        for place, account in enumerate(accounts(table, row)):
            if place not in (0, 3):
                continue
            decision = policy.decide(row, account)
            found = explainer.explain(policy.inputs(row, account))
            assert (found["reason"], found["direction"]) == (decision.reason.value, decision.direction)
            assert found["confidence"] == pytest.approx(decision.confidence, abs=1e-5)
            assert found["limit"]["bound"] == decision.proposal.limit
            assert found["margin"] == pytest.approx(found["confidence"] - found["threshold"])
            limits.add(found["limit"]["bound"])
    assert len(limits) > 1


@pytest.fixture(scope="module")
def client(bundle: Bundle) -> TestClient:
    app = create_app(bundle, AppSettings(), StaticToken(token_digest(TOKEN)))
    return TestClient(app, headers={"Authorization": f"Bearer {TOKEN}"})


def test_the_route_explains_what_decide_answers(client: TestClient, bundle: Bundle, table: MarketTable) -> None:
    body = request_of(bundle, inputs(bundle, table, 2), "trace-9")
    decided, explained = (client.post(f"/v1/{route}", json=body) for route in ("decide", "explain"))
    assert explained.status_code == 200, explained.text
    found = explained.json()
    for key in ("verdict", "reason", "direction", "model", "trace_id"):
        assert found[key] == decided.json()[key]
    assert found["confidence"] == pytest.approx(decided.json()["confidence"], abs=1e-5)
    assert len(found["attribution"]["top"]) == 10
    assert client.post("/v1/explain", json=body).json() == found


def test_bad_requests_are_refused_like_decisions(client: TestClient, bundle: Bundle, table: MarketTable) -> None:
    body = request_of(bundle, inputs(bundle, table))
    assert client.post("/v1/explain", json={}).status_code == 422
    assert client.post("/v1/explain", json=body | {"schema_hash": "0" * 64}).status_code == 409
    assert client.post("/v1/explain", json=body | {"tactical": [[0.0]]}).status_code == 422
    assert client.post("/v1/explain", json=body, headers={"Authorization": "Bearer no"}).status_code == 401


class _Slow(Explainer):
    """Works until it is told that nobody waits."""

    def explain(self, inputs: Any, stop: threading.Event | None = None) -> dict[str, Any]:
        assert stop is not None
        stop.wait(20.0)
        time.sleep(0.2)
        raise Abandoned


def test_one_at_a_time_with_a_timeout_and_the_loop_stays_free(bundle: Bundle, table: MarketTable,
                                                              explainer: Explainer) -> None:
    asked = inputs(bundle, table)

    async def scene() -> None:
        desk = ExplainDesk(ExplainSettings(timeout_s=0.3))
        desk._explainer = _Slow(bundle)
        first = asyncio.create_task(desk.explain(bundle, asked))
        ticks = 0
        while not first.done():
            await asyncio.sleep(0.01)
            ticks += 1
            if ticks == 5:
                with pytest.raises(Refused, match="one at a time") as refused:
                    await desk.explain(bundle, asked)
                assert (refused.value.status, refused.value.retry_after) == (503, 1)
        with pytest.raises(Refused, match="no explanation within") as refused:
            await first
        assert refused.value.status == 504
        assert ticks > 5
        with pytest.raises(Refused, match="one at a time"):  # the thread is still at it
            await desk.explain(bundle, asked)
        await asyncio.sleep(0.6)
        desk._explainer = explainer
        desk.settings = ExplainSettings(timeout_s=30.0)
        assert (await desk.explain(bundle, asked))["attribution"]["nodes"] >= 32

    asyncio.run(scene())


def test_an_abandoned_explanation_stops(bundle: Bundle, table: MarketTable, explainer: Explainer) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Abandoned):
        explainer.explain(inputs(bundle, table), stop)
