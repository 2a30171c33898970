"""Which way to go: Adam, Lion, SGD as pure functions from gradients and buffers to updates.

A direction knows its hyper-parameters and its buffers and nothing of learning rates, weights or sizes. The functions
change their buffers and nothing else; all are written for lists of tensors. Scalars are numbers, or 0-D tensors in a
compiled step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from warmfree.optim.move import Number, Update, of_type

Options = Mapping[str, Any]
Buffers = Mapping[str, list[Tensor]]


class Direction(Protocol):
    """The contract: options with defaults, buffers, and a function from gradients to updates."""

    @property
    def buffer_names(self) -> tuple[str, ...]:
        """State entries of the parameter's shape, zero at the start."""

    @property
    def needs_first_gradient(self) -> bool:
        """Whether the first gradient has a meaning that a zero gradient must not take."""

    def options(self) -> dict[str, Any]:
        """Return the parameter-group options and their defaults."""

    def validate(self, group: Options) -> None:
        """Raise ValueError if an option of a parameter group is out of range."""

    def start(self, gradients: list[Tensor], buffers: Buffers) -> None:
        """Initialise the buffers from first gradients; called once a tensor, if `needs_first_gradient`."""

    def averaging(self, group: Options) -> Number:
        """Constant b of the moving average that the update is made of; sets its equilibrium size."""

    def scalars(self, group: Options, *, step: Number) -> dict[str, Number]:
        """What a step needs that depends on numbers alone; computed outside of compiled code."""

    def __call__(
        self, gradients: list[Tensor], buffers: Buffers, *, scalars: Mapping[str, Number], group: Options
    ) -> Update:
        """Update the buffers and return the update."""


def equilibrium_rms(momentum: Number) -> Number:
    r"""RMS of Adam's update on white-noise gradients: :math:`\kappa = \sqrt{(1-b)/(1+b)}`.

    Args:
        momentum: constant b of the moving average, in [0, 1).

    Example:
        >>> round(equilibrium_rms(0.9), 4)
        0.2294

    Reference: derived for white noise from Kosson et al. 2024, section 3.
    """
    return ((1 - momentum) / (1 + momentum)) ** 0.5


def adam_update(
    gradients: list[Tensor],
    averages: list[Tensor],
    squares: list[Tensor],
    *,
    beta1: Number,
    beta2: Number,
    eps: Number,
    correction1: Number,
    root2: Number,
    correct_momentum: bool = True,
) -> Update:
    r"""Adam: :math:`u = \hat m / (\sqrt{\hat v} + \epsilon)`.

    Args:
        gradients: one tensor per weight.
        averages: first moments m, updated to b1*m + (1-b1)*g.
        squares: second moments v, updated to b2*v + (1-b2)*g^2.
        beta1: b1 in [0, 1).
        beta2: b2 in [0, 1).
        eps: added to the root, at least 0.
        correction1: 1 - b1^t at step t, 1 being the first.
        root2: the root of 1 - b2^t.
        correct_momentum: divide m by 1 - b1^t. False gives AdamD, whose first updates are smaller by that factor.

    Reference: Kingma & Ba 2015; St John 2021 (AdamD).
    """
    _blend_(averages, gradients, 1 - beta1)
    if isinstance(beta2, Tensor):
        for square, gradient in zip(squares, gradients, strict=True):
            square.mul_(of_type(beta2, square)).add_(of_type(1 - beta2, square) * gradient * gradient)
        denominators = [square.sqrt() / of_type(root2, square) + of_type(eps, square) for square in squares]
    else:
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        denominators = list(torch._foreach_sqrt(squares))
        torch._foreach_div_(denominators, root2)
        torch._foreach_add_(denominators, eps)
    if isinstance(eps, Tensor) or eps == 0:
        # 0/0 where no gradient has come whose square is above 0: no update, not NaN or inf
        for denominator in denominators:
            denominator.masked_fill_(denominator == 0, 1)
    return Update(
        numerators=list(averages),
        denominators=denominators,
        corrections=[correction1 if correct_momentum else 1.0] * len(averages),
        gradients=gradients,
        momenta=averages,
        momentum_scales=[1 / correction1] * len(averages),
    )


