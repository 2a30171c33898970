"""What an example function knows of itself: values, derivatives, and the constants that theorems ask for."""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import ArrayLike, NDArray

from warmfree.theory.smoothness import Smoothness

__all__ = ["Function"]

Floats = NDArray[np.float64]


class Function(ABC):
    r"""A function of `dimension` variables with known constants.

    Points are arrays of shape (..., dimension), so that many are evaluated at once. The gap is computed without
    subtracting the infimum wherever a formula allows it: near the minimum nothing cancels.

    Attributes:
        name: for tables and figures.
        dimension: d, number of variables.
        infimum: :math:`f^*`.
        smoothness: that the function has on its domain.
        minimiser: of shape (dimension,); None where the infimum is not attained.
        is_convex: on its domain.
        pl: :math:`\mu > 0` with :math:`\|\nabla f\|^2 \ge 2 \mu \Delta` on the domain (Polyak-Lojasiewicz); None
            without one.
    """

    name: str
    dimension: int
    infimum: float
    smoothness: Smoothness
    minimiser: Floats | None
    is_convex: bool
    pl: float | None

    @abstractmethod
    def gap(self, points: Floats) -> Floats:
        """Return f(w) - f*, of shape (...)."""

    @abstractmethod
    def gradient(self, points: Floats) -> Floats:
        """Return the gradient, of shape (..., d)."""

    @abstractmethod
    def hessian(self, points: Floats) -> Floats:
        """Return the Hessian, of shape (..., d, d)."""

    def value(self, points: Floats) -> Floats:
        """Return f(w), of shape (...)."""
        return self.gap(points) + self.infimum

    def curvature(self, points: Floats) -> Floats:
        """Return the spectral norm of the Hessian, of shape (...); inf where it overflows."""
        hessian = self.hessian(points)
        finite = np.asarray(np.isfinite(hessian).all(axis=(-2, -1)))
        norms = np.abs(np.linalg.eigvalsh(np.where(finite[..., None, None], hessian, 0.0))).max(axis=-1)
        return np.where(finite, norms, np.inf)

    def contains(self, points: Floats) -> NDArray[np.bool_]:
        """Return which points are in the domain that the constants speak of, of shape (...): all."""
        return np.ones(points.shape[:-1], np.bool_)

    def check(self, points: ArrayLike) -> None:
        """Raise ValueError for points of a wrong shape, not finite, or outside the domain."""
        points = np.asarray(points, np.float64)
        if points.ndim < 1 or points.shape[-1] != self.dimension:
            raise ValueError(
                f"points of {self.name} must have shape (..., {self.dimension}), got {points.shape}"
            )
        if not np.isfinite(points).all():
            raise ValueError(f"points of {self.name} must be finite")
        if not self.contains(points).all():
            raise ValueError(
                f"the constants of {self.name} do not hold at all of these points: see its docstring"
            )
