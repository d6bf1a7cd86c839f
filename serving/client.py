"""The other side of /v1/decide: what a caller sends. Standard library only, for scripts and the quickstart."""

from __future__ import annotations

import json
import math
import urllib.request
from typing import Any

from serving.bundle import Bundle
from serving.decider import DecisionInputs


def request_of(bundle: Bundle, inputs: DecisionInputs, trace_id: str | None = None) -> dict[str, Any]:
    """The request body of one decision (serving.schemas.DecideRequest)."""
    market, account = inputs.market, inputs.account
    distance, strength = market.lvn
    regime = "regime" if inputs.regime.ndim == 1 else "regime_window"
    body: dict[str, Any] = {
        "schema_hash": bundle.manifest.schema_hash, "strategic": inputs.strategic.tolist(),
        "tactical": inputs.tactical.tolist(), regime: inputs.regime.tolist(),
        "synergy": market.synergy.tolist(), "seed": inputs.seed,
        "market": {"close": market.close, "atr": market.atr, "hour_sin": market.clock[0],
                   "hour_cos": market.clock[1],
                   "low_volume_node": None if math.isnan(distance) else {"distance": distance,
                                                                         "strength": strength}},
        "account": {"position": float(account["position"]), "entry": float(account["entry"]),
                    "stop": _level(account["stop"]), "target": _level(account["target"]),
                    "equity": float(account["equity"]), "day_start": float(account["day_start"]),
                    "bars_in_trade": int(account["bars_in_trade"])}}
    return body if trace_id is None else body | {"trace_id": trace_id}


def ask(url: str, token: str, body: dict[str, Any], timeout_s: float = 10.0) -> dict[str, Any]:
    """POST `body` to the service at `url`; urllib.error.HTTPError on a refusal."""
    request = urllib.request.Request(
        f"{url}/v1/decide", data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:
        decoded: dict[str, Any] = json.loads(answer.read())
    return decoded


def _level(price: float) -> float | None:
    return None if math.isnan(price) else float(price)
