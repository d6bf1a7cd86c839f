"""Every route of the service against every role; logging in; and a service with signed tokens as a whole."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

from serving.access import OPEN_PREFIXES, PERMISSIONS, ROLES, is_open
from serving.app import create_app
from serving.security import gate
from serving.security.audit import AUDIT, read
from serving.security.gate import make_authenticator
from serving.security.keys import rotate
from serving.security.settings import RateSettings, SecuritySettings
from serving.security.tokens import TokenIssuer
from serving.security.users import UserStore
from serving.service import AppSettings
from tests.serving_market import random_bundle

PASSWORD = "correct horse battery"
CHEAP = PasswordHash((Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1),))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("security")
    rotate(folder / "keys")
    store = UserStore(folder / "users.json", CHEAP)
    for role in ROLES:
        store.add(role, role, PASSWORD)
    store.add("gone", "admin", PASSWORD)
    store.disable("gone")
    return folder


@pytest.fixture(scope="module")
def settings(folder: Path) -> SecuritySettings:
    rates = RateSettings(login_address="40/minute", login_user="6/minute")
    return SecuritySettings(mode="jwt", folder=folder, login=True, reread_seconds=0.0, rates=rates)


@pytest.fixture(scope="module")
def app(settings: SecuritySettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate, "UserStore", lambda path: UserStore(path, CHEAP))
        bundle = random_bundle(tmp_path_factory.mktemp("routes") / "bundle")
        yield create_app(bundle, AppSettings(security=settings), make_authenticator(settings, b""))


def routes_of(app: Any) -> Iterator[tuple[str, str]]:
    """(method or WS, path) of everything the application answers; a folder of files as ("MOUNT", prefix)."""
    for route in app.routes:
        if isinstance(route, Mount):
            yield "MOUNT", route.path
        elif isinstance(route, Route):
            for method in sorted((route.methods or set()) - {"HEAD"}):
                yield method, route.path
        else:
            assert isinstance(route, WebSocketRoute), f"{route}: say here how its paths are found"
            yield "WS", route.path


def test_every_route_is_in_the_table_or_open(app: Any) -> None:
    for method, path in routes_of(app):
        if method == "MOUNT":
            assert f"{path.rstrip('/')}/" in OPEN_PREFIXES, path
        else:
            assert ((method, path) in PERMISSIONS) != is_open(path), (method, path)
    assert all(roles and roles <= set(ROLES) for roles in PERMISSIONS.values())


def _status(client: TestClient, method: str, path: str, headers: dict[str, str]) -> int:
    """The answer's status; 101 for a WebSocket that is let in."""
    if method != "WS":
        return client.request(method, path, headers=headers).status_code
    try:
        with client.websocket_connect(path, headers=headers):
            return 101
    except WebSocketDenialResponse as denial:
        return denial.status_code
    except WebSocketDisconnect:
        return 101


def test_every_route_lets_in_the_roles_of_the_table_and_nobody_else(app: Any, settings: SecuritySettings) -> None:
    client, issuer = TestClient(app), TokenIssuer(settings)
    tokens = {role: issuer.issue(role, role, 600)[0] for role in ROLES}
    for method, path in routes_of(app):
        if method == "MOUNT" or is_open(path):
            continue
        concrete = "/".join("x" if part.startswith("{") else part for part in path.split("/"))
        assert _status(client, method, concrete, {}) == 401, (method, path)
        for role in ROLES:
            status = _status(client, method, concrete, {"Authorization": f"Bearer {tokens[role]}"})
            allowed = role in PERMISSIONS[(method, path)]
            assert (status == 403) is not allowed, (method, path, role, status)
            assert status not in (401, 404, 405, 500), (method, path, role, status)


def test_a_login_gives_a_token_that_opens_what_the_role_may(app: Any, folder: Path) -> None:
    client = TestClient(app)
    answer = client.post("/v1/login", json={"user": "trader", "password": PASSWORD})
    assert answer.status_code == 200
    assert (answer.json()["role"], answer.json()["expires_in"]) == ("trader", 3600)
    assert answer.headers["cache-control"] == "no-store"
    headers = {"Authorization": f"Bearer {answer.json()['token']}"}
    assert client.post("/v1/decide", content=b"{}", headers=headers).status_code == 422
    text = (folder / AUDIT).read_text()
    assert any(row["event"] == "login" and row["user"] == "trader" for row in read(folder / AUDIT))
    assert PASSWORD not in text
    assert answer.json()["token"] not in text


