"""How faults in a user's indicator file are named: one line, with the file, the line in it and the bar."""

from __future__ import annotations

import ast
import re
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from algospace.errors import UserError
from algospace.types import SECOND_NS, AnyArray

_MAX_WORDS = 200  # of a message; numba's run over pages


def in_file(path: Path | str, error: BaseException, doing: str, line: int | None = None) -> UserError:
    """The error to raise for `error`, which came out of the file while `doing` something.

    line: where to look if the error itself does not tell.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, SyntaxError):
        found = error.lineno
        text = error.msg
    else:
        frames = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
                  if frame.filename == str(path)]
        found = frames[-1] if frames else _line_in_message(path, str(error))
    where = f"{path}, line {found or line or 1}"
    return UserError(f"{where}: {doing}: {type(error).__name__}: {text[:_MAX_WORDS]}; repair the file")


def _line_in_message(path: Path | str, text: str) -> int | None:
    """Of a numba error, whose text names the place in the source."""
    found = re.findall(rf'File "[^"]*{re.escape(Path(path).name)}", line (\d+)', text)
    return int(found[-1]) if found else None


def line_of(source: bytes, name: str) -> int:
    """The line on which the module assigns `name`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Store):
            return node.lineno
    return 1


def bar_name(number: int, ts_close: int) -> str:
    """How a message names a bar: its place in the stream, from 0, and its close."""
    return f"bar {number} ({datetime.fromtimestamp(ts_close / SECOND_NS, UTC):%Y-%m-%d %H:%M} UTC)"


def arrays_of(state: Any) -> Iterator[AnyArray]:
    """All arrays of a state, in order."""
    if isinstance(state, np.ndarray):
        yield state
    else:
        for part in state:
            yield from arrays_of(part)


def shapes_of(state: Any, where: str) -> list[tuple[tuple[int, ...], str]]:
    """(shape, dtype) of all arrays of a state; UserError if it holds anything that cannot be saved."""
    if isinstance(state, np.ndarray):
        if state.dtype.hasobject:
            raise UserError(f"{where}: the state holds Python objects; use arrays of numbers, which can be saved")
        return [(state.shape, str(state.dtype))]
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        return [shape for part in state for shape in shapes_of(part, where)]
    raise UserError(f"{where}: the state holds a {type(state).__name__}; new_state() must give a numpy array or a "
                    f"NamedTuple of arrays")