def lion_update(
    gradients: list[Tensor],
    averages: list[Tensor],
    *,
    momentum: Number,
    nesterov: bool,
    scale: Number,
    correction: Number,
) -> Update:
    r"""Lion with one momentum constant: :math:`u = \kappa\,\mathrm{sign}(c)`, of RMS :math:`\kappa` at every step.

    :math:`m \leftarrow bm + (1-b)g`, and :math:`c = bm + (1-b)g` with Nesterov momentum, else :math:`c = m`;
    :math:`\kappa = \sqrt{(1-b)/(1+b)}` is the RMS of Adam's update on white noise.

    Args:
        gradients: one tensor per weight.
        averages: momenta m, updated.
        momentum: b in [0, 1).
        nesterov: look one step ahead.
        scale: kappa.
        correction: 1 - b^t at step t, 1 being the first.

    Reference: Kosson et al. 2024 (LionA); the constant is derived here, see `equilibrium_rms`.
    """
    _blend_(averages, gradients, 1 - momentum)
    signs = _blend(averages, gradients, 1 - momentum) if nesterov else averages
    return Update(
        numerators=list(torch._foreach_sign(signs)),
        denominators=None,
        corrections=[1 / scale] * len(averages),
        gradients=gradients,
        momenta=averages,
        momentum_scales=[1 / correction] * len(averages),
    )


def sgd_update(
    gradients: list[Tensor], buffers: list[Tensor], *, momentum: Number, nesterov: bool, correction: Number
) -> Update:
    r"""SGD with momentum: :math:`m \leftarrow bm + g`, :math:`u = m`, or :math:`g + bm` with Nesterov momentum.

    Args:
        gradients: one tensor per weight.
        buffers: momenta m, updated.
        momentum: b in [0, 1).
        nesterov: look one step ahead.
        correction: 1 - b^t at step t, 1 being the first.

    Reference: Sutskever et al. 2013, in the form of torch.optim.SGD.
    """
    torch._foreach_mul_(buffers, momentum)
    torch._foreach_add_(buffers, gradients)
    updates = buffers
    if nesterov:
        updates = list(torch._foreach_add(gradients, torch._foreach_mul(buffers, momentum)))
    return Update(
        numerators=updates,
        denominators=None,
        corrections=[1.0] * len(buffers),
        gradients=gradients,
        momenta=buffers,
        momentum_scales=[(1 - momentum) / correction] * len(buffers),
    )


def _blend_(averages: list[Tensor], values: list[Tensor], weight: Number) -> None:
    """Move each average towards its value, in place."""
    if isinstance(weight, Tensor):
        for average, value in zip(averages, values, strict=True):
            average.add_(of_type(weight, average) * (value - average))
    else:
        torch._foreach_lerp_(averages, values, weight)


def _blend(averages: list[Tensor], values: list[Tensor], weight: Number) -> list[Tensor]:
    """Return what `_blend_` would leave in each average."""
    if isinstance(weight, Tensor):
        return [
            average + of_type(weight, average) * (value - average)
            for average, value in zip(averages, values, strict=True)
        ]
    return list(torch._foreach_lerp(averages, values, weight))


