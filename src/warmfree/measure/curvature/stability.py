r"""How much curvature an optimizer can bear, and which way curvature goes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from warmfree.measure.curvature.optimizers import Recognised, recognise
from warmfree.measure.curvature.preconditioner import nadam_shares

__all__ = ["Momentum", "Threshold", "regime", "stability_threshold"]

Regime = Literal["progressive sharpening", "sharpness reduction", "constant"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Momentum:
    r"""The momentum of an optimizer: :math:`m \leftarrow bm + ag, \; w \leftarrow w - \mathrm{lr}\,(c_g g + c_m m)/P`.

    On a quadratic of curvature :math:`\lambda` (along P, see `Preconditioned`) the step is linear in (w, m), and both
    its eigenvalues are inside the unit circle if and only if

    .. math::  \mathrm{lr}\,\lambda < \frac{2 + 2b}{c_g (1+b) + c_m a},

    where the lower one passes -1. That is 2 for SGD, 2 + 2b with momentum, (2+2b)/(1+2b) with Nesterov momentum,
    (2+2b)/(1-b) for Adam and (2+2b)/((1-b)(1+2b)) for NAdam late in training.

    Attributes:
        decay: b in [0, 1).
        intake: a > 0: 1 for SGD (less its dampening), 1 - b for Adam.
        gradient_share: c_g >= 0.
        momentum_share: c_m >= 0.

    Example:
        >>> adam = Momentum(decay=0.9, intake=0.1)
        >>> round(adam.late, 6), round(adam.early, 6)
        (38.0, 20.0)

    Reference: Kalra & Barkeshli 2024, appendix B.1 and E.2, for SGD, heavy ball and Adam; the general form is derived.
    """

    decay: float
    intake: float
    gradient_share: float = 0.0
    momentum_share: float = 1.0

    @property
    def late(self) -> float:
        """Largest lr * curvature under which a quadratic is contracted in the end."""
        gain = self.gradient_share * (1 + self.decay) + self.momentum_share * self.intake
        return (2 + 2 * self.decay) / gain

    @property
    def early(self) -> float:
        r"""Largest lr * curvature under which the next step does not enlarge a displacement that has just appeared.

        Without momentum along it the step multiplies it by :math:`1 - \mathrm{lr}\,\lambda(c_g + c_m a)`. For Adam that
        is 2/(1-b) at every step, the first included: P holds the bias correction.
        """
        return 2 / (self.gradient_share + self.momentum_share * self.intake)


@dataclass(frozen=True, kw_only=True, slots=True)
class Threshold:
    """Curvature that an optimizer with its present learning rate can bear.

    Attributes:
        late: above it displacements along the sharpest direction grow until something gives. Full-batch training hovers
            there; with small batches instability sets in below.
        early: above it a displacement that has just appeared is enlarged by the next step, before momentum can brake;
            between the two it is contracted in the end, after having grown by a factor of up to about 2/(1-b). It is
            what a first step has to be judged by.
        lr: the largest learning rate, for which they hold.
    """

    late: float
    early: float
    lr: float


def stability_threshold(
    optimizer: Optimizer, parameters: Sequence[Tensor] | None = None, *, lr: float | None = None
) -> Threshold:
    r"""Return the curvature that an optimizer can bear: :math:`c/\mathrm{lr}` with the constants of `Momentum`.

    It is compared with the top eigenvalue of :math:`P^{-1/2} H P^{-1/2}`, P being that of `effective_preconditioner`,
    which holds the bias correction and the groups' learning rates; for SGD of one learning rate that is the sharpness.
    P is taken to change slowly. Decoupled weight decay adds lr * decay to lr * curvature, which is nothing beside 2. Of
    groups whose momentum differs the most careful constants count (our choice).

    Args:
        optimizer: as for `adam_preconditioner`.
        parameters: whose groups count; None for all.
        lr: the largest learning rate as `effective_preconditioner` returns it; None for that of the groups.

    Returns:
        Both thresholds; inf if all learning rates are 0.

    Raises:
        UnsupportedOptimizerError: the optimizer is not known.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> stability_threshold(torch.optim.SGD([weight], lr=0.5, momentum=0.9)).late
        7.6

    Reference: Kalra & Barkeshli 2024, sections 4.2 and 4.3; early: derived, see `Momentum.early`.
    """
    known = recognise(optimizer)
    chosen = None if parameters is None else {id(parameter) for parameter in parameters}
    momenta, rates = [], [0.0]
    for group in known.optimizer.param_groups:
        members = [parameter for parameter in group["params"] if chosen is None or id(parameter) in chosen]
        if members and float(group["lr"]) > 0:
            momenta.append(_momentum(known, group, members))
            rates.append(float(group["lr"]))
    largest = max(rates) if lr is None else lr
    if not momenta or largest == 0:
        return Threshold(late=math.inf, early=math.inf, lr=0.0)
    late, early = min(momentum.late for momentum in momenta), min(momentum.early for momentum in momenta)
    return Threshold(late=late / largest, early=early / largest, lr=largest)


def regime(steps: Sequence[float], sharpnesses: Sequence[float], *, tolerance: float = 0.1) -> Regime:
    r"""Say which way sharpness goes: the median slope of its logarithm, times the span of steps.

    The slope is the median over all pairs of points (Theil and Sen), which a third of wild points does not spoil. A
    change of less than `tolerance`, as a fraction over the whole span, counts as constant (our choice).

    Args:
        steps: at which sharpness was measured.
        sharpnesses: plain or preconditioned; points that are not positive or not finite are left out.
        tolerance: > 0.

    Returns:
        One of the three regimes of natural training.

    Raises:
        ValueError: tolerance is out of range, or fewer than 3 points at different steps are left.

    Example:
        >>> regime([0, 10, 20, 30], [1.0, 1.5, 2.2, 3.1])
        'progressive sharpening'

    Reference: Kalra & Barkeshli 2024, section 4.1 (the regimes); Sen 1968 (the slope).
    """
    if not tolerance > 0:
        raise ValueError(f"tolerance must be > 0, got {tolerance}")
    points = [
        (float(step), math.log(value))
        for step, value in zip(steps, sharpnesses, strict=True)
        if 0 < value < math.inf
    ]
    if len({step for step, _ in points}) < 3:
        raise ValueError(f"regime needs sharpness > 0 at 3 steps or more, got {len(points)} such points")
    x, y = torch.tensor(points, dtype=torch.float64).T
    first, second = torch.triu_indices(len(points), len(points), offset=1)
    apart = x[second] != x[first]
    slopes = (y[second] - y[first])[apart] / (x[second] - x[first])[apart]
    change = float(slopes.quantile(0.5) * (x.max() - x.min()))
    if abs(change) < math.log1p(tolerance):
        return "constant"
    return "progressive sharpening" if change > 0 else "sharpness reduction"


def _momentum(known: Recognised, group: Mapping[str, Any], members: Sequence[Tensor]) -> Momentum:
    if known.family == "sgd":
        decay = float(group["momentum"])
        intake = 1 - float(group.get("dampening", 0.0)) if decay else 1.0
        if group["nesterov"]:
            return Momentum(decay=decay, intake=intake, gradient_share=1.0, momentum_share=decay)
        return Momentum(decay=decay, intake=intake)
    beta1 = float(group["betas"][0])
    if known.family == "nadam":
        # Of parameters that began at different times the first one of the group.
        gradient, momentum = nadam_shares(group, known.optimizer.state.get(members[0], {}))
        return Momentum(decay=beta1, intake=1 - beta1, gradient_share=gradient, momentum_share=momentum)
    return Momentum(decay=beta1, intake=1 - beta1)
