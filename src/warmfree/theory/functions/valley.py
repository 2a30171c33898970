"""River valleys: sharp walls, and between them a slow way down."""

import math

import numpy as np
from numpy.typing import NDArray

from warmfree.theory.function import Function
from warmfree.theory.smoothness import Smoothness

__all__ = ["CurvedRiverValley", "RiverValley"]

Floats = NDArray[np.float64]


class RiverValley(Function):
    r"""A straight valley: walls like a hyperbolic cosine, a river that falls no faster than its slope.

    .. math:: f(x, y) = 2 h (\cosh b x - 1) + s (\sqrt{1 + y^2} - 1), \qquad
        \|\nabla^2 f\| = \max\{2 h b^2 \cosh b x,\; s (1 + y^2)^{-3/2}\} \le 2 h b^2 + b^2 \Delta

    :math:`(1, 2 h b^2, b^2)`-smooth with equality along y = 0. Convex; no mu: far away the river falls at a constant
    slope while the gap grows.

    Args:
        height: h, finite and > 0.
        sharpness: b, finite and > 0.
        slope: s, > 0 and at most :math:`2 h b^2`: the walls are to be the sharper ones.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> RiverValley(height=0.5, sharpness=2.0).smoothness
        Smoothness(exponent=1.0, floor=4.0, growth=4.0)

    Reference: ours; the picture is of Wen et al. 2024, and Liu et al. 2025 experiment with one of their own.
    """

    def __init__(self, *, height: float = 1.0, sharpness: float = 1.0, slope: float = 0.1) -> None:
        for name, value in (("height", height), ("sharpness", sharpness)):
            if not 0.0 < value < math.inf:
                raise ValueError(f"{name} must be finite and > 0, got {value!r}")
        floor = 2.0 * height * sharpness * sharpness
        if not 0.0 < slope <= floor:
            raise ValueError(
                f"slope must be in (0, 2 height sharpness^2] = (0, {floor:g}], got {slope!r}: else the river is "
                "sharper than its walls"
            )
        self.height = height
        self.sharpness = sharpness
        self.slope = slope
        self.name = "river valley"
        self.dimension = 2
        self.infimum = 0.0
        self.smoothness = Smoothness(exponent=1.0, floor=floor, growth=sharpness * sharpness)
        self.minimiser = np.zeros(2)
        self.is_convex = True
        self.pl = None

    def gap(self, points: Floats) -> Floats:
        """See `Function`."""
        with np.errstate(over="ignore"):
            walls = self.height * (2.0 * np.sinh(0.5 * self.sharpness * points[..., 0])) ** 2
            return walls + self.slope * _river(points[..., 1])

    def gradient(self, points: Floats) -> Floats:
        """See `Function`."""
        y = points[..., 1]
        with np.errstate(over="ignore"):
            wall = 2.0 * self.height * self.sharpness * np.sinh(self.sharpness * points[..., 0])
            return np.stack([wall, self.slope * y / np.hypot(1.0, y)], axis=-1)

    def hessian(self, points: Floats) -> Floats:
        """See `Function`."""
        hessian = np.zeros((*points.shape, 2))
        hessian[..., 0, 0] = self._wall(points)
        hessian[..., 1, 1] = self.slope * np.hypot(1.0, points[..., 1]) ** -3.0
        return hessian

    def curvature(self, points: Floats) -> Floats:
        """See `Function`; the walls are the sharper ones everywhere."""
        return self._wall(points)

    def _wall(self, points: Floats) -> Floats:
        with np.errstate(over="ignore"):
            return 2.0 * self.height * self.sharpness**2 * np.cosh(self.sharpness * points[..., 0])


