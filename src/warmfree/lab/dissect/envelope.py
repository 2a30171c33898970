"""The range of values that healthy runs show, and the first step at which a run is outside of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from warmfree.lab.dissect.kinds import LINEAR_MARGINS, LOG_MARGIN, UNKNOWN_MARGIN, WITHOUT_RANGE
from warmfree.report.runs.run import Grid, Row

__all__ = ["Exit", "Range", "envelope_of", "first_exits", "margin_of", "ranges_of", "widened"]

Key = tuple[str, str]
"""Quantity and layer. Heads of a layer share a range: which is which is arbitrary, and differs between seeds."""


@dataclass(frozen=True, slots=True)
class Range:
    """Values that were seen.

    Attributes:
        low: the smallest finite one; +inf if there was none.
        high: the largest finite one; -inf if there was none.
        nonfinite: whether there was one that is not finite.
    """

    low: float = math.inf
    high: float = -math.inf
    nonfinite: bool = False

    def joined(self, other: Range) -> Range:
        """Return the range of both."""
        return Range(min(self.low, other.low), max(self.high, other.high), self.nonfinite or other.nonfinite)


@dataclass(frozen=True, slots=True)
class Exit:
    """The first measured step at which a row was outside of what healthy runs ever show.

    Attributes:
        quantity: what was measured.
        row: where.
        step: when.
        previous: the step of the measurement before it, which was still inside; None if it was the first.
        value: what it was.
        low: the lower bound, with its margin.
        high: the upper one.
        excess: how far outside, in margins; inf if not finite. It orders rows that leave on the same step.
    """

    quantity: str
    row: Row
    step: int
    previous: int | None
    value: float
    low: float
    high: float
    excess: float


def ranges_of(grids: Mapping[str, Grid]) -> dict[Key, Range]:
    """Return the range of each quantity of each layer over a whole run."""
    ranges: dict[Key, Range] = {}
    for quantity, grid in grids.items():
        for place, row in enumerate(grid.rows):
            values = grid.values[place][grid.measured[place]]
            finite = values[np.isfinite(values)]
            seen = Range(
                float(finite.min()) if len(finite) else math.inf,
                float(finite.max()) if len(finite) else -math.inf,
                len(finite) < len(values),
            )
            key = (quantity, row.layer)
            ranges[key] = ranges.get(key, Range()).joined(seen)
    return ranges


def envelope_of(ranges: Sequence[Mapping[Key, Range]]) -> dict[Key, Range]:
    """Return what several runs show together."""
    envelope: dict[Key, Range] = {}
    for each in ranges:
        for key, seen in each.items():
            envelope[key] = envelope[key].joined(seen) if key in envelope else seen
    return envelope


def margin_of(quantity: str, *, is_log: bool) -> float:
    """Return how far beyond the healthy range a value must be: a factor on a logarithmic scale, else a difference."""
    return LOG_MARGIN if is_log else LINEAR_MARGINS.get(quantity, UNKNOWN_MARGIN)


def widened(seen: Range, *, margin: float, is_log: bool) -> tuple[float, float]:
    """Return the bounds of a range with its margin; on a logarithmic scale a bound never changes its sign.

    Example:
        >>> widened(Range(2.0, 3.0), margin=1.5, is_log=True), widened(Range(2.0, 3.0), margin=0.5, is_log=False)
        ((1.3333333333333333, 4.5), (1.5, 3.5))
        >>> widened(Range(-2.0, 0.0), margin=1.5, is_log=True)
        (-3.0, 0.0)
    """
    if not is_log:
        return seen.low - margin, seen.high + margin
    low = seen.low / margin if seen.low > 0 else seen.low * margin
    high = seen.high * margin if seen.high > 0 else seen.high / margin
    return low, high


def first_exits(grid: Grid, envelope: Mapping[Key, Range]) -> list[Exit]:
    """Return the first exit of every row of a quantity that has one, earliest first, of those the furthest outside.

    A value that is not finite is an exit where no healthy run has one. Rows that no healthy run has are not judged,
    but of quantities that are measured only when something is wrong.
    """
    name = grid.quantity.name
    margin = margin_of(name, is_log=grid.quantity.is_log)
    exits = []
    for place, row in enumerate(grid.rows):
        seen = envelope.get((name, row.layer))
        if seen is None and name not in WITHOUT_RANGE:
            continue
        low, high = (
            (math.inf, -math.inf)
            if seen is None
            else widened(seen, margin=margin, is_log=grid.quantity.is_log)
        )
        columns = np.flatnonzero(grid.measured[place])
        values = grid.values[place][columns]
        outside = _outside(values, low, high, nonfinite=seen is not None and seen.nonfinite)
        if outside.any():
            at = int(outside.argmax())
            steps = grid.steps[columns]
            previous = int(steps[at - 1]) if at else None
            value = float(values[at])
            excess = _excess(value, low, high, margin=margin, is_log=grid.quantity.is_log)
            exits.append(Exit(name, row, int(steps[at]), previous, value, low, high, excess))
    return sorted(exits, key=lambda found: (found.step, -found.excess))


def _excess(value: float, low: float, high: float, *, margin: float, is_log: bool) -> float:
    bound = high if value > high else low
    if not math.isfinite(value) or not math.isfinite(bound):
        return math.inf
    if not is_log:
        return abs(value - bound) / margin
    if value * bound <= 0:  # to zero or beyond it: no number of factors leads there
        return math.inf
    return abs(math.log(value / bound)) / math.log(margin)


def _outside(values: NDArray[np.float64], low: float, high: float, *, nonfinite: bool) -> NDArray[np.bool_]:
    finite = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        beyond = (values < low) | (values > high)
    return np.where(finite, beyond, not nonfinite)
