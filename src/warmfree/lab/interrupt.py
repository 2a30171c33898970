"""Ctrl-C as a request that a loop answers between two steps, when weights and state belong together."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["Interrupted", "Interrupts"]


class Interrupted(Exception):  # noqa: N818 (a request that was granted, not an error)
    """A run was stopped on request and its state is saved; the message says how to go on."""


class Interrupts:
    """Collect SIGINT and SIGTERM while the block runs; a second SIGINT interrupts at once.

    Outside the main thread, where Python cannot handle signals, the block changes nothing.

    Example:
        >>> with Interrupts() as interrupts:
        ...     signal.raise_signal(signal.SIGINT)
        ...     interrupts.requested
        True
    """

    def __init__(self) -> None:
        self.requested = False
        self._interrupted = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, previous in self._previous.items():
            if previous is not None:  # one that was not installed from Python cannot be put back
                signal.signal(number, previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 (signal's signature)
        if number == signal.SIGINT and self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = number == signal.SIGINT
        self.requested = True
