"""Stale compiled code must never run: another source gives another cache folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from algospace.compiled import _forget_old, _source_hash


def test_a_changed_callee_changes_the_cache_folder(tmp_path: Path) -> None:
    source = tmp_path / "algospace" / "inner.py"
    source.parent.mkdir()
    source.write_text("import numba as nb\n@nb.njit\ndef f(x):\n    return x\n")
    before = _source_hash(tmp_path)
    assert _source_hash(tmp_path) == before
    source.write_text(source.read_text().replace("return x", "return x + 1"))
    assert _source_hash(tmp_path) != before


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
