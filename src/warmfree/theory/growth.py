r"""How far the gap can grow within a distance, if the curvature is bounded by it.

Along a line the gap obeys :math:`\varphi' \le \sqrt{2 \int_0^\varphi \ell}`, so that :math:`z = \sqrt{\varphi}` obeys

.. math:: z' \le \sqrt{\tfrac12 \left(K_0 + \tfrac{K_\rho}{1 + \rho} z^{2 \rho}\right)} = 1 / g(z)

and the time to come from z to Z is at least :math:`\int_z^Z g`. In :math:`x = \ln z` the logarithm of g is concave with
second derivative at least :math:`-\rho^2 / 2`. Its chord over a cell of width h lies below it, by at most
:math:`\rho^2 h^2 / 16`: a power of z in every cell, whose integral has a closed form, is a lower bound of the time, and
the Z that follows from it an upper bound. Where one of the two terms is negligible (by :math:`e^{-24}`) one power does.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["grown_gap"]

Floats = NDArray[np.float64]

_CELLS = 4096
_REACH = 12.0  # rho |ln z - ln of where both terms are equal|, where the smaller is e^-24 of the larger
_LOWEST, _HIGHEST = -373.0, 356.0  # ln of the square roots of the smallest and the largest double
_ROUNDING = 1e-12  # times 1 + rho, by which distances are taken longer: rounding is not to lower the bound


def grown_gap(gaps: Floats, distances: Floats, *, exponent: float, floor: float, growth: float) -> Floats:
    r"""Return an upper bound of the gap within distances, behind `Smoothness.gap_within`.

    It is at least the bound at the distance r and at most the bound at :math:`(1 + 3 \cdot 10^{-6})\, r`, but for
    rounding; where a closed form is known (no growth, no floor, :math:`\rho = 1`) it is the bound itself. Near the
    distance at which it becomes infinite (rho > 1) little of r is much of the gap.

    Args:
        gaps: at least 0.
        distances: of the same shape, at least 0.
        exponent: rho.
        floor: K0.
        growth: K_rho.

    Returns:
        The bound, of their shape; inf from where the integral of g stays below the distance.

    Example:
        >>> at = np.array([0.0, 4.0])  # of x^4 / 4 at 0 and 2, a unit further
        >>> grown_gap(at, np.ones(2), exponent=0.5, floor=0.0, growth=6.0).round(6).tolist()
        [0.25, 20.25]

    Reference: ours.
    """
    start, time = np.sqrt(gaps), distances * (1.0 + _ROUNDING * (1.0 + exponent))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        if growth == 0.0:
            end = start + time * math.sqrt(floor / 2.0)
        elif exponent == 1.0:
            end = _linear(start, time, floor, growth)
        elif floor == 0.0:
            end = _power(start, time, exponent, growth)
        else:
            end = _table(exponent, floor, growth).advance(start, time)
        grown = np.where(np.isnan(end), math.inf, end) ** 2 * (1.0 + _ROUNDING)
    still = (distances == 0.0) | np.isinf(gaps)
    if (
        floor == 0.0 and exponent >= 1.0
    ):  # then the integral of g diverges at 0: no finite distance leads away from there
        still |= gaps == 0.0
    return np.where(still, gaps, np.maximum(grown, gaps))


def _linear(start: Floats, time: Floats, floor: float, growth: float) -> Floats:
    """Solve z' = sqrt(K0 / 2 + K1 z^2 / 4): a hyperbolic sine, opened so that all terms are positive."""
    angle = time * (math.sqrt(growth) / 2.0)
    scale = math.sqrt(2.0 * floor) / math.sqrt(growth)
    return np.asarray(start * np.cosh(angle) + np.hypot(scale, start) * np.sinh(angle))


def _power(start: Floats, time: Floats, exponent: float, growth: float) -> Floats:
    """Solve z' = sqrt(K / (2 (1 + rho))) z^rho; from 0 the largest of its solutions, for rho < 1."""
    speed = math.sqrt(growth / (2.0 * (1.0 + exponent)))
    left = 1.0 - exponent
    moved = start * np.exp(_log_power(left, time * speed * start ** (exponent - 1.0)))
    if left > 0.0:
        moved = np.where(start == 0.0, (left * speed * time) ** (1.0 / left), moved)
    return moved


