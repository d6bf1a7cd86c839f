"""Everything the guard and the login need, built from SecuritySettings; made once per replica."""

from __future__ import annotations

import threading
from typing import Any

from algospace.errors import ConfigError
from serving.access import Authenticator, Principal, Refused
from serving.auth import StaticToken
from serving.security.audit import AUDIT, AuditLog
from serving.security.rates import Rate
from serving.security.settings import SecuritySettings
from serving.security.tokens import USER_NAME, JwtAuthenticator, TokenIssuer
from serving.security.users import LONGEST, USERS, UserStore

_MOST_LOGINS = 8
_WRONG = "wrong user or password"


def make_authenticator(settings: SecuritySettings, token_digest: bytes) -> Authenticator:
    """What the mode asks for. ConfigError if the files of mode jwt are missing or wrong."""
    return JwtAuthenticator(settings) if settings.mode == "jwt" else StaticToken(token_digest)


class Security:
    """Rates, audit log and, where this service answers logins, the means to issue tokens."""

    def __init__(self, settings: SecuritySettings, authenticator: Authenticator) -> None:
        self.settings, self.authenticator = settings, authenticator
        self.requests = Rate(settings.rates.requests)
        self._refusals = Rate(settings.rates.refusals_logged)
        self._unlogged = 0
        self.audit = AuditLog(settings.file(AUDIT)) if settings.folder is not None else None
        self.logins = Logins(settings) if settings.login else None

    def record(self, event: str, principal: Principal | None = None, **fields: Any) -> None:
        """Write an audit line, on the disk when this returns; nothing where no folder is configured."""
        if self.audit is not None:
            self.audit.append({"event": event} | _who(principal) | fields)

    def refused(self, address: str, method: str, path: str, refusal: Refused,
                principal: Principal | None = None) -> None:
        """Note a refused request; beyond the rate per address only their number."""
        if self.audit is None:
            return
        if not self._refusals.allows(address):
            self._unlogged += 1
            return
        unlogged = {"unlogged_before": self._unlogged} if self._unlogged else {}
        self._unlogged = 0
        self.audit.note(event="refused", address=address, method=method, path=path, status=refusal.status,
                        reason=refusal.detail, **_who(principal), **unlogged)


def _who(principal: Principal | None) -> dict[str, Any]:
    if principal is None:
        return {}
    return {"user": principal.user, "role": principal.role, "token_id": principal.token_id}


class Logins:
    """Name and password in, token out. Argon2 takes 64 MB and tens of milliseconds: one at a time, in a thread."""

    def __init__(self, settings: SecuritySettings) -> None:
        self._settings = settings
        self._users = UserStore(settings.file(USERS))
        self._users.verify("", "")  # a fault of the file is an error now, not at the first login
        self._issuer = TokenIssuer(settings)
        self._address, self._user = Rate(settings.rates.login_address), Rate(settings.rates.login_user)
        self._one, self._count, self._waiting = threading.Lock(), threading.Lock(), 0

    def admit(self, address: str, user: str) -> None:
        """Count an attempt; TooMany beyond a rate, Refused (503) if too many wait."""
        self._address.take(address)
        if USER_NAME.fullmatch(user):
            self._user.take(user)
        if self._waiting >= _MOST_LOGINS:
            raise Refused(503, "too many logins at once; try again")

    def login(self, user: str, password: str) -> tuple[str, dict[str, Any]]:
        """(token, its claims); Refused (401) for a wrong name or password, whichever it is. Blocks."""
        self._count_waiting(1)
        try:
            with self._one:
                if not USER_NAME.fullmatch(user) or len(password) > LONGEST:
                    raise Refused(401, _WRONG)
                found = self._users.verify(user, password)
                if found is None:
                    raise Refused(401, _WRONG)
                issued = self._issuer.issue(user, found.role, self._settings.login_seconds)
                now = self._users.users().get(user)
                if now is None or now.disabled:  # meanwhile: the revocation may be older than the token
                    raise Refused(401, _WRONG)
                return issued
        except ConfigError as error:
            raise LoginBroken(str(error)) from None
        finally:
            self._count_waiting(-1)

    def _count_waiting(self, change: int) -> None:
        with self._count:
            self._waiting += change


class LoginBroken(Refused):
    """503: the users file or the private key became unusable; `fault` says how, for the log only."""

    def __init__(self, fault: str) -> None:
        super().__init__(503, "logins are out of order; the service's log says why")
        self.fault = fault