class CurvedRiverValley(Function):
    r"""A valley that winds: walls around the curve :math:`x = b \sin y`.

    .. math:: f(x, y) = 2 (\cosh z - 1) + s (\sqrt{1 + y^2} - 1), \quad z = x - b \sin y, \qquad
        \nabla^2 f = 2 \cosh z\, p p^T + (2 b \sinh z \sin y + s (1 + y^2)^{-3/2})\, e e^T

    with :math:`p = (1, -b \cos y)` and :math:`e = (0, 1)`. Because :math:`|2 \sinh z| \le 2 \cosh z \le 2 + \Delta`, it
    is :math:`(1, 2 K_1 + s, K_1)`-smooth, where :math:`K_1` is the largest eigenvalue of
    :math:`p p^T + b |\sin y|\, e e^T` over y: at the :math:`q = |\sin y|` with
    :math:`2 b^2 q^3 - b q^2 + 2 (b^2 + 1) q = b`, the only one, it is :math:`1 / (1 - 2 b q)`. Tight as the walls rise,
    but for the floor: by default it could be lower by 1.4 %. Not convex: the outside of a bend is a ridge.

    Args:
        bend: b, finite and at least 0.
        slope: s, in (0, 2].

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> CurvedRiverValley(bend=0.0, slope=0.1).smoothness
        Smoothness(exponent=1.0, floor=2.1, growth=1.0)
        >>> round(CurvedRiverValley(bend=1.0).smoothness.growth, 4)
        2.0666

    Reference: ours, as `RiverValley`.
    """

    def __init__(self, *, bend: float = 1.0, slope: float = 0.1) -> None:
        if not 0.0 <= bend < math.inf:
            raise ValueError(f"bend must be finite and >= 0, got {bend!r}")
        if not 0.0 < slope <= 2.0:
            raise ValueError(
                f"slope must be in (0, 2], got {slope!r}: else the river is sharper than its walls"
            )
        steepest = _steepest(bend)
        self.bend = bend
        self.slope = slope
        self.name = "curved river valley"
        self.dimension = 2
        self.infimum = 0.0
        self.smoothness = Smoothness(exponent=1.0, floor=2.0 * steepest + slope, growth=steepest)
        self.minimiser = np.zeros(2)
        self.is_convex = bend == 0.0
        self.pl = None

    def gap(self, points: Floats) -> Floats:
        """See `Function`."""
        with np.errstate(over="ignore"):
            return (2.0 * np.sinh(0.5 * self._offset(points))) ** 2 + self.slope * _river(points[..., 1])

    def gradient(self, points: Floats) -> Floats:
        """See `Function`."""
        y = points[..., 1]
        with np.errstate(over="ignore", invalid="ignore"):
            wall = 2.0 * np.sinh(self._offset(points))
            river = self.slope * y / np.hypot(1.0, y)
            return np.stack([wall, river - wall * self.bend * np.cos(y)], axis=-1)

    def hessian(self, points: Floats) -> Floats:
        """See `Function`."""
        y = points[..., 1]
        hessian = np.empty((*points.shape, 2))
        with np.errstate(over="ignore", invalid="ignore"):
            offset, turn = self._offset(points), self.bend * np.cos(y)
            wall = 2.0 * np.cosh(offset)
            hessian[..., 0, 0] = wall
            hessian[..., 0, 1] = hessian[..., 1, 0] = -wall * turn
            bent = 2.0 * np.sinh(offset) * self.bend * np.sin(y)
            hessian[..., 1, 1] = wall * turn**2 + bent + self.slope * np.hypot(1.0, y) ** -3.0
        return hessian

    def _offset(self, points: Floats) -> Floats:
        """Return z, how far east of the river a point lies."""
        return points[..., 0] - self.bend * np.sin(points[..., 1])


def _river(y: Floats) -> Floats:
    """Return sqrt(1 + y^2) - 1 without cancellation."""
    return y * (y / (1.0 + np.hypot(1.0, y)))


def _steepest(bend: float) -> float:
    """Return the largest eigenvalue of p p^T + b |sin y| e e^T over y."""
    lower, upper = 0.0, 1.0  # the cubic grows with q, is -b at 0 and positive at 1
    for _ in range(60):
        sine = 0.5 * (lower + upper)
        cubic = ((2.0 * bend**2 * sine - bend) * sine + 2.0 * (bend**2 + 1.0)) * sine - bend
        lower, upper = (lower, sine) if cubic > 0.0 else (sine, upper)
    trace, determinant = 1.0 + bend**2 * (1.0 - lower**2) + bend * lower, bend * lower
    return 0.5 * (trace + math.sqrt(trace**2 - 4.0 * determinant))