def _log_power(power: Floats | float, time: Floats) -> Floats:
    """Return the x with int_0^x exp(power t) dt = time; inf where the integral stays below it."""
    steep = np.abs(power * time) > 1e-300
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        exact = np.log1p(np.maximum(power * time, -1.0)) / power
    return np.where(power * time <= -1.0, math.inf, np.where(steep, exact, time))


@dataclass(frozen=True, eq=False)
class _Table:
    """Lower bound of g: constant below the first node, a power in every cell, and a power above the last node.

    Attributes:
        width: h, of a cell in ln z.
        nodes: ln z.
        slices: exp(ln z) g at the nodes, the integrand in ln z.
        powers: of the integrand in each cell and above the last.
        times: integral from the first node to each.
        low: g below the first node.
    """

    width: float
    nodes: Floats
    slices: Floats
    powers: Floats
    times: Floats
    low: float

    def advance(self, start: Floats, time: Floats) -> Floats:
        """Return z after a time."""
        first, last = math.exp(self.nodes[0]), len(self.nodes) - 1
        to_first = np.maximum(first - start, 0.0) * self.low
        inside = time < to_first
        end = np.where(inside, start + time / self.low, math.inf)

        left = np.where(inside, 0.0, time - to_first)
        at = np.maximum(np.log(start), self.nodes[0])
        cell = np.clip(np.floor((at - self.nodes[0]) / self.width).astype(np.int64), 0, last)
        slices = self.slices[cell] * np.exp(self.powers[cell] * (at - self.nodes[cell]))
        stepped = _log_power(self.powers[cell], left / slices)
        room = np.where(cell < last, self.nodes[np.minimum(cell + 1, last)] - at, math.inf)
        within = stepped <= room

        reached = np.minimum(cell + 1, last)
        needed = slices * _integral(self.powers[cell], np.where(np.isfinite(room), room, 0.0))
        target = self.times[reached] + np.where(within, 0.0, np.maximum(left - needed, 0.0))
        final = np.clip(np.searchsorted(self.times, target, side="right") - 1, reached, last)
        beyond = _log_power(self.powers[final], (target - self.times[final]) / self.slices[final])
        jumped = np.exp(self.nodes[final] + beyond)
        walked = np.maximum(start, first) * np.exp(np.where(within, stepped, 0.0))
        return np.where(inside, end, np.where(within, walked, jumped))


def _integral(power: Floats, length: Floats) -> Floats:
    """Return int_0^length exp(power t) dt."""
    steep = np.abs(power) > 1e-300
    return np.where(steep, np.expm1(power * length) / np.where(steep, power, 1.0), length)


@lru_cache(maxsize=64)
def _table(exponent: float, floor: float, growth: float) -> _Table:
    log_floor = math.log(floor / 2.0) if floor > 1e-300 else math.log(floor) - math.log(2.0)
    log_growth = math.log(growth) - math.log(2.0 * (1.0 + exponent))
    middle = (log_floor - log_growth) / (2.0 * exponent)
    lower = min(max(middle - _REACH / exponent, _LOWEST), _HIGHEST - 1.0)
    upper = max(min(middle + _REACH / exponent, _HIGHEST), lower + 1e-3)
    nodes = np.linspace(lower, upper, _CELLS + 1)
    logs = nodes - 0.5 * np.logaddexp(log_floor, log_growth + 2.0 * exponent * nodes)
    width = (upper - lower) / _CELLS
    with np.errstate(over="ignore", under="ignore"):
        powers = np.append(np.diff(logs) / np.diff(nodes), 1.0 - exponent)
        slices = np.exp(logs)
        times = np.append(0.0, np.cumsum(slices[:-1] * _integral(powers[:-1], np.diff(nodes))))
    return _Table(width, nodes, slices, powers, times, low=math.exp(logs[0] - nodes[0]))
