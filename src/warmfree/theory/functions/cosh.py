"""The bowl with two walls: the function that the step of its smoothness suits exactly."""

import numpy as np
from numpy.typing import NDArray

from warmfree.theory.function import Function
from warmfree.theory.smoothness import Smoothness

__all__ = ["CoshBowl"]

Floats = NDArray[np.float64]


class CoshBowl(Function):
    r"""A hyperbolic cosine in one variable, a parabola in the other.

    .. math:: f(x, y) = 2 (\cosh x - 1) + \tfrac{\mu}{2} y^2, \qquad \|\nabla^2 f\| = 2 \cosh x \le 2 + \Delta

    (1, 2, 1)-smooth with equality along y = 0; strongly convex with mu. Its steep walls allow a large start only small
    steps, its flat direction makes those expensive.

    Args:
        mu: curvature of the parabola, in (0, 2]; above 2 the parabola would be the sharper one at the minimum.

    Raises:
        ValueError: mu is out of its range.

    Example:
        >>> bowl = CoshBowl(mu=1.0)
        >>> bowl.gap(np.array([[12.0, 1.0]])).round(1).tolist(), bowl.curvature(np.array([0.0, 1.0])).item()
        ([162753.3], 2.0)

    Reference: ours.
    """

    def __init__(self, *, mu: float = 1.0) -> None:
        if not 0.0 < mu <= 2.0:
            raise ValueError(
                f"mu must be in (0, 2], got {mu!r}: above 2 the constants of the smoothness do not hold"
            )
        self.mu = mu
        self.name = "cosh bowl"
        self.dimension = 2
        self.infimum = 0.0
        self.smoothness = Smoothness(exponent=1.0, floor=2.0, growth=1.0)
        self.minimiser = np.zeros(2)
        self.is_convex = True
        self.pl = mu

    def gap(self, points: Floats) -> Floats:
        """See `Function`."""
        x, y = points[..., 0], points[..., 1]
        with np.errstate(over="ignore"):
            return (2.0 * np.sinh(0.5 * x)) ** 2 + 0.5 * self.mu * y**2

    def gradient(self, points: Floats) -> Floats:
        """See `Function`."""
        with np.errstate(over="ignore"):
            return np.stack([2.0 * np.sinh(points[..., 0]), self.mu * points[..., 1]], axis=-1)

    def hessian(self, points: Floats) -> Floats:
        """See `Function`."""
        hessian = np.zeros((*points.shape, 2))
        with np.errstate(over="ignore"):
            hessian[..., 0, 0] = 2.0 * np.cosh(points[..., 0])
        hessian[..., 1, 1] = self.mu
        return hessian

    def curvature(self, points: Floats) -> Floats:
        """See `Function`."""
        with np.errstate(over="ignore"):
            return 2.0 * np.cosh(points[..., 0])
