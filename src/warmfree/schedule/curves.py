r"""Automatic warmups of Adam's family as explicit curves, to be compared, imposed on another optimizer, or composed.

What GI-Adam, AdamD and RAdam do inside of the optimizer, and what untuned warmup puts in front of it, are factors of
the learning rate that depend on Adam's betas alone. A curve counts as shapes do, ``curve(0)`` belongs to the first
step, and its formula has :math:`t = \text{step} + 1`. With ``then=`` it is multiplied by a shape.

These curves are for an optimizer that does not warm up by itself: on top of `GIAdamW`, `torch.optim.RAdam` or an Adam
without momentum correction the warmup would be there twice.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from warmfree.schedule.saved import SavedShape
from warmfree.schedule.shapes import Shape

__all__ = [
    "AdamDWarmup",
    "GIAdamWarmup",
    "RAdamWarmup",
    "UntunedExponential",
    "UntunedLinear",
    "WarmupCurve",
    "adamd_warmup",
    "gi_adam_warmup",
    "radam_warmup",
    "untuned_exponential",
    "untuned_linear",
]


@dataclass(frozen=True, kw_only=True)
class WarmupCurve(ABC):
    r"""A warmup that an optimizer's betas imply, times a shape: the multiplier of the learning rate.

    .. math:: m(\text{step}) = \omega_{t} \cdot \text{then}(\text{step}), \qquad t = \text{step} + 1

    A curve is immutable, callable and picklable, and its fields are what ``LambdaLR.state_dict`` saves.

    Args:
        then: the shape of the rest of the run, whose multiplier is multiplied with the curve's; None for 1. Within the
            optimizer the warmup is a factor, too, so that a product, not a minimum, is what the optimizer would do.
    """

    then: SavedShape = SavedShape()  # noqa: RUF009 (a descriptor, one for all curves)

    # Not slots: LambdaLR saves and loads a callable through its __dict__.

    def __call__(self, step: int) -> float:
        """Return the multiplier, in [0, 1], of the learning rate at ``step`` (0 is the first step)."""
        if step < 0:
            raise ValueError(f"step must be >= 0, got {step}")
        factor = self.factor(step + 1)
        return factor if self.then is None else factor * self.then(step)

    @abstractmethod
    def factor(self, t: float) -> float:
        r"""Return :math:`\omega_t`, without ``then``; ``t`` is 1 at the first step and need not be whole."""

    def steps_to(self, level: float = 0.9) -> float:
        r"""Return the equivalent warmup length: the :math:`t` at which the curve, without ``then``, gets to a level.

        Args:
            level: multiple of the full learning rate, in (0, 1). 1 is reached by none but `UntunedLinear`.

        Returns:
            steps, not rounded, at least 0; where the curve jumps over the level, where it jumps.

        Example:
            >>> [round(GIAdamWarmup(beta2=0.999).steps_to(level)) for level in (0.5, 0.9, 0.99)]
            [288, 1660, 3915]
        """
        if not 0.0 < level < 1.0:
            raise ValueError(f"level must be in (0, 1) (a multiple of the full learning rate), got {level!r}")
        low, high = 0.0, 1.0
        while self.factor(high) < level:
            low, high = high, 2.0 * high
        while high - low > 1e-9 * max(high, 1.0):
            middle = 0.5 * (low + high)
            low, high = (low, middle) if self.factor(middle) >= level else (middle, high)
        return high


@dataclass(frozen=True, kw_only=True)
class _SecondMomentCurve(WarmupCurve):
    """A curve of beta2."""

    beta2: float = 0.999

    def __post_init__(self) -> None:
        _check_beta("beta2", self.beta2)


@dataclass(frozen=True, kw_only=True)
class GIAdamWarmup(_SecondMomentCurve):
    r"""The warmup that GI-Adam implies.

    .. math:: \omega_t = \sqrt{1 - \beta_2^t}

    Exact where the second moment is its expectation, and at the first step. GI-Adam itself has one squared gradient for
    the expectation: on white noise its median update is 4 to 36 % larger between steps 5 and 1000 (beta2 = 0.999).

    Args:
        beta2: decay of the second moment, in [0, 1).
        then: shape of the rest of the run.

    Example:
        >>> [round(GIAdamWarmup(beta2=0.96)(step), 4) for step in (0, 1, 99)]
        [0.2, 0.28, 0.9915]

    Reference: Kalra & Barkeshli 2024, section 6.2.
    """

    def factor(self, t: float) -> float:
        """Return the curve."""
        return math.sqrt(1.0 - self.beta2**t)


@dataclass(frozen=True, kw_only=True)
class UntunedLinear(_SecondMomentCurve):
    r"""Untuned linear warmup, over :math:`2 / (1 - \beta_2)` steps.

    .. math:: \omega_t = \min\{1,\; t\,(1 - \beta_2) / 2\}

    Args:
        beta2: decay of the second moment, in [0, 1).
        then: shape of the rest of the run.

    Example:
        >>> [UntunedLinear(beta2=0.75)(step) for step in (0, 1, 7, 8)]
        [0.125, 0.25, 1.0, 1.0]

    Reference: Ma & Yarats 2019.
    """

    def factor(self, t: float) -> float:
        """Return the curve."""
        return min(1.0, t * (1.0 - self.beta2) / 2.0)


@dataclass(frozen=True, kw_only=True)
class UntunedExponential(_SecondMomentCurve):
    r"""Untuned exponential warmup, with the time constant :math:`1 / (1 - \beta_2)`.

    .. math:: \omega_t = 1 - \exp(-(1 - \beta_2)\,t)

    Args:
        beta2: decay of the second moment, in [0, 1).
        then: shape of the rest of the run.

    Example:
        >>> [round(UntunedExponential(beta2=0.9)(step), 3) for step in (0, 9, 99)]
        [0.095, 0.632, 1.0]

    Reference: Ma & Yarats 2019.
    """

    def factor(self, t: float) -> float:
        """Return the curve."""
        return -math.expm1(-(1.0 - self.beta2) * t)


@dataclass(frozen=True, kw_only=True)
class RAdamWarmup(_SecondMomentCurve):
    r"""RAdam's rectification of Adam's step.

    .. math::
        \rho_\infty = \frac{2}{1 - \beta_2} - 1, \qquad
        \rho_t = \rho_\infty - \frac{2 t \beta_2^t}{1 - \beta_2^t}, \qquad
        \omega_t = \sqrt{\frac{(\rho_t - 4)(\rho_t - 2)\,\rho_\infty}
                              {(\rho_\infty - 4)(\rho_\infty - 2)\,\rho_t}}
        \quad (\rho_t > \text{threshold})

    While :math:`\rho_t` is not above the threshold (5 steps at beta2 = 0.999) RAdam makes a step of momentum alone,
    which no multiplier of Adam's learning rate can express. Our choice: those steps have the multiplier ``before``, by
    default 0, so that they only fill the moments, as implementations do that skip the step.

    Args:
        beta2: decay of the second moment, in [0, 1), above the 2/3 at which :math:`\rho_\infty` is 5.
        threshold: above which rho_t is rectified, at least 4: the paper has 4, torch.optim.RAdam and others 5.
        before: the multiplier until then, in [0, 1].
        then: shape of the rest of the run.

    Example:
        >>> [round(RAdamWarmup(beta2=0.999)(step), 4) for step in (0, 4, 5, 99, 1999)]
        [0.0, 0.0, 0.0258, 0.2153, 0.8284]

    Reference: Liu et al. 2020, "On the Variance of the Adaptive Learning Rate and Beyond", Algorithm 2.
    """

    threshold: float = 5.0
    before: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 4.0 <= self.threshold < math.inf:
            raise ValueError(f"threshold must be >= 4 (below, r_t has no root), got {self.threshold!r}")
        if not 0.0 <= self.before <= 1.0:
            raise ValueError(
                f"before must be in [0, 1] (a multiple of the learning rate), got {self.before!r}"
            )
        if not self._last_rho > self.threshold:
            raise ValueError(
                f"beta2 must be above {1.0 - 2.0 / (self.threshold + 1.0):.4g} for RAdam with threshold "
                f"{self.threshold:g}, else no step is ever rectified; got {self.beta2!r}"
            )

    @property
    def _last_rho(self) -> float:
        return 2.0 / (1.0 - self.beta2) - 1.0

    def factor(self, t: float) -> float:
        """Return the curve."""
        forgotten = self.beta2**t
        if forgotten == 1.0:  # t = 0, or rounding next to it
            return self.before
        last = self._last_rho
        rho = last - 2.0 * t * forgotten / (1.0 - forgotten)
        if rho <= self.threshold:
            return self.before
        return math.sqrt((rho - 4.0) * (rho - 2.0) * last / ((last - 4.0) * (last - 2.0) * rho))


@dataclass(frozen=True, kw_only=True)
class AdamDWarmup(WarmupCurve):
    r"""The warmup of an Adam whose first moment is not corrected for its start at zero.

    .. math:: \omega_t = 1 - \beta_1^t

    It is exact for all gradients: AdamD's update is Adam's times this factor.

    Args:
        beta1: decay of the first moment, in [0, 1).
        then: shape of the rest of the run.

    Example:
        >>> [round(AdamDWarmup(beta1=0.9)(step), 3) for step in (0, 1, 99)]
        [0.1, 0.19, 1.0]

    Reference: St John 2021.
    """

    beta1: float = 0.9

    def __post_init__(self) -> None:
        _check_beta("beta1", self.beta1)

    def factor(self, t: float) -> float:
        """Return the curve."""
        remaining: float = 1.0 - self.beta1**t
        return remaining


def gi_adam_warmup(
    optimizer: Optimizer, *, beta2: float | None = None, then: Shape | None = None, last_epoch: int = -1
) -> LambdaLR:
    """Return a scheduler with the warmup that GI-Adam implies; see :class:`GIAdamWarmup`.

    Call ``scheduler.step()`` once after every ``optimizer.step()``.

    Args:
        optimizer: of Adam's family.
        beta2: decay of the second moment; None takes that of each parameter group.
        then: shape of the rest of the run.
        last_epoch: as in torch's schedulers.

    Example:
        >>> import torch
        >>> from warmfree.schedule.shapes import Cosine
        >>> optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(1))], lr=1.0, betas=(0.9, 0.96))
        >>> scheduler = gi_adam_warmup(optimizer, then=Cosine(steps=100))
        >>> round(optimizer.param_groups[0]["lr"], 4)
        0.2
    """
    curves = _per_group(optimizer, beta2, lambda beta: GIAdamWarmup(beta2=beta, then=then))
    return LambdaLR(optimizer, curves, last_epoch=last_epoch)


def untuned_linear(
    optimizer: Optimizer, *, beta2: float | None = None, then: Shape | None = None, last_epoch: int = -1
) -> LambdaLR:
    """Return a scheduler with untuned linear warmup; see :class:`UntunedLinear` and `gi_adam_warmup`."""
    curves = _per_group(optimizer, beta2, lambda beta: UntunedLinear(beta2=beta, then=then))
    return LambdaLR(optimizer, curves, last_epoch=last_epoch)


def untuned_exponential(
    optimizer: Optimizer, *, beta2: float | None = None, then: Shape | None = None, last_epoch: int = -1
) -> LambdaLR:
    """Return a scheduler with untuned exponential warmup; see :class:`UntunedExponential` and `gi_adam_warmup`."""
    curves = _per_group(optimizer, beta2, lambda beta: UntunedExponential(beta2=beta, then=then))
    return LambdaLR(optimizer, curves, last_epoch=last_epoch)


def radam_warmup(
    optimizer: Optimizer,
    *,
    beta2: float | None = None,
    threshold: float = 5.0,
    before: float = 0.0,
    then: Shape | None = None,
    last_epoch: int = -1,
) -> LambdaLR:
    """Return a scheduler with RAdam's rectification; see :class:`RAdamWarmup` and `gi_adam_warmup`."""
    curves = _per_group(
        optimizer,
        beta2,
        lambda beta: RAdamWarmup(beta2=beta, threshold=threshold, before=before, then=then),
    )
    return LambdaLR(optimizer, curves, last_epoch=last_epoch)


