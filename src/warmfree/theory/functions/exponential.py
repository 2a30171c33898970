"""Exponentials of linear forms: the curvature is the loss itself, and the infimum may lie at infinity."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from warmfree.theory.function import Function
from warmfree.theory.functions.minimum import matrix_of, minimiser_of
from warmfree.theory.smoothness import Smoothness

__all__ = ["Exponential", "ExponentialSum"]

Floats = NDArray[np.float64]


class Exponential(Function):
    r"""An exponential of one variable, whose infimum is not attained.

    .. math:: f(x) = e^{b x}, \qquad f'' = b^2 f

    (1, 0, b^2)-smooth with equality everywhere.

    Args:
        rate: b, finite and not 0.

    Raises:
        ValueError: the rate is 0 or not finite.

    Example:
        >>> Exponential(rate=-2.0).smoothness
        Smoothness(exponent=1.0, floor=0.0, growth=4.0)

    Reference: ours.
    """

    def __init__(self, *, rate: float = 1.0) -> None:
        if not math.isfinite(rate) or rate == 0.0:
            raise ValueError(f"rate must be finite and not 0, got {rate!r}")
        self.rate = rate
        self.name = "exponential"
        self.dimension = 1
        self.infimum = 0.0
        self.smoothness = Smoothness(exponent=1.0, floor=0.0, growth=rate * rate)
        self.minimiser = None
        self.is_convex = True
        self.pl = None

    def gap(self, points: Floats) -> Floats:
        """See `Function`."""
        with np.errstate(over="ignore", under="ignore"):
            return np.exp(self.rate * points[..., 0])

    def gradient(self, points: Floats) -> Floats:
        """See `Function`."""
        return self.rate * self.gap(points)[..., None]

    def hessian(self, points: Floats) -> Floats:
        """See `Function`."""
        return self.rate**2 * self.gap(points)[..., None, None]

    def curvature(self, points: Floats) -> Floats:
        """See `Function`."""
        return self.rate**2 * self.gap(points)


class ExponentialSum(Function):
    r"""A sum of exponentials of linear forms, as the loss that boosting minimises.

    .. math:: f(x) = \sum_i c_i e^{\langle a_i, x \rangle}, \qquad
        \|\nabla^2 f\| \le \sum_i c_i e^{\langle a_i, x \rangle} \|a_i\|^2 \le \max_i \|a_i\|^2 (\Delta + f^*)

    :math:`(1, \max \|a\|^2 f^*, \max \|a\|^2)`-smooth. The infimum is 0, and not attained, if all forms are negative
    somewhere; else it is found by Newton's method. Both constants are tight if along some direction the exponential of
    a longest vector grows and all others vanish; at the minimum the curvature may be far below the floor.

    Args:
        vectors: a, of shape (n, d), finite, not all 0.
        weights: c, of shape (n,), finite and > 0; all 1 by default.

    Raises:
        ValueError: an argument is out of its range, or the infimum is positive and not attained.

    Example:
        >>> ExponentialSum([[1.0], [-1.0]]).smoothness  # 2 cosh x
        Smoothness(exponent=1.0, floor=2.0, growth=1.0)
        >>> boosting = ExponentialSum([[1.0, 0.0], [1.0, 1.0]])
        >>> boosting.infimum, boosting.minimiser is None
        (0.0, True)

    Reference: ours.
    """

    def __init__(self, vectors: ArrayLike, weights: ArrayLike | None = None) -> None:
        self.vectors = matrix_of(vectors, "vectors")
        count, dimension = self.vectors.shape
        given = np.ones(count) if weights is None else np.asarray(weights, np.float64)
        if given.shape != (count,) or not (given > 0.0).all() or not np.isfinite(given).all():
            raise ValueError(f"weights must be {count} finite numbers > 0, one for each vector")
        self.weights = given
        # Below the smallest weight all exponents are negative: further along there nothing is left.
        self.minimiser = minimiser_of(self._derivatives, self.vectors, vanishing=float(given.min()))
        if self.minimiser is None:
            self._centre, self._at_centre = np.zeros(dimension), given
            self.infimum = 0.0
        else:
            self._centre, self._at_centre = self.minimiser, given * np.exp(self.vectors @ self.minimiser)
            self.infimum = float(self._at_centre.sum())
        longest = float((self.vectors**2).sum(axis=1).max())
        self.name = "sum of exponentials"
        self.dimension = dimension
        self.smoothness = Smoothness(exponent=1.0, floor=longest * self.infimum, growth=longest)
        self.is_convex = True
        self.pl = None

    def gap(self, points: Floats) -> Floats:
        """See `Function`; where there is a minimiser, without its linear terms, which cancel in the sum."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            exponents = self._exponents(points)
            terms = np.exp(exponents) if self.minimiser is None else _beyond_linear(exponents)
            return terms @ self._at_centre

    def gradient(self, points: Floats) -> Floats:
        """See `Function`."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            exponents = self._exponents(points)
            terms = np.exp(exponents) if self.minimiser is None else np.expm1(exponents)
            return (terms * self._at_centre) @ self.vectors

    def hessian(self, points: Floats) -> Floats:
        """See `Function`."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            terms = np.exp(self._exponents(points)) * self._at_centre
            return self.vectors.T @ (terms[..., None] * self.vectors)

    def _exponents(self, points: Floats) -> Floats:
        return (points - self._centre) @ self.vectors.T

    def _derivatives(self, point: Floats) -> tuple[float, Floats, Floats]:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            terms = self.weights * np.exp(self.vectors @ point)
            return float(terms.sum()), terms @ self.vectors, self.vectors.T @ (terms[:, None] * self.vectors)


def _beyond_linear(exponents: Floats) -> Floats:
    """Return exp(t) - 1 - t, by its series where the difference would cancel."""
    small = np.clip(exponents, -0.5, 0.5)
    series = np.ones_like(small)
    for order in range(16, 2, -1):
        series = 1.0 + series * small / order
    return np.where(np.abs(exponents) <= 0.5, 0.5 * small**2 * series, np.expm1(exponents) - exponents)
