"""Ctrl-C and SIGTERM end a run between two iterations, with a checkpoint; a second Ctrl-C ends it at once."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class Interruption:
    """Takes both signals for a block of code (in the main thread; elsewhere it does nothing)."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def obey(self) -> None:
        """KeyboardInterrupt if a signal has come."""
        if self.asked:
            raise KeyboardInterrupt

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {n: signal.signal(n, self._note) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        print("stopping after this iteration, with a checkpoint; Ctrl-C again stops at once", file=sys.stderr)
