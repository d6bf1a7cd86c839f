"""Skips for what a machine does not have, and for nothing else."""

from __future__ import annotations

import importlib.util

import pytest

from serving.tensorrt_build import MODULES


def require_package(backend: str) -> None:
    """Skip where the backend's package is not installed; one that is there has to work."""
    if not any(importlib.util.find_spec(module) for module in MODULES[backend]):
        pytest.skip(f"the package of {backend} is not installed")
