"""The learning rates that a baseline deserves: the best of many tried, and the largest that never climbs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from warmfree.theory.descent import descend
from warmfree.theory.function import Function
from warmfree.theory.noise import ABCNoise
from warmfree.theory.steps import Constant, StepRule

__all__ = ["Make", "Tuned", "Unit", "largest_stable", "tune"]

Floats = NDArray[np.float64]
Make = Callable[[Floats], StepRule]
Unit = Literal["curvature", "length"]

_COARSE, _FINE = 121, 41
_WIDENINGS = 4  # each by half of the first grid's logarithmic width
_NUMBERS_AT_ONCE = 4_000_000
_SHORTEST = 1e-7


@dataclass(frozen=True, slots=True)
class Tuned:
    """A learning rate, its gap after the last step, how many were tried, and whether it is an extreme of them."""

    lr: float
    gap: float
    tried: int
    at_edge: bool


def tune(
    function: Function,
    start: Floats,
    make: Make,
    *,
    steps: int,
    noise: ABCNoise | None,
    seed: int,
    unit: Unit = "curvature",
    way: float = 1.0,
    draws: int = 8,
    lr: float | None = None,
) -> Tuned:
    """Return the learning rate with the lowest gap after the last step, on a grid and then on a finer one around it.

    As long as the best is at an edge of the grid, it is widened there, up to four times. With noise the mean gap of
    several draws is compared, none of which is that of the seed.

    Args:
        function: what is descended.
        start: (d,).
        make: a rule from learning rates (n,), one a run.
        steps: T.
        noise: of the gradients.
        seed: whose noise is left out.
        unit: of the learning rate: of a reciprocal curvature, or of a length.
        way: the length to go, where the unit is one.
        draws: of the noise.
        lr: the only learning rate to try; None tries a grid.
    """

    def final(rates: Floats) -> Floats:
        return _final_gaps(function, start, make, rates, steps=steps, noise=noise, seed=seed, draws=draws)

    if lr is not None:
        return Tuned(lr, float(final(np.array([lr]))[0]), 1, at_edge=False)
    coarse = (
        _curvature_grid(function, start)
        if unit == "curvature"
        else np.geomspace(_SHORTEST, 4.0, _COARSE) * way
    )
    gaps = final(coarse)
    for _ in range(_WIDENINGS):
        best = int(gaps.argmin())
        if 0 < best < len(coarse) - 1:
            break
        more = _beyond(coarse, above=best > 0)
        coarse, gaps = np.append(coarse, more), np.append(gaps, final(more))
        order = coarse.argsort()
        coarse, gaps = coarse[order], gaps[order]
    best = int(gaps.argmin())
    fine = np.geomspace(coarse[max(best - 1, 0)], coarse[min(best + 1, len(coarse) - 1)], _FINE)
    refined = final(fine)
    found, gap = min((gaps[best], coarse[best]), (refined.min(), fine[refined.argmin()]))[::-1]
    return Tuned(float(found), float(gap), len(coarse) + len(fine), best in (0, len(coarse) - 1))


def largest_stable(function: Function, start: Floats, *, steps: int) -> Tuned:
    """Return the largest constant learning rate with which, or a smaller one, no step climbs; without noise.

    As long as none of the grid climbs, it is widened, up to four times.
    """
    coarse = _curvature_grid(function, start)
    last = _last_stable(function, start, coarse, steps=steps)
    for _ in range(_WIDENINGS):
        if last < len(coarse) - 1:
            break
        coarse = np.append(coarse, _beyond(coarse, above=True))
        last = _last_stable(function, start, coarse, steps=steps)
    fine = np.geomspace(coarse[last], coarse[min(last + 1, len(coarse) - 1)], _FINE)
    found = float(fine[_last_stable(function, start, fine, steps=steps)])
    path = descend(function, start, Constant(found), steps=steps)
    edge = last in (0, len(coarse) - 1)
    return Tuned(found, float(path.gaps[-1, 0]), len(coarse) + len(fine), edge)


def _curvature_grid(function: Function, start: Floats) -> Floats:
    """From a quarter of what the smoothness promises at the start to four times what it would at a millionth of it."""
    gap = function.gap(start)
    slow, fast = 1.0 / function.smoothness.curvature(gap), 1.0 / function.smoothness.curvature(1e-6 * gap)
    return np.geomspace(0.25 * float(slow), 4.0 * float(fast), _COARSE)


def _beyond(grid: Floats, *, above: bool) -> Floats:
    """Return half as many learning rates as a grid was made of, evenly apart as they are, that go on at an end."""
    ratio, places = grid[1] / grid[0], np.arange(1.0, _COARSE // 2 + 1.0)
    more: Floats = grid[-1] * ratio**places if above else grid[0] / ratio**places
    return more


def _final_gaps(
    function: Function,
    start: Floats,
    make: Make,
    rates: Floats,
    *,
    steps: int,
    noise: ABCNoise | None,
    seed: int,
    draws: int,
) -> Floats:
    draws = 1 if noise is None else draws
    at_once = max(1, _NUMBERS_AT_ONCE // (steps * function.dimension * draws))
    found = []
    for begin in range(0, len(rates), at_once):
        some = np.repeat(rates[begin : begin + at_once], draws)
        starts = np.tile(start, (len(some), 1))
        path = descend(function, starts, make(some), steps=steps, noise=noise, seed=seed + 1)
        gaps: Floats = np.where(path.diverged, np.inf, path.gaps[-1])
        found.append(gaps.reshape(-1, draws).mean(axis=1))
    return np.concatenate(found)


def _last_stable(function: Function, start: Floats, rates: Floats, *, steps: int) -> int:
    climbs = np.zeros(len(rates), np.bool_)
    at_once = max(1, _NUMBERS_AT_ONCE // (steps * function.dimension))
    for begin in range(0, len(rates), at_once):
        some = rates[begin : begin + at_once]
        path = descend(function, np.tile(start, (len(some), 1)), Constant(some), steps=steps)
        rises = (path.gaps[1:] > path.gaps[:-1] * (1.0 + 1e-12)).any(axis=0)
        climbs[begin : begin + len(some)] = rises | path.diverged
    return max(int(climbs.argmax()) - 1, 0) if climbs.any() else len(rates) - 1
