"""The page in headless Chromium: live, broken and resumed, roles, replay; no error, no request elsewhere."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from algospace.execution.journal import MemoryJournal
from serving.app import create_app
from serving.bundle import Bundle
from serving.page.recording import write_recording
from serving.page.settings import PageSettings
from serving.policy import BundlePolicy
from serving.service import AppSettings
from serving.stream import StreamHub, StreamSettings
from tests.page_browser import Server, Table, browser, built_page
from tests.serving_market import random_bundle, serving_table
from training.backtest import run_session

VIEWER, TRADER = "viewer-token-long-enough", "trader-token-long-enough"
BARS = 300
WAIT_MS = 60_000
FIVE_MINUTES = 300 * 10**9
STREAM = StreamSettings(heartbeat_s=0.5)


def decision(n: int) -> dict[str, Any]:
    """The n-th decision of a stream, five minutes after the one before: one candle each."""
    reason = ("EXECUTE", "LOW_CONFIDENCE", "HIGH_UNCERTAINTY", "RISK_LIMIT")[n % 4]
    return {"trace_id": f"t{n}", "ts_ns": 1_700_000_100 * 10**9 + n * FIVE_MINUTES, "instrument": "SYNTH",
            "price": 5000.0 + n, "verdict": "EXECUTE" if reason == "EXECUTE" else "REJECT", "reason": reason,
            "direction": 1 if n % 3 else -1, "confidence": 0.4 + 0.05 * (n % 8),
            "votes": {"strategic": [0.1, 0.2, 0.7], "tactical": [0.3, 0.3, 0.4], "arbitrage": [0.2, 0.6, 0.2]},
            "proposal": {"contracts": 2.0, "stop_distance": 5.0, "target_distance": 9.0, "limit": "NONE"},
            "uncertainty": {"entropy": 0.5, "std": 0.1}, "regime": [0.5, -0.2, 1.0], "model": "m" * 64,
            "latency_ms": 0.8 + 0.01 * n}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    built_page()
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return random_bundle(tmp_path_factory.mktemp("page") / "bundle")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> Path:
    root, table, journal = tmp_path_factory.mktemp("runs"), serving_table(), MemoryJournal()
    result = run_session(bundle, BundlePolicy(bundle, table), table, 600, 600 + BARS, journal)
    write_recording(root / "demo" / "report" / "replay", result, journal, table, title="demo", model=bundle.id)
    return root


@pytest.fixture(scope="module")
def service(bundle: Bundle, runs: Path, chromium: Any) -> Iterator[Server]:
    settings = AppSettings(page=PageSettings(replays=str(runs)), stream=STREAM)
    server = Server(create_app(bundle, settings, Table()))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def server(service: Server) -> Server:
    """The service with a new stream, so that each test counts its own events."""
    hub_of(service).begin_at(f"stream{time.monotonic_ns()}", 0, type(hub_of(service).log.state)(200), [])
    return service


def hub_of(server: Server) -> StreamHub:
    hub: StreamHub = server.app.state.service.hub
    return hub


class Seen:
    """A page and what it did: requests, and everything it wrote to the console."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.requests: list[Any] = []
        self.errors: list[str] = []
        page.on("request", lambda request: self.requests.append((request.method, request.url)))
        page.on("websocket", lambda socket: self.requests.append(("WS", socket.url)))
        page.on("console", lambda m: self.errors.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def enter(self, url: str, token: str) -> None:
        self.page.goto(url)
        self.page.fill("#token", token)
        self.page.click("#paste button")

    def until(self, selector: str, value: object, attribute: str = "data-count") -> None:
        self.page.wait_for_selector(f'{selector}[{attribute}="{value}"]', timeout=WAIT_MS, state="attached")

    def wait(self, condition: Callable[[], bool]) -> None:
        """The page's policy forbids Playwright's own wait_for_function, which evaluates text."""
        deadline = time.monotonic() + WAIT_MS / 1000
        while not condition():
            assert time.monotonic() < deadline
            self.page.wait_for_timeout(50)

    def number(self, selector: str) -> int:
        return int(self.page.get_attribute(selector, "data-count") or 0)


@pytest.fixture
def seen(chromium: Any) -> Iterator[Seen]:
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(WAIT_MS)
    yield Seen(context.new_page())
    context.close()


def test_the_page_follows_the_stream(server: Server, seen: Seen) -> None:
    hub = hub_of(server)
    for n in range(5):
        hub.publish("decision", decision(n))
    seen.enter(server.url, VIEWER)
    seen.until("#connection", "live", "data-state")
    seen.until("#candles", 5)
    for n in range(5, 12):
        hub.publish("decision", decision(n))
    seen.until("#candles", 12)
    seen.until("#candles", 5011, "data-last")
    assert "strategic" in seen.page.inner_text("#votes")
    assert "5011" in seen.page.inner_text("#decisions tr:first-child")
    assert "p50" in seen.page.inner_text("#latency-note")
    assert "onnx" in seen.page.inner_text("#model")
    own = urlsplit(server.url).netloc
    assert {urlsplit(url).netloc for _, url in seen.requests} == {own}
    assert seen.errors == []


def test_broken_and_resumed_without_double_or_lost_candles(server: Server, seen: Seen) -> None:
    hub = hub_of(server)
    for n in range(3):
        hub.publish("decision", decision(n))
    seen.enter(server.url, VIEWER)
    seen.until("#candles", 3)
    server.stop()
    seen.until("#connection", "reconnecting", "data-state")
    assert "stale" in (seen.page.get_attribute("body", "class") or "")
    for n in range(3, 9):
        hub.publish("decision", decision(n))
    server.start()
    seen.until("#connection", "live", "data-state")
    seen.until("#candles", 9)
    seen.until("#decisions", 9)
    sockets = [url for method, url in seen.requests if method == "WS"]
    assert f"stream={hub.log.stream}&seq=3" in sockets[-1]
    assert VIEWER not in "".join(url for _, url in seen.requests)


def elsewhere(work: Any) -> None:
    """Run a coroutine in another thread: Playwright has a loop in this one."""
    thread = threading.Thread(target=asyncio.run, args=(work,))
    thread.start()
    thread.join()


def test_a_thrown_kill_switch_cannot_be_overlooked(server: Server, seen: Seen) -> None:
    kill = server.app.state.service.kill
    seen.enter(server.url, VIEWER)
    seen.until("#connection", "live", "data-state")
    badge = seen.page.locator("#kill")
    assert not badge.is_visible()
    elsewhere(kill.throw("ann", "feed is <b>broken</b>"))
    seen.wait(lambda: badge.inner_text() == "Kill switch thrown: ann, feed is <b>broken</b>")
    seen.page.reload()  # what was told before this page came
    seen.wait(lambda: badge.inner_text().startswith("Kill switch thrown: ann"))
    elsewhere(kill.rearm("bob", "mended", False))
    seen.wait(lambda: not badge.is_visible())
    assert seen.errors == []


def test_another_stream_is_taken_from_its_snapshot(server: Server, seen: Seen) -> None:
    """A new process has a new stream: what is known already is neither lost nor shown twice."""
    hub = hub_of(server)
    for n in range(4):
        hub.publish("decision", decision(n))
    seen.enter(server.url, VIEWER)
    seen.until("#candles", 4)
    state = type(hub.log.state)(200)
    hub.begin_at("another", 0, state, [])
    for n in range(2, 7):
        hub.publish("decision", decision(n))
    seen.until("#candles", 7)
    seen.until("#decisions", 7)
    hub.publish("decision", decision(7))
    seen.until("#candles", 8)
    assert seen.errors == []


def test_silence_is_visible(server: Server, seen: Seen) -> None:
    """A connection that says nothing, not even a heartbeat, is called stale."""
    snapshot = ('{"type":"snapshot","stream":"s","seq":0,"state":{"model":null,"decisions":[],"regime":null,'
                '"shadow":null,"latency":null}}')
    seen.page.route_web_socket("**/v1/stream*", lambda socket: socket.send(snapshot))
    seen.page.clock.install()
    seen.enter(server.url, VIEWER)
    seen.until("#connection", "live", "data-state")
    seen.page.clock.run_for(15_000)
    seen.until("#connection", "stale", "data-state")


def test_a_message_that_is_missing_is_never_passed_over(server: Server, seen: Seen) -> None:
    """After event 1 comes event 3: the page asks for a snapshot instead of showing a state that never was."""
    asked: list[str] = []
    state = '"state":{"model":null,"decisions":[],"regime":null,"shadow":null,"latency":null}'

    def answer(socket: Any) -> None:
        asked.append(socket.url)
        socket.send(f'{{"type":"snapshot","stream":"s","seq":1,{state}}}')
        if len(asked) == 1:
            socket.send('{"type":"delta","seq":3,"topic":"latency","ts_ns":1,"data":{"p50_ms":1}}')

    seen.page.route_web_socket("**/v1/stream*", answer)
    seen.enter(server.url, VIEWER)
    seen.wait(lambda: len(asked) >= 2)
    assert "seq=" not in asked[1]


@pytest.mark.parametrize("token", [VIEWER, TRADER])
def test_whoever_looks_can_only_look(server: Server, seen: Seen, token: str) -> None:
    seen.enter(server.url, token)
    seen.until("#connection", "live", "data-state")
    assert {method for method, _ in seen.requests} == {"GET", "WS"}
    buttons = {button.inner_text() for button in seen.page.query_selector_all("button:visible")}
    assert buttons == {"To the newest bar", "Sign out"}
    status = seen.page.evaluate("""async (token) => (await fetch('/v1/decide', {method: 'POST', body: '{}',
        headers: {authorization: `Bearer ${token}`, 'content-type': 'application/json'}})).status""", token)
    assert status == (403 if token == VIEWER else 422)


def test_a_wrong_token_shows_nothing(server: Server, seen: Seen) -> None:
    seen.enter(server.url, "wrong-token-long-enough")
    seen.page.wait_for_selector("#refusal:has-text('not let in')")
    assert not seen.page.is_visible("#desk")
    assert not [url for method, url in seen.requests if method == "WS"]
    assert seen.page.evaluate("sessionStorage.length + localStorage.length + document.cookie.length") == 0


def test_the_token_is_kept_for_the_tab_only(server: Server, seen: Seen) -> None:
    seen.enter(server.url, VIEWER)
    seen.until("#connection", "live", "data-state")
    assert seen.page.evaluate("localStorage.length + document.cookie.length") == 0
    seen.page.reload()
    seen.until("#connection", "live", "data-state")
    seen.page.click("#leave")
    seen.page.wait_for_selector("#enter")
    assert seen.page.evaluate("sessionStorage.length") == 0


def test_a_replay_is_played_paused_and_sought(server: Server, seen: Seen) -> None:
    seen.enter(server.url, VIEWER)
    seen.page.select_option("#source", "0")
    seen.until("#connection", "replay", "data-state")
    seen.until("#candles", 150)
    seen.page.select_option("#speed", "1000")
    seen.page.click("#play")
    seen.until("#candles", BARS)
    whole = seen.page.inner_text("#equity-note"), seen.number("#decisions")
    for place in (40, BARS):
        seen.page.fill("#seek", str(place))
        seen.until("#candles", place)
    assert (seen.page.inner_text("#equity-note"), seen.number("#decisions")) == whole
    seen.page.fill("#seek", "10")
    seen.page.select_option("#speed", "5")
    seen.page.focus("#play")
    seen.page.keyboard.press("Enter")
    seen.wait(lambda: seen.number("#candles") > 12)
    seen.page.keyboard.press("Enter")
    seen.page.wait_for_selector('#play[aria-pressed="false"]')
    stopped = seen.number("#candles")
    seen.page.wait_for_timeout(800)
    assert seen.number("#candles") == stopped < BARS
    assert seen.errors == []


def test_every_control_has_a_name_and_a_phone_needs_no_sideways_scrolling(server: Server, seen: Seen) -> None:
    seen.page.set_viewport_size({"width": 390, "height": 844})
    seen.enter(server.url, VIEWER)
    seen.until("#connection", "live", "data-state")
    nameless = seen.page.evaluate("""() => [...document.querySelectorAll('button, input, select')].filter((e) =>
        !e.labels?.length && !e.textContent.trim() && !e.getAttribute('aria-label')).map((e) => e.id)""")
    assert nameless == []
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_policy_stops_scripts_from_elsewhere(server: Server, seen: Seen) -> None:
    seen.page.goto(server.url)
    ran = seen.page.evaluate("""async () => {
        const script = document.createElement('script');
        script.textContent = 'window.ran = true';
        document.body.append(script);
        let reached = true;
        try { await fetch('http://localhost:9/'); } catch { reached = false; }
        return [window.ran === true, reached];
    }""")
    assert ran == [False, False]
    assert any("Content Security Policy" in text for text in seen.errors)
