"""Stale compiled code must never run: another source gives another cache folder."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from numba.core.dispatcher import Dispatcher

from algospace.compiled import _forget_old, _source_hash
from tests.conftest import REPOSITORY


def test_a_changed_callee_changes_the_cache_folder(tmp_path: Path) -> None:
    source = tmp_path / "algospace" / "inner.py"
    source.parent.mkdir()
    source.write_text("import numba as nb\n@nb.njit\ndef f(x):\n    return x\n")
    before = _source_hash(tmp_path)
    assert _source_hash(tmp_path) == before
    source.write_text(source.read_text().replace("return x", "return x + 1"))
    assert _source_hash(tmp_path) != before


def test_whoever_compiles_a_function_first_does_not_choose_its_arithmetic() -> None:
    """numba compiles a callee with its first caller's `fastmath` and keeps that in the cache for everybody: a
    session would depend in its last bits on whether somebody has trained before."""
    paths = [path for package in ("agents", "algospace", "envs", "serving", "training")
             for path in (REPOSITORY / package).rglob("*.py") if "fastmath=" in path.read_text()]
    modules = [importlib.import_module(".".join(p.relative_to(REPOSITORY).with_suffix("").parts)) for p in paths]
    callers = {value for module in modules for value in vars(module).values()
               if isinstance(value, Dispatcher) and value.targetoptions.get("fastmath")}
    assert callers
    called = set()
    for caller in callers:
        function = caller.py_func
        found = (function.__globals__.get(name) for name in function.__code__.co_names)
        called |= {callee for callee in found if isinstance(callee, Dispatcher)
                   and callee.targetoptions.get("inline") != "always"}
    assert called
    assert [callee.__name__ for callee in called if "fastmath" not in callee.targetoptions] == []


def test_old_versions_are_forgotten(tmp_path: Path) -> None:
    for age in range(12):
        (tmp_path / f"{age:02d}").mkdir()
        os.utime(tmp_path / f"{age:02d}", (age, age))
    _forget_old(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{age:02d}" for age in range(4, 12)]


@pytest.mark.parametrize("first", ["numba", "algospace"])
def test_import_order_does_not_matter(first: str, tmp_path: Path) -> None:
    code = f"import {first}\nimport algospace, numba\nprint(numba.config.CACHE_DIR)"
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={**environment, "XDG_CACHE_HOME": str(tmp_path)})
    assert done.stdout.strip().startswith(str(tmp_path / "algospace" / "compiled"))


def test_the_user_may_choose_the_folder(tmp_path: Path) -> None:
    code = "import algospace, numba\nprint(numba.config.CACHE_DIR)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)})
    assert done.stdout.strip() == str(tmp_path)
