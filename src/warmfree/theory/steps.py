r"""How long each step of a descent is: schedules of the step number, and rules of the gap.

A rule is a pure function of the `State` before the step, of all runs at once. The schedules know nothing of the
function; `Warmup`, `Reciprocal` and `Following` know its gap, hence the infimum :math:`f^*`, and the constants of its
smoothness. Rules that adapt without those are in `warmfree.theory.adaptive`.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from warmfree.schedule.smoothness import GapRule, InverseGapRule
from warmfree.theory.function import Function
from warmfree.theory.smoothness import Smoothness

__all__ = [
    "Constant",
    "Following",
    "InverseSqrt",
    "InverseTime",
    "LinearWarmup",
    "Reciprocal",
    "Scaled",
    "Schedule",
    "State",
    "StepDrop",
    "StepRule",
    "Warmup",
    "alimisis",
]

Floats = NDArray[np.float64]
Rates = float | Floats


class State(NamedTuple):
    """What a rule may look at before a step of n runs.

    Attributes:
        step: number of the step, from 0.
        function: what is descended.
        point: (n, d).
        gap: (n,), f(w) - f*.
        gradient: (n, d), what is stepped along: the gradient, or its estimate.
        squares: (n,), sum over the steps so far, this one included, of the squared norm of `gradient`.
        runs: which of the runs that were started these are: their numbers, or a slice.
    """

    step: int
    function: Function
    point: Floats
    gap: Floats
    gradient: Floats
    squares: Floats
    runs: NDArray[np.intp] | slice = slice(None)


class StepRule(ABC):
    """A learning rate for every run, from the state before the step."""

    @property
    @abstractmethod
    def name(self) -> str:
        """For tables and figures."""

    @property
    def runs(self) -> int | None:
        """For how many runs the rule has learning rates of their own; None if it suits any number."""
        return None

    @abstractmethod
    def __call__(self, state: State) -> Floats:
        """Return the learning rates, of shape (n,), at least 0; inf where nothing bounds the step."""


@dataclass(frozen=True, eq=False)
class Scaled(StepRule):
    """A rule with a learning rate to tune, which may be another for each run.

    Args:
        lr: finite and > 0; or an array (n,) of such, one for each run.

    Raises:
        ValueError: a number is out of its range.
    """

    lr: Rates

    def __post_init__(self) -> None:
        rates = np.array(self.lr, np.float64)
        if rates.ndim > 1 or not rates.size or not ((rates > 0.0) & (rates < math.inf)).all():
            raise ValueError(f"lr must be a number or an array (n,), finite and > 0, got {self.lr!r}")
        object.__setattr__(self, "lr", rates if rates.ndim else float(rates))

    @property
    def runs(self) -> int | None:
        """The number of learning rates, if there is one for each run."""
        return None if isinstance(self.lr, float) else len(self.lr)

    def scale(self, state: State) -> Rates:
        """Return the `lr` of each of the state's runs; one number if they have it in common."""
        return self.lr if isinstance(self.lr, float) else self.lr[state.runs]


@dataclass(frozen=True, eq=False)
class Schedule(Scaled):
    """A learning rate times a function of the step number. It needs to know nothing.

    Args:
        lr: as for `Scaled`.
    """

    def __call__(self, state: State) -> Floats:
        """Return the learning rates, of shape (n,)."""
        return np.full(state.gap.shape, self.scale(state) * self.factor(state.step))

    @abstractmethod
    def factor(self, step: int) -> float:
        """Return what the learning rate is multiplied by at a step, at least 0."""


@dataclass(frozen=True, eq=False)
class Constant(Schedule):
    r"""The same learning rate at every step, :math:`\eta_t = \eta_0`.

    Args:
        lr: as for `Scaled`.
    """

    name = "constant"

    def factor(self, step: int) -> float:  # noqa: ARG002
        """Return 1."""
        return 1.0


@dataclass(frozen=True, eq=False)
class InverseTime(Schedule):
    r"""A learning rate that falls as :math:`\eta_t = \eta_0 / (1 + t / k)`.

    Args:
        lr: as for `Scaled`, :math:`\eta_0`.
        offset: k, finite and > 0: the step at which half is left.
    """

    offset: float = 1.0
    name = "1/t"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive("offset", self.offset)

    def factor(self, step: int) -> float:
        """Return 1 / (1 + t / k)."""
        return 1.0 / (1.0 + step / self.offset)


@dataclass(frozen=True, eq=False)
class InverseSqrt(Schedule):
    r"""A learning rate that falls as :math:`\eta_t = \eta_0 / \sqrt{1 + t / k}`.

    Args:
        lr: as for `Scaled`, :math:`\eta_0`.
        offset: k, finite and > 0: a third of it later, the learning rate is at :math:`\sqrt{3/4}`.
    """

    offset: float = 1.0
    name = "1/sqrt(t)"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive("offset", self.offset)

    def factor(self, step: int) -> float:
        """Return 1 / sqrt(1 + t / k)."""
        return 1.0 / math.sqrt(1.0 + step / self.offset)


