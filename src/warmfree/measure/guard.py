"""Ctrl-C while something is being changed and put back: at once in the caller's code, never in between."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["Guard"]


class Guard:
    """Hold SIGINT back while the block runs, but let it through where `open` says so.

    What has to be put back can then be put back whole: an interrupt arrives inside `open`, as the exception that it
    would have been, or after the block. Outside the main thread Python gets no signals, and the block changes nothing.

    Example:
        >>> with Guard() as guard:
        ...     with guard.open():
        ...         pass  # a forward pass, which Ctrl-C ends
        ...     pass  # putting back, which it does not
    """

    def __init__(self) -> None:
        self._is_open = False
        self._pending = False
        self._previous: Any = None
        self._installed = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            previous = signal.getsignal(signal.SIGINT)
            if callable(previous):  # else it is ignored, left to the system, or not Python's
                self._previous = previous
                signal.signal(signal.SIGINT, self._handle)
                self._installed = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._installed:
            self._installed = False
            signal.signal(signal.SIGINT, self._previous)
            if self._pending and error is None:
                self._pending = False
                self._previous(signal.SIGINT, None)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Let an interrupt through, also one that came before."""
        try:
            self._is_open = True
            if self._pending:
                self._pending = False
                self._previous(signal.SIGINT, None)
            yield
        finally:
            self._is_open = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._is_open:
            self._is_open = False  # a second one may not come while the first is being answered
            self._previous(number, frame)
            self._is_open = True  # it was not answered by an exception
        else:
            self._pending = True