def test_wrong_logins_are_all_answered_alike(app: Any) -> None:
    client = TestClient(app)
    wrong = [{"user": "risk", "password": "x" * 12}, {"user": "gone", "password": PASSWORD},
             {"user": "who", "password": PASSWORD}, {"user": "a b", "password": PASSWORD}]
    answers = [client.post("/v1/login", json=body) for body in wrong]
    assert {(a.status_code, a.text) for a in answers} == {(401, '{"detail":"wrong user or password"}')}
    for raw in (b"", b"[]", b"{", b"\xff", b'{"user": 1, "password": 2}', b'{"user": "a"}', b"[" * 5000,
                b'{"user":"a","password":"b","x":1}', b'{"user":"a","password":"secret-value-here\\ud800"}'):
        answer = client.post("/v1/login", content=raw)
        assert answer.status_code in (401, 422), raw
        assert "secret-value" not in answer.text


def test_guessing_a_password_gets_429(app: Any) -> None:
    client = TestClient(app)
    statuses = [client.post("/v1/login", json={"user": "viewer", "password": "x" * 12}).status_code
                for _ in range(7)]
    assert statuses == [401] * 6 + [429]
    answer = client.post("/v1/login", json={"user": "viewer", "password": PASSWORD})
    assert answer.status_code == 429
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert answer.json()["detail"].startswith("too many requests")


def test_a_service_without_logins_and_origins_says_so(tmp_path_factory: pytest.TempPathFactory, app: Any) -> None:
    client = TestClient(app)
    preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    answer = client.options("/v1/decide", headers=preflight)
    assert "access-control-allow-origin" not in answer.headers
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert client.get(path).status_code == 401


def test_a_disabled_user_is_out_at_once(app: Any, settings: SecuritySettings, folder: Path) -> None:
    from serving.security.tokens import REVOKED, revoke

    client = TestClient(app)
    token = TokenIssuer(settings).issue("admin", "admin", 600)[0]
    headers = {"Authorization": f"Bearer {token}"}
    assert client.post("/v1/decide", content=b"{}", headers=headers).status_code == 422
    time.sleep(0.002)
    revoke(folder / REVOKED, user="admin")
    assert client.post("/v1/decide", content=b"{}", headers=headers).status_code == 401


def test_the_kill_switch_is_for_two_people_seen_by_all_and_audited(app: Any, settings: SecuritySettings,
                                                                   folder: Path) -> None:
    client, issuer = TestClient(app), TokenIssuer(settings)
    as_ = {name: {"Authorization": f"Bearer {issuer.issue(name, role, 600)[0]}"}
           for name, role in (("risk", "risk"), ("admin", "admin"), ("viewer", "viewer"), ("trader", "trader"))}
    why = {"why": "odd fills"}
    for name in ("viewer", "trader"):
        assert client.post("/v1/kill", json=why, headers=as_[name]).status_code == 403
    for wrong in ({}, {"why": ""}, {"why": "x" * 201}, {"why": "x", "more": 1}, {"why": 3}):
        assert client.post("/v1/kill", json=wrong, headers=as_["risk"]).status_code == 422
    assert client.get("/v1/health").json()["kill_switch"] is False
    assert client.post("/v1/rearm", json=why, headers=as_["admin"]).status_code == 409
    thrown = client.post("/v1/kill", json=why, headers=as_["risk"])
    assert thrown.status_code == 200
    assert {name: thrown.json()[name] for name in ("thrown", "user", "why", "latched", "shared")} == {
        "thrown": True, "user": "risk", "why": "odd fills", "latched": None, "shared": True}
    assert client.get("/v1/health").json()["kill_switch"] is True
    assert "odd fills" not in client.get("/v1/health").text  # which is open to everybody
    seen = client.get("/v1/kill", headers=as_["viewer"]).json()
    assert (seen["user"], seen["revision"]) == ("risk", 1)
    figures = client.get("/v1/metrics", headers=as_["viewer"]).text
    assert 'algospace_kill_switch{replica="local"} 1.0' in figures
    own = client.post("/v1/rearm", json=why, headers=as_["risk"])
    assert (own.status_code, "somebody else" in own.json()["detail"]) == (409, True)
    assert client.get("/v1/kill", headers=as_["viewer"]).json()["thrown"] is True
    rearmed = client.post("/v1/rearm", json={"why": "right again"}, headers=as_["admin"])
    assert (rearmed.status_code, rearmed.json()["thrown"], rearmed.json()["user"]) == (200, False, "admin")
    changes = [(row["user"], row["path"], row["status"]) for row in read(folder / AUDIT)
               if row["event"] == "changed" and row["path"] in ("/v1/kill", "/v1/rearm")]
    assert changes[-3:] == [("risk", "/v1/kill", 200), ("risk", "/v1/rearm", 409), ("admin", "/v1/rearm", 200)]