@dataclass(frozen=True, eq=False)
class StepDrop(Schedule):
    r"""A learning rate that drops by a factor every so many steps, :math:`\eta_t = \eta_0 q^{\lfloor t / k \rfloor}`.

    Args:
        lr: as for `Scaled`, :math:`\eta_0`.
        every: k, at least 1.
        drop: q, in (0, 1].
    """

    every: int
    drop: float = 0.5
    name = "step drop"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every < 1 or self.every != int(self.every):
            raise ValueError(f"every must be a whole number of steps, at least 1, got {self.every!r}")
        if not 0.0 < self.drop <= 1.0:
            raise ValueError(
                f"drop must be in (0, 1], got {self.drop!r}: a learning rate that rises is no drop"
            )

    def factor(self, step: int) -> float:
        """Return q to the number of drops so far."""
        return float(self.drop ** (step // self.every))


@dataclass(frozen=True, eq=False)
class LinearWarmup(Schedule):
    r"""A learning rate that rises linearly, :math:`\eta_t = \eta_0 \min\{1, (t + 1) / k\}`, and stays.

    Args:
        lr: as for `Scaled`, :math:`\eta_0`: the peak.
        steps: k, at least 1: the step of number k - 1 is the first with the peak.
    """

    steps: int
    name = "linear warmup"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps!r}")

    def factor(self, step: int) -> float:
        """Return (t + 1) / k, at most 1."""
        return min(1.0, (step + 1) / self.steps)


@dataclass(frozen=True)
class Warmup(StepRule):
    r"""The step that grows as the gap closes, :math:`\eta_t = c \min\{1/K_0, \Delta_t^{-\rho} / (3^\rho K_\rho)\}`.

    It needs to know the infimum and the constants of the smoothness.

    Args:
        smoothness: whose `Smoothness.step` it is.
        safety: c, finite and > 0. With 1/2 or less the step is at most :math:`1/\ell(\Delta)`.

    Example:
        >>> from warmfree.theory.descent import descend
        >>> from warmfree.theory.functions import CoshBowl
        >>> bowl = CoshBowl(mu=1.0)
        >>> descend(bowl, [6.0, 1.0], Warmup(bowl.smoothness), steps=80, target=1e-6).steps_to(1e-6).tolist()
        [50.0]

    Reference: Liu et al. 2025, the warmup step; c is our choice.
    """

    smoothness: Smoothness
    safety: float = 0.5
    name = "warmup"

    def __post_init__(self) -> None:
        _check_positive("safety", self.safety)

    def __call__(self, state: State) -> Floats:
        """Return the learning rates, of shape (n,)."""
        return self.smoothness.step(state.gap, safety=self.safety)


@dataclass(frozen=True)
class Reciprocal(StepRule):
    r"""The reciprocal of the smoothness, :math:`\eta_t = 1 / \ell(\Delta_t)`.

    The largest step of which the smoothness promises :math:`\Delta_{t+1} \le \Delta_t - (\eta/2) \|\nabla f\|^2`:
    next to a local minimum of gap :math:`\Delta_t` and curvature :math:`\ell(\Delta_t)` any longer one breaks it. It
    needs to know the infimum and the constants of the smoothness.

    Args:
        smoothness: whose curvature it is the reciprocal of.

    Reference: ours.
    """

    smoothness: Smoothness
    name = "1/l"

    def __call__(self, state: State) -> Floats:
        """Return the learning rates, of shape (n,)."""
        with np.errstate(divide="ignore"):
            return 1.0 / self.smoothness.curvature(state.gap)


@dataclass(frozen=True)
class Following(StepRule):
    """A learning rate by a rule of `warmfree.schedule`, from the true gap. It needs to know the infimum.

    Args:
        gap_rule: whose learning rate is taken, below its peak as above it.
        label: the name; None takes the rule's class.
    """

    gap_rule: GapRule
    label: str | None = None

    @property
    def name(self) -> str:
        """The label."""
        return type(self.gap_rule).__name__ if self.label is None else self.label

    def __call__(self, state: State) -> Floats:
        """Return the learning rates, of shape (n,)."""
        return np.array([self.gap_rule(gap) for gap in state.gap.tolist()], np.float64)


def alimisis(*, h0: float, h1: float) -> Following:
    r"""Return the step :math:`1 / (10 H_0 + 20 H_1 \Delta)`, for :math:`\|\nabla^2 f\| \le H_0 + H_1 \Delta`.

    Args:
        h0: H0, finite and > 0: the curvature at the minimum.
        h1: H1, finite and at least 0.

    Example:
        >>> rule = alimisis(h0=2.0, h1=1.0).gap_rule
        >>> rule(0.0), rule(4.0)
        (0.05, 0.01)

    Reference: Alimisis, Islamov & Lucchi 2025; the constants as they are reported.
    """
    _check_positive("h0", h0)
    if not 0.0 <= h1 < math.inf:
        raise ValueError(f"h1 must be finite and >= 0, got {h1!r}")
    return Following(InverseGapRule(peak=1.0 / (10.0 * h0), slope=2.0 * h1 / h0), label="Alimisis")


def _check_positive(name: str, value: float) -> None:
    if not 0.0 < value < math.inf:
        raise ValueError(f"{name} must be finite and > 0, got {value!r}")
