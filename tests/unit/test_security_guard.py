"""The guard in front of a small application: headers, rates, slow and long bodies, WebSockets, the audit log."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request, WebSocket
from fastapi.testclient import TestClient
from starlette.testclient import WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

from serving import guard as guard_module
from serving.access import Principal, Refused
from serving.guard import Guard, client_address
from serving.security.audit import AUDIT, read, verify
from serving.security.gate import Security
from serving.security.settings import RateSettings, SecuritySettings

TOKENS: dict[bytes, Principal] = {role.encode(): Principal(role, role, "id") for role in
                                  ("viewer", "trader", "risk", "admin")}  # type: ignore[arg-type]


class Known:
    """Tokens are the roles' names."""

    def __init__(self) -> None:
        self.revoked: set[bytes] = set()

    def authenticate(self, token: bytes) -> Principal:
        if token in self.revoked or token not in TOKENS:
            raise Refused(401, "not valid")
        return TOKENS[token]


def small_app(**settings: Any) -> tuple[FastAPI, Security]:
    security = Security(SecuritySettings(**settings), Known())
    app = FastAPI(openapi_url=None)
    app.add_middleware(Guard, security=security, max_body=1000)

    @app.post("/v1/decide")
    async def decide(request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    @app.post("/v1/model")
    async def model(request: Request) -> dict[str, str]:
        await request.body()
        return {"by": request.state.principal.user}

    @app.get("/hidden")
    async def hidden() -> dict[str, str]:
        return {}

    @app.websocket("/v1/stream")
    async def stream(socket: WebSocket) -> None:
        await socket.accept("algospace" if "algospace" in socket.scope["subprotocols"] else None)
        await socket.send_json({"protocols": socket.scope["subprotocols"], "user": socket.state.principal.user})
        with suppress(WebSocketDisconnect):
            while True:
                await socket.send_text(await socket.receive_text())

    return app, security


def client(app: FastAPI, role: str = "admin") -> TestClient:
    return TestClient(app, headers={"Authorization": f"Bearer {role}"})


def test_a_route_that_is_in_no_table_is_nobodys() -> None:
    app, _ = small_app()
    assert client(app).get("/hidden").status_code == 404
    assert TestClient(app).get("/hidden").status_code == 401
    assert client(app).get("/v1/decide").status_code == 405
    assert client(app, "viewer").post("/v1/decide").json() == {"detail": "the role viewer may not POST /v1/decide"}


def test_too_many_requests_get_429_with_a_time_to_wait() -> None:
    app, _ = small_app(rates=RateSettings(requests="3/minute"))
    caller = client(app, "trader")
    assert [caller.post("/v1/decide").status_code for _ in range(4)] == [200, 200, 200, 429]
    answer = caller.post("/v1/decide")
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert set(answer.json()) == {"detail"}
    assert client(app, "admin").post("/v1/decide").status_code == 200  # each user has its own


async def _call(app: Any, headers: list[tuple[bytes, bytes]], chunks: list[tuple[float, bytes]],
                path: str = "/v1/decide") -> list[dict[str, Any]]:
    """What the application sends to a request whose body comes in `chunks` of (pause before, bytes)."""
    waiting = list(chunks)
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if not waiting:
            await asyncio.sleep(3600)
        pause, data = waiting.pop(0)
        await asyncio.sleep(pause)
        return {"type": "http.request", "body": data, "more_body": bool(waiting)}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
             "headers": headers, "client": ("192.0.2.1", 5), "server": ("x", 80), "scheme": "http",
             "http_version": "1.1", "root_path": ""}
    await asyncio.wait_for(app(scope, receive, send), 20)
    return sent


ADMIN = (b"authorization", b"Bearer admin")


