"""Logistic regression: with classes that a plane separates the smoothness vanishes with the loss."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from warmfree.theory.closure import from_lipschitz_gradient
from warmfree.theory.function import Function
from warmfree.theory.functions.minimum import matrix_of, minimiser_of
from warmfree.theory.smoothness import Smoothness

__all__ = ["Logistic"]

Floats = NDArray[np.float64]


class Logistic(Function):
    r"""The mean logistic loss of a linear classifier.

    .. math:: f(w) = \frac{1}{n} \sum_i \ln(1 + e^{-y_i \langle a_i, w \rangle}), \qquad
        \|\nabla^2 f\| \le \frac{1}{n} \sum_i p_i (1 - p_i) \|a_i\|^2 \le \max_i \|a_i\|^2 (\Delta + f^*)

    with :math:`p_i = 1 / (1 + e^{y_i \langle a_i, w \rangle})`, because :math:`p (1 - p) \le p \le -\ln(1 - p)`, the
    loss of the sample. Separable: infimum 0, not attained, :math:`(1, 0, \max \|a\|^2)`-smooth; the ratio comes to 1
    along a direction that separates the classes with the smallest margin at a longest vector. Else the infimum is found
    by Newton's method and enters the floor; `constant_smoothness` is then the better bound.

    Args:
        features: a, of shape (n, d), finite, not all 0.
        labels: y, of shape (n,), each 1 or -1.

    Attributes:
        is_separable: whether some w has all margins :math:`y_i \langle a_i, w \rangle > 0`.
        constant_smoothness: :math:`\lambda_{\max}(\sum_i a_i a_i^T) / (4 n)` at every gap, with equality at w = 0.

    Raises:
        ValueError: an argument is out of its range, or the infimum is positive and not attained (some margins can be
            made positive and all others 0).

    Example:
        >>> loss = Logistic([[2.0, 1.0], [-1.0, 1.0]], [1, -1])
        >>> loss.is_separable, loss.smoothness
        (True, Smoothness(exponent=1.0, floor=0.0, growth=5.0))
        >>> overlapping = Logistic([[1.0], [1.0], [1.0]], [1, 1, -1])
        >>> overlapping.minimiser.round(6).tolist(), round(overlapping.infimum, 6)
        ([0.693147], 0.636514)

    Reference: ours; that logistic regression with separable classes is smooth with its loss is well known.
    """

    def __init__(self, features: ArrayLike, labels: ArrayLike) -> None:
        matrix = matrix_of(features, "features")
        count, dimension = matrix.shape
        signs = np.asarray(labels, np.float64)
        if signs.shape != (count,) or not np.isin(signs, (-1.0, 1.0)).all():
            raise ValueError(
                f"labels must be {count} numbers, each 1 or -1, one for each row of the features"
            )
        self.vectors = signs[:, None] * matrix
        self.infimum = 0.0
        self._centre, self._margins = np.zeros(dimension), None
        # With a loss below ln 2 / n each sample's is below ln 2: all margins are positive.
        self.minimiser = minimiser_of(self._derivatives, self.vectors, vanishing=math.log(2.0) / count)
        if self.minimiser is not None:
            self.infimum = float(self.gap(self.minimiser))
            self._centre, self._margins = self.minimiser, self.vectors @ self.minimiser
        longest = float((matrix**2).sum(axis=1).max())
        self.is_separable = self.minimiser is None
        self.name = "logistic" if self.is_separable else "logistic, overlapping"
        self.dimension = dimension
        self.smoothness = Smoothness(exponent=1.0, floor=longest * self.infimum, growth=longest)
        self.constant_smoothness = from_lipschitz_gradient(
            0.25 * float(np.linalg.eigvalsh(matrix.T @ matrix / count)[-1])
        )
        self.is_convex = True
        self.pl = None

    def gap(self, points: Floats) -> Floats:
        """See `Function`; where there is a minimiser, without the linear terms, which cancel in the mean."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            moved = self._moved(points)
            if self._margins is None:
                return np.asarray(np.logaddexp(0.0, -moved).mean(axis=-1))
            return np.asarray(_beyond_linear(moved, self._margins).mean(axis=-1))

    def gradient(self, points: Floats) -> Floats:
        """See `Function`."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            moved = self._moved(points)
            if self._margins is None:
                chances = _sigmoid(-moved)
            else:  # sigma(-s - d) - sigma(-s), without cancellation
                chances = _sigmoid(-self._margins - moved) * _sigmoid(self._margins) * -np.expm1(moved)
                late = _sigmoid(-self._margins - moved) - _sigmoid(-self._margins)
                chances = np.where(moved > 1.0, late, chances)
            return -(chances @ self.vectors) / len(self.vectors)

    def hessian(self, points: Floats) -> Floats:
        """See `Function`."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            margins = self._moved(points) + (0.0 if self._margins is None else self._margins)
            weights = _sigmoid(margins) * _sigmoid(-margins)
            return self.vectors.T @ (weights[..., None] * self.vectors) / len(self.vectors)

    def _moved(self, points: Floats) -> Floats:
        """Return the margins, less those at the minimiser."""
        return (points - self._centre) @ self.vectors.T

    def _derivatives(self, point: Floats) -> tuple[float, Floats, Floats]:
        return float(self.gap(point)), self.gradient(point), self.hessian(point)


def _sigmoid(margins: Floats) -> Floats:
    return np.exp(-np.logaddexp(0.0, -margins))


def _beyond_linear(moved: Floats, margins: Floats) -> Floats:
    """Return the loss at s + d less its tangent at s: ln(1 - p + p e^-d) + p d, by its series where that cancels."""
    chance, other = _sigmoid(-margins), _sigmoid(margins)
    spread, skew = chance * other, other - chance
    small = np.clip(moved, -1e-3, 1e-3)
    series = 0.5 - small * (skew / 6.0 - small * ((1.0 - 6.0 * spread) / 24.0))
    series -= small**3 * skew * (1.0 - 12.0 * spread) / 120.0
    near = np.log1p(chance * np.expm1(-np.clip(moved, -1.0, 1.0))) + chance * moved
    far = np.logaddexp(-np.logaddexp(0.0, -margins), -np.logaddexp(0.0, margins) - moved) + chance * moved
    away = np.where(np.abs(moved) <= 1.0, near, far)
    return np.where(np.abs(moved) <= 1e-3, spread * small**2 * series, away)