def adamd_warmup(
    optimizer: Optimizer, *, beta1: float | None = None, then: Shape | None = None, last_epoch: int = -1
) -> LambdaLR:
    """Return a scheduler with the warmup that AdamD implies; see :class:`AdamDWarmup` and `gi_adam_warmup`."""
    curves = _per_group(optimizer, beta1, lambda beta: AdamDWarmup(beta1=beta, then=then), name="beta1")
    return LambdaLR(optimizer, curves, last_epoch=last_epoch)


def _per_group(
    optimizer: Optimizer, beta: float | None, make: Callable[[float], WarmupCurve], *, name: str = "beta2"
) -> list[Callable[[int], float]]:
    """Make a curve for each parameter group, of its own beta or of the one given."""
    curves: list[Callable[[int], float]] = []
    for index, group in enumerate(optimizer.param_groups):
        if beta is None and len(group.get("betas", ())) != 2:
            raise ValueError(
                f"param_groups[{index}] of {type(optimizer).__name__} has no betas=(beta1, beta2) to read "
                f"{name} from; pass {name}="
            )
        curves.append(make(float(group["betas"][name == "beta2"]) if beta is None else beta))
    return curves


def _check_beta(name: str, beta: float) -> None:
    if not 0.0 <= beta < 1.0:
        raise ValueError(f"{name} must be in [0, 1), got {beta!r}")