@pytest.mark.parametrize(("headers", "status"), [
    ([ADMIN, ADMIN], 400),
    ([ADMIN, (b"authorization", b"Bearer viewer")], 400),
    ([ADMIN, (b"content-length", b"1"), (b"content-length", b"2")], 400),
    ([ADMIN, (b"content-length", b"-1")], 400),
    ([ADMIN, (b"content-length", b"1_0")], 400),
    ([ADMIN, (b"content-length", b"")], 400),
    ([ADMIN, (b"content-length", b"1"), (b"transfer-encoding", b"chunked")], 400),
    ([ADMIN, (b"content-length", b"9" * 30)], 413),
    ([ADMIN, (b"content-length", b"1001")], 413),
    ([ADMIN, (b"x", b"a\x00b")], 400),
    ([ADMIN, (b"x", b"a\r\nb: c")], 400),
    ([ADMIN, (b"x", b"y" * 20_000)], 431),
    ([(b"authorization", b"Bearer")], 401),
    ([(b"authorization", b"Bearer \xff\xfe")], 401),
    ([(b"authorization", b"Basic admin")], 401),
    ([(b"authorization", b"")], 401),
    ([], 401),
    ([ADMIN, (b"x", b"tab\there")], 200),
])
def test_headers_are_taken_strictly(headers: list[tuple[bytes, bytes]], status: int) -> None:
    app, _ = small_app()
    sent = asyncio.run(_call(app, headers, [(0.0, b"x")]))
    assert sent[0]["status"] == status


def test_a_slow_body_is_cut_off_and_a_quick_one_in_pieces_is_not() -> None:
    app, _ = small_app(body_seconds=0.5)
    drip = [(0.1, b"x")] * 200  # each piece comes soon, all of them would take 20 s
    sent = asyncio.run(_call(app, [ADMIN], drip))
    assert [m["status"] for m in sent if "status" in m] == [408]
    assert (b"connection", b"close") in sent[0]["headers"]
    quick, _ = small_app(body_seconds=10.0)
    assert asyncio.run(_call(quick, [ADMIN], [(0.0, b"x")] * 100))[0]["status"] == 200


def test_a_body_without_a_length_is_counted() -> None:
    app, _ = small_app()
    sent = asyncio.run(_call(app, [ADMIN], [(0.0, b"x" * 400)] * 5))
    assert [m["status"] for m in sent if "status" in m] == [413]


def test_an_order_is_in_the_log_before_its_answer_and_refusals_follow(tmp_path: Path) -> None:
    app, security = small_app(folder=tmp_path)
    assert client(app).post("/v1/model", json={"source": "shadow"}).json() == {"by": "admin"}
    row = list(read(tmp_path / AUDIT))[-1]
    assert (row["event"], row["user"], row["path"], row["status"]) == ("changed", "admin", "/v1/model", 200)
    assert row["body"] == '{"source":"shadow"}'
    client(app, "viewer").post("/v1/model")
    client(app, "nobody").post("/v1/model")
    client(app).post("/v1/decide")
    assert security.audit is not None
    security.audit.flush()
    rows = list(read(tmp_path / AUDIT))[1:]
    assert [(r["event"], r["status"], r.get("user")) for r in rows] == [
        ("refused", 403, "viewer"), ("refused", 401, None)]
    assert "nobody" not in (tmp_path / AUDIT).read_text()  # a token is never written
    assert verify(tmp_path / AUDIT).fault is None


def test_an_order_that_cannot_be_logged_is_answered_as_done_and_an_error(tmp_path: Path) -> None:
    app, security = small_app(folder=tmp_path / "security")
    assert security.audit is not None
    log = tmp_path / "security" / AUDIT
    log.write_bytes(b'{"altered"}\n')
    answer = client(app).post("/v1/model", json={"source": "x"})
    assert answer.status_code == 500
    assert answer.json()["detail"].startswith("the answer was 200, and what it says holds, but the audit log")
    assert log.read_bytes() == b'{"altered"}\n'


