"""`algospace user`, `keys` and `audit`: who may use the service, with which keys, and what was done.

Every change leaves a line in the folder's audit log.
"""

from __future__ import annotations

import getpass
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from algospace.errors import ConfigError

Folder = Annotated[Path, typer.Option(help="The service's security folder.")]
Name = Annotated[str, typer.Argument(help="The user's name.")]
_PASSWORD = "ALGOSPACE_PASSWORD"
_DAY = 86_400.0
_LONGEST_DAYS = 366.0
_DEFAULT = Path("security")


def register(app: typer.Typer) -> None:
    """Add the groups to `app`."""
    user = typer.Typer(no_args_is_help=True, help="Users of the decision service, and tokens for scripts.")
    user.command("add")(add_user)
    user.command("list")(list_users)
    user.command("remove")(remove_user)
    user.command("disable")(disable_user)
    user.command("token")(issue_token)
    user.command("revoke")(revoke_token)
    app.add_typer(user, name="user")
    keys = typer.Typer(no_args_is_help=True, help="Keys that sign the service's tokens.")
    keys.command("rotate")(rotate_keys)
    keys.command("retire")(retire_key)
    keys.command("list")(list_keys)
    app.add_typer(keys, name="keys")
    audit = typer.Typer(no_args_is_help=True, help="The service's audit log.")
    audit.command("verify")(verify_audit)
    app.add_typer(audit, name="audit")


def add_user(
    name: Name,
    role: Annotated[str, typer.Option(help="viewer, trader, risk or admin.")] = "viewer",
    folder: Folder = _DEFAULT,
    password_file: Annotated[Path | None, typer.Option(help="File with the password; else ALGOSPACE_PASSWORD; "
                                                            "else it is asked for.")] = None,
) -> None:
    """Let a new user log in.

    Example: algospace user add ann --role trader --folder security
    """
    from serving.access import ROLES

    if role not in ROLES:
        raise ConfigError(f"role '{role}': one of {', '.join(ROLES)}")
    log = _audit(folder, new=True)
    _store(folder).add(name, role, _password(password_file))
    log.append(_event("user_added", name=name, given_role=role))
    typer.echo(f"{name} may log in as {role}")


def list_users(folder: Folder = _DEFAULT) -> None:
    """Name, role and state of every user.

    Example: algospace user list --folder security
    """
    for name, user in sorted(_store(folder).users().items()):
        typer.echo(f"{name}\t{user.role}\t{'disabled' if user.disabled else 'active'}\t{_day(user.created)}")


def remove_user(name: Name, folder: Folder = _DEFAULT) -> None:
    """Forget a user; the user's tokens are refused from now on.

    Example: algospace user remove ann --folder security
    """
    from serving.security.tokens import REVOKED, read_revocations, revoke

    log, store = _audit(folder), _store(folder)
    read_revocations(folder / REVOKED)  # a damaged one is found before anything is changed
    store.remove(name)
    revoke(folder / REVOKED, user=name)
    log.append(_event("user_removed", name=name))
    typer.echo(f"{name} is removed, its tokens are revoked")


def disable_user(
    name: Name,
    folder: Folder = _DEFAULT,
    enable: Annotated[bool, typer.Option("--enable", help="Let a disabled user log in again.")] = False,
) -> None:
    """Let a user log in no more; the user's tokens are refused from now on.

    Example: algospace user disable ann --folder security
    """
    from serving.security.tokens import REVOKED, read_revocations, revoke

    log = _audit(folder)
    read_revocations(folder / REVOKED)  # a damaged one is found before anything is changed
    _store(folder).disable(name, not enable)
    if not enable:
        revoke(folder / REVOKED, user=name)
    log.append(_event("user_enabled" if enable else "user_disabled", name=name))
    typer.echo(f"{name} may log in again" if enable else f"{name} is disabled, its tokens are revoked")


def issue_token(
    name: Name,
    folder: Folder = _DEFAULT,
    days: Annotated[float, typer.Option(help="How long it is valid, at most 366.")] = 30.0,
    issuer: Annotated[str, typer.Option(help="As security.issuer of the service.")] = "algospace",
    audience: Annotated[str, typer.Option(help="As security.audience of the service.")] = "algospace-decisions",
) -> None:
    """Issue a token for a user's scripts: the token on stdout, its id on stderr.

    Example: algospace user token ann --days 30 --folder security > token.txt
    """
    from serving.security.settings import SecuritySettings
    from serving.security.tokens import TokenIssuer

    if not 0.0 < days <= _LONGEST_DAYS:
        raise ConfigError(f"--days {days:g}: more than 0 and at most {_LONGEST_DAYS:g}")
    user = _store(folder).get(name)
    if user.disabled:
        raise ConfigError(f"{name} is disabled; 'algospace user disable {name} --enable' lets it in again")
    settings = SecuritySettings(mode="jwt", folder=folder, issuer=issuer, audience=audience)
    log = _audit(folder)
    token, claims = TokenIssuer(settings).issue(name, user.role, days * _DAY)
    log.append(_event("token_issued", name=name, given_role=user.role, token_id=claims["jti"],
                      until=claims["exp"]))
    typer.echo(f"token {claims['jti']} of {name} ({user.role}), valid until {_day(claims['exp'])}", err=True)
    typer.echo(token)


