"""Requests that begin as valid ones and are then bent: every operation, every role, JSON and Arrow; no 5xx.

Generated requests alone nearly all die at their first field. Here each operation of the description starts from
its own example (or a sound request of ours), and what share of the requests gets through is asserted, so that a
loss of reach is seen.
"""

from __future__ import annotations

import copy
import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from algospace.marketdata.catalog import Catalog
from algospace.marketdata.synthetic import generate, scenario_named
from serving.access import ROLES, Principal, Refused, Role
from serving.app import create_app
from serving.batch import BatchInputs
from serving.batch_arrow import MEDIA_TYPE, encode, table_of
from serving.bundle import Bundle
from serving.reading import row_inputs
from serving.routes.described import example_row, openapi_of
from serving.schemas import DecideRow
from serving.service import AppSettings
from tests.feature_bundle import bars_bundle

JSON = "application/json"
ODD: tuple[Any, ...] = (None, True, 0, -1, 1, 2**31, 2**63, -(2**63), 10**400, 0.5, -0.0, 1e-320, 1e308, "", "x",
                        "nan", "\x00", "\ud800", "9" * 500, [], [[]], [None], {}, {"": {}}, [0.0] * 3)
NUMBERS = st.one_of(st.floats(-1e6, 1e6), st.integers(-10, 10), st.floats(allow_nan=False, allow_infinity=False))
SLOW = {"/v1/explain": 8, "/v1/model": 8}
"""Operations that take long: fewer examples of them."""
LEAST = {"POST /v1/decide": 0.3, "POST /v1/decide/batch": 0.4, "POST /v1/decide/batch arrow": 0.12,
         "POST /v1/decide/bars": 0.15, "POST /v1/explain": 0.2, "POST /v1/model": 0.1, "POST /v1/kill": 0.3,
         "POST /v1/rearm": 0.3, "GET /v1/signals": 0.3}
"""Share of the requests without odd headers that must be answered with 2xx; of operations that are not named here
all of them."""
OWN = {"GET /v1/replay": 404, "POST /v1/login": 404}
"""What a sound request is told here, where there is no recording and no login: by the operation itself."""
BARS, HELD = 4000, 3990


class Tokens:
    """An authenticator whose tokens are the names of the roles."""

    def authenticate(self, token: bytes) -> Principal:
        role = token.decode("latin-1")
        if role not in ROLES:
            raise Refused(401, "no such token")
        return Principal(role, role)


class World(NamedTuple):
    app: FastAPI
    client: TestClient
    bundle: Bundle
    another: Bundle
    """Of the same schema."""
    arrow: pa.Table
    bars: dict[str, Any]
    """A sound body of /v1/decide/bars."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("reach")
    bars = generate(scenario_named("easy"), 701, BARS).bars
    Catalog(folder / "catalog").write("SYNTH", bars.slice(0, HELD))
    bundle = bars_bundle(bars, folder / "bundle")
    values = AppSettings().model_dump() | {
        "service": {"deadline_ms": 60_000, "log_requests": "none"}, "lifecycle": {"require_checks": False},
        "features": {"catalog": folder / "catalog"},
        "security": {"rates": {"requests": "1000000/second", "login_address": "1000000/second"}}}
    app = create_app(bundle, AppSettings.model_validate(values), Tokens())
    sound = row_inputs(app.state.service.champion, DecideRow.model_validate(example_row(bundle)))
    arrow = table_of(BatchInputs.of([sound] * 4, np.stack([sound.regime] * 4)), bundle)
    with TestClient(app, raise_server_exceptions=False) as client:
        state = client.get("/v1/state", headers={"Authorization": "Bearer viewer"}).json()
        news = bars.slice(HELD, BARS)
        given = [{"ts_open": int(news.ts_open[n]), "open": float(news.open[n]), "high": float(news.high[n]),
                  "low": float(news.low[n]), "close": float(news.close[n]), "volume": float(news.volume[n])}
                 for n in range(len(news))]
        account = {"position": 0.0, "equity": 100_000.0, "day_start": 100_000.0}
        another = bars_bundle(bars, folder / "another", seed=2)
        body = {"state_id": state["state_id"], "bars": given, "account": account}
        yield World(app, client, bundle, another, arrow, body)


class Operation(NamedTuple):
    method: str
    path: str
    roles: frozenset[Role] | None
    """None: open."""
    body: Any
    query: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"


def operations(world: World) -> list[Operation]:
    """Every operation of the description, with a sound request for it."""
    valid: dict[str, Any] = {
        "POST /v1/model": {"source": str(world.another.directory)}, "POST /v1/decide/bars": world.bars,
        "POST /v1/kill": {"why": "a test"},
        "POST /v1/rearm": {"why": "a test"}, "POST /v1/login": {"user": "ann", "password": "x" * 12}}
    found = []
    for path, methods in openapi_of(world.app)["paths"].items():
        for method, described in methods.items():
            name, content = f"{method.upper()} {path}", described.get("requestBody", {}).get("content", {})
            body = valid.get(name)
            if body is None and content:
                assert JSON in content, name
                assert "examples" in content[JSON], f"{name}: give it an example, or a sound request here"
                body = content[JSON]["examples"]["one"]["value"]
            query = {one["name"]: 1 if one["schema"].get("type") == "integer" else "x"
                     for one in described.get("parameters", []) if one["in"] == "query"}
            roles = described.get("x-roles")
            found.append(Operation(method.upper(), path, None if roles is None else frozenset(roles), body, query))
    return found


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to everything in a JSON value; of long lists the first two and the last."""
    if at:
        yield at
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        if not isinstance(value, list) or key < 2 or key == len(value) - 1:
            yield from places(value[key], (*at, key))


