"""Recordings of backtests, the routes that give them out, and the page's files, without a browser."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from algospace.execution.journal import Filled, MemoryJournal
from algospace.execution.result import SessionResult
from algospace.features.market_table import MarketTable
from serving.access import Principal, Refused
from serving.app import create_app
from serving.bundle import Bundle
from serving.page.recording import read_recording, write_recording
from serving.page.settings import PageSettings
from serving.policy import BundlePolicy
from serving.routes.page import FILES
from serving.service import AppSettings
from tests.serving_market import random_bundle, serving_table
from training.backtest import run_session

START, STOP = 590, 800
VIEWER = "viewer-token-long-enough"


class Viewers:
    """Knows one token, a viewer's."""

    def authenticate(self, token: bytes) -> Principal:
        if token != VIEWER.encode():
            raise Refused(401, "unknown token")
        return Principal("ann", "viewer")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return random_bundle(tmp_path_factory.mktemp("page") / "bundle")


@pytest.fixture(scope="module")
def table() -> MarketTable:
    return serving_table()


@pytest.fixture(scope="module")
def played(bundle: Bundle, table: MarketTable) -> tuple[SessionResult, MemoryJournal]:
    journal = MemoryJournal()
    return run_session(bundle, BundlePolicy(bundle, table), table, START, STOP, journal), journal


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle, table: MarketTable,
         played: tuple[SessionResult, MemoryJournal]) -> Path:
    root = tmp_path_factory.mktemp("runs")
    write_recording(root / "first" / "report" / "replay", *played, table, title="first run", model=bundle.id)
    return root


