"""The smallest network with two layers: its curvature grows with the root of the loss, where it is bounded by it."""

import math

import numpy as np
from numpy.typing import NDArray

from warmfree.theory.function import Function
from warmfree.theory.smoothness import Smoothness

__all__ = ["RegularisedTwoLayer", "TwoLayer"]

Floats = NDArray[np.float64]


class TwoLayer(Function):
    r"""Two weights one after the other, fitted to a number, on the line where both are the same.

    .. math:: f(u, v) = \tfrac12 (u v - t)^2, \qquad \text{at } u = v,\; r = u v - t:\quad
        \|\nabla^2 f\| = \max\{|3 r + 2 t|, |r|\} \le 2 t + 3 \sqrt{2 \Delta}

    :math:`(1/2, 2 t, 3 \sqrt 2)`-smooth on the balanced line u = v, with equality where u v >= t. Gradient descent that
    starts there stays there, in floating point too. Off the line no constants hold: on the hyperbola u v = t the loss
    is 0 and the curvature :math:`u^2 + v^2` is as large as one likes. `contains` and `check` speak of the line. No mu:
    the gradient vanishes at 0, where the gap is not 0.

    Args:
        target: t, finite and > 0.

    Raises:
        ValueError: the target is out of its range.

    Example:
        >>> net = TwoLayer(target=1.0)
        >>> point = np.array([3.0, 3.0])
        >>> net.curvature(point).item(), round(net.smoothness.curvature(net.gap(point)).item(), 9)
        (26.0, 26.0)

    Reference: ours; Liu et al. 2025 cover networks of several layers with rho and constants of their own.
    """

    def __init__(self, *, target: float = 1.0) -> None:
        if not 0.0 < target < math.inf:
            raise ValueError(f"target must be finite and > 0, got {target!r}")
        self.target = target
        self.name = "two layers"
        self.dimension = 2
        self.infimum = 0.0
        self.smoothness = Smoothness(exponent=0.5, floor=2.0 * target, growth=3.0 * math.sqrt(2.0))
        self.minimiser = np.full(2, math.sqrt(target))
        self.is_convex = False
        self.pl = None

    def contains(self, points: Floats) -> NDArray[np.bool_]:
        """Return which points have u = v, of shape (...)."""
        return np.asarray(points[..., 0] == points[..., 1])

    def gap(self, points: Floats) -> Floats:
        """See `Function`."""
        with np.errstate(over="ignore"):
            return 0.5 * (points[..., 0] * points[..., 1] - self.target) ** 2

    def gradient(self, points: Floats) -> Floats:
        """See `Function`."""
        with np.errstate(over="ignore", invalid="ignore"):
            residual = points[..., 0] * points[..., 1] - self.target
            return residual[..., None] * points[..., ::-1]

    def hessian(self, points: Floats) -> Floats:
        """See `Function`."""
        return _hessian(points, self.target, 0.0)


class RegularisedTwoLayer(Function):
    r"""Two weights one after the other with weight decay: smooth everywhere.

    .. math:: f(u, v) = \tfrac12 (u v - t)^2 + \tfrac{\lambda}{2} (u^2 + v^2), \qquad
        \|\nabla^2 f\| \le \lambda + u^2 + v^2 + |u v - t| \le \tfrac54 \lambda + \tfrac{2}{\lambda} f

    :math:`(1, \tfrac54 \lambda + \tfrac{2}{\lambda} f^*, \tfrac{2}{\lambda})`-smooth, because
    with r = u v - t, :math:`u^2 + v^2 = \tfrac{2}{\lambda} f - r^2 / \lambda` and
    :math:`|r| - r^2 / \lambda \le \lambda / 4`. Equality at u = v, :math:`u v = t + \lambda / 2`; the ratio comes to 1
    as well where one weight grows alone. The infimum is :math:`t^2 / 2`, at 0, for :math:`t \le \lambda`, else
    :math:`\lambda t - \lambda^2 / 2`, at :math:`u = v = \sqrt{t - \lambda}`. The weaker the decay, the faster the
    curvature grows with the loss.

    Args:
        target: t, finite and > 0.
        decay: lambda, finite and > 0.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> RegularisedTwoLayer(target=1.0, decay=0.5).smoothness
        Smoothness(exponent=1.0, floor=2.125, growth=4.0)

    Reference: ours.
    """

    def __init__(self, *, target: float = 1.0, decay: float = 0.5) -> None:
        for name, value in (("target", target), ("decay", decay)):
            if not 0.0 < value < math.inf:
                raise ValueError(f"{name} must be finite and > 0, got {value!r}")
        self.target = target
        self.decay = decay
        self.name = "two layers, decayed"
        self.dimension = 2
        self.infimum = 0.5 * target**2 if target <= decay else decay * (target - 0.5 * decay)
        self.smoothness = Smoothness(
            exponent=1.0, floor=1.25 * decay + 2.0 * self.infimum / decay, growth=2.0 / decay
        )
        self.minimiser = np.full(2, math.sqrt(max(target - decay, 0.0)))
        self.is_convex = False
        self.pl = None

    def gap(self, points: Floats) -> Floats:
        """See `Function`; the infimum is taken off by completing squares."""
        u, v = points[..., 0], points[..., 1]
        with np.errstate(over="ignore", invalid="ignore"):
            if self.target > self.decay:
                return 0.5 * (u * v - (self.target - self.decay)) ** 2 + 0.5 * self.decay * (u - v) ** 2
            squares = (self.decay - self.target) * (u**2 + v**2) + self.target * (u - v) ** 2
            return 0.5 * ((u * v) ** 2 + squares)

    def gradient(self, points: Floats) -> Floats:
        """See `Function`."""
        with np.errstate(over="ignore", invalid="ignore"):
            residual = points[..., 0] * points[..., 1] - self.target
            return residual[..., None] * points[..., ::-1] + self.decay * points

    def hessian(self, points: Floats) -> Floats:
        """See `Function`."""
        return _hessian(points, self.target, self.decay)


def _hessian(points: Floats, target: float, decay: float) -> Floats:
    u, v = points[..., 0], points[..., 1]
    hessian = np.empty((*points.shape, 2))
    with np.errstate(over="ignore", invalid="ignore"):
        hessian[..., 0, 0] = v**2 + decay
        hessian[..., 1, 1] = u**2 + decay
        hessian[..., 0, 1] = hessian[..., 1, 0] = 2.0 * u * v - target
    return hessian
