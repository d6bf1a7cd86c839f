"""Files are written whole or not at all, and so are the folders made for them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from algospace.files import atomic_directory, atomic_path

Atomic = Callable[[Path], AbstractContextManager[Path]]


class _Refused(Exception):
    """The block's own."""


def _somebody_else_writes(path: Path) -> None:
    path.touch()
    raise _Refused


@pytest.mark.parametrize("atomic", [atomic_path, atomic_directory])
def test_what_fails_leaves_no_folder(tmp_path: Path, atomic: Atomic) -> None:
    with pytest.raises(_Refused), atomic(tmp_path / "runs" / "one" / "tables"):
        raise _Refused
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("atomic", [atomic_path, atomic_directory])
def test_folders_that_were_there_or_that_somebody_uses_stay(tmp_path: Path, atomic: Atomic) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(_Refused), atomic(tmp_path / "there" / "tables"):
        raise _Refused
    with pytest.raises(_Refused), atomic(tmp_path / "runs" / "one" / "tables"):
        _somebody_else_writes(tmp_path / "runs" / "another")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["runs", "runs/another",
                                                                                      "there"]


def test_what_succeeds_replaces_what_was_there(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with atomic_directory(tmp_path / "made" / "tables") as part:
            (part / "file").write_text(text)
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["tables"]
    assert (tmp_path / "made" / "tables" / "file").read_text() == "new"
