"""Who may log in: one file (mode 0600) of names, roles and Argon2 hashes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import cast

from pwdlib import PasswordHash
from pwdlib.exceptions import PwdlibError
from pwdlib.hashers.argon2 import Argon2Hasher

from algospace.errors import ConfigError
from serving.access import ROLES, Role
from serving.security.guarded_files import SECRET, locked, read_guarded_json, write_guarded_json
from serving.security.tokens import USER_NAME

USERS = "users.json"
SHORTEST, LONGEST = 12, 256
_FIX = "make it with 'algospace user add', or restore it from a copy"
_FIELDS = {"role", "password", "disabled", "created"}


@dataclass(frozen=True)
class User:
    """`password`: its Argon2 hash; `created`: seconds since 1970."""

    role: Role
    password: str
    disabled: bool
    created: float


class UserStore:
    """The users of a file, read anew at every call: logins are rare, and a disabled user is out at once."""

    def __init__(self, path: Path, hasher: PasswordHash | None = None,
                 clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = path, clock
        self._hasher = hasher or PasswordHash((Argon2Hasher(),))

    @cached_property
    def _nobody(self) -> str:
        """A hash that is as slow to compare with as a user's."""
        return self._hasher.hash("nobody has this password")

    def users(self) -> dict[str, User]:
        """Name -> user; ConfigError if the file is missing, damaged or readable by others."""
        values = read_guarded_json(self._path, "users file", SECRET, _FIX).get("users")
        if not isinstance(values, dict):
            raise ConfigError(f"{self._path}: the users file is damaged; {_FIX}")
        return {name: self._user(name, value) for name, value in values.items()}

    def _user(self, name: str, value: object) -> User:
        if (not isinstance(value, dict) or set(value) != _FIELDS or value["role"] not in ROLES
                or not USER_NAME.fullmatch(name) or not isinstance(value["password"], str)
                or not isinstance(value["disabled"], bool) or not isinstance(value["created"], (int, float))):
            raise ConfigError(f"{self._path}: the entry of user '{name}' is damaged; {_FIX}")
        return User(cast(Role, value["role"]), value["password"], value["disabled"], float(value["created"]))

    def verify(self, name: str, password: str) -> User | None:
        """The user if the password is right and the user not disabled; takes as long for a name nobody has."""
        user = self.users().get(name)
        try:
            right = self._hasher.verify(password, user.password if user else self._nobody)
        except PwdlibError:
            raise ConfigError(f"{self._path}: the password of user '{name}' is damaged; {_FIX}") from None
        return user if user is not None and right and not user.disabled else None

    def add(self, name: str, role: Role, password: str) -> None:
        """A new user; the file is made if there is none. ConfigError if the name is taken or a rule is broken."""
        if not USER_NAME.fullmatch(name):
            raise ConfigError(f"user name '{name}': use 1 to 64 letters, digits and . _ - @, a letter or digit "
                              "first")
        if not SHORTEST <= len(password) <= LONGEST:
            raise ConfigError(f"a password has {SHORTEST} to {LONGEST} characters; this one has {len(password)}")
        with locked(self._path):
            users = self.users() if self._path.exists() else {}
            if name in users:
                raise ConfigError(f"{self._path}: there is a user '{name}'; remove it first, or take another name")
            self._write(users | {name: User(role, self._hasher.hash(password), False, self._clock())})

    def remove(self, name: str) -> None:
        """Forget a user; ConfigError if there is none of that name."""
        with locked(self._path):
            users = self.users()
            self._known(users, name)
            self._write({other: user for other, user in users.items() if other != name})

    def disable(self, name: str, disabled: bool = True) -> None:
        """Keep a user, but let it log in no more (or again)."""
        with locked(self._path):
            users = self.users()
            self._known(users, name)
            self._write(users | {name: replace(users[name], disabled=disabled)})

    def get(self, name: str) -> User:
        """A user by name; ConfigError if there is none."""
        users = self.users()
        self._known(users, name)
        return users[name]

    def _known(self, users: dict[str, User], name: str) -> None:
        if name not in users:
            raise ConfigError(f"{self._path}: no user '{name}'; 'algospace user list' names them")

    def _write(self, users: dict[str, User]) -> None:
        write_guarded_json(self._path, {"users": {name: asdict(user) for name, user in users.items()}}, SECRET)
