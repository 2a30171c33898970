r"""Learning rates that adapt to the gradients or the loss: what a warmup has to be compared with.

They know less than `warmfree.theory.steps.Warmup`, which knows the infimum and the constants of the smoothness, or
something else; each says what. Those that divide by the norm of the gradient return 0 where it is 0.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from warmfree.theory.norms import norms
from warmfree.theory.steps import Scaled, State, StepRule

__all__ = ["AdaGradNorm", "Backtracking", "Clipped", "Normalised", "Polyak"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Polyak(StepRule):
    r"""Polyak's step, :math:`\eta_t = \Delta_t / \|\nabla f(w_t)\|^2`.

    It needs to know the infimum, and no constants. For convex functions the distance to a minimiser does not grow.

    Example:
        >>> from warmfree.theory.descent import steps_to
        >>> from warmfree.theory.functions import CoshBowl
        >>> steps_to(CoshBowl(mu=1.0), [6.0, 1.0], Polyak(), target=1e-6, limit=1000).tolist()
        [16.0]

    Reference: Polyak 1987, "Introduction to Optimization".
    """

    name = "Polyak"

    def __call__(self, state: State) -> Floats:
        """Return the learning rates, of shape (n,)."""
        norm = norms(state.gradient)
        return _over(_over(state.gap, norm), norm)  # not the square, which overflows before the gap does


@dataclass(frozen=True, eq=False)
class Clipped(Scaled):
    r"""Gradient descent with clipping, :math:`\eta_t = \min\{\eta_0, \gamma / \|g_t\|\}`.

    It needs to know neither the infimum nor constants, but two numbers have to be tuned.

    Args:
        lr: as for `Scaled`, :math:`\eta_0`.
        threshold: :math:`\gamma`, finite and > 0: how far a step goes at most, in the units of the weights.

    Reference: Zhang, He, Sra & Jadbabaie 2020.
    """

    threshold: float
    name = "clipped"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive("threshold", self.threshold)

    def __call__(self, state: State) -> Floats:
        """Return the learning rates, of shape (n,)."""
        with np.errstate(divide="ignore"):
            return np.minimum(self.scale(state), self.threshold / norms(state.gradient))


@dataclass(frozen=True, eq=False)
class Normalised(Scaled):
    r"""Gradient descent with steps of one length, :math:`\eta_t = \eta_0 / \|g_t\|`.

    It needs to know neither the infimum nor constants. It comes no nearer to a minimum than about half its step.

    Args:
        lr: as for `Scaled`, :math:`\eta_0`: the length of a step, in the units of the weights.
    """

    name = "normalised"

    def __call__(self, state: State) -> Floats:
        """Return the learning rates, of shape (n,)."""
        return _over(np.full(state.gap.shape, self.scale(state)), norms(state.gradient))


@dataclass(frozen=True, eq=False)
class AdaGradNorm(Scaled):
    r"""AdaGrad with one learning rate for all coordinates.

    .. math:: \eta_t = \eta_0 / \sqrt{b^2 + \textstyle\sum_{s \le t} \|g_s\|^2}

    It needs to know neither the infimum nor constants. It never rises. The sum is in float64: a gradient above 1e154
    is too large for it, and leaves a learning rate of 0.

    Args:
        lr: as for `Scaled`, :math:`\eta_0`, in the units of the weights.
        initial: b, finite and > 0, in the units of a gradient.

    Reference: Ward, Wu & Bottou 2019.
    """

    initial: float = 1e-8
    name = "AdaGrad-norm"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive("initial", self.initial)

    def __call__(self, state: State) -> Floats:
        """Return the learning rates, of shape (n,)."""
        return np.asarray(self.scale(state) / np.sqrt(self.initial**2 + state.squares))


@dataclass(frozen=True, eq=False)
class Backtracking(Scaled):
    r"""The first of :math:`\eta_0, q \eta_0, q^2 \eta_0, \dots` that lowers the loss enough (Armijo).

    .. math:: f(w - \eta g) \le f(w) - \sigma \eta \|g\|^2

    It needs to know neither the infimum nor constants, but costs an evaluation of the loss a trial: a step of it is no
    single gradient. Every step starts from :math:`\eta_0` again. After the last trial the learning rate is 0: within
    rounding nothing lowers the loss.

    Args:
        lr: as for `Scaled`, :math:`\eta_0`: the longest step.
        shrink: q, in (0, 1).
        sufficient: :math:`\sigma`, in (0, 1).
        trials: the most evaluations a step, at least 1.

    Reference: Armijo 1966.
    """

    shrink: float = 0.5
    sufficient: float = 0.5
    trials: int = 200
    name = "backtracking"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("shrink", self.shrink), ("sufficient", self.sufficient)):
            if not 0.0 < value < 1.0:
                raise ValueError(f"{name} must be in (0, 1), got {value!r}")
        if self.trials < 1:
            raise ValueError(f"trials must be at least 1, got {self.trials!r}")

    def __call__(self, state: State) -> Floats:
        """Return the learning rates, of shape (n,)."""
        norm = norms(state.gradient)
        trial = np.full(state.gap.shape, self.scale(state))
        rates = np.zeros_like(trial)
        searching = norm > 0.0
        with np.errstate(all="ignore"):  # a trial may go where the loss overflows
            for _ in range(self.trials):
                if not searching.any():
                    break
                gap = state.function.gap(state.point - trial[:, None] * state.gradient)
                lower = searching & (gap <= state.gap - self.sufficient * (trial * norm) * norm)
                rates[lower] = trial[lower]
                searching &= ~lower
                trial = self.shrink * trial
        return rates


def _over(numerator: Floats, norm: Floats) -> Floats:
    """Return the quotient; 0 where the norm is 0."""
    with np.errstate(over="ignore"):
        return np.divide(numerator, norm, out=np.zeros_like(norm), where=norm > 0.0)


def _check_positive(name: str, value: float) -> None:
    if not 0.0 < value < math.inf:
        raise ValueError(f"{name} must be finite and > 0, got {value!r}")
