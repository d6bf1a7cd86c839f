"""Shared fixtures: real market data lives outside the project and may be absent."""

import os
from pathlib import Path

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
