"""Shared fixtures: real market data lives outside the project and may be absent."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def find_data_root() -> Path | None:
    """`ALGOSPACE_DATA`, or `../shared/data` beside the checkout."""
    for candidate in (os.environ.get("ALGOSPACE_DATA"), REPOSITORY.parent / "shared" / "data"):
        if candidate and Path(candidate).is_dir():
            return Path(candidate)
    return None


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with real market data; the test skips, visibly, where there is none."""
    root = find_data_root()
    if root is None:
        pytest.skip("no real market data: set ALGOSPACE_DATA")
    return root


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """A local Ray of two CPUs, without token authentication; shut down behind the module's last test."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    import ray  # only the tests that need it pay for the import

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def training_market(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small synthetic market on disk (tests.training_market.MarketOnDisk)."""
    from tests.training_market import synthetic_market

    return synthetic_market(tmp_path_factory.mktemp("training_market"))
