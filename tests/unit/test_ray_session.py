"""A Ray cluster that is not there is one line, at once; a local one is closed to others."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from algospace import ray_token
from algospace.errors import ConfigError
from tests.ray_callers import answers
from training.ray_session import ray_session


def test_an_address_where_nobody_listens_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as held:  # bound, not listening: a port that refuses
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(ConfigError, match=f"{address}: no Ray cluster answers there"), ray_session():
            pass


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "ray://nowhere.invalid:10001", "[::1]:1"])
def test_addresses_of_no_machine_are_refused_too(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match="no Ray cluster answers there"), ray_session():
        pass


def test_gpus_that_this_machine_lacks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match="the learners need 1000 GPUs, this machine has"), ray_session(1, 1000.0):
        pass
    assert not ray.is_initialized()


_SESSION = """
import os, sys
import ray
from training.ray_session import ray_session
with ray_session():
    print(ray.get_runtime_context().gcs_address, os.environ["RAY_AUTH_TOKEN"], flush=True)
    sys.stdin.read()
"""


def test_a_local_ray_answers_nobody_without_its_token(tmp_path: Path) -> None:
    """It listens on all interfaces, and whoever reaches it may run what he likes."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with subprocess.Popen([sys.executable, "-c", _SESSION], env=plain | {"HOME": str(tmp_path)}, text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as session:
        assert session.stdout is not None
        address, token = session.stdout.readline().split()
        home = str(tmp_path)  # without a token of the user's own
        assert answers(address, HOME=home, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)
        assert not answers(address, HOME=home, RAY_AUTH_MODE="disabled")
        assert not answers(address, HOME=home, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * len(token))
    assert session.returncode == 0
    assert not (tmp_path / ".ray").exists()


@pytest.mark.parametrize("name", [ray_token.MODE, ray_token.TOKEN, ray_token.TOKEN_PATH])
def test_what_the_user_says_about_tokens_stands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                                name: str) -> None:
    for variable in (ray_token.MODE, ray_token.TOKEN, ray_token.TOKEN_PATH):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(name, "mine")
    before = dict(os.environ)
    ray_token.own_ray_token()
    assert dict(os.environ) == before


def test_a_token_in_the_home_is_used_and_each_process_has_one_of_its_own_without(
        monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in (ray_token.MODE, ray_token.TOKEN, ray_token.TOKEN_PATH):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    ray_token.own_ray_token()
    made = os.environ[ray_token.TOKEN]
    assert len(made) == 64
    ray_token.own_ray_token()
    assert os.environ[ray_token.TOKEN] == made  # Ray keeps the first one that it saw
    monkeypatch.delenv(ray_token.TOKEN)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("theirs")
    ray_token.own_ray_token()
    assert ray_token.TOKEN not in os.environ
