"""The runs behind the figures: each method at its own best learning rate, averaged over seeds and thinned."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from warmfree.report.analysis import WITH_WARMUP, Analysis, Summary
from warmfree.report.results import Cell, Curve, Method

Quantity = Callable[[Curve], tuple[float, ...]]

LINEAR_WINDOWS = 50
WINDOWS_PER_DECADE = 15
SETTLED = 0.9


@dataclass(frozen=True, slots=True)
class Track:
    """One quantity of one method over steps, counted from 1; never empty."""

    method: Method
    step: tuple[float, ...]
    value: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ImpliedWarmup:
    """A size control's factor read as a warmup: where it was smallest, and from which step it stayed high."""

    method: Method
    smallest: float
    smallest_step: float
    settled_step: float | None
    last_step: float


def loss(curve: Curve) -> tuple[float, ...]:
    """Training loss."""
    return curve.loss


def update_rms(curve: Curve) -> tuple[float, ...]:
    """RMS of the weight change divided by lr; zero (a skipped step) cannot be drawn on a log axis."""
    return tuple(value if value > 0 else math.nan for value in curve.update_rms)


def angle(curve: Curve) -> tuple[float, ...]:
    """Mean rotation of the weight matrices per step, in radians; zero cannot be drawn on a log axis."""
    return tuple(value if value > 0 else math.nan for value in curve.angle)


def factor(curve: Curve) -> tuple[float, ...]:
    """The multiplier that the size control applied."""
    return curve.factor


def schedule(curve: Curve) -> tuple[float, ...]:
    """The learning rate as a fraction of its peak."""
    peak = max((lr for lr in curve.lr if math.isfinite(lr)), default=0.0)
    return tuple(lr / peak if peak else math.nan for lr in curve.lr)


def effective_schedule(curve: Curve) -> tuple[float, ...]:
    """The factor times the schedule: the share of the peak learning rate that a step really used."""
    return tuple(a * b for a, b in zip(curve.factor, schedule(curve), strict=True))


def track_all(analysis: Analysis, quantity: Quantity) -> list[Track]:
    """The quantity of every method that measured it, each at its own best learning rate."""
    tracks = (track(summary, quantity) for summary in analysis.methods)
    return [found for found in tracks if found]


def track(summary: Summary, quantity: Quantity) -> Track | None:
    """Average a quantity over the seeds of a method's best learning rate; None when it was not measured."""
    return average(summary.method, summary.best.cells, quantity) if summary.best else None


def explicit_warmup(analysis: Analysis) -> Track | None:
    """The schedule of the baseline that warms up, whatever became of its runs."""
    named = analysis.find(WITH_WARMUP)
    others = (summary for summary in analysis.methods if summary.method.warmup_fraction > 0)
    summary = named or next(others, None)
    if summary is None:
        return None
    cells = [cell for point in summary.points for cell in point.cells]
    longest = sorted(cells, key=lambda cell: -len(cell.curve.step))[:1]
    return average(summary.method, tuple(longest), schedule)


def until_peak(track: Track) -> Track:
    """The part of a schedule that leads up to its peak: the warmup without the cooldown."""
    peak = max(track.value)
    end = next(index for index, value in enumerate(track.value) if value >= 0.999 * peak) + 1
    return Track(track.method, track.step[:end], track.value[:end])


def average(method: Method, cells: tuple[Cell, ...], quantity: Quantity) -> Track | None:
    """Mean over cells at every step that any of them measured."""
    by_step: dict[float, list[float]] = {}
    for cell in cells:
        first = 1 if 0 in cell.curve.step[:1] else 0
        for step, value in zip(cell.curve.step, quantity(cell.curve), strict=True):
            if math.isfinite(value):
                by_step.setdefault(step + first, []).append(value)
    if not by_step:
        return None
    steps = tuple(sorted(by_step))
    return Track(method, steps, tuple(statistics.fmean(by_step[step]) for step in steps))


def thin(track: Track, *, log_steps: bool) -> Track:
    """Average over short windows, even on the axis to draw on: smoother to read and small to store."""
    last = track.step[-1]
    windows: dict[int, list[tuple[float, float]]] = {}
    for step, value in zip(track.step, track.value, strict=True):
        place = math.log10(step) * WINDOWS_PER_DECADE if log_steps else step / last * LINEAR_WINDOWS
        windows.setdefault(round(place), []).append((step, value))
    points = [windows[index] for index in sorted(windows)]
    return Track(
        track.method,
        step=tuple(statistics.fmean(step for step, _ in window) for window in points),
        value=tuple(statistics.fmean(value for _, value in window) for window in points),
    )


def implied_warmup(track: Track) -> ImpliedWarmup:
    """Read the factor of `track` as a warmup."""
    smallest = min(track.value)
    settled: float | None = None
    for step, value in zip(reversed(track.step), reversed(track.value), strict=True):
        if value < SETTLED:
            break
        settled = step
    return ImpliedWarmup(
        track.method,
        smallest=smallest,
        smallest_step=track.step[track.value.index(smallest)],
        settled_step=settled,
        last_step=track.step[-1],
    )
