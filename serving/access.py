"""Who may do what: one static table of routes and roles, deny by default.

A request whose route is not in `PERMISSIONS` needs a valid token like any other, and then finds nothing there: the
guard answers 404 before the application is asked. Paths may hold `{name}`, one segment, as the routes do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol, get_args

Role = Literal["viewer", "trader", "risk", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
_ALL = frozenset(ROLES)

OPEN_PATHS = frozenset({"/v1/health", "/v1/ready", "/v1/login", "/", "/page.js", "/page.css",
                        "/icon.svg"})
"""Answered without a token."""

OPEN_PREFIXES: tuple[str, ...] = ()
"""Folders of files that are answered without a token, as "/name/"."""

PERMISSIONS: Mapping[tuple[str, str], frozenset[Role]] = {
    ("POST", "/v1/decide"): frozenset({"trader", "admin"}),
    ("POST", "/v1/decide/batch"): frozenset({"trader", "admin"}),
    ("POST", "/v1/decide/bars"): frozenset({"trader", "admin"}),
    ("POST", "/v1/explain"): frozenset({"trader", "risk", "admin"}),
    ("GET", "/v1/state"): _ALL,
    ("GET", "/v1/openapi.json"): _ALL,
    ("WS", "/v1/stream"): _ALL,
    ("GET", "/v1/model"): _ALL,
    ("POST", "/v1/model"): frozenset({"admin"}),
    ("GET", "/v1/kill"): _ALL,
    ("POST", "/v1/kill"): frozenset({"risk", "admin"}),
    ("POST", "/v1/rearm"): frozenset({"risk", "admin"}),
    ("GET", "/v1/shadow"): _ALL,
    ("GET", "/v1/metrics"): _ALL,
    ("GET", "/v1/agents"): _ALL,
    ("GET", "/v1/signals"): _ALL,
    ("GET", "/v1/replays"): _ALL,
    ("GET", "/v1/replay"): _ALL,
}
"""(method or WS, path) -> roles. Every route of the application is here or open: a test enumerates them."""

AUDITED = frozenset({"POST", "PUT", "PATCH", "DELETE"})
"""Methods whose admitted requests leave a line in the audit log, with their answer's status, unless the route is
in UNAUDITED."""
UNAUDITED = frozenset({("POST", "/v1/decide"), ("POST", "/v1/decide/batch"), ("POST", "/v1/decide/bars"),
                       ("POST", "/v1/explain")})
"""Routes that change nothing, though they are POST."""


def is_open(path: str) -> bool:
    """Whether a path is answered without a token."""
    return path in OPEN_PATHS or path.startswith(OPEN_PREFIXES)


@lru_cache(maxsize=1024)
def route_of(path: str) -> str | None:
    """The path of PERMISSIONS that a request's path means; None if there is none."""
    templates = {route for _, route in PERMISSIONS}
    if path in templates:
        return path
    for route in sorted(templates):
        pattern = "/".join("[^/]+" if part.startswith("{") else re.escape(part) for part in route.split("/"))
        if "{" in route and re.fullmatch(pattern, path):
            return route
    return None


def methods_of(route: str) -> tuple[str, ...]:
    """What may be asked of a route of PERMISSIONS, sorted."""
    return tuple(sorted(method for method, known in PERMISSIONS if known == route))


@dataclass(frozen=True)
class Principal:
    """Who asks: a user's name, the user's role and the token's id."""

    user: str
    role: Role
    token_id: str = ""

    def may(self, method: str, path: str) -> bool:
        """Whether the table lets this role use the route; routes it does not know are nobody's."""
        return self.role in PERMISSIONS.get((method, path), frozenset())


class Refused(Exception):
    """A request that is not let in: HTTP `status` and one line for the caller.

    `retry_after`: whole seconds until another try makes sense, for the Retry-After header.
    """

    retry_after: int | None = None

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


class Authenticator(Protocol):
    """Turns a bearer token into a principal."""

    def authenticate(self, token: bytes) -> Principal:
        """The principal of `token`; Refused (401) if there is none."""
        ...
