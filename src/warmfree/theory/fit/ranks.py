"""Whether curvature falls with the loss: rank correlations, of a whole run and of its two phases."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from warmfree.theory.fit.resample import autocorrelation

__all__ = ["Phase", "Phases", "ranks", "spearman", "two_phases", "whole_run"]

Floats = NDArray[np.float64]

PHASE_CORRELATION = 0.5  # the least, in size, of a phase in which curvature has a direction
PHASE_CHANGE = 1.25  # the least factor by which it changes there
PHASE_STRENGTH = 4.0  # the least slope in standard errors; not 2, since the split was searched for
# Or, for runs without noise, whose residuals are all trend: nearly monotone, and a change that nobody would call noise.
MONOTONE_CORRELATION, MONOTONE_CHANGE = 0.85, 2.0
PHASE_SHARE = 0.1  # of the points, the least of a phase, and at least `PHASE_POINTS`
PHASE_POINTS = 6

_LEAST_FREEDOM = 0.25  # so that a line without noise stays one however smooth the run is


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Part of a run.

    Attributes:
        steps: of its first and last point.
        points: how many.
        correlation: rank correlation of curvature with gap: > 0 if curvature falls with the loss.
        change: the factor by which curvature changes from its beginning to its end, from a line through its logarithm
            over that of the gap, and the medians of the first and last tenth of the gaps.
        strength: the slope of that line in standard errors, which are widened by the autocorrelation.
    """

    steps: tuple[int, int]
    points: int
    correlation: float
    change: float
    strength: float

    @property
    def direction(self) -> int:
        """1 if curvature falls with the loss, -1 if it grows while the loss falls, 0 if neither is clear."""
        size, change = abs(self.correlation), max(self.change, 1.0 / self.change)
        clear = size >= PHASE_CORRELATION and change >= PHASE_CHANGE and self.strength >= PHASE_STRENGTH
        monotone = size >= MONOTONE_CORRELATION and change >= MONOTONE_CHANGE
        return (1 if self.correlation > 0.0 else -1) if clear or monotone else 0


@dataclass(frozen=True, kw_only=True)
class Phases:
    """A run that changes direction: in one phase curvature grows while the loss falls, in the other it does not."""

    early: Phase
    late: Phase


def ranks(values: Floats, weights: Floats) -> Floats:
    """Return weighted ranks in (0, 1): the weight below a value and half of the weight at it, as a share.

    Args:
        values: (n,).
        weights: (n,), with sum 1. Equal weights give the usual ranks, but for scale, those of equal values their mean.
    """
    _, inverse = np.unique(values, return_inverse=True)
    at = np.bincount(inverse, weights=weights)
    found: Floats = (np.cumsum(at) - 0.5 * at)[inverse]
    return found


def spearman(
    one: Floats, other: Floats, *, weights: Floats | None = None, multipliers: Floats | None = None
) -> Floats:
    """Return the rank correlation of values; 0 if one of them is constant.

    Args:
        one: (n,).
        other: (n,).
        weights: of the points, (n,); None: equal, which is Spearman's.
        multipliers: of the weights in resamples, (B, n). Ranks stay those of the points.

    Returns:
        Of shape (B,), or () without multipliers.
    """
    base = np.ones(one.size) if weights is None else weights
    base = base / base.sum()
    first, second = ranks(one, base), ranks(other, base)
    weight = base if multipliers is None else base * multipliers
    weight = weight / weight.sum(axis=-1, keepdims=True)
    first = first - (weight * first).sum(axis=-1, keepdims=True)
    second = second - (weight * second).sum(axis=-1, keepdims=True)
    shared = (weight * first * second).sum(axis=-1)
    spread = np.sqrt((weight * first**2).sum(axis=-1) * (weight * second**2).sum(axis=-1))
    constant = (np.ptp(one) == 0.0) | (np.ptp(other) == 0.0) | (spread == 0.0)
    found: Floats = np.where(constant, 0.0, shared / np.where(constant, 1.0, spread))
    return found


def two_phases(steps: NDArray[np.int64], log_gaps: Floats, logs: Floats) -> Phases | None:
    """Return the phases before and after the split between which the rank correlations differ most.

    Args:
        steps: (n,), increasing.
        log_gaps: logarithms of the gaps, (n,).
        logs: logarithms of the curvatures, (n,).

    Returns:
        None unless curvature grows while the loss falls in exactly one of them, and the correlations differ by at least
        `PHASE_CORRELATION`; and if it has no direction in the other, unless it has none over the whole run either: a
        phase in which the loss hardly changes any more says nothing against the direction of the run.
    """
    count = steps.size
    least = max(PHASE_POINTS, int(np.ceil(PHASE_SHARE * count)))
    splits = range(least, count - least + 1, max(1, count // 60))
    if not splits:
        return None
    pairs = [
        (float(spearman(log_gaps[:s], logs[:s])), float(spearman(log_gaps[s:], logs[s:]))) for s in splits
    ]
    best = int(np.argmax([abs(early - late) for early, late in pairs]))
    parts = [slice(0, splits[best]), slice(splits[best], count)]
    lines = [_line(log_gaps[part], logs[part]) for part in parts]
    phi = autocorrelation(np.concatenate([residuals for _, residuals in lines]))
    early, late = (
        _phase(steps[part], log_gaps[part], slope, residuals, correlation, phi)
        for part, (slope, residuals), correlation in zip(parts, lines, pairs[best], strict=True)
    )
    differ = abs(early.correlation - late.correlation) >= PHASE_CORRELATION
    if not differ or early.direction == late.direction or min(early.direction, late.direction) > -1:
        return None
    if max(early.direction, late.direction) < 1 and whole_run(steps, log_gaps, logs).direction < 0:
        return None
    return Phases(early=early, late=late)


def whole_run(steps: NDArray[np.int64], log_gaps: Floats, logs: Floats) -> Phase:
    """Return the run as one phase; arguments as for `two_phases`."""
    slope, residuals = _line(log_gaps, logs)
    correlation = float(spearman(log_gaps, logs))
    return _phase(steps, log_gaps, slope, residuals, correlation, autocorrelation(residuals))


def _line(x: Floats, y: Floats) -> tuple[float, Floats]:
    """Return slope and residuals of the least-squares line."""
    across, up = x - x.mean(), y - y.mean()
    spread = float((across**2).sum())
    slope = float((across * up).sum()) / spread if spread > 0.0 else 0.0
    return slope, up - slope * across


def _phase(
    steps: NDArray[np.int64],
    log_gaps: Floats,
    slope: float,
    residuals: Floats,
    correlation: float,
    phi: float,
) -> Phase:
    freedom = max(steps.size * (1.0 - phi) / (1.0 + phi) - 2.0, _LEAST_FREEDOM)
    noise = float(np.sqrt((residuals**2).mean() / freedom))
    size = abs(slope) * float(log_gaps.std())
    ends = max(3, steps.size // 10)  # a single point's gap is noise
    travel = float(np.median(log_gaps[-ends:]) - np.median(log_gaps[:ends]))
    return Phase(
        steps=(int(steps[0]), int(steps[-1])),
        points=steps.size,
        correlation=correlation,
        change=float(np.exp(slope * travel)),
        strength=size / noise if noise > 0.0 else np.inf if size > 0.0 else 0.0,
    )