@dataclass(frozen=True, kw_only=True, slots=True)
class Adam:
    """Adam's direction.

    Attributes:
        betas: decay of the first and second moments, each in [0, 1).
        eps: added to the root of the second moment, at least 0.
        correct_momentum: False leaves the first moment uncorrected (AdamD, St John 2021).
        gradient_start: start the second moment at the square of the first gradient in place of zero, and keep the bias
            correction: an automatic warmup lr*sqrt(1 - beta2^t) (GI-Adam, Kalra & Barkeshli 2024, section 6.2).
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    correct_momentum: bool = True
    gradient_start: bool = False
    buffer_names: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")

    @property
    def needs_first_gradient(self) -> bool:
        """GI-Adam takes its second moment from the first gradient."""
        return self.gradient_start

    def __post_init__(self) -> None:
        """Take a list of betas, as configuration files have it, for a tuple."""
        object.__setattr__(self, "betas", tuple(self.betas))

    def options(self) -> dict[str, Any]:
        """Return betas and eps."""
        return {"betas": self.betas, "eps": self.eps}

    def validate(self, group: Options) -> None:
        """Raise ValueError if betas or eps are out of range."""
        betas = group["betas"]
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be two numbers in [0, 1), got {betas}")
        if not 0 <= group["eps"] < math.inf:
            raise ValueError(f"eps must be finite and >= 0, got {group['eps']}")

    def start(self, gradients: list[Tensor], buffers: Buffers) -> None:
        """Set v = g^2 (GI-Adam)."""
        squares = torch._foreach_mul(gradients, gradients)
        for square in squares:  # one that is inf would never change again
            square.clamp_(max=torch.finfo(square.dtype).max)
        torch._foreach_copy_(buffers["exp_avg_sq"], squares)

    def averaging(self, group: Options) -> Number:
        """Return beta1."""
        beta1: Number = group["betas"][0]
        return beta1

    def scalars(self, group: Options, *, step: Number) -> dict[str, Number]:
        """Return the bias corrections."""
        beta1, beta2 = group["betas"]
        return {"correction1": 1 - beta1**step, "root2": (1 - beta2**step) ** 0.5}

    def __call__(
        self, gradients: list[Tensor], buffers: Buffers, *, scalars: Mapping[str, Number], group: Options
    ) -> Update:
        """See `adam_update`."""
        beta1, beta2 = group["betas"]
        return adam_update(
            gradients,
            buffers["exp_avg"],
            buffers["exp_avg_sq"],
            beta1=beta1,
            beta2=beta2,
            eps=group["eps"],
            correction1=scalars["correction1"],
            root2=scalars["root2"],
            correct_momentum=self.correct_momentum,
        )


class _Momentum:
    """What Lion and SGD share: one buffer, the options momentum and nesterov."""

    needs_first_gradient: ClassVar[bool] = False

    def validate(self, group: Options) -> None:
        """Raise ValueError if momentum is out of range."""
        if not 0 <= group["momentum"] < 1:
            raise ValueError(f"momentum must be in [0, 1), got {group['momentum']}")

    def start(self, gradients: list[Tensor], buffers: Buffers) -> None:
        """Do nothing: momentum starts at zero."""

    def averaging(self, group: Options) -> Number:
        """Return the momentum constant."""
        momentum: Number = group["momentum"]
        return momentum

    def scalars(self, group: Options, *, step: Number) -> dict[str, Number]:
        """Return the momentum's bias correction, and the size of Adam's equilibrium."""
        momentum: Number = group["momentum"]
        return {"correction": 1 - momentum**step, "scale": equilibrium_rms(momentum)}


@dataclass(frozen=True, kw_only=True)
class Lion(_Momentum):
    """Lion's direction at the size of Adam's equilibrium: see `lion_update`.

    Attributes:
        momentum: b in [0, 1).
        nesterov: look one step ahead.
    """

    momentum: float = 0.9
    nesterov: bool = True
    buffer_names: ClassVar[tuple[str, ...]] = ("exp_avg",)

    def options(self) -> dict[str, Any]:
        """Return momentum and nesterov."""
        return {"momentum": self.momentum, "nesterov": self.nesterov}

    def __call__(
        self, gradients: list[Tensor], buffers: Buffers, *, scalars: Mapping[str, Number], group: Options
    ) -> Update:
        """See `lion_update`."""
        return lion_update(
            gradients,
            buffers["exp_avg"],
            momentum=group["momentum"],
            nesterov=group["nesterov"],
            scale=scalars["scale"],
            correction=scalars["correction"],
        )


@dataclass(frozen=True, kw_only=True)
class SGD(_Momentum):
    """SGD with momentum, its weight decay decoupled as everywhere here: see `sgd_update`.

    Attributes:
        momentum: b in [0, 1).
        nesterov: look one step ahead.
    """

    momentum: float = 0.0
    nesterov: bool = False
    buffer_names: ClassVar[tuple[str, ...]] = ("momentum_buffer",)

    def options(self) -> dict[str, Any]:
        """Return momentum and nesterov."""
        return {"momentum": self.momentum, "nesterov": self.nesterov}

    def __call__(
        self, gradients: list[Tensor], buffers: Buffers, *, scalars: Mapping[str, Number], group: Options
    ) -> Update:
        """See `sgd_update`."""
        return sgd_update(
            gradients,
            buffers["momentum_buffer"],
            momentum=group["momentum"],
            nesterov=group["nesterov"],
            correction=scalars["correction"],
        )
