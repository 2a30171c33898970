"""What one attempt of a run recorded: the lines from one `start` to the next, as they come in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from warmfree.report.runs.run import Floats, Ints, Row

Measurement = tuple[Ints, Floats]


class Rows:
    """The rows of one quantity, numbered as they appear; over a run they are nearly always the same."""

    def __init__(self) -> None:
        self.index: dict[Row, int] = {}
        self._shape: tuple[tuple[str, int | None], ...] = ()
        self._places = np.zeros(0, np.int64)

    def place(self, values: Mapping[str, Any]) -> Measurement:
        """Turn `{layer: number or list of numbers}` into row numbers and values; what is no number is left out."""
        numbers: list[Any] = []
        shape: list[tuple[str, int | None]] = []
        for layer, value in values.items():
            if isinstance(value, list):
                shape.append((layer, len(value)))
                numbers += value
            else:
                shape.append((layer, None))
                numbers.append(value)
        if (key := tuple(shape)) != self._shape:
            rows = (Row(layer, head) for layer, count in key for head in _heads(count))
            self._places = np.array([self.index.setdefault(row, len(self.index)) for row in rows], np.int64)
            self._shape = key
        if all(type(number) is float for number in numbers):
            return self._places, np.array(numbers, np.float64)
        kept = [number(value) for value in numbers]
        known = np.array([value is not None for value in kept], np.bool_)
        return self._places[known], np.array([value for value in kept if value is not None], np.float64)


class Attempt:
    """Everything between one `start` line and the next, by step."""

    def __init__(self, start: Mapping[str, Any]) -> None:
        self.start = start
        self.steps: dict[int, tuple[float | None, float | None]] = {}
        self.values: dict[str, dict[int, Measurement]] = {}
        self.alerts: list[dict[str, Any]] = []
        self.notices: list[dict[str, Any]] = []

    def span(self) -> tuple[int, int] | None:
        """The first and last step that ran or was measured; None when nothing was."""
        steps = {*self.steps, *(step for measured in self.values.values() for step in measured)}
        return (min(steps), max(steps)) if steps else None

    def drop(self, low: int, high: int) -> None:
        """Forget the steps `low` to `high`: they ran again."""

        def is_kept(step: int | None) -> bool:
            return step is None or not low <= step <= high

        self.steps = {step: entry for step, entry in self.steps.items() if is_kept(step)}
        for name, measured in self.values.items():
            self.values[name] = {step: entry for step, entry in measured.items() if is_kept(step)}
        self.alerts = [alert for alert in self.alerts if is_kept(whole(alert.get("step")))]


def number(value: object) -> float | None:
    """The float that `value` is, or None: a record may hold anything."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def whole(value: object) -> int | None:
    """The integer from 0 on that `value` is, or None."""
    known = number(value)
    return int(known) if known is not None and 0 <= known < 2**53 and known == int(known) else None


def _heads(count: int | None) -> list[int | None]:
    return [None] if count is None else list(range(count))
