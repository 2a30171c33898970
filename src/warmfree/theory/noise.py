r"""Noisy gradients whose variance is known exactly, bounded by the gap, the gradient and a constant."""

import math
from dataclasses import dataclass
from itertools import product
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from warmfree.theory.norms import norms

__all__ = ["ABCNoise"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ABCNoise:
    r"""Noise of the size that the ABC condition allows, in every draw.

    .. math::
        g = \nabla f(w) + \sqrt{A \Delta + B \|\nabla f(w)\|^2 + C}\; u, \qquad u \in \{\pm 1/\sqrt d\}^d
        \text{ uniformly}

    It is unbiased, and :math:`\|g - \nabla f\|^2 = A \Delta + B \|\nabla f\|^2 + C` almost surely, so that the mean of
    the square and the largest noise are known exactly; its covariance is isotropic. In d dimensions there are only
    :math:`2^d` estimates at a point: expectations over a step can be computed exactly.

    Args:
        gap: A, finite and at least 0, in loss / weight^2: noise that is the larger, the larger the loss.
        gradient: B, finite and at least 0, without unit: noise in proportion to the gradient.
        constant: C, finite and at least 0, in loss^2 / weight^2: noise that is there at the minimum too.

    Raises:
        ValueError: a constant is out of its range.

    Example:
        >>> noise = ABCNoise(gradient=0.5, constant=2.0)
        >>> noise.second_moment([0.0, 3.0], [0.0, 2.0]).round(9).tolist()
        [2.0, 4.0]
        >>> noise.outcomes(np.array([1.0]), np.array(0.0)).ravel().round(3).tolist()  # 1 -+ sqrt(2.5)
        [-0.581, 2.581]

    Reference: the condition is the one that Liu et al. 2025 extend their analysis to, in its usual form; that the noise
    attains it in every draw is ours.
    """

    gap: float = 0.0
    gradient: float = 0.0
    constant: float = 0.0

    def __post_init__(self) -> None:
        for name, symbol in (("gap", "A"), ("gradient", "B"), ("constant", "C")):
            value = getattr(self, name)
            if not 0.0 <= value < math.inf:
                raise ValueError(f"{name} ({symbol}) must be finite and >= 0, got {value!r}")

    @classmethod
    def additive(cls, *, variance: float) -> Self:
        r"""Return noise of the same size everywhere, :math:`E\|g - \nabla f\|^2 = C`.

        Args:
            variance: C, of all coordinates together, in loss^2 / weight^2.
        """
        return cls(constant=variance)

    @classmethod
    def affine(cls, *, relative: float, variance: float) -> Self:
        r"""Return noise that grows with the gradient, :math:`E\|g - \nabla f\|^2 = B \|\nabla f\|^2 + C`.

        Args:
            relative: B, without unit.
            variance: C, in loss^2 / weight^2.
        """
        return cls(gradient=relative, constant=variance)

    def deviation(self, gap: ArrayLike, gradient_norm: ArrayLike) -> Floats:
        r"""Return :math:`\sqrt{E\|g - \nabla f\|^2}`.

        Args:
            gap: f(w) - f*, of any shape.
            gradient_norm: norm of the gradient, broadcast against it.
        """
        of_gap = math.sqrt(self.gap) * np.sqrt(np.asarray(gap, np.float64))
        of_gradient = math.sqrt(self.gradient) * np.asarray(gradient_norm, np.float64)
        return np.asarray(np.hypot(np.hypot(of_gap, of_gradient), math.sqrt(self.constant)))

    def second_moment(self, gap: ArrayLike, gradient_norm: ArrayLike) -> Floats:
        r"""Return :math:`E\|g - \nabla f\|^2 = A \Delta + B \|\nabla f\|^2 + C`.

        Args:
            gap: as for `deviation`.
            gradient_norm: likewise.
        """
        with np.errstate(over="ignore", under="ignore"):
            return np.square(self.deviation(gap, gradient_norm))

    def largest(self, gap: ArrayLike, gradient_norm: ArrayLike) -> Floats:
        r"""Return the bound of :math:`\|g - \nabla f\|` in every draw: every draw attains the mean of the square.

        Args:
            gap: as for `deviation`.
            gradient_norm: likewise.
        """
        return self.deviation(gap, gradient_norm)

    def draw(self, generator: np.random.Generator, gradient: Floats, gap: Floats) -> Floats:
        """Return an estimate of each gradient.

        Args:
            generator: of the signs; d are drawn for each gradient.
            gradient: (..., d), true gradients.
            gap: (...), at the same points.

        Returns:
            Estimates, (..., d).
        """
        signs = 2.0 * generator.integers(0, 2, size=gradient.shape) - 1.0
        return np.asarray(gradient + self._scale(gradient, gap)[..., None] * signs)

    def outcomes(self, gradient: Floats, gap: Floats) -> Floats:
        """Return all estimates that a draw can give, each as likely as any other.

        Args:
            gradient: (..., d), true gradients; d at most 16.
            gap: (...), at the same points.

        Returns:
            Estimates, (2^d, ..., d).

        Raises:
            ValueError: too many dimensions to enumerate.
        """
        dimension = gradient.shape[-1]
        if dimension > 16:
            raise ValueError(
                f"2^{dimension} outcomes are too many to list; at most 16 dimensions, or use draw"
            )
        signs = np.array(list(product((-1.0, 1.0), repeat=dimension)))
        signs = signs.reshape((-1,) + (1,) * (gradient.ndim - 1) + (dimension,))
        return np.asarray(gradient + self._scale(gradient, gap)[..., None] * signs)

    def _scale(self, gradient: Floats, gap: Floats) -> Floats:
        """Return the size of one coordinate's noise."""
        return np.asarray(self.deviation(gap, norms(gradient)) / math.sqrt(gradient.shape[-1]))
