r"""Descent of many valleys :math:`2 (\cosh x - 1) + \mathrm{floor}(y)` under many schedules: the fast loops.

Specialised versions of `warmfree.theory.descent.steps_to` for one family of functions, so that millions of steps of
hundreds of schedules are affordable: the wall needs one sinh a step, the floor of a bowl none.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from warmfree.theory.speedup.candidates import Candidates

__all__ = ["edge", "gaps_to", "hits", "start_of"]

Floats = NDArray[np.float64]

_COMPRESS_EVERY = 512


def start_of(gap: ArrayLike) -> Floats:
    r"""Return the a > 0 at which the wall has a gap, :math:`2 (\cosh a - 1) = \Delta`."""
    return 2.0 * np.arcsinh(np.sqrt(np.asarray(gap, np.float64)) / 2.0)


def edge(start: ArrayLike) -> Floats:
    r"""Return the learning rate above which the first step leads farther up the wall, :math:`a / \sinh a`."""
    a = np.asarray(start, np.float64)
    return a / np.sinh(a)


def gaps_to(largest: float) -> list[float]:
    """Return initial gaps from 10 on, about two a decade.

    Args:
        largest: the last of them, at least 10.

    Raises:
        ValueError: it is smaller.

    Example:
        >>> [round(gap, 1) for gap in gaps_to(1000.0)]
        [10.0, 31.6, 100.0, 316.2, 1000.0]
    """
    if not 10.0 <= largest < math.inf:
        raise ValueError(f"the largest gap must be finite and at least 10, got {largest!r}")
    count = max(1 + (largest > 10.0), round(2 * math.log10(largest / 10.0)) + 1)
    gaps: list[float] = np.geomspace(10.0, largest, count).tolist()
    return gaps


def hits(
    candidates: Candidates,
    *,
    start: ArrayLike,
    height: ArrayLike,
    curvature: ArrayLike,
    target: ArrayLike,
    limit: int,
    first_only: bool = False,
) -> Floats:
    r"""Count the steps of gradient descent on :math:`2 (\cosh x - 1) + (\mu/2) y^2` to a target gap.

    The instances' numbers are broadcast against each other to (m,).

    Args:
        candidates: n schedules that never rise.
        start: a, where x starts.
        height: y0 > 0, where y starts.
        curvature: mu, in (0, 2].
        target: eps, > 0.
        limit: the most steps.
        first_only: stop a family as soon as one of its members has brought the first instance to its target: the others
            need more steps.

    Returns:
        Steps, of shape (n, m); nan where the target was not reached, or would have been later than counted.
    """
    a, y0, mu, eps = (
        np.atleast_1d(np.asarray(v, np.float64))
        for v in np.broadcast_arrays(start, height, curvature, target)
    )
    found = np.full((len(candidates), a.size), math.nan)
    live = np.arange(len(candidates))
    is_constant = candidates.is_constant
    half = np.tile(a / 2.0, (live.size, 1))
    floor = np.tile(y0, (live.size, 1))
    earliest = _earliest(candidates.lr, y0=y0, mu=mu, eps=eps)
    with np.errstate(all="ignore"):
        rates = candidates.rates(0)[:, None]
        for step in range(limit + 1):
            sinh = np.sinh(half)
            square = sinh * sinh
            if step >= earliest:
                if is_constant:
                    floor = y0 * (1.0 - mu * rates) ** step
                hit = (4.0 * square + 0.5 * mu * floor * floor <= eps) & np.isnan(found[live])
                if hit.any():
                    found[live[hit.nonzero()[0]], hit.nonzero()[1]] = step
                    keep = np.isnan(found[live]).any(axis=1)
                    if first_only:
                        won = np.unique(candidates.family[hit[:, 0]])
                        keep &= ~np.isin(candidates.family, won)
                    if not keep.any():
                        break
                    candidates, live, half, floor, rates, sinh, square = _kept(
                        keep, candidates, live, half, floor, rates, sinh, square
                    )
            if step % _COMPRESS_EVERY == _COMPRESS_EVERY - 1:
                keep = np.isfinite(square).any(axis=1)
                if not keep.any():
                    break
                if not keep.all():
                    candidates, live, half, floor, rates, sinh, square = _kept(
                        keep, candidates, live, half, floor, rates, sinh, square
                    )
            if not is_constant:
                rates = candidates.rates(step)[:, None]
                floor = floor * (1.0 - mu * rates)
            square += 1.0
            half -= 2.0 * rates * sinh * np.sqrt(square)
    return found


def _kept(
    keep: NDArray[np.bool_], candidates: Candidates, live: NDArray[np.intp], *arrays: Floats
) -> tuple[Candidates, NDArray[np.intp], Floats, Floats, Floats, Floats, Floats]:
    half, floor, rates, sinh, square = (array[keep] for array in arrays)
    return candidates.take(keep), live[keep], half, floor, rates, sinh, square


def _earliest(rates: Floats, *, y0: Floats, mu: Floats, eps: Floats) -> int:
    """Return a number of steps before which no floor can be at its target: rates that never rise only fall slower."""
    factor = 1.0 - np.outer(rates, mu)
    if (factor <= 0.0).any():
        return 0
    needed = np.log(np.sqrt(2.0 * eps / mu) / y0) / np.log(factor)
    return max(0, math.floor(float(needed.min())) - 1)
