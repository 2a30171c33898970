r"""Valleys whose floor has a slope that an adversary chooses: the fast loop of errors after T steps.

.. math:: f(x, y) = 2 (\cosh x - 1) + \delta \left(\sqrt{y^2 + \delta^2 / 4} - \delta / 2\right)

Convex and (1, 2, 1)-smooth for every slope :math:`\delta > 0`, since the floor's curvature is at most 2. Far from its
middle the floor is a slope; descent comes down it by :math:`\delta \sum_t \eta_t`.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from warmfree.theory.noise import ABCNoise
from warmfree.theory.smoothness import Smoothness

__all__ = ["SMOOTHNESS", "final_gaps", "valley_gap"]

Floats = NDArray[np.float64]

SMOOTHNESS = Smoothness(exponent=1.0, floor=2.0, growth=1.0)

Rates = Callable[[int, Floats, Floats], Floats]


def valley_gap(x: Floats, y: Floats, slope: Floats) -> Floats:
    """Return the gap; the arguments are broadcast against each other."""
    half = slope / 2.0
    return 4.0 * np.sinh(x / 2.0) ** 2 + slope * y * y / (np.sqrt(y * y + half * half) + half)


def final_gaps(
    rates: Rates,
    *,
    count: int,
    start: float,
    height: float,
    slopes: Floats,
    steps: int,
    noise: ABCNoise | None,
    runs: int,
    seed: int,
) -> Floats:
    r"""Descend for T steps with all members of a family, on all slopes, with all draws.

    Args:
        rates: learning rates at a step, from its number, the gaps (n, s, r) and standard normal numbers (r,) of its
            own, for rules that see the gap through noise; of a shape that broadcasts against (n, s, r).
        count: n, number of members.
        start: a, where x starts.
        height: y0, where y starts.
        slopes: (s,), delta.
        steps: T.
        noise: of the gradients, drawn alike for all members and slopes; None takes the gradients themselves: r is 1.
        runs: r, side by side.
        seed: of all of them.

    Returns:
        Gaps after T steps, (n, s, r); inf or nan where it diverged.
    """
    runs = 1 if noise is None else runs
    generator = np.random.default_rng(seed)
    delta = slopes[:, None]
    half_width = delta / 2.0
    x = np.full((count, slopes.size, runs), start)
    y = np.full_like(x, height)
    with np.errstate(all="ignore"):
        for step in range(steps):
            sinh = np.sinh(0.5 * x)
            square = sinh * sinh
            root = np.sqrt(y * y + half_width * half_width)
            gap = 4.0 * square + delta * y * y / (root + half_width)
            along_x = 4.0 * sinh * np.sqrt(1.0 + square)
            along_y = delta * y / root
            draws = generator.standard_normal(runs)
            lr = rates(step, gap, draws)
            if noise is not None:
                signs = 2.0 * generator.integers(0, 2, (2, runs)) - 1.0
                if noise.gap or noise.gradient:
                    squares = noise.gap * gap + noise.gradient * (along_x * along_x + along_y * along_y)
                    scale = np.sqrt(0.5 * (squares + noise.constant))
                    along_x = along_x + scale * signs[0]
                    along_y = along_y + scale * signs[1]
                else:
                    size = np.sqrt(0.5 * noise.constant)
                    along_x = along_x + size * signs[0]
                    along_y = along_y + size * signs[1]
            x = x - lr * along_x
            y = y - lr * along_y
        return valley_gap(x, y, delta)
