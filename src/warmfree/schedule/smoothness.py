r"""How large a step the loss allows: the learning rate as a function of the suboptimality gap.

The curvature of a loss tends to be larger where the loss is larger. If it is bounded by a function of the gap
:math:`\Delta = f(w) - f^*`, the step may grow as the loss falls: a warmup without a length. A rule is that function,
``rule(gap)``; `LossDriven` follows it through a run.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["GapRule", "InverseGapRule", "PeakedRule", "ReciprocalRule", "SmoothnessRule", "peak_fraction"]

Target = Literal["linear", "cosine"]


@dataclass(frozen=True, kw_only=True)
class GapRule(ABC):
    """A learning rate for every suboptimality gap; a subclass is a dataclass of numbers, which are what is saved."""

    def __call__(self, gap: float) -> float:
        """Return the learning rate that a gap allows, at least 0, inf where nothing bounds it.

        Args:
            gap: loss minus its infimum, at least 0; at 0 the rule has its limit.

        Raises:
            ValueError: the gap is negative or NaN.
        """
        if not gap >= 0.0:
            raise ValueError(f"gap must be >= 0 (a loss minus its infimum), got {gap!r}; clamp it at 0")
        return self._rate(float(gap))

    def warmup(self, gap: float) -> float:
        """Return the learning rate while the rule warms up: it never falls as the gap closes."""
        return self(gap)

    @abstractmethod
    def _rate(self, gap: float) -> float:
        """Return the learning rate."""


@dataclass(frozen=True, kw_only=True)
class SmoothnessRule(GapRule):
    r"""The step that (rho, K0, K_rho)-smoothness allows.

    .. math::
        \|\nabla^2 f(w)\| \le K_0 + K_\rho \Delta^\rho
        \quad\Rightarrow\quad
        \eta = c\,\min\left\{\frac{1}{K_0},\; \frac{1}{3^\rho K_\rho \Delta^{\rho}}\right\}

    With :math:`c = 1/2` a gradient step lowers the loss as the descent lemma says; the proof is in `docs/theory.md`.
    The :math:`3^\rho` leaves room for noise, which may raise the gap on the way. For an optimizer with a preconditioner
    the smoothness has to be that of the preconditioned loss.

    Args:
        exponent: rho, > 0: the power of the gap with which the smoothness grows.
        floor: K0, at least 0, in 1 / learning rate: the smoothness at the optimum. With 0 the rule has no peak.
        growth: K_rho, at least 0, in 1 / (learning rate * loss^rho). With 0 there is no warmup. Not both are 0.
        safety: c, > 0. The paper leaves the constant open; 1/2 is our choice.

    Example:
        >>> rule = SmoothnessRule(exponent=1.0, floor=2.0, growth=1.0)
        >>> [round(rule(gap), 4) for gap in (10.0, 1.0, 0.1, 0.0)]
        [0.0167, 0.1667, 0.25, 0.25]
        >>> round(rule.peak_gap, 4)
        0.6667

    Reference: Liu et al. 2025, the warmup step; the constant is our choice.
    """

    exponent: float
    floor: float
    growth: float
    safety: float = 0.5

    def __post_init__(self) -> None:
        _check_smoothness(self.exponent, self.floor, self.growth, self.safety)

    @property
    def peak(self) -> float:
        """The largest learning rate, ``safety / floor``; inf without a floor."""
        return self.safety / self.floor if self.floor > 0.0 else math.inf

    @property
    def peak_gap(self) -> float:
        """The gap at and below which the learning rate is the peak; inf without growth."""
        if self.growth == 0.0:
            return math.inf
        return float((self.floor / self.growth) ** (1.0 / self.exponent) / 3.0)

    def _rate(self, gap: float) -> float:
        if gap <= self.peak_gap:
            return self.peak
        try:
            smoothness = self.growth * (3.0 * gap) ** self.exponent
        except OverflowError:
            return 0.0
        return self.safety / smoothness if smoothness > 0.0 else math.inf


@dataclass(frozen=True, kw_only=True)
class ReciprocalRule(GapRule):
    r"""The reciprocal of the smoothness, without the room that `SmoothnessRule` leaves for noise.

    .. math:: \eta = \frac{c}{K_0 + K_\rho \Delta^\rho}

    With :math:`c \le 1` a gradient step lowers the loss by :math:`\frac{\eta}{2} \|\nabla f\|^2` at least, and with
    :math:`c < 2` it still lowers it: the proof is in `docs/theory.md`. So the factor :math:`3^\rho` is not needed for
    exact gradients, and in real runs the rule with it began lower than was good (`docs/smoothness.md`).

    Args:
        exponent: rho, > 0.
        floor: K0, at least 0, in 1 / learning rate. With 0 the rule has no peak.
        growth: K_rho, at least 0, in 1 / (learning rate * loss^rho). Not both are 0.
        safety: c, > 0.

    Example:
        >>> rule = ReciprocalRule(exponent=1.0, floor=2.0, growth=1.0)
        >>> [round(rule(gap), 4) for gap in (10.0, 1.0, 0.0)]
        [0.0833, 0.3333, 0.5]

    Reference: ours; the smoothness is that of Liu et al. 2025.
    """

    exponent: float
    floor: float
    growth: float
    safety: float = 1.0

    def __post_init__(self) -> None:
        _check_smoothness(self.exponent, self.floor, self.growth, self.safety)

    @property
    def peak(self) -> float:
        """The largest learning rate, ``safety / floor``; inf without a floor."""
        return self.safety / self.floor if self.floor > 0.0 else math.inf

    def _rate(self, gap: float) -> float:
        try:
            smoothness = self.floor + (self.growth * gap**self.exponent if self.growth > 0.0 else 0.0)
        except OverflowError:
            return 0.0
        return self.safety / smoothness if smoothness > 0.0 else math.inf


@dataclass(frozen=True, kw_only=True)
class InverseGapRule(GapRule):
    r"""A peak learning rate and one parameter.

    .. math:: \eta = \frac{\eta_{\text{peak}}}{1 + C \Delta}

    It follows from :math:`\|\nabla^2 f\| \le H_0 + H_1 \Delta`, the case :math:`\rho = 1` of `SmoothnessRule`, with a
    sum in place of the minimum. The paper's step :math:`1 / (10 H_0 + 20 H_1 \Delta)` is ``peak = 1 / (10 H0)`` and
    ``slope = 2 H1 / H0``.

    Args:
        peak: the learning rate at gap 0, > 0.
        slope: C, at least 0, in 1 / loss. With 0 there is no warmup.

    Example:
        >>> rule = InverseGapRule.from_start(peak=1e-3, start=1e-5, initial_gap=11.0)
        >>> round(rule.slope, 6), round(rule(11.0), 8), rule(0.0)
        (9.0, 1e-05, 0.001)

    Reference: Alimisis, Islamov & Lucchi 2025; that their one parameter enters in this form is our reading.
    """

    peak: float
    slope: float

    def __post_init__(self) -> None:
        _check_positive("peak", self.peak)
        _check_not_negative("slope", self.slope)

    @classmethod
    def from_start(cls, *, peak: float, start: float, initial_gap: float) -> Self:
        """Return the rule that has the learning rate ``start`` at the gap that a run begins with.

        Args:
            peak: the learning rate at gap 0, > 0.
            start: the learning rate at ``initial_gap``, in (0, peak).
            initial_gap: the first loss minus its infimum, > 0.
        """
        _check_start(peak=peak, start=start, initial_gap=initial_gap)
        return cls(peak=peak, slope=(peak / start - 1.0) / initial_gap)

    def _rate(self, gap: float) -> float:
        return self.peak / (1.0 + self.slope * gap) if self.slope > 0.0 else self.peak


@dataclass(frozen=True, kw_only=True)
class PeakedRule(GapRule):
    r"""A learning rate that rises until the gap is :math:`\Delta^*` and falls below it.

    .. math::
        \eta = \frac{\Delta}{K_0 + K_1 \Delta + K_2 \Delta^2}
             = \frac{1}{1/\eta_{\max} + K_2 (\Delta - \Delta^*)^2 / \Delta}, \qquad
        \Delta^* = \sqrt{K_0 / K_2}, \quad \eta_{\max} = \frac{1}{K_1 + 2\sqrt{K_0 K_2}}

    The second form is the one computed: it shows that the denominator is positive at every gap whatever the sign of
    :math:`K_1`, and that no learning rate is above the peak. For optimizers whose step has a norm of its own (Muon,
    Lion, normalised SGD). In a run only the rising branch is used, and then another decay, as the authors do.

    Args:
        peak: the largest learning rate, > 0.
        peak_gap: the gap that has it, at least 0; 0 gives the form of `InverseGapRule`.
        quadratic: K2, > 0, in 1 / (learning rate * loss).

    Example:
        >>> rule = PeakedRule.from_start(peak=1e-3, start=1e-5, initial_gap=8.0, peak_gap=2.0)
        >>> [round(rule(gap), 6) for gap in (8.0, 4.0, 2.0, 1.0)]
        [1e-05, 4.3e-05, 0.001, 4.3e-05]
        >>> rule.warmup(1.0)
        0.001

    Reference: Riabinin et al. 2026, Algorithm 1; the closed forms are derived from its three conditions.
    """

    peak: float
    peak_gap: float
    quadratic: float

    def __post_init__(self) -> None:
        _check_positive("peak", self.peak)
        _check_not_negative("peak_gap", self.peak_gap)
        _check_positive("quadratic", self.quadratic)

    @classmethod
    def from_coefficients(cls, *, constant: float, linear: float, quadratic: float) -> Self:
        r"""Return the rule with the coefficients :math:`K_0, K_1, K_2` of the denominator.

        Args:
            constant: K0, at least 0.
            linear: K1, above :math:`-2 \sqrt{K_0 K_2}`, below which the denominator has a zero.
            quadratic: K2, > 0.
        """
        _check_not_negative("constant", constant)
        _check_positive("quadratic", quadratic)
        lowest = -2.0 * math.sqrt(constant * quadratic)
        if not lowest < linear < math.inf:
            raise ValueError(
                f"linear must be above -2*sqrt(constant*quadratic) = {lowest:g}, got {linear!r}: the denominator "
                f"would not be positive at the gap {math.sqrt(constant / quadratic):g}"
            )
        return cls(
            peak=1.0 / (linear - lowest), peak_gap=math.sqrt(constant / quadratic), quadratic=quadratic
        )

    @classmethod
    def from_start(
        cls,
        *,
        peak: float,
        start: float,
        initial_gap: float,
        peak_gap: float | None = None,
        target: Target = "linear",
    ) -> Self:
        r"""Return the rule that has the learning rate ``start`` at the gap that a run begins with.

        .. math:: K_2 = \frac{\Delta_0\,(1/\eta_0 - 1/\eta_{\max})}{(\Delta_0 - \Delta^*)^2}

        Args:
            peak: the largest learning rate, > 0.
            start: the learning rate at ``initial_gap``, in (0, peak); the authors take a hundredth of the peak.
            initial_gap: the first loss minus its infimum, > 0.
            peak_gap: the gap with the peak learning rate, in [0, initial_gap); None takes `peak_fraction` of it.
            target: which warmup over the gap `peak_fraction` comes nearest to, "linear" or "cosine".
        """
        _check_start(peak=peak, start=start, initial_gap=initial_gap)
        if peak_gap is None:
            peak_gap = initial_gap * peak_fraction(peak / start, target=target)
        if not 0.0 <= peak_gap < initial_gap:
            raise ValueError(
                f"peak_gap must be in [0, initial_gap) = [0, {initial_gap:g}), got {peak_gap!r}: the learning "
                "rate peaks after the loss has fallen"
            )
        quadratic = initial_gap * (1.0 / start - 1.0 / peak) / (initial_gap - peak_gap) ** 2
        return cls(peak=peak, peak_gap=peak_gap, quadratic=quadratic)

    @property
    def coefficients(self) -> tuple[float, float, float]:
        """K0, K1 and K2."""
        linear = 1.0 / self.peak - 2.0 * self.quadratic * self.peak_gap
        return self.quadratic * self.peak_gap**2, linear, self.quadratic

    def warmup(self, gap: float) -> float:
        """Return the learning rate; the peak at and below the gap of the peak."""
        return self(max(gap, self.peak_gap))

    def _rate(self, gap: float) -> float:
        if gap == self.peak_gap:
            return self.peak
        if gap == 0.0 or math.isinf(gap):
            return 0.0
        away = gap - self.peak_gap
        return 1.0 / (1.0 / self.peak + self.quadratic * away * (away / gap))


def peak_fraction(ratio: float, *, target: Target = "linear") -> float:
    r"""Return the fraction of the initial gap at which a `PeakedRule` looks most like the usual warmup over the gap.

    .. math::
        \min_p \int_0^1 (\eta(x) - \tau_p(x))^2\,dx, \qquad
        \eta(x) = \frac{1}{1 + (r - 1)\,(x - p)^2 / ((1 - p)^2 x)}, \quad x = \Delta / \Delta_0

    :math:`\tau_p` goes from :math:`1/r` at x = 1 up to 1 at x = p along the target, and below p down to 0 along half a
    cosine. The authors weigh the distance with a Gaussian around p whose width depends on the shapes of the network's
    matrices. Our choice is no weight, so that the fraction depends on the ratio alone: 0.29 at 100, where their weights
    for a LLaMA of 124M parameters give 0.33 (Muon) and 0.20 (normalised SGD). It is found on a grid, to 0.002.

    Args:
        ratio: peak over initial learning rate, > 1.
        target: "linear" or "cosine" between the initial gap and the peak.

    Returns:
        The fraction, in (0, 1).

    Example:
        >>> round(peak_fraction(100.0), 2)
        0.29

    Reference: Riabinin et al. 2026, the authors' code.
    """
    if not 1.0 < ratio < math.inf:
        raise ValueError(f"ratio must be > 1 (peak over initial learning rate), got {ratio!r}")
    if target not in ("linear", "cosine"):
        raise ValueError(f"target must be 'linear' or 'cosine', got {target!r}")
    gaps = (np.arange(1000) + 0.5) / 1000
    fractions = np.arange(1, 500) / 500
    return float(min(fractions, key=lambda fraction: _distance(gaps, float(fraction), ratio, target)))


def _distance(gaps: NDArray[np.float64], fraction: float, ratio: float, target: Target) -> float:
    """Return the mean squared distance between the rule and the warmup over the gap, in units of the peak."""
    rule = 1.0 / (1.0 + (ratio - 1.0) * (gaps - fraction) ** 2 / ((1.0 - fraction) ** 2 * gaps))
    rise = (1.0 - gaps) / (1.0 - fraction)  # 0 at the initial gap, 1 at the peak
    if target == "cosine":
        rise = 0.5 * (1.0 - np.cos(np.pi * rise))
    above = 1.0 / ratio + (1.0 - 1.0 / ratio) * rise
    below = 0.5 * (1.0 - np.cos(np.pi * gaps / fraction))
    return float(np.mean((rule - np.where(gaps >= fraction, above, below)) ** 2))


def _check_positive(name: str, value: float) -> None:
    if not 0.0 < value < math.inf:
        raise ValueError(f"{name} must be finite and > 0, got {value!r}")


def _check_not_negative(name: str, value: float) -> None:
    if not 0.0 <= value < math.inf:
        raise ValueError(f"{name} must be finite and >= 0, got {value!r}")


def _check_smoothness(exponent: float, floor: float, growth: float, safety: float) -> None:
    _check_positive("exponent", exponent)
    _check_positive("safety", safety)
    _check_not_negative("floor", floor)
    _check_not_negative("growth", growth)
    if floor == growth == 0.0:
        raise ValueError("floor and growth are both 0: a loss without curvature bounds no step")


def _check_start(*, peak: float, start: float, initial_gap: float) -> None:
    _check_positive("peak", peak)
    if not 0.0 < start < peak:
        raise ValueError(f"start must be in (0, peak) = (0, {peak:g}), got {start!r}")
    if not 0.0 < initial_gap < math.inf:
        raise ValueError(
            f"initial_gap must be finite and > 0, got {initial_gap!r}: f_star has to be below the first loss"
        )
