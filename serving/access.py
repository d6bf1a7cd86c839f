"""Who may do what: one static table of routes and roles, deny by default.

A request whose route is not in `PERMISSIONS` needs a valid token like any other, and then finds nothing there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

Role = Literal["viewer", "trader", "risk", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
_ALL = frozenset(ROLES)

OPEN_PATHS = frozenset({"/v1/health", "/v1/ready", "/", "/page.js", "/page.css",
                        "/icon.svg"})
"""Answered without a token."""

PERMISSIONS: Mapping[tuple[str, str], frozenset[Role]] = {
    ("POST", "/v1/decide"): frozenset({"trader", "admin"}),
    ("POST", "/v1/decide/bars"): frozenset({"trader", "admin"}),
    ("GET", "/v1/state"): _ALL,
    ("WS", "/v1/stream"): _ALL,
    ("GET", "/v1/model"): _ALL,
    ("POST", "/v1/model"): frozenset({"admin"}),
    ("GET", "/v1/shadow"): _ALL,
    ("GET", "/v1/agents"): _ALL,
    ("GET", "/v1/signals"): _ALL,
    ("GET", "/v1/replays"): _ALL,
    ("GET", "/v1/replay"): _ALL,
}
"""(method or WS, path) -> roles. Every route of the application is here or open: a test enumerates them."""


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
    """A request that is not let in: HTTP `status` and one line for the caller."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


class Authenticator(Protocol):
    """Turns a bearer token into a principal."""

    def authenticate(self, token: bytes) -> Principal:
        """The principal of `token`; Refused (401) if there is none."""
        ...
