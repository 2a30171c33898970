"""The points of a run, checked, and how much each of them weighs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "MIN_POINTS",
    "Points",
    "checked_gaps",
    "checked_points",
    "even_weights",
    "fit_weights",
    "isolated_spikes",
    "third",
]

Floats = NDArray[np.float64]

# Three constants and a quantile: with fewer, an envelope goes through the points that it should judge.
MIN_POINTS = 12

_BINS = 10  # of the logarithm of the gap
_FULL_BIN = 5  # points: one with fewer weighs less, so that no single point is worth a tenth of a run
_SPIKE = 4.0  # times the distance of the envelope from the middle of the points


@dataclass(frozen=True, kw_only=True, eq=False)
class Points:
    """Points of a run in the order of its steps.

    Attributes:
        steps: (n,), increasing.
        losses: (n,).
        curvatures: (n,), > 0.
        dropped: how many were left out.
    """

    steps: NDArray[np.int64]
    losses: Floats
    curvatures: Floats
    dropped: int


def checked_points(
    losses: ArrayLike, curvatures: ArrayLike, *, steps: Sequence[int] | NDArray[np.integer] | None, drop: bool
) -> Points:
    """Return the points sorted by step, without those that are no points if `drop` is set.

    Raises:
        ValueError: as `fit_smoothness` says.
    """
    loss, curvature = _vector(losses, "losses"), _vector(curvatures, "curvatures")
    if loss.shape != curvature.shape:
        raise ValueError(f"expected as many curvatures as losses, got {curvature.size} and {loss.size}")
    step = np.arange(loss.size) if steps is None else _steps(steps, loss.size)
    order = np.argsort(step, kind="stable")
    step, loss, curvature = step[order], loss[order], curvature[order]
    if (step[1:] == step[:-1]).any():
        twice = step[1:][step[1:] == step[:-1]][0]
        raise ValueError(f"steps must be distinct, got {twice} more than once; average such points first")
    finite = np.isfinite(loss) & np.isfinite(curvature)
    if not drop and not finite.all():
        where = int(finite.argmin())
        raise ValueError(
            f"{(~finite).sum()} of {loss.size} points are not finite, the first at step {step[where]}: loss "
            f"{loss[where]:g}, curvature {curvature[where]:g}; leave them out with drop_invalid=True"
        )
    valid = finite & (np.where(finite, curvature, 0.0) > 0.0)
    if not drop and not valid.all():
        where = int(valid.argmin())
        raise ValueError(
            f"{(~valid).sum()} of {loss.size} curvatures are not > 0, the first {curvature[where]:g} at step "
            f"{step[where]}: they have to be norms of the Hessian or largest eigenvalues, of which one at or below 0 "
            "bounds nothing; leave such points out with drop_invalid=True"
        )
    left = int(valid.sum())
    if left < MIN_POINTS:
        dropped = f" after {loss.size - left} were left out" if left < loss.size else ""
        raise ValueError(f"a fit needs at least {MIN_POINTS} points, got {left}{dropped}; measure more often")
    return Points(
        steps=step[valid], losses=loss[valid], curvatures=curvature[valid], dropped=loss.size - left
    )


def checked_gaps(points: Points, f_star: float) -> Floats:
    """Return losses minus f*, all > 0.

    Raises:
        ValueError: f* is not finite or not below all losses.
    """
    if not np.isfinite(f_star):
        raise ValueError(f"f_star must be finite or 'estimate', got {f_star!r}")
    gaps = points.losses - f_star
    if not (gaps > 0.0).all():
        where = int(points.losses.argmin())
        raise ValueError(
            f"{(gaps <= 0.0).sum()} losses are not above f_star={f_star:g}: the smallest is "
            f"{points.losses[where]:g} at step {points.steps[where]}, and f_star, the infimum of the loss, has to be "
            "below it; give a lower one (0 for a cross-entropy without label smoothing, or a mean square), or "
            "f_star='estimate'"
        )
    return gaps


def even_weights(gaps: Floats) -> Floats:
    """Return weights of points that are even over the logarithm of the gap, with sum 1.

    Each of ten bins of the logarithm weighs the same; but one with fewer than five points weighs a fifth for each.
    """
    logs = np.log(gaps)
    low, high = logs.min(), logs.max()
    width = (high - low) / _BINS
    bins = np.zeros(gaps.size, np.int64)
    if width > 0.0:
        bins = np.minimum(((logs - low) / width).astype(np.int64), _BINS - 1)
    weights = 1.0 / np.maximum(np.bincount(bins, minlength=_BINS), _FULL_BIN)[bins]
    even: Floats = weights / weights.sum()
    return even


def fit_weights(gaps: Floats) -> Floats:
    """Return the weights of a fit, with sum 1: halfway, in logarithms, between equal ones and `even_weights`.

    Most points of a run lie at the small gaps late in it. As they are, the envelope of 95 % of them may leave the
    whole beginning above itself, and the beginning is what a warmup is about. Even weights would rest on few points:
    with them the intervals cover least. Halfway a tenth of the weight is with 10 points of 300.
    """
    roots = np.sqrt(even_weights(gaps))
    weights: Floats = roots / roots.sum()
    return weights


def isolated_spikes(residuals: Floats) -> NDArray[np.bool_]:
    """Return which points are far above an envelope while both of their neighbours are not, (n,).

    Far: at least a factor of 2, and 4 times as far as the envelope is above the middle of the points; with normal noise
    that is 8 standard deviations above it. One such point in fifty is in too many resamples more than the share that
    the envelope leaves above itself. The first and the last point are never spikes: a run may begin with its largest
    curvature. Ours.

    Args:
        residuals: logarithms of the curvatures minus those of the envelope, in the order of the steps, (n,).
    """
    threshold = max(_SPIKE * -float(np.median(residuals)), np.log(2.0))
    high = residuals > threshold
    calm = residuals < 0.5 * threshold
    spikes = np.zeros(residuals.size, np.bool_)
    spikes[1:-1] = high[1:-1] & calm[:-2] & calm[2:]
    return spikes


def third(values: Floats) -> tuple[float, float]:
    """Return the third smallest and the third largest value: no two points alone make a range."""
    ordered = np.sort(values)
    return float(ordered[2]), float(ordered[-3])


def _vector(values: ArrayLike, name: str) -> Floats:
    try:
        found = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers, one for each point: {error}") from None
    if found.ndim != 1:
        raise ValueError(f"{name} must have shape (points,), got {found.shape}")
    return found


def _steps(steps: Sequence[int] | NDArray[np.integer], count: int) -> NDArray[np.int64]:
    found = np.asarray(steps)
    if found.shape != (count,):
        raise ValueError(f"steps must be one for each of the {count} points, got shape {found.shape}")
    if not np.issubdtype(found.dtype, np.integer):
        raise ValueError(f"steps must be integers, got {found.dtype}")
    return found.astype(np.int64)
