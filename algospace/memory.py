"""Memory that is free but still held by this process."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache

import pyarrow as pa


def release_unused() -> None:
    """Give freed memory back to the system: Arrow's pool and, with glibc, the C heap.

    glibc keeps freed blocks of up to 32 MB for later use. The columns of ten years of minute bars are just below
    that, so that without this a reader's temporaries would count against everything that runs after it.
    """
    pa.default_memory_pool().release_unused()
    trim = _heap_trim()
    if trim is not None:
        trim(0)


@cache
def _heap_trim() -> Callable[[int], int] | None:
    """glibc's malloc_trim; None under other C libraries, which have no such call."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
