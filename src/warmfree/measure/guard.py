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
    would have been, or after the block. None is lost. Outside the main thread Python gets no signals, and the block
    changes nothing; neither does it where SIGINT is ignored or left to the system.

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
            signal.signal(signal.SIGINT, self._previous)
            self._installed = False
            self._deliver(None)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Let an interrupt through, also one that came before."""
        was_open = self._is_open
        try:
            self._is_open = True
            self._deliver(None)
            yield
        finally:
            self._is_open = was_open

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 (signal's signature)
        self._pending = True
        if self._is_open:
            self._deliver(frame)

    def _deliver(self, frame: FrameType | None) -> None:
        """Hand on an interrupt that waits, if one does."""
        if self._pending:
            self._pending = False
            was_open, self._is_open = self._is_open, False  # no second one while the first is being answered
            self._previous(signal.SIGINT, frame)
            self._is_open = was_open  # it was not answered by an exception
