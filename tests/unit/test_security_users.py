"""Users, the commands that manage them, and configurations that hold a secret."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher

from algospace import cli
from algospace.config import parse_config, read_yaml
from algospace.errors import ConfigError
from serving.security import commands
from serving.security.audit import AUDIT, read, verify
from serving.security.gate import Logins
from serving.security.settings import SecuritySettings, refuse_secrets
from serving.security.tokens import JwtAuthenticator
from serving.security.users import UserStore

PASSWORD = "correct horse battery"
CHEAP = PasswordHash((Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1),))
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    app = typer.Typer(pretty_exceptions_enable=False)
    commands.register(app)
    monkeypatch.setattr(cli, "build_app", lambda: app)
    monkeypatch.setenv("ALGOSPACE_PASSWORD", PASSWORD)
    monkeypatch.setattr(commands, "_store", lambda folder: UserStore(folder / "users.json", CHEAP))

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["algospace", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return run


@pytest.fixture
def folder(call: Call, tmp_path: Path) -> Path:
    folder = tmp_path / "security"
    assert call("keys", "rotate", "--folder", folder)[0] == 0
    assert call("user", "add", "ann", "--role", "trader", "--folder", folder)[0] == 0
    return folder


def test_a_users_way_from_add_to_remove(call: Call, folder: Path) -> None:
    path = folder / "users.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert json.loads(path.read_text())["users"]["ann"]["password"].startswith("$argon2id$")
    assert PASSWORD not in path.read_text()
    store = UserStore(path)
    found = store.verify("ann", PASSWORD)
    assert found is not None
    assert found.role == "trader"
    assert store.verify("ann", PASSWORD + "x") is None
    assert store.verify("bob", "nobody has this password") is None
    assert call("user", "list", "--folder", folder)[1].startswith("ann\ttrader\tactive\t")

    code, token, err = call("user", "token", "ann", "--days", "1", "--folder", folder)
    assert code == 0
    authenticator = JwtAuthenticator(SecuritySettings(mode="jwt", folder=folder, reread_seconds=0))
    principal = authenticator.authenticate(token.strip().encode())
    assert (principal.user, principal.role) == ("ann", "trader")
    assert principal.token_id in err
    assert call("user", "revoke", principal.token_id, "--folder", folder)[0] == 0
    with pytest.raises(Exception, match="revoked"):
        authenticator.authenticate(token.strip().encode())

    token = call("user", "token", "ann", "--folder", folder)[1].strip()
    authenticator.authenticate(token.encode())
    assert call("user", "disable", "ann", "--folder", folder)[0] == 0
    assert UserStore(path).verify("ann", PASSWORD) is None
    with pytest.raises(Exception, match="revoked"):
        authenticator.authenticate(token.encode())
    assert call("user", "token", "ann", "--folder", folder)[0] == 2
    assert call("user", "remove", "ann", "--folder", folder)[0] == 0
    code, out, _ = call("audit", "verify", "--folder", folder)
    assert code == 0
    assert out.startswith("7 lines, head ")
    assert [row["event"] for row in read(folder / AUDIT)] == [
        "key_made", "user_added", "token_issued", "token_revoked", "token_issued", "user_disabled", "user_removed"]


@pytest.mark.parametrize("fault", ["missing", "corrupt", "mode", "role", "folder"])
@pytest.mark.parametrize("words", ["list", "token", "disable", "add"])
def test_a_faulty_users_file_is_one_line(call: Call, folder: Path, fault: str, words: str) -> None:
    path = folder / "users.json"
    text = path.read_text()
    if fault == "missing":
        path.unlink()
    elif fault == "corrupt":
        path.write_text(text[:-9])
    elif fault == "mode":
        path.chmod(0o644)
    elif fault == "role":
        path.write_text(text.replace("trader", "owner"))
    else:
        path.unlink()
        path.mkdir()
    if (words, fault) == ("add", "missing"):
        return  # the first user makes the file
    name = {"list": [], "add": ["bob"]}.get(words, ["ann"])
    code, out, err = call("user", words, *name, "--folder", folder)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert str(path) in err
    settings = SecuritySettings(mode="jwt", folder=folder, login=True)
    with pytest.raises(ConfigError, match="users"):
        Logins(settings)


@pytest.mark.parametrize("words", [
    ("user", "add", "ann"), ("user", "add", "a b"), ("user", "add", "../x"),
    ("user", "add", "x", "--role", "owner"),
    ("user", "remove", "bob"), ("user", "disable", "bob"), ("user", "token", "ann", "--days", "0"),
    ("user", "token", "ann", "--days", "4000"), ("user", "revoke", "abc"), ("keys", "retire", "abc"),
    ("user", "token", "bob"),
])
def test_wrong_orders_are_one_line_and_change_nothing(call: Call, folder: Path, words: tuple[str, ...]) -> None:
    before = (folder / "users.json").read_bytes()
    code, out, err = call(*words, "--folder", folder)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert (folder / "users.json").read_bytes() == before


@pytest.mark.parametrize("words", [
    ("user", "remove", "ann"), ("user", "disable", "ann"), ("user", "token", "ann"), ("user", "revoke", "0" * 32),
    ("keys", "retire", "abc"), ("keys", "list"), ("user", "list"), ("audit", "verify"),
])
def test_a_folder_that_no_service_uses_is_refused_and_not_made(call: Call, tmp_path: Path,
                                                               words: tuple[str, ...]) -> None:
    """A token revoked in a mistyped folder is good everywhere."""
    code, out, err = call(*words, "--folder", tmp_path / "mistyped")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert not (tmp_path / "mistyped").exists()


def test_short_passwords_are_refused(call: Call, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("short\n")
    code, _, err = call("user", "add", "bob", "--password-file", file, "--folder", folder)
    assert code == 2
    assert "12 to 256" in err
    assert "short" not in err.replace("shorter", "")


def test_an_altered_audit_log_ends_with_exit_code_2(call: Call, folder: Path) -> None:
    path = folder / AUDIT
    head = verify(path).head
    assert call("audit", "verify", "--holds", head, "--folder", folder)[0] == 0
    assert call("audit", "verify", "--holds", "0" * 64, "--folder", folder)[0] == 2
    path.write_bytes(path.read_bytes().replace(b'"ann"', b'"eve"', 1))
    code, _, err = call("audit", "verify", "--folder", folder)
    assert code == 2
    assert "line 2: altered" in err


@pytest.mark.parametrize("text", [
    "app: {security: {password: hunter2hunter2}}", "token: abcdefghijklmnop", "app: {api_key: abc}",
    "app: {security: {issuer: 'eyJhbGciOi.eyJzdWIi.c2ln'}}", "app: {security: {origins: ['https://a:pw@host']}}",
    "app: {security: {issuer: \"-----BEGIN PRIVATE KEY-----\"}}", "x: ['$argon2id$v=19$m=65536']",
])
def test_a_configuration_that_holds_a_secret_is_refused_without_showing_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="looks like a secret") as error:
        refuse_secrets(read_yaml(path), path)
    for secret in ("hunter2", "abcdef", "eyJ", "pw@", "BEGIN", "argon2id"):
        assert secret not in str(error.value)


def test_the_configurations_of_the_project_hold_no_secret() -> None:
    for path in (Path(__file__).resolve().parents[2] / "configs" / "serve").glob("*.yaml"):
        refuse_secrets(read_yaml(path), path)


@pytest.mark.parametrize("values", [
    {"mode": "jwt"}, {"login": True}, {"mode": "open"}, {"rates": {"requests": "often"}}, {"origins": ["*"]},
    {"origins": ["https://a/b"]}, {"body_seconds": 0}, {"surprise": 1},
])
def test_wrong_settings_are_one_line(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config(SecuritySettings, values)
    assert "\n" not in str(error.value)
