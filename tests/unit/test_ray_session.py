"""A Ray cluster that is not there is one line, at once."""

from __future__ import annotations

import socket

import pytest
import ray

from algospace.errors import ConfigError
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
