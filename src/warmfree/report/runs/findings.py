"""What a record shows, as numbers: when the loss moved, what came before it, how stable the steps were.

Definitions, the same in the terminal, on the page and in its captions:

- The **smoothed loss** at a step is the median of the last `WINDOW` losses up to it.
- The **noise** at a step is the spread of single losses up to it: the scaled median absolute deviation of the last
  `NOISE_WINDOW` differences of neighbours, divided by the root of 2.
- The loss **moved** at the first step at which it is not finite, or at which the smoothed loss exceeds its own
  smallest value so far by a tenth of the drop up to there, by 5 % of that smallest value and by `NOISE` times the
  noise where it was smallest.
- A **spike** is a loss that exceeds the smoothed loss of the step before by the same amount; spikes less than
  `WINDOW` losses apart are one.
- The loss **ended high** if the last smoothed loss still exceeds the smallest one by that amount, and
  **diverged** if the last loss is not finite or the last smoothed one is not below the first.
- **Early** is the first tenth of the run, **late** the last half.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from warmfree.report.runs.run import Alert, Floats, Grid, Ints, Row, Run

WINDOW = 7
RISE, FLOOR, NOISE = 0.1, 0.05, 5.0
NOISE_WINDOW = 100
EARLY, LATE = 0.1, 0.5
INSTABILITY, RATIO, LOSS = "instability", "angle_ratio", "loss"


@dataclass(frozen=True, slots=True)
class LossFindings:
    """The loss in numbers. `best` is the smallest single loss; None when no loss is finite."""

    count: int
    first: float
    last: float
    last_step: int
    best: float | None
    best_step: int | None
    moved: int | None
    moved_how: Literal["rose", "not finite"] | None
    spikes: tuple[int, ...]
    outcome: Literal["down", "high", "diverged", "flat"]


@dataclass(frozen=True, slots=True)
class FirstAlert:
    """An alert, and how many steps before the loss moved it came (negative: after)."""

    alert: Alert
    lead: int | None


@dataclass(frozen=True, slots=True)
class Stability:
    """The distance to the stability threshold: sharpness divided by threshold, where it was measured."""

    count: int
    first: float
    last: float
    highest: float
    highest_step: int
    above: int
    first_above: int | None


@dataclass(frozen=True, slots=True)
class Rotation:
    """Angular updates divided by the predicted equilibrium: median over layers and steps, early and late."""

    early: float
    early_end: int
    late: float | None
    largest: float
    largest_row: Row
    largest_step: int


def read_loss(run: Run) -> LossFindings | None:
    """Follow the loss; None when no step has one."""
    steps, losses = run.loss_curve
    if not len(steps):
        return None
    finite = np.isfinite(losses)
    smooth = smoothed(losses)
    allowed = _allowance(losses, smooth)
    lowest = np.minimum.accumulate(np.where(np.isnan(smooth), np.inf, smooth))
    with np.errstate(invalid="ignore"):
        rose = smooth > lowest + allowed
    moved = np.flatnonzero(~finite | rose)
    best = int(np.nanargmin(np.where(finite, losses, np.nan))) if finite.any() else None
    return LossFindings(
        count=len(steps),
        first=float(losses[0]),
        last=float(losses[-1]),
        last_step=int(steps[-1]),
        best=None if best is None else float(losses[best]),
        best_step=None if best is None else int(steps[best]),
        moved=int(steps[moved[0]]) if len(moved) else None,
        moved_how=None if not len(moved) else "rose" if finite[moved[0]] else "not finite",
        spikes=_spikes(steps, losses, smooth, allowed),
        outcome=_outcome(losses, smooth, bool(rose[-1])),
    )


def smoothed(losses: Floats) -> Floats:
    """The median of the last `WINDOW` losses at every step; fewer at the start; NaN counts as infinity."""
    filled = np.where(np.isnan(losses), np.inf, losses)
    start = [float(np.median(filled[: end + 1])) for end in range(min(WINDOW - 1, len(filled)))]
    if len(filled) < WINDOW:
        return np.array(start)
    windows = np.lib.stride_tricks.sliding_window_view(filled, WINDOW)
    return np.concatenate([start, np.median(windows, axis=1)])


def read_first_alert(run: Run, loss: LossFindings | None, *, besides_loss: bool = False) -> FirstAlert | None:
    """The first alert of a run, if there was any; `besides_loss` leaves out those on the loss itself."""
    alert = next((alert for alert in run.alerts if not (besides_loss and alert.quantity == LOSS)), None)
    if alert is None:
        return None
    return FirstAlert(alert, None if loss is None or loss.moved is None else loss.moved - alert.step)


def read_stability(run: Run) -> Stability | None:
    """How near the run was to the stability threshold; None when that was not measured."""
    curve = whole_model(run.grids.get(INSTABILITY))
    if curve is None:
        return None
    steps, values = curve
    known = np.isfinite(values)
    if not known.any():
        return None
    steps, values = steps[known], values[known]
    above = np.flatnonzero(values > 1)
    highest = int(values.argmax())
    return Stability(
        count=len(values),
        first=float(values[0]),
        last=float(values[-1]),
        highest=float(values[highest]),
        highest_step=int(steps[highest]),
        above=len(above),
        first_above=int(steps[above[0]]) if len(above) else None,
    )


def read_rotation(run: Run) -> Rotation | None:
    """How early updates compare with equilibrium; None when that was not measured early in the run."""
    grid = run.grids.get(RATIO)
    if grid is None:
        return None
    finite = np.isfinite(grid.values) & grid.measured
    early_end = max(math.ceil(EARLY * (run.last_step + 1)) - 1, 0)
    early, late = grid.steps <= early_end, grid.steps >= LATE * run.last_step
    first, rest = grid.values[:, early], grid.values[:, late]
    if not finite[:, early].any():
        return None
    peak = np.unravel_index(np.where(finite[:, early], first, -np.inf).argmax(), first.shape)
    settled = rest[finite[:, late]]
    return Rotation(
        early=float(np.median(first[finite[:, early]])),
        early_end=early_end,
        late=float(np.median(settled)) if len(settled) else None,
        largest=float(first[peak]),
        largest_row=grid.rows[int(peak[0])],
        largest_step=int(grid.steps[early][int(peak[1])]),
    )


def whole_model(grid: Grid | None) -> tuple[Ints, Floats] | None:
    """The steps and values of a quantity measured on the whole model; None when there are none."""
    if grid is None or Row("") not in grid.rows:
        return None
    row = grid.rows.index(Row(""))
    known = grid.measured[row]
    return grid.steps[known], grid.values[row][known]


def _allowance(losses: Floats, smooth: Floats) -> Floats:
    """By how much a loss may exceed the smallest smoothed loss so far before it counts as moved."""
    lowest = np.minimum.accumulate(smooth)
    with np.errstate(invalid="ignore"):
        drop = np.where(np.isfinite(lowest), smooth[0] - lowest, 0.0)
    drop = np.where(np.isfinite(drop), drop, 0.0)
    floor = np.where(np.isfinite(lowest), FLOOR * np.abs(lowest), np.inf)
    # Where the smoothed loss was smallest so far, at every step; the noise there is not that of a rise.
    is_new = np.concatenate([[True], lowest[1:] < lowest[:-1]])
    where = np.maximum.accumulate(np.where(is_new, np.arange(len(smooth)), 0))
    places, back = np.unique(where, return_inverse=True)
    return np.maximum(np.maximum(RISE * drop, floor), NOISE * _noise(losses, places)[back])


def _noise(losses: Floats, places: Ints) -> Floats:
    """The spread of single losses up to each of `places`; 0 where there are too few finite ones to tell."""
    with np.errstate(invalid="ignore"):
        changes = np.concatenate([np.full(NOISE_WINDOW, np.nan), np.diff(losses)])
    windows = np.lib.stride_tricks.sliding_window_view(changes, NOISE_WINDOW)[places]
    finite = np.isfinite(windows)
    known = finite.sum(axis=1) >= 2 * WINDOW
    noise = np.zeros(len(places))
    if known.any():
        kept = np.where(finite, windows, np.nan)[known]
        deviation = np.abs(kept - np.nanmedian(kept, axis=1, keepdims=True))
        noise[known] = 1.4826 * np.nanmedian(deviation, axis=1) / math.sqrt(2)
    return noise


def _spikes(steps: Ints, losses: Floats, smooth: Floats, allowed: Floats) -> tuple[int, ...]:
    """The first step of every spike of finite losses that came back; the final rise is no spike."""
    with np.errstate(invalid="ignore"):
        high = np.flatnonzero(losses[1:] > smooth[:-1] + allowed[:-1]) + 1
    high = high[np.isfinite(losses[high])]
    starts = [int(at) for place, at in enumerate(high) if place == 0 or at - high[place - 1] >= WINDOW]
    back = [at for at in starts if _came_back(losses, smooth, allowed, at)]
    return tuple(int(steps[at]) for at in back)


def _came_back(losses: Floats, smooth: Floats, allowed: Floats, at: int) -> bool:
    level = smooth[at - 1] + allowed[at - 1]
    return bool((losses[at + 1 : at + 1 + 4 * WINDOW] <= level).any())


def _outcome(losses: Floats, smooth: Floats, is_high: bool) -> Literal["down", "high", "diverged", "flat"]:
    if not np.isfinite(losses[-1]):
        return "diverged"
    if len(losses) == 1:
        return "flat"
    if is_high:
        return "diverged" if smooth[-1] >= smooth[0] else "high"
    return "down" if smooth[-1] < smooth[0] else "flat"