@pytest.fixture(scope="module")
def client(bundle: Bundle, root: Path, tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    page = PageSettings(folder=str(tmp_path_factory.mktemp("unbuilt")), replays=str(root), max_rows=150)
    return TestClient(create_app(bundle, AppSettings(page=page), Viewers()),
                      headers={"Authorization": f"Bearer {VIEWER}"})


def test_a_recording_holds_what_the_session_did(root: Path, table: MarketTable,
                                                played: tuple[SessionResult, MemoryJournal]) -> None:
    result, journal = played
    found = read_recording(root / "first" / "report" / "replay", 0, 10**6)
    bars: dict[str, Any] = found["bars"]
    assert bars["ts_ns"] == result.ts_close.tolist()
    assert bars["close"] == table.close[START:STOP].tolist()
    assert bars["equity"] == result.equity.tolist()
    assert bars["position"] == result.position.tolist()
    assert len(found["decisions"]) == result.decisions.size
    assert [d["direction"] for d in found["decisions"]] == result.decisions["direction"].tolist()
    fills = [r for r in journal if isinstance(r, Filled)]
    assert [(f["ts_ns"], f["quantity"], f["price"]) for f in found["fills"]] == [
        (f.ts, f.quantity, f.price) for f in fills]
    assert [f["pnl"] for f in found["fills"] if f["pnl"] is not None] == result.trades["net_pnl"].tolist()


def test_levels_are_those_of_the_account(root: Path, played: tuple[SessionResult, MemoryJournal]) -> None:
    """Entry, stop and target are there exactly while a position is, and the last ones are the account's."""
    result, _ = played
    assert result.trades.size > 0
    bars = read_recording(root / "first" / "report" / "replay", 0, 10**6)["bars"]
    held = result.position != 0.0
    for name in ("entry", "stop"):
        assert [value is not None for value in bars[name]] == held.tolist()
    long = result.position > 0.0
    stop, entry = (np.array([math.nan if v is None else v for v in bars[n]]) for n in ("stop", "entry"))
    assert np.all(stop[long] < entry[long])
    for name in ("entry", "stop", "target"):
        last = bars[name][-1]
        expected = float(result.account[0][name]) if held[-1] else math.nan
        assert (math.nan if last is None else last) == pytest.approx(expected, nan_ok=True)


def test_pages_of_a_recording_join_without_gap_or_overlap(client: TestClient) -> None:
    whole = read_recording_of(client, 0, 150), read_recording_of(client, 150, 150)
    for count in (1, 7, 64):
        parts = [read_recording_of(client, start, count) for start in range(0, STOP - START, count)]
        for kind in ("decisions", "fills"):
            assert [x for p in parts for x in p[kind]] == [x for p in whole for x in p[kind]]
        assert [t for p in parts for t in p["bars"]["ts_ns"]] == [t for p in whole for t in p["bars"]["ts_ns"]]
    assert read_recording_of(client, 10**6, 5)["bars"]["ts_ns"] == []


def read_recording_of(client: TestClient, start: int, count: int) -> dict[str, Any]:
    answer = client.get("/v1/replay", params={"name": "first/report", "start": start, "count": count})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_recordings_are_listed_and_answers_are_bounded(client: TestClient) -> None:
    listed = client.get("/v1/replays").json()["replays"]
    assert [(r["name"], r["title"], r["bars"]) for r in listed] == [("first/report", "first run", STOP - START)]
    assert len(read_recording_of(client, 0, 10**6)["bars"]["ts_ns"]) == 150


@pytest.mark.parametrize("name", ["", "nothing", "../first/report", "first/report/replay", "first/./report",
                                  "/etc", "first\x00"])
def test_only_names_that_were_found_are_read(client: TestClient, name: str) -> None:
    assert client.get("/v1/replay", params={"name": name}).status_code == 404


def test_an_answer_is_encoded_beside_the_event_loop(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    threads, dumps = [], json.dumps

    def watched(*args: Any, **kwargs: Any) -> str:
        threads.append(threading.current_thread().name)
        return dumps(*args, **kwargs)

    monkeypatch.setattr(json, "dumps", watched)
    answer = client.get("/v1/replay?name=first/report&count=150")
    monkeypatch.undo()
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert threads
    assert all("worker" in name for name in threads), threads


@pytest.mark.parametrize("query", ["start=-1", "count=0", "start=x", "count=99999999999", ""])
def test_bad_pages_are_refused(client: TestClient, query: str) -> None:
    name = "name=first/report&" if query else ""
    assert client.get(f"/v1/replay?{name}{query}").status_code == 422


@pytest.mark.parametrize("path", ["/v1/replays", "/v1/replay?name=first/report"])
def test_recordings_need_a_token(client: TestClient, path: str) -> None:
    assert client.get(path, headers={"Authorization": "Bearer wrong-token-long-enough"}).status_code == 401


def test_a_damaged_recording_is_left_out_and_said(client: TestClient, root: Path) -> None:
    folder = root / "damaged" / "replay"
    folder.mkdir(parents=True)
    try:
        (folder / "replay.json").write_text('{"version": 1}')
        assert client.get("/v1/replay", params={"name": "damaged"}).status_code == 409
        (folder / "replay.json").write_text("[")
        answer = client.get("/v1/replay", params={"name": "damaged"})
        assert (answer.status_code, str(root) in answer.text) == (409, False)
        assert [r["name"] for r in client.get("/v1/replays").json()["replays"]] == ["first/report"]
    finally:
        (folder / "replay.json").unlink()
        folder.rmdir()


def test_without_the_built_page_the_service_says_how_to_get_it(client: TestClient) -> None:
    answer = client.get("/", headers={"Authorization": ""})
    assert answer.status_code == 200
    assert "make page" in answer.text
    assert "script-src 'self'" in answer.headers["content-security-policy"]
    assert client.get("/page.js").status_code == 404


def test_the_built_page_is_served_to_everybody_and_nothing_beside_it(bundle: Bundle, tmp_path: Path) -> None:
    for name, _ in FILES.values():
        (tmp_path / name).write_text(name)
    (tmp_path / "secret.txt").write_text("secret")
    open_client = TestClient(create_app(bundle, AppSettings(page=PageSettings(folder=str(tmp_path))), Viewers()))
    for path, (name, kind) in FILES.items():
        answer = open_client.get(path)
        assert (answer.status_code, answer.text, answer.headers["content-type"]) == (200, name, kind)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
    for path in ("/secret.txt", "/page.js/../secret.txt", "/%2e%2e/secret.txt"):
        assert open_client.get(path).status_code in (401, 404)