def revoke_token(
    token_id: Annotated[str, typer.Argument(help="The token's id (jti), as the audit log names it.")],
    folder: Folder = _DEFAULT,
) -> None:
    """Refuse one token from now on; running services notice within security.reread_seconds.

    Example: algospace user revoke 0123456789abcdef0123456789abcdef --folder security
    """
    from serving.security.tokens import REVOKED, revoke

    if len(token_id) != 32 or not set(token_id) <= set("0123456789abcdef"):
        raise ConfigError(f"'{token_id}' is no token id; give the 32 hexadecimal digits, not the token")
    log = _audit(folder)
    revoke(folder / REVOKED, token_id, expires=time.time() + (_LONGEST_DAYS + 1) * _DAY)
    log.append(_event("token_revoked", token_id=token_id))
    typer.echo(f"{token_id} is revoked")


def rotate_keys(folder: Folder = _DEFAULT) -> None:
    """Make a new signing key; tokens of earlier keys stay good until `keys retire`.

    Example: algospace keys rotate --folder security
    """
    from serving.security.keys import rotate
    from serving.security.tokens import KEYS

    log = _audit(folder, new=True)
    kid = rotate(folder / KEYS)
    log.append(_event("key_made", kid=kid))
    typer.echo(f"{kid} signs from now on")


def retire_key(kid: Annotated[str, typer.Argument(help="The key's id.")], folder: Folder = _DEFAULT) -> None:
    """Refuse every token that was signed with an earlier key.

    Example: algospace keys retire 0123456789abcdef --folder security
    """
    from serving.security.keys import retire
    from serving.security.tokens import KEYS

    log = _audit(folder)
    retire(folder / KEYS, kid)
    log.append(_event("key_retired", kid=kid))
    typer.echo(f"{kid} is retired")


def list_keys(folder: Folder = _DEFAULT) -> None:
    """Id, state and day of every key, oldest first.

    Example: algospace keys list --folder security
    """
    from serving.security.keys import key_ring_file, read_key_ring
    from serving.security.tokens import KEYS

    ring = read_key_ring(key_ring_file(folder / KEYS))
    for key in ring.keys:
        state = "retired" if key.retired else "signs" if key is ring.newest else "verifies"
        typer.echo(f"{key.kid}\t{state}\t{_day(key.created)}")


def verify_audit(
    folder: Folder = _DEFAULT,
    holds: Annotated[str | None, typer.Option(help="A hash noted earlier that must be among the lines: shows a "
                                                   "log that was made anew or cut.")] = None,
) -> int:
    """Check the chain; names the first line that is altered, missing or out of order. Exit code 2 if there is one.

    Example: algospace audit verify --folder security
    """
    from serving.security.audit import AUDIT, verify

    verdict = verify(folder / AUDIT, holds)
    if verdict.fault is not None:
        raise ConfigError(f"{folder / AUDIT}, {verdict.fault}; keep the file and find out who could write it")
    if not verdict.held:
        raise ConfigError(f"{folder / AUDIT}: {holds} is not among its {verdict.lines} lines; the log was cut or "
                          "made anew")
    typer.echo(f"{verdict.lines} lines, head {verdict.head}")
    return 0


def _store(folder: Path) -> Any:
    from serving.security.users import USERS, UserStore

    return UserStore(folder / USERS)


def _audit(folder: Path, new: bool = False) -> Any:
    """The folder's log. Only what is `new` may begin a folder: a token revoked in a mistyped one is good
    everywhere."""
    from serving.security.audit import AUDIT, AuditLog
    from serving.security.keys import key_ring_file
    from serving.security.tokens import KEYS

    if not new and not key_ring_file(folder / KEYS).is_file():
        raise ConfigError(f"{folder}: holds no {KEYS}, so no service uses it and nothing has changed; name the "
                          "service's security.folder with --folder")
    return AuditLog(folder / AUDIT)


def _event(event: str, **fields: Any) -> dict[str, Any]:
    """An audit event of a command: `by` is the account of the operating system."""
    try:
        by = getpass.getuser()
    except (KeyError, OSError):  # an account without a name, in a container
        by = str(os.getuid())
    return {"event": event, "by": by} | fields


def _password(file: Path | None) -> str:
    if file is not None:
        try:
            return file.read_text(encoding="utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise ConfigError(f"{file}: a password is one line of UTF-8 text") from None
    if _PASSWORD in os.environ:
        return os.environ[_PASSWORD]
    if not sys.stdin.isatty():
        raise ConfigError(f"no terminal to ask for the password; give --password-file or {_PASSWORD}")
    return str(typer.prompt("password", hide_input=True, confirmation_prompt=True))


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="minutes")
