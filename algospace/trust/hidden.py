"""What an indicator reads besides its state and the bars: no cut reaches it, so it is looked for in the code.

Constants are fine (weights, a few parameters); arrays, tables and containers of more than `LIMIT` values outside
the state may hold a market's future, and the check cannot prove that they do not. Followed are globals, closures,
default and bound arguments, attributes of objects and classes, and the functions and modules that are the user's
own; installed packages are not.
"""

from __future__ import annotations

import functools
import sys
import sysconfig
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from algospace.features import Indicator
from algospace.features.own import FrameIndicator, original
from algospace.features.own_faults import arrays_of

LIMIT = 512
_DEPTH = 8
_OURS = "algospace."  # the library, whose code is tested here
_INSTALLED = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_BYTES_PER_VALUE = 8
_PLAIN = (str, int, float, complex, range, type(None))
_CONTAINERS = (list, tuple, set, frozenset, deque)

Found = Iterator[tuple[str, int]]


def hidden_inputs(indicator: Indicator | FrameIndicator) -> list[str]:
    """A line for everything large that the indicator reads from outside its state and the bars."""
    if isinstance(indicator, FrameIndicator):
        return [f"indicator '{indicator.name}' reads '{name}' ({size} values) beside the bars it is given"
                for name, size in dict(_Search().call("compute", indicator.compute, _DEPTH)).items()]
    own = original(indicator)
    if getattr(getattr(own.update, "py_func", own.update), "__module__", "").startswith(_OURS):
        return []
    search = _Search()
    found = dict(search.call("update", own.update, _DEPTH)) | dict(search.call("run", own.run, _DEPTH))
    lines = [f"indicator '{own.name}' reads '{name}' ({size} values) from outside its state"
             for name, size in found.items()]
    distinct = max((np.unique(array).size for array in arrays_of(own.new_state())), default=0)
    if distinct > LIMIT:
        lines.append(f"indicator '{own.name}' starts with {distinct} different values in its state")
    return lines


@dataclass
class _Search:
    """Goes through what code can reach, each thing once; yields (name, number of values) of what is large."""

    seen: dict[int, Any] = field(default_factory=dict)  # holds them, so that no number is used twice

    def call(self, name: str, value: Any, depth: int) -> Found:
        """What calling `value` may read."""
        value = getattr(value, "py_func", value)  # of numba
        if depth == 0 or self._known(value):
            return
        if isinstance(value, MethodType):
            yield from self.value(f"{name}.__self__", value.__self__, depth - 1)
            yield from self.call(name, value.__func__, depth - 1)
        elif isinstance(value, functools.partial):
            yield from self._all(name, {**dict(enumerate(value.args)), **value.keywords}, depth)
            yield from self.call(name, value.func, depth - 1)
        elif isinstance(value, FunctionType):
            if not _is_installed(value.__module__):
                yield from self._function(value, depth - 1)
        elif hasattr(value, "__wrapped__"):  # functools.cache
            yield from self.call(name, value.__wrapped__, depth - 1)
        elif not _is_installed(type(value).__module__):
            yield from self._all(name, getattr(value, "__dict__", {}), depth)
            yield from self.value(type(value).__name__, type(value), depth - 1)

    def value(self, name: str, value: Any, depth: int) -> Found:
        """What `value` holds."""
        if isinstance(value, (ModuleType, *_PLAIN)) or depth == 0:
            return
        if isinstance(value, type):
            if not self._known(value) and not _is_installed(value.__module__):
                yield from self._all(name, vars(value), depth)
            return
        size = _count(value, depth)
        if size > LIMIT:
            yield name, size
        elif callable(value):
            yield from self.call(name, value, depth)
        elif isinstance(value, Mapping):
            yield from self._all(name, value, depth)
        elif isinstance(value, _CONTAINERS):
            yield from self._all(name, dict(enumerate(value)), depth)
        elif hasattr(value, "__dict__") and type(value).__module__ not in sys.stdlib_module_names:
            yield from () if self._known(value) else self._all(name, vars(value), depth)

    def _all(self, name: str, parts: Mapping[Any, Any], depth: int) -> Found:
        for part, inner in list(parts.items()):
            inner = getattr(inner, "__func__", inner) if isinstance(inner, (staticmethod, classmethod)) else inner
            yield from self.value(f"{name}.{part}", inner, depth - 1)

    def _function(self, function: FunctionType, depth: int) -> Found:
        code = function.__code__
        closure = zip(code.co_freevars, function.__closure__ or (), strict=True)
        values = {name: cell.cell_contents for name, cell in closure if cell != CellType()}  # assigned ones
        names = _names(code)
        for name in names:
            if name in function.__globals__:
                values[name] = function.__globals__[name]
            elif name in sys.modules:  # imported inside the function
                values[name] = sys.modules[name]
        values |= _defaults(function) | {f"{function.__name__}.{k}": v for k, v in vars(function).items()}
        values |= {f"a constant of {function.__name__}": constant for constant in code.co_consts
                   if _count(constant, depth) > LIMIT}
        for name, value in values.items():
            if isinstance(value, ModuleType):
                yield from self._module(name, value, names, depth)
            else:
                yield from self.value(name, value, depth)

    def _module(self, name: str, module: ModuleType, names: set[str], depth: int) -> Found:
        """Of a module of the user's: what is read by one of `names`."""
        if depth == 0 or _is_installed(module.__name__):
            return
        for part in sorted(names & set(vars(module))):
            inner = vars(module)[part]
            if isinstance(inner, ModuleType):
                yield from self._module(f"{name}.{part}", inner, names, depth - 1)
            else:
                yield from self.value(f"{name}.{part}", inner, depth - 1)

    def _known(self, value: Any) -> bool:
        known = id(value) in self.seen
        self.seen[id(value)] = value
        return known


def _count(value: Any, depth: int) -> int:
    """How many values something holds, as far as can be seen; a count above LIMIT need not be exact."""
    if isinstance(value, (type, ModuleType, *_PLAIN)) or depth == 0:
        return 0
    if isinstance(value, (bytes, bytearray, memoryview)):
        return len(value) // _BYTES_PER_VALUE
    if isinstance(value, (Mapping, *_CONTAINERS)):
        parts = value.values() if isinstance(value, Mapping) else value
        return max(len(value), sum(_count(part, depth - 1) for part in islice(parts, LIMIT + 1)))
    size = getattr(value, "size", None)
    if size is not None and not callable(size) and np.ndim(size) == 0:
        return int(size)
    return len(value) if hasattr(value, "__len__") else 0


def _is_installed(module: str | None) -> bool:
    """Whether a module is Python's or an installed package's, or this library's."""
    if not module or f"{module}.".startswith(_OURS) or module.partition(".")[0] in sys.stdlib_module_names:
        return True
    if module == "__main__":
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is not None and any(Path(file).is_relative_to(place) for place in _INSTALLED)


def _defaults(function: FunctionType) -> dict[str, Any]:
    """Values of a function's default arguments by name."""
    code = function.__code__
    names = code.co_varnames[:code.co_argcount]
    defaults = function.__defaults__ or ()
    return dict(zip(names[len(names) - len(defaults):], defaults, strict=True)) | (function.__kwdefaults__ or {})


def _names(code: CodeType) -> set[str]:
    """Names that a function and the functions inside it read, of globals and of attributes."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
    return names
