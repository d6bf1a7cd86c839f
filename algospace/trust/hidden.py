"""What an indicator reads besides its state and the bar: no cut reaches it, so it is looked for in the code.

Constants are fine (weights, a few parameters); arrays, tables and containers of more than `LIMIT` values outside
the state may hold a market's future, and the check cannot prove that they do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

from algospace.features import Indicator
from algospace.features.own import original
from algospace.features.own_faults import arrays_of

LIMIT = 512
_DEPTH = 4
_OURS = "algospace."  # the library, whose code is tested here


def hidden_inputs(indicator: Indicator) -> list[str]:
    """A line for everything large that the indicator reads from outside its state and the bars."""
    own = original(indicator)
    if getattr(getattr(own.update, "py_func", own.update), "__module__", "").startswith(_OURS):
        return []
    found: dict[str, int] = {}
    for function in (own.update, own.run):
        if function is not None:
            found |= dict(_large(function, set(), _DEPTH))
    lines = [f"indicator '{own.name}' reads '{name}' ({size} values) from outside its state"
             for name, size in found.items()]
    distinct = max((np.unique(array).size for array in arrays_of(own.new_state())), default=0)
    if distinct > LIMIT:
        lines.append(f"indicator '{own.name}' starts with {distinct} different values in its state")
    return lines


def _large(function: Any, seen: set[int], depth: int) -> Iterator[tuple[str, int]]:
    """(name, size) of what a function, and the functions of its file that it calls, read."""
    plain = getattr(function, "py_func", function)
    plain = getattr(plain, "__func__", plain)
    if not isinstance(plain, FunctionType) or id(plain) in seen or depth == 0:
        return
    seen.add(id(plain))
    closure = plain.__closure__ or ()
    values = dict(zip(plain.__code__.co_freevars, (cell.cell_contents for cell in closure), strict=True))
    values |= {name: plain.__globals__[name] for name in _names(plain.__code__) if name in plain.__globals__}
    values |= dict(_defaults(plain))
    for name, value in values.items():
        yield from _sizes(name, value, plain, seen, depth)


def _sizes(name: str, value: Any, reader: FunctionType, seen: set[int], depth: int) -> Iterator[tuple[str, int]]:
    if isinstance(value, (ModuleType, str, bytes, type)):
        return
    code = getattr(value, "py_func", value)
    if isinstance(code, FunctionType):
        if code.__module__ == reader.__module__:
            yield from _large(value, seen, depth - 1)
        return
    size = int(value.size) if hasattr(value, "size") and np.ndim(value.size) == 0 else _length(value)
    if size > LIMIT:
        yield name, size
    elif hasattr(value, "__dict__") and depth and not callable(value):
        for part, inner in vars(value).items():
            yield from _sizes(f"{name}.{part}", inner, reader, seen, depth - 1)


def _defaults(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """(name, value) of a function's default arguments."""
    code = function.__code__
    names = code.co_varnames[:code.co_argcount]
    defaults = function.__defaults__ or ()
    yield from zip(names[len(names) - len(defaults):], defaults, strict=True)


def _length(value: Any) -> int:
    return len(value) if hasattr(value, "__len__") else 0


def _names(code: CodeType) -> set[str]:
    """Global names that a function and the functions inside it read."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
    return names
