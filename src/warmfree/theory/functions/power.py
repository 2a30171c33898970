"""Powers of the coordinates: flat at the minimum, so that the smoothness has no floor."""

import math

import numpy as np
from numpy.typing import NDArray

from warmfree.theory.function import Function
from warmfree.theory.smoothness import Smoothness

__all__ = ["Power"]

Floats = NDArray[np.float64]


class Power(Function):
    r"""A sum of equal powers.

    .. math:: f(w) = \frac{1}{p} \sum_i |w_i|^p, \qquad
        \|\nabla^2 f\| = (p - 1) \max_i |w_i|^{p - 2} \le (p - 1) (p \Delta)^{(p - 2) / p}

    :math:`\rho = (p - 2) / p`, :math:`K_0 = 0` and :math:`K_\rho = (p - 1) p^\rho`, with equality wherever one
    coordinate alone is not 0: everywhere in one dimension. No mu: the curvature at the minimum is 0.

    Args:
        exponent: p, finite and > 2. With 2 the curvature is constant.
        dimension: d, at least 1.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> quartic = Power(exponent=4.0)
        >>> quartic.smoothness
        Smoothness(exponent=0.5, floor=0.0, growth=6.0)
        >>> quartic.curvature(np.array([10.0])).item(), quartic.smoothness.curvature(10.0**4 / 4).item()
        (300.0, 300.0)

    Reference: ours.
    """

    def __init__(self, *, exponent: float = 4.0, dimension: int = 1) -> None:
        if not 2.0 < exponent < math.inf:
            raise ValueError(f"exponent (p) must be finite and > 2, got {exponent!r}: at 2 rho is 0")
        if dimension < 1:
            raise ValueError(f"dimension must be at least 1, got {dimension!r}")
        rho = (exponent - 2.0) / exponent
        self.exponent = exponent
        self.name = f"power {exponent:g}"
        self.dimension = dimension
        self.infimum = 0.0
        self.smoothness = Smoothness(exponent=rho, floor=0.0, growth=(exponent - 1.0) * exponent**rho)
        self.minimiser = np.zeros(dimension)
        self.is_convex = True
        self.pl = None

    def gap(self, points: Floats) -> Floats:
        """See `Function`."""
        with np.errstate(over="ignore"):
            return np.asarray((np.abs(points) ** self.exponent).sum(axis=-1) / self.exponent)

    def gradient(self, points: Floats) -> Floats:
        """See `Function`."""
        with np.errstate(over="ignore"):
            return np.sign(points) * np.abs(points) ** (self.exponent - 1.0)

    def hessian(self, points: Floats) -> Floats:
        """See `Function`."""
        return np.where(np.eye(self.dimension, dtype=np.bool_), self._second(points)[..., None], 0.0)

    def curvature(self, points: Floats) -> Floats:
        """See `Function`."""
        return np.asarray(self._second(points).max(axis=-1))

    def _second(self, points: Floats) -> Floats:
        with np.errstate(over="ignore"):
            return (self.exponent - 1.0) * np.abs(points) ** (self.exponent - 2.0)