@st.composite
def bent(draw: st.DrawFn, body: Any) -> bytes:
    """The bytes of a sound body with up to two things changed; other numbers are often sound again."""
    value = copy.deepcopy(body)
    for _ in range(draw(st.sampled_from((0, 0, 1, 1, 2)))):
        found = list(places(value))
        if not found:
            break
        *way, last = draw(st.sampled_from(found))
        part = value
        for key in way:
            part = part[key]
        change = draw(st.sampled_from(("number", "number", "odd", "drop", "more", "twice")))
        if change == "number":
            if isinstance(part[last], int | float):
                part[last] = draw(NUMBERS)
        elif change == "odd":
            part[last] = draw(st.sampled_from(ODD))
        elif change == "drop":
            del part[last]
        elif change == "more" and isinstance(part, dict):
            part[draw(st.text(max_size=5))] = draw(st.sampled_from(ODD))
        elif isinstance(part, list):
            part.append(copy.deepcopy(part[last]))
    return json.dumps(value).encode()


@st.composite
def damaged(draw: st.DrawFn, table: pa.Table) -> bytes:
    """An Arrow stream: sound, with other values or columns, or with bytes that were flipped, cut or put in."""
    kind = draw(st.sampled_from((
        "sound", "sound", "rows", "rows", "column", "drop", "twice", "metadata", "flip", "flip", "cut", "put")))
    name = draw(st.sampled_from(table.column_names))
    place = table.column_names.index(name)
    if kind == "rows":
        table = pa.concat_tables([table.slice(draw(st.integers(0, 4)))] * draw(st.integers(1, 3)))
    elif kind == "column":
        other = draw(st.sampled_from((pa.nulls(len(table)), pa.array([float("nan")] * len(table)),
                                      pa.array(["x"] * len(table)), pa.array([2**62] * len(table)),
                                      pa.array([[]] * len(table), pa.list_(pa.float32())))))
        table = table.set_column(place, name, other)
    elif kind == "drop":
        table = table.drop_columns([name])
    elif kind == "twice":
        table = table.append_column(name, table.column(place))
    elif kind == "metadata":
        table = table.replace_schema_metadata({b"schema_hash": draw(st.binary(max_size=70))})
    data = bytearray(encode(table))
    if kind == "flip":
        for _ in range(draw(st.integers(1, 4))):
            data[draw(st.integers(0, len(data) - 1))] ^= 1 << draw(st.integers(0, 7))
    elif kind == "cut":
        del data[draw(st.integers(0, len(data))):]
    elif kind == "put":
        at = draw(st.integers(0, len(data)))
        data[at:at] = draw(st.binary(min_size=1, max_size=64))
    return bytes(data)


LATIN = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)
HEADERS = st.fixed_dictionaries({}, optional={
    "x-deadline-ms": st.one_of(st.sampled_from(("50000", "1e3", "-1", "0", "x", "9" * 30)), LATIN),
    "idempotency-key": st.one_of(st.uuids().map(str), LATIN, st.just("k" * 129)),
    "traceparent": st.one_of(st.just("00-" + "a" * 32 + "-" + "b" * 16 + "-01"), LATIN),
    "x-request-start": st.one_of(st.builds(lambda: f"{time.time() * 1e3:.3f}"), LATIN)})


@st.composite
def rare_headers(draw: st.DrawFn) -> dict[str, str]:
    """Headers; most often none, so that it is the body that is judged."""
    return draw(HEADERS) if draw(st.integers(0, 5)) == 0 else {}



