r"""The class of functions whose curvature is bounded by their suboptimality, and what follows for a step.

.. math:: \|\nabla^2 f(w)\| \le \ell(\Delta), \qquad \ell(\Delta) = K_0 + K_\rho \Delta^\rho, \quad \Delta = f(w) - f^*

That is (rho, K0, K_rho)-smoothness of Liu et al. 2025. What follows here from it is ours unless said otherwise; the
proofs are short and stand in `docs/theory.md`. They need f twice differentiable, bounded below by :math:`f^*`, and the
inequality on the sublevel set of the point they speak of.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from warmfree.schedule.smoothness import SmoothnessRule
from warmfree.theory.growth import grown_gap

__all__ = ["Membership", "Smoothness"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Membership:
    """Whether samples of a function obey the smoothness.

    Attributes:
        holds: no sample exceeds the bound by more than the tolerance.
        worst: the largest curvature over its bound; at most 1 if the smoothness holds, 1 if it is tight.
        where: the number of that sample.
        violations: how many samples exceed the bound.
    """

    holds: bool
    worst: float
    where: int
    violations: int


@dataclass(frozen=True, kw_only=True)
class Smoothness:
    r"""(rho, K0, K_rho)-smoothness: :math:`\|\nabla^2 f\| \le K_0 + K_\rho (f - f^*)^\rho`.

    Methods take gaps of any shape and return arrays of it, in float64; what overflows is inf.

    Args:
        exponent: rho, finite and > 0.
        floor: K0, finite and at least 0, in loss / weight^2.
        growth: K_rho, finite and at least 0, in loss^(1 - rho) / weight^2. Not both are 0.

    Raises:
        ValueError: a constant is out of its range.

    Example:
        >>> cosh = Smoothness(exponent=1.0, floor=2.0, growth=1.0)  # of 2 (cosh x - 1)
        >>> cosh.curvature([0.0, 10.0]).tolist()
        [2.0, 12.0]
        >>> cosh.gradient(10.0).round(4).tolist()  # 2 sinh x = sqrt(140) where the gap is 10
        11.8322

    Reference: Liu et al. 2025, the definition of (rho, K0, K_rho)-smoothness.
    """

    exponent: float
    floor: float
    growth: float

    def __post_init__(self) -> None:
        if not 0.0 < self.exponent < math.inf:
            raise ValueError(f"exponent (rho) must be finite and > 0, got {self.exponent!r}")
        for name, symbol in (("floor", "K0"), ("growth", "K_rho")):
            value = getattr(self, name)
            if not 0.0 <= value < math.inf:
                raise ValueError(f"{name} ({symbol}) must be finite and >= 0, got {value!r}")
        if self.floor == self.growth == 0.0:
            raise ValueError(
                "floor (K0) and growth (K_rho) are both 0: only a constant function has no curvature and an infimum"
            )

    def curvature(self, gap: ArrayLike) -> Floats:
        r"""Return the bound of the curvature, :math:`\ell(\Delta) = K_0 + K_\rho \Delta^\rho`.

        Args:
            gap: suboptimality f(w) - f*, at least 0.

        Raises:
            ValueError: a gap is negative or NaN.
        """
        gaps = _checked(gap)
        with np.errstate(over="ignore"):
            return self.floor + (self.growth * gaps**self.exponent if self.growth else np.zeros_like(gaps))

    def gradient(self, gap: ArrayLike) -> Floats:
        r"""Return the bound of the gradient's norm.

        .. math:: \|\nabla f(w)\| \le \sqrt{2 \int_0^\Delta \ell}
            = \sqrt{2 K_0 \Delta + \frac{2 K_\rho}{1 + \rho} \Delta^{1 + \rho}}

        Ours: along steepest descent the squared gradient cannot fall faster than this, and it has to fall to 0 before f
        falls below its infimum. With equality for functions of one variable that attain the smoothness.

        Args:
            gap: as for `curvature`.
        """
        gaps = _checked(gap)
        with np.errstate(over="ignore", invalid="ignore"):
            mean = self.floor + (
                self.growth * gaps**self.exponent / (1.0 + self.exponent) if self.growth else 0.0
            )
            return np.sqrt(2.0 * gaps) * np.sqrt(mean)

    def gap_within(self, gap: ArrayLike, distance: ArrayLike) -> Floats:
        r"""Return a bound of the gap at all points within a distance.

        .. math:: \text{the least M found with}\quad \int_\Delta^M \frac{d\varphi}{\sqrt{2 \int_0^\varphi \ell}} \ge r

        Ours: along any line the gap grows no faster than the gradient's bound. inf where the integral converges below
        the distance, as it does at a finite one for rho > 1.

        Never below the least such M, and at most that of a distance longer by 3e-6 of itself: the integral is bounded
        from below, in closed form for rho = 1, without growth and without floor, else cell by cell
        (`warmfree.theory.growth`). With equality for functions of one variable that attain the smoothness.

        Args:
            gap: as for `curvature`.
            distance: r, at least 0, in the units of the weights; broadcast against the gaps.

        Raises:
            ValueError: a gap or a distance is negative or NaN.

        Example:
            >>> cosh = Smoothness(exponent=1.0, floor=2.0, growth=1.0)
            >>> cosh.gap_within([0.0, 10.0], 1.0).round(4).tolist()  # 2 (cosh 1 - 1) where the gap is 0
            [1.0862, 30.4221]
        """
        gaps, distances = np.broadcast_arrays(_checked(gap), np.asarray(distance, np.float64))
        if not (distances >= 0.0).all():
            raise ValueError("distance must be >= 0, and not NaN")
        return self._grown(gaps, distances)

    def step(self, gap: ArrayLike, *, safety: float = 0.5) -> Floats:
        r"""Return the warmup step; inf where nothing bounds it.

        .. math:: \eta = c \min\left\{\frac{1}{K_0}, \frac{1}{3^\rho K_\rho \Delta^\rho}\right\}

        With :math:`c = 1/2` it is at most :math:`1/\ell(\Delta)`, so that gradient descent obeys the descent lemma;
        with c = 1 each step still makes at least :math:`1 - 3^{-\rho}` of the descent that the lemma promises (ours).
        The same numbers as `rule`.

        Args:
            gap: as for `curvature`.
            safety: c, > 0.

        Reference: Liu et al. 2025, the warmup step; c is our choice.
        """
        if not 0.0 < safety < math.inf:
            raise ValueError(f"safety (c) must be finite and > 0, got {safety!r}")
        gaps = _checked(gap)
        with np.errstate(over="ignore", divide="ignore"):
            grown = self.growth * (3.0 * gaps) ** self.exponent if self.growth else np.zeros_like(gaps)
            return safety / np.maximum(self.floor, grown)

    def rule(self, *, safety: float = 0.5) -> SmoothnessRule:
        """Return the warmup step as a rule that `warmfree.schedule.LossDriven` follows.

        Args:
            safety: c, > 0.
        """
        return SmoothnessRule(exponent=self.exponent, floor=self.floor, growth=self.growth, safety=safety)

    def check(self, gaps: ArrayLike, curvatures: ArrayLike, *, tolerance: float = 1e-9) -> Membership:
        """Compare sampled curvatures with the bound.

        Args:
            gaps: suboptimalities, at least 0.
            curvatures: spectral norms of the Hessian at the same points.
            tolerance: by which a curvature may exceed its bound, relative: rounding.

        Raises:
            ValueError: no samples, shapes that differ, a negative gap, or a curvature that is not finite.
        """
        bound, found = self.curvature(gaps).ravel(), np.asarray(curvatures, np.float64).ravel()
        if bound.shape != found.shape or not found.size:
            raise ValueError(
                f"expected as many curvatures as gaps, and at least one, got {found.size} and {bound.size}"
            )
        if not np.isfinite(found).all():
            raise ValueError("curvatures must be finite; leave out the points that are not")
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(found <= 0.0, 0.0, found / bound)
        where = int(ratio.argmax())
        violations = int((ratio > 1.0 + tolerance).sum())
        return Membership(
            holds=violations == 0, worst=float(ratio[where]), where=where, violations=violations
        )

    def _grown(self, gaps: Floats, distances: Floats) -> Floats:
        return grown_gap(gaps, distances, exponent=self.exponent, floor=self.floor, growth=self.growth)


def _checked(gap: ArrayLike) -> Floats:
    gaps = np.asarray(gap, np.float64)
    if not (gaps >= 0.0).all():
        raise ValueError(
            "gap must be >= 0 (a loss minus its infimum): f_star is above a loss, or a loss is NaN"
        )
    return gaps
