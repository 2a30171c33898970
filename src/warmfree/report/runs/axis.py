"""Axes of hand-drawn charts: where a value stands between 0 and 1, and which ticks to write."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from warmfree.report import wording
from warmfree.report.runs.run import Floats

Kind = Literal["linear", "log", "steps"]


@dataclass(frozen=True, slots=True)
class Axis:
    """A stretch of numbers. `steps` is logarithmic too, but counts from one: step 0 has a place on it."""

    low: float
    high: float
    kind: Kind = "linear"

    def place(self, values: Floats) -> Floats:
        """Return where `values` stand: 0 at the low end, 1 at the high end; NaN where they have no place."""
        ends = self._scale(np.array([self.low, self.high], np.float64))
        if ends[0] == ends[1]:
            return np.where(np.isnan(values), np.nan, 0.5)
        scaled: Floats = self._scale(np.asarray(values, np.float64))
        return np.asarray((scaled - ends[0]) / (ends[1] - ends[0]), np.float64)

    def _scale(self, values: Floats) -> Floats:
        if self.kind == "linear":
            return values
        shifted = values + 1 if self.kind == "steps" else values
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(shifted > 0, np.log(np.where(shifted > 0, shifted, 1.0)), np.nan)

    def ticks(self, most: int = 6, *, whole: bool = False) -> list[tuple[float, str]]:
        """Return up to `most` ticks, place and label of each; `whole` asks for whole numbers."""
        if self.kind == "linear":
            values = _round_numbers(self.low, self.high, most)
        elif self.kind == "log":
            values = _decades(self.low, self.high, most)
        else:
            values = (
                [0.0, *_decades(max(self.low, 5.0), self.high, most - 1)]
                if self.high >= 10
                else [0.0, self.high]
            )
        if whole:
            values = [value for value in values if value == int(value)]
        places = self.place(np.array(values))
        write = _whole if whole else wording.number
        return [
            (float(at), write(value))
            for at, value in zip(places, values, strict=True)
            if -1e-9 <= at <= 1 + 1e-9
        ]

    @classmethod
    def of_steps(cls, last: int, *, is_log: bool) -> Axis:
        """An axis of steps from 0 to `last`."""
        return cls(0.0, float(max(last, 1)), "steps" if is_log else "linear")

    @classmethod
    def around(cls, values: Floats, *, is_log: bool, at_least: tuple[float, ...] = ()) -> Axis:
        """An axis with room for all finite `values` and those in `at_least`; log asks for positive ones."""
        shown = values[np.isfinite(values)]
        if is_log:
            shown = shown[shown > 0]
        shown = np.concatenate([shown, np.array(at_least, np.float64)])
        if not len(shown):
            return cls(0.1, 1.0, "log") if is_log else cls(0.0, 1.0)
        low, high = float(shown.min()), float(shown.max())
        if is_log:
            margin = max((high / low) ** 0.05, 1.1)
            return cls(max(low / margin, 1e-300), min(high * margin, 1e300), "log")
        margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
        return cls(low - margin, high + margin)


def _round_numbers(low: float, high: float, most: int) -> list[float]:
    span = high - low
    if not (0 < span < math.inf):
        return [low]
    raw = span / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((factor * power for factor in (1, 2, 5, 10) if factor * power >= raw), 10 * power)
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return [
        round((first + place) * step, 12) if step > 1e-9 else (first + place) * step for place in range(count)
    ]


def _decades(low: float, high: float, most: int) -> list[float]:
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    if last - first >= 2:
        stride = math.ceil((last - first + 1) / most)
        return [10.0**power for power in range(first, last + 1, stride)]
    fine = [factor * 10.0**power for power in range(first - 1, last + 1) for factor in (1, 2, 5)]
    inside = [value for value in fine if low * 0.999 <= value <= high * 1.001]
    return inside if len(inside) >= 2 else _round_numbers(low, high, most)


def _whole(value: float) -> str:
    return f"{value:,.0f}"