class Reach:
    """What became of the requests of an operation that had no odd headers."""

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()

    def take(self, name: str, response: Any, headers: dict[str, str]) -> None:
        status = response.status_code
        asked_for_it = status == 503 and {"x-deadline-ms", "x-request-start", "idempotency-key"} & set(headers)
        assert status < 500 or asked_for_it or (status == 503 and name == "POST /v1/explain"), (
            f"{name}: {status} {response.text[:300]}")
        if status >= 400:
            assert "detail" in response.json(), f"{name}: {response.text[:200]}"
        if not headers:
            self.statuses[status] += 1

    @property
    def share(self) -> float:
        return sum(count for status, count in self.statuses.items() if status < 300) / self.statuses.total()


def play(world: World, operation: Operation, examples: int, arrow: bool = False) -> Reach:
    """Bent requests, each with the token of one of the roles that may use the operation."""
    reach = Reach()
    bodies = damaged(world.arrow) if arrow else bent(operation.body) if operation.body is not None else st.none()
    query = st.fixed_dictionaries({}, optional={
        name: st.one_of(st.just(value), st.just(value), st.sampled_from(("", "x", "-1", "9" * 30)),
                        st.text(max_size=5)) for name, value in operation.query.items()})

    roles = st.sampled_from(sorted(operation.roles or ROLES))

    @given(body=bodies, headers=rare_headers(), query=query, role=roles)
    @settings(max_examples=min(examples, SLOW.get(operation.path, examples)), deadline=None, database=None,
              derandomize=True, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    def one(body: bytes | None, headers: dict[str, str], query: dict[str, Any], role: str) -> None:
        sent = headers | {"Authorization": f"Bearer {role}"}
        if body is not None:
            sent["Content-Type"] = MEDIA_TYPE if arrow else JSON
        before = {"POST /v1/rearm": ("/v1/kill", {"why": "a test"}),
                  "POST /v1/model": ("/v1/model", {"source": str(world.bundle.directory)})}.get(operation.name)
        if before is not None:  # what the sound request undoes
            world.client.post(before[0], json=before[1], headers={"Authorization": "Bearer admin"})
        response = world.client.request(operation.method, operation.path, content=body, headers=sent, params=query)
        assert response.status_code not in (401, 403, 404, 405, 415) or response.status_code == OWN.get(
            operation.name), f"{operation.name}: {response.status_code}"
        reach.take(operation.name, response, headers)

    one()
    return reach


def all_reached(world: World, examples: int) -> None:
    """Bend every operation's requests; assert that each is reached as often as LEAST and OWN say."""
    lost = []
    for operation in operations(world):
        forms = [(operation.name, False)]
        if operation.path == "/v1/decide/batch":
            forms.append((f"{operation.name} arrow", True))
        for name, arrow in forms:
            reach = play(world, operation, examples, arrow)
            least = LEAST.get(name, 1.0)
            print(f"{name:32s} {reach.share:5.0%} {dict(sorted(reach.statuses.items()))}")
            if name in OWN:
                if not reach.statuses[OWN[name]]:
                    lost.append(f"{name}: never {OWN[name]}, {dict(reach.statuses)}")
            elif reach.share < least:
                lost.append(f"{name}: {reach.share:.0%} reach it, {least:.0%} must: {dict(reach.statuses)}")
    assert not lost, "\n".join(lost)


def test_bent_requests_reach_every_operation_and_none_is_a_fault_of_ours(world: World) -> None:
    all_reached(world, 40)


@pytest.mark.slow
def test_thousands_of_bent_requests_are_no_fault_of_ours(world: World) -> None:
    all_reached(world, 400)


@pytest.mark.parametrize("body", [{"why": "\ud800"}, {"why": "x", "\ud800": 1}, {"why": "secret" * 100}])
def test_a_wrong_body_is_named_and_not_repeated(world: World, body: dict[str, Any]) -> None:
    """Half a character was a 500: the answer repeated it."""
    answer = world.client.post("/v1/kill", content=json.dumps(body), headers={"Authorization": "Bearer risk"})
    assert answer.status_code == 422
    (fault,) = answer.json()["detail"]
    assert set(fault) == {"loc", "msg", "type"}
    assert fault["loc"][0] == "body"
    assert "secret" not in answer.text


def test_sound_requests_of_the_wrong_role_are_refused(world: World) -> None:
    for operation in operations(world):
        for role in ROLES:
            if operation.roles is None or role in operation.roles:
                continue
            answer = world.client.request(operation.method, operation.path, json=operation.body,
                                          headers={"Authorization": f"Bearer {role}"})
            assert answer.status_code == 403, (operation.name, role)
