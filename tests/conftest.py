"""Shared fixtures: real market data lives outside the project and may be absent."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from algospace.ray_token import own_ray_token

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules with tests on the shared Ray come last, so that it starts once and nobody else meets it."""
    on_ray = {item.path for item in items if "ray_cluster" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: item.path in on_ray)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray of two CPUs for all tests that ask for it. It asks for a token as a command's own does: a
    process keeps the way of its first Ray, and workers that have another cannot hand their blocks back to it."""
    import ray  # only the tests that need it pay for the import

    own_ray_token()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def training_market(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small synthetic market on disk (tests.training_market.MarketOnDisk)."""
    from tests.training_market import synthetic_market

    return synthetic_market(tmp_path_factory.mktemp("training_market"))