def test_a_flood_of_refusals_does_not_fill_the_log(tmp_path: Path) -> None:
    app, security = small_app(folder=tmp_path, rates=RateSettings(refusals_logged="5/minute"))
    assert {client(app, "nobody").post("/v1/decide").status_code for _ in range(30)} == {401}
    assert security.audit is not None
    security.audit.flush()
    assert len(list(read(tmp_path / AUDIT))) == 5


def _denied(app: FastAPI, status: int, headers: dict[str, str], path: str = "/v1/stream",
            protocols: list[str] | None = None) -> None:
    with pytest.raises(WebSocketDenialResponse) as denial, \
            TestClient(app).websocket_connect(path, protocols, headers=headers):
        pass
    assert denial.value.status_code == status
    assert set(denial.value.json()) == {"detail"}


def test_sockets_are_admitted_by_header_or_subprotocol() -> None:
    app, _ = small_app()
    with client(app, "viewer").websocket_connect("/v1/stream") as socket:
        assert socket.receive_json() == {"protocols": [], "user": "viewer"}
    with TestClient(app).websocket_connect("/v1/stream", ["algospace", "bearer.risk"]) as socket:
        assert socket.accepted_subprotocol == "algospace"
        assert socket.receive_json() == {"protocols": ["algospace"], "user": "risk"}
    _denied(app, 401, {})
    _denied(app, 401, {"Authorization": "Bearer nobody"})
    _denied(app, 401, {}, protocols=["algospace", "bearer.nobody"])
    _denied(app, 401, {}, protocols=["bearer.risk", "bearer.admin"])
    _denied(app, 404, {"Authorization": "Bearer admin"}, "/nowhere")
    _denied(app, 405, {"Authorization": "Bearer admin"}, "/v1/decide")


def test_pages_of_other_origins_get_no_socket() -> None:
    app, _ = small_app(origins=("https://desk.example",))
    for origin in ("https://evil.example", "null", "http://testserver.evil.example", "http://[testserver"):
        _denied(app, 403, {"Authorization": "Bearer admin", "Origin": origin})
    for origin in ("https://desk.example", "http://testserver"):
        with client(app).websocket_connect("/v1/stream", headers={"Origin": origin}) as socket:
            assert socket.receive_json()["user"] == "admin"
    free, _ = small_app(check_origin=False)
    with client(free).websocket_connect("/v1/stream", headers={"Origin": "https://evil.example"}) as socket:
        assert socket.receive_json()["user"] == "admin"


def test_a_socket_ends_with_its_token_and_takes_no_long_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_module, "_RECHECK_SECONDS", 0.0)
    app, security = small_app()
    with client(app, "viewer").websocket_connect("/v1/stream") as socket:
        socket.receive_json()
        socket.send_text("still here")
        assert socket.receive_text() == "still here"
        security.authenticator.revoked.add(b"viewer")  # type: ignore[attr-defined]
        socket.send_text("and now")
        with pytest.raises(WebSocketDisconnect) as end:
            socket.receive_text()
    assert end.value.code == 1008
    with client(app).websocket_connect("/v1/stream") as socket:
        socket.receive_json()
        socket.send_text("x" * 70_000)
        with pytest.raises(WebSocketDisconnect) as end:
            socket.receive_text()
    assert end.value.code == 1009


@pytest.mark.parametrize(("peer", "forwarded", "expected"), [
    ("192.0.2.1", "1.2.3.4", "192.0.2.1"),
    ("127.0.0.1", "6.6.6.6, 1.2.3.4", "1.2.3.4"),
    ("127.0.0.1", "1.2.3.4, 127.0.0.1", "1.2.3.4"),
    ("127.0.0.1", "", "127.0.0.1"),
    ("2001:db8:1:2:3:4:5:6", "", "2001:db8:1:2::/64"),
])
def test_addresses_are_the_callers(peer: str, forwarded: str, expected: str) -> None:
    scope: Any = {"client": (peer, 1), "headers": [(b"x-forwarded-for", forwarded.encode())]}
    assert client_address(scope, ("127.0.0.1",)) == expected
