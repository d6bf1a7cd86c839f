"""The other side of the decision service, for programs: typed, with retries that cannot decide twice.

    with Client(url, token) as client:
        answer = client.decide(request_of(bundle, inputs))
        table = client.decide_batch(table_of(batch, bundle))      # serving.batch_arrow
        for message in client.stream():                           # comes back by itself, without gaps

`Client` and `AsyncClient` need httpx (extra `client`); `request_of` and `ask` only the standard library.
Only a connection that broke and a 503 are tried again, with the same Idempotency-Key, after what Retry-After says.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
import urllib.request
import uuid
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from serving.schemas import BarsResponse, DecideResponse

if TYPE_CHECKING:
    import httpx
    import pyarrow as pa

    from serving.bundle import Bundle
    from serving.decider import DecisionInputs

_ARROW = "application/vnd.apache.arrow.stream"
_LONGEST_PAUSE_S = 5.0
_FIRST_PAUSE_S = 0.05


def request_of(bundle: Bundle, inputs: DecisionInputs, trace_id: str | None = None) -> dict[str, Any]:
    """The request body of one decision (serving.schemas.DecideRequest)."""
    body = {"schema_hash": bundle.manifest.schema_hash} | row_of(inputs)
    return body if trace_id is None else body | {"trace_id": trace_id}


def row_of(inputs: DecisionInputs) -> dict[str, Any]:
    """A row of a batch (serving.schemas.DecideRow)."""
    market, account = inputs.market, inputs.account
    distance, strength = market.lvn
    regime = "regime" if inputs.regime.ndim == 1 else "regime_window"
    gate = inputs.gate
    return ({} if gate is None else {"gate": {"model": gate.model, "level": gate.level}}) | {
        "strategic": inputs.strategic.tolist(),
        "tactical": inputs.tactical.tolist(), regime: inputs.regime.tolist(),
        "synergy": market.synergy.tolist(), "seed": inputs.seed,
        "market": {"close": market.close, "atr": market.atr, "hour_sin": market.clock[0],
                   "hour_cos": market.clock[1], "ts_close_ns": market.ts_close_ns,
                   "low_volume_node": None if math.isnan(distance) else {"distance": distance,
                                                                         "strength": strength}},
        "account": {"position": float(account["position"]), "entry": float(account["entry"]),
                    "stop": _level(account["stop"]), "target": _level(account["target"]),
                    "equity": float(account["equity"]), "day_start": float(account["day_start"]),
                    "bars_in_trade": int(account["bars_in_trade"])}}


def ask(url: str, token: str, body: dict[str, Any], timeout_s: float = 10.0) -> dict[str, Any]:
    """POST `body` to the service at `url`, once; urllib.error.HTTPError on a refusal."""
    request = urllib.request.Request(
        f"{url}/v1/decide", data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:
        decoded: dict[str, Any] = json.loads(answer.read())
    return decoded


def _level(price: float) -> float | None:
    return None if math.isnan(price) else float(price)


class ServiceRefusal(Exception):
    """The service said no: HTTP `status` and its `detail`, a line or a list of faults."""

    def __init__(self, status: int, detail: Any, trace_id: str | None) -> None:
        super().__init__(f"{status}: {detail}")
        self.status, self.detail, self.trace_id = status, detail, trace_id


class _Tries:
    """When to try again, and when to give up."""

    def __init__(self, tries: int) -> None:
        self._left, self._pause = tries, _FIRST_PAUSE_S

    def after_break(self) -> float | None:
        """Seconds to wait after a broken connection; None: no more tries."""
        self._left -= 1
        pause, self._pause = self._pause, min(2.0 * self._pause, _LONGEST_PAUSE_S)
        return None if self._left <= 0 else pause * random.SystemRandom().uniform(0.5, 1.0)

    def after(self, response: httpx.Response) -> float | None:
        """Seconds to wait after an answer; None if it counts."""
        if response.status_code != 503:
            return None
        pause = self.after_break()
        said = response.headers.get("retry-after", "")
        return pause if pause is None or not said.isdigit() else min(float(said), _LONGEST_PAUSE_S)


class _Form:
    """What both clients share: headers, bodies and the reading of answers."""

    def __init__(self, url: str, token: str, timeout_s: float, tries: int) -> None:
        self.url, self._token, self._timeout_s, self._tries = url.rstrip("/"), token, timeout_s, tries

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token}"}

    @staticmethod
    def _once(media_type: str, key: str | None, deadline_ms: float | None) -> dict[str, str]:
        headers = {"Content-Type": media_type, "Idempotency-Key": key or uuid.uuid4().hex}
        return headers if deadline_ms is None else headers | {"x-deadline-ms": f"{deadline_ms:g}"}

    def _stream_request(self, at: _Place) -> tuple[str, dict[str, Any]]:
        scheme, rest = self.url.split("://", 1)
        address = f"{'wss' if scheme == 'https' else 'ws'}://{rest}/v1/stream{at.query()}"
        return address, {"additional_headers": self._headers(), "open_timeout": self._timeout_s, "max_size": None}


def _checked(response: httpx.Response) -> httpx.Response:
    if response.status_code == 200:
        return response
    try:
        detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        detail = response.text[:200]
    raise ServiceRefusal(response.status_code, detail, response.headers.get("x-trace-id"))


def _table(content: bytes) -> pa.Table:
    import pyarrow as pa

    return pa.ipc.open_stream(pa.BufferReader(content)).read_all()


def _encoded(table: pa.Table) -> bytes:
    from serving.batch_arrow import encode

    return encode(table)


class _Place:
    """Where in the stream a reader is."""

    stream: str | None = None
    seq = 0

    def query(self) -> str:
        """The query that resumes here."""
        return "" if self.stream is None else f"?stream={self.stream}&seq={self.seq}"

    def take(self, text: str | bytes) -> dict[str, Any] | None:
        """A message for the reader; None for a heartbeat."""
        message: dict[str, Any] = json.loads(text)
        if message["type"] == "snapshot":
            self.stream = message["stream"]
        self.seq = message["seq"]
        return None if message["type"] == "heartbeat" else message


class Client(_Form):
    """Asks one service. Safe for several threads, as httpx is; close it, or use it as a context manager."""

    def __init__(self, url: str, token: str, *, timeout_s: float = 10.0, tries: int = 4,
                 transport: httpx.BaseTransport | None = None) -> None:
        import httpx

        super().__init__(url, token, timeout_s, tries)
        self._http = httpx.Client(base_url=self.url, headers=self._headers(), timeout=timeout_s,
                                  transport=transport, trust_env=False)

    def decide(self, request: dict[str, Any], *, key: str | None = None,
               deadline_ms: float | None = None) -> DecideResponse:
        """One decision; `key` makes repetitions of this call by others of its kind the same request."""
        response = self._send("POST", "/v1/decide", json.dumps(request).encode(),
                              self._once("application/json", key, deadline_ms))
        return DecideResponse.model_validate_json(response.content)

    def decide_bars(self, request: dict[str, Any], *, key: str | None = None,
                    deadline_ms: float | None = None) -> BarsResponse:
        """A decision from raw bars (serving.schemas.BarsRequest); `state_id` goes with the next ones."""
        response = self._send("POST", "/v1/decide/bars", json.dumps(request).encode(),
                              self._once("application/json", key, deadline_ms))
        return BarsResponse.model_validate_json(response.content)

    def decide_batch(self, table: pa.Table, *, key: str | None = None,
                     deadline_ms: float | None = None) -> pa.Table:
        """Many decisions (serving.batch_arrow: `table_of` makes the table, ANSWER is what comes back)."""
        headers = self._once(_ARROW, key, deadline_ms)
        return _table(self._send("POST", "/v1/decide/batch", _encoded(table), headers).content)

    def get(self, path: str) -> dict[str, Any]:
        """Any GET route, as "/v1/health"."""
        decoded: dict[str, Any] = self._send("GET", path, None, {}).json()
        return decoded

    def stream(self, *, follow: bool = True) -> Iterator[dict[str, Any]]:
        """Snapshots and deltas, without gaps; with `follow` a broken connection is made anew where it broke, also
        while there is no room (503).

        ServiceRefusal if the service lets nobody in; ConnectionError after `tries` failed connections in a row.
        """
        from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus
        from websockets.sync.client import connect

        at, tries = _Place(), _Tries(self._tries)
        while True:
            address, options = self._stream_request(at)
            try:
                with connect(address, proxy=None, **options) as socket:
                    for text in socket:
                        tries = _Tries(self._tries)
                        message = at.take(text)
                        if message is not None:
                            yield message
            except InvalidStatus as error:
                if not follow or error.response.status_code != 503:
                    raise _refused(error) from None
            except (ConnectionClosed, InvalidMessage, OSError, TimeoutError):
                if not follow:
                    raise
            if not follow:
                return
            pause = tries.after_break()
            if pause is None:
                raise ConnectionError(f"{self.url}: the stream broke off {self._tries} times in a row")
            time.sleep(pause)

    def _send(self, method: str, path: str, content: bytes | None, headers: dict[str, str]) -> httpx.Response:
        import httpx

        tries = _Tries(self._tries)
        while True:
            try:
                response = self._http.request(method, path, content=content, headers=headers)
            except (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout):
                pause = tries.after_break()
                if pause is None:
                    raise
            else:
                pause = tries.after(response)
                if pause is None:
                    return _checked(response)
            time.sleep(pause)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


class AsyncClient(_Form):
    """`Client` for asyncio."""

    def __init__(self, url: str, token: str, *, timeout_s: float = 10.0, tries: int = 4,
                 transport: httpx.AsyncBaseTransport | None = None) -> None:
        import httpx

        super().__init__(url, token, timeout_s, tries)
        self._http = httpx.AsyncClient(base_url=self.url, headers=self._headers(), timeout=timeout_s,
                                       transport=transport, trust_env=False)

    async def decide(self, request: dict[str, Any], *, key: str | None = None,
                     deadline_ms: float | None = None) -> DecideResponse:
        """See Client."""
        response = await self._send("POST", "/v1/decide", json.dumps(request).encode(),
                                    self._once("application/json", key, deadline_ms))
        return DecideResponse.model_validate_json(response.content)

    async def decide_bars(self, request: dict[str, Any], *, key: str | None = None,
                          deadline_ms: float | None = None) -> BarsResponse:
        """See Client."""
        response = await self._send("POST", "/v1/decide/bars", json.dumps(request).encode(),
                                    self._once("application/json", key, deadline_ms))
        return BarsResponse.model_validate_json(response.content)

    async def decide_batch(self, table: pa.Table, *, key: str | None = None,
                           deadline_ms: float | None = None) -> pa.Table:
        """See Client."""
        response = await self._send("POST", "/v1/decide/batch", _encoded(table),
                                    self._once(_ARROW, key, deadline_ms))
        return _table(response.content)

    async def get(self, path: str) -> dict[str, Any]:
        """See Client."""
        decoded: dict[str, Any] = (await self._send("GET", path, None, {})).json()
        return decoded

    async def stream(self, *, follow: bool = True) -> AsyncIterator[dict[str, Any]]:
        """See Client."""
        from websockets.asyncio.client import connect
        from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus

        at, tries = _Place(), _Tries(self._tries)
        while True:
            address, options = self._stream_request(at)
            try:
                async with connect(address, proxy=None, **options) as socket:
                    async for text in socket:
                        tries = _Tries(self._tries)
                        message = at.take(text)
                        if message is not None:
                            yield message
            except InvalidStatus as error:
                if not follow or error.response.status_code != 503:
                    raise _refused(error) from None
            except (ConnectionClosed, InvalidMessage, OSError, TimeoutError):
                if not follow:
                    raise
            if not follow:
                return
            pause = tries.after_break()
            if pause is None:
                raise ConnectionError(f"{self.url}: the stream broke off {self._tries} times in a row")
            await asyncio.sleep(pause)

    async def _send(self, method: str, path: str, content: bytes | None,
                    headers: dict[str, str]) -> httpx.Response:
        import httpx

        tries = _Tries(self._tries)
        while True:
            try:
                response = await self._http.request(method, path, content=content, headers=headers)
            except (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout):
                pause = tries.after_break()
                if pause is None:
                    raise
            else:
                pause = tries.after(response)
                if pause is None:
                    return _checked(response)
            await asyncio.sleep(pause)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None,
                        trace: TracebackType | None) -> None:
        await self.aclose()


def _refused(error: Any) -> ServiceRefusal:
    """What the service said instead of opening a stream."""
    response = error.response
    return ServiceRefusal(response.status_code, bytes(response.body or b"").decode("utf-8", "replace")[:200],
                          response.headers.get("x-trace-id"))
