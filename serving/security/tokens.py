"""Signed tokens (JWT, EdDSA only): issued where the private key is, verified with public keys, revocable."""

from __future__ import annotations

import hashlib
import math
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import jwt

from algospace.errors import ConfigError
from serving.access import ROLES, Principal, Refused, Role
from serving.security.guarded_files import PUBLIC, Watched, locked, read_guarded_json, write_guarded_json
from serving.security.keys import key_ring_file, read_key_ring, read_private_key
from serving.security.settings import SecuritySettings

ALGORITHM = "EdDSA"
CLAIMS = ("aud", "iss", "exp", "iat", "jti", "sub", "role")
USER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")
KEYS, REVOKED = "keys", "revoked.json"
_LONGEST = 4096
_FORM = re.compile(rb"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_HEADER = {"alg", "typ", "kid"}
_CACHED = 10_000
_WRONG = "the token is not valid; log in, or have one issued with 'algospace user token'"


@dataclass(frozen=True)
class Revocations:
    """Token ids that are not believed (with their expiry), and users whose tokens issued until a time are not."""

    tokens: Mapping[str, float] = field(default_factory=dict)
    users: Mapping[str, float] = field(default_factory=dict)

    def hold(self, claims: Mapping[str, Any]) -> bool:
        """Whether a token with these claims is revoked."""
        return claims["jti"] in self.tokens or claims["iat"] <= self.users.get(claims["sub"], float("-inf"))


def read_revocations(path: Path) -> Revocations:
    """The revocations in a file, none if there is no file; ConfigError if it is damaged."""
    if not path.exists():
        return Revocations()
    fix = "restore it from a copy: without it revoked tokens would be believed again"
    values = read_guarded_json(path, "list of revoked tokens", PUBLIC, fix)
    try:
        if set(values) != {"tokens", "users"}:
            raise ValueError
        return Revocations({str(k): float(v) for k, v in values["tokens"].items()},
                           {str(k): float(v) for k, v in values["users"].items()})
    except (AttributeError, TypeError, ValueError):
        raise ConfigError(f"{path}: the list of revoked tokens is damaged; {fix}") from None


def revoke(path: Path, token_id: str | None = None, user: str | None = None, expires: float = 2.0**40,
           clock: Callable[[], float] = time.time) -> None:
    """Revoke one token (until it has expired anyway, at `expires`), or all that a user has now."""
    with locked(path):
        known = read_revocations(path)
        tokens = {k: v for k, v in known.tokens.items() if v > clock()}
        users = dict(known.users)
        if token_id is not None:
            tokens[token_id] = expires
        if user is not None:
            users[user] = _now(clock)
        write_guarded_json(path, {"tokens": tokens, "users": users}, PUBLIC)


def _now(clock: Callable[[], float]) -> float:
    """Milliseconds tell a token from a revocation just before it."""
    return round(clock(), 3)


class TokenIssuer:
    """Signs tokens with the newest key. ConfigError if this machine does not hold it."""

    def __init__(self, settings: SecuritySettings, clock: Callable[[], float] = time.time) -> None:
        self._settings, self._clock, self._folder = settings, clock, settings.file(KEYS)
        self._ring = Watched(key_ring_file(self._folder), read_key_ring, settings.reread_seconds)
        self._load()

    def _load(self) -> None:
        newest = self._ring.value().newest
        self._private = read_private_key(self._folder, newest)
        self._kid, self._generation = newest.kid, self._ring.generation

    def issue(self, user: str, role: Role, seconds: float) -> tuple[str, dict[str, Any]]:
        """(token, its claims) for a user, valid from now for `seconds`."""
        self._ring.value()
        if self._ring.generation != self._generation:
            self._load()
        now = _now(self._clock)
        claims = {"iss": self._settings.issuer, "aud": self._settings.audience, "sub": user, "role": role,
                  "iat": now, "exp": math.ceil(now + seconds), "jti": secrets.token_hex(16)}
        return jwt.encode(claims, self._private, algorithm=ALGORITHM, headers={"kid": self._kid}), claims


class JwtAuthenticator:
    """Verifies tokens (see Authenticator); a verified one is remembered by its SHA-256 until it expires.

    Everything remembered is forgotten when the key ring or the revocations change. ConfigError without keys.
    """

    def __init__(self, settings: SecuritySettings, clock: Callable[[], float] = time.time,
                 monotonic: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._clock = settings, clock
        every = settings.reread_seconds
        self._ring = Watched(key_ring_file(settings.file(KEYS)), read_key_ring, every, monotonic)
        self._revoked = Watched(settings.file(REVOKED), read_revocations, every, monotonic)
        self._known: dict[bytes, tuple[Principal, float]] = {}
        self._state = (-1, -1)

    def authenticate(self, token: bytes) -> Principal:
        """See Authenticator."""
        ring, revoked = self._ring.value(), self._revoked.value()
        state = (self._ring.generation, self._revoked.generation)
        if state != self._state:
            self._known.clear()
            self._keys, self._state = ring.verifying(), state
        if len(token) > _LONGEST:
            raise Refused(401, _WRONG)
        digest = hashlib.sha256(token).digest()
        known = self._known.get(digest)
        if known is None:
            known = self._verify(token, revoked)
            if len(self._known) >= _CACHED:
                del self._known[next(iter(self._known))]  # the oldest
            self._known[digest] = known
        principal, expires = known
        if self._clock() >= expires:
            del self._known[digest]
            raise Refused(401, "the token has expired; log in again")
        return principal

    def _verify(self, token: bytes, revoked: Revocations) -> tuple[Principal, float]:
        """(principal, when to stop believing it)."""
        try:
            claims = self._claims(token)
        except jwt.ExpiredSignatureError:
            raise Refused(401, "the token has expired; log in again") from None
        except (jwt.PyJWTError, ValueError, OverflowError, RecursionError):  # a header may be nested JSON
            raise Refused(401, _WRONG) from None
        if revoked.hold(claims):
            raise Refused(401, "the token was revoked; log in again")
        principal = Principal(claims["sub"], cast(Role, claims["role"]), claims["jti"])
        return principal, float(claims["exp"]) + self._settings.leeway_seconds

    def _claims(self, token: bytes) -> dict[str, Any]:
        if not _FORM.fullmatch(token):
            raise jwt.DecodeError
        header = jwt.get_unverified_header(token)
        key = self._keys.get(str(header.get("kid")))
        if key is None or set(header) != _HEADER or header["alg"] != ALGORITHM or header["typ"] != "JWT":
            raise jwt.DecodeError
        claims: dict[str, Any] = jwt.decode(
            token, key, algorithms=[ALGORITHM], audience=self._settings.audience, issuer=self._settings.issuer,
            leeway=self._settings.leeway_seconds, options={"require": list(CLAIMS), "strict_aud": True})
        numbers = all(isinstance(claims[name], (int, float)) for name in ("iat", "exp"))
        if not (numbers and claims["role"] in ROLES and USER_NAME.fullmatch(claims["sub"]) and claims["jti"]):
            raise jwt.DecodeError
        return claims
