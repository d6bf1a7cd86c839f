"""Files are written whole or not at all, and so are the folders made for them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from algospace import files
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


@pytest.mark.parametrize("exchange", [True, False], ids=["exchanged", "renamed twice"])
def test_a_folder_is_replaced_with_all_that_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                     exchange: bool) -> None:
    if not exchange:
        monkeypatch.setattr(files, "_exchanged", lambda *_: False)
    target = tmp_path / "ä folder"
    for name in ("first", "second"):
        with atomic_directory(target) as part:
            (part / name).write_text(name)
    assert [path.name for path in target.iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_is_never_missing_while_it_is_replaced(tmp_path: Path) -> None:
    """Whoever is killed in between would leave none."""
    target, missing, over = tmp_path / "table", 0, threading.Event()
    with atomic_directory(target) as part:
        (part / "rows").write_text("0")

    def look() -> None:
        nonlocal missing
        while not over.is_set():
            missing += not target.exists()

    reader = threading.Thread(target=look)
    reader.start()
    for n in range(300):
        with atomic_directory(target) as part:
            (part / "rows").write_text(str(n))
    over.set()
    reader.join()
    assert missing == 0
    assert (target / "rows").read_text() == "299"
