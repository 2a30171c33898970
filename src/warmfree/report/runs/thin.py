"""Fewer points that look like all of them: a spike of one step survives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from warmfree.report.runs.axis import Axis
from warmfree.report.runs.run import Floats, Grid, Ints

POINTS = 360


def thin(steps: Ints, values: Floats, axes: tuple[Axis, ...], points: int = POINTS) -> Ints:
    """Choose which points of a curve to draw: per pixel of every axis its first, last, smallest and largest.

    Returns:
        Their indices, ascending. Points that are not finite are kept where they begin and end.
    """
    if len(steps) <= 2 * points:
        return np.arange(len(steps))
    finite = np.isfinite(values)
    edges = np.flatnonzero(finite[1:] != finite[:-1])
    kept = [np.array([0, len(steps) - 1]), edges, edges + 1]
    for axis in axes:
        pixel = np.floor(np.nan_to_num(axis.place(steps.astype(np.float64))) * points).astype(np.int64)
        begins = np.flatnonzero(np.diff(pixel, prepend=pixel[0] - 1))
        low = _arg_per_bin(np.where(finite, values, np.inf), begins)
        high = _arg_per_bin(np.where(finite, -values, np.inf), begins)
        kept += [begins, low, high]
    return np.unique(np.concatenate(kept)).astype(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Binned:
    """A grid with neighbouring measured steps drawn together into columns.

    `low` and `high` (rows, columns) are the smallest and largest value in a column; `high` is the non-finite value
    if there is one, and both are NaN where `measured` is False. `first` and `last` are a column's steps.
    """

    grid: Grid
    first: Ints
    last: Ints
    low: Floats
    high: Floats
    measured: NDArray[np.bool_]

    @property
    def is_whole(self) -> bool:
        """Whether every measured step has a column of its own."""
        return len(self.first) == len(self.grid.steps)


def bin_grid(grid: Grid, columns: int) -> Binned:
    """Draw the measured steps of a grid together until at most `columns` are left; it may be whole up to twice that."""
    count = len(grid.steps)
    if count <= 2 * columns:
        return Binned(grid, grid.steps, grid.steps, grid.values, grid.values, grid.measured)
    begins = np.unique(np.linspace(0, count, columns, endpoint=False).astype(np.int64))
    ends = np.append(begins[1:], count) - 1
    finite = np.isfinite(grid.values) & grid.measured
    low = np.minimum.reduceat(np.where(finite, grid.values, np.inf), begins, axis=1)
    high = np.maximum.reduceat(np.where(finite, grid.values, -np.inf), begins, axis=1)
    measured = np.logical_or.reduceat(grid.measured, begins, axis=1)
    any_finite = np.logical_or.reduceat(finite, begins, axis=1)
    # NaN wins over infinity, and either over numbers: what is broken must not be averaged away.
    broken = np.where(finite | ~grid.measured, 0.0, np.where(np.isnan(grid.values), np.nan, grid.values))
    with np.errstate(invalid="ignore"):
        worst = np.add.reduceat(broken, begins, axis=1)
    low = np.where(any_finite, low, worst)
    high = np.where(worst == 0, high, worst)
    low, high = (np.where(measured, part, np.nan) for part in (low, high))
    return Binned(grid, grid.steps[begins], grid.steps[ends], low, high, measured)


def _arg_per_bin(values: Floats, begins: Ints) -> Ints:
    """The index of the smallest value in each bin."""
    smallest = np.minimum.reduceat(values, begins)
    bins = np.searchsorted(begins, np.arange(len(values)), side="right") - 1
    hits = np.flatnonzero(values == smallest[bins])
    _, first = np.unique(bins[hits], return_index=True)
    return np.asarray(hits[first], np.int64)
