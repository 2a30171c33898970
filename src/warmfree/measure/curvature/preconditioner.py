r"""What an optimizer divides its momentum by in the coming step, from its live state."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from warmfree.measure.curvature.optimizers import Recognised, recognise
from warmfree.measure.curvature.sharded import part_of
from warmfree.optim.sharding import local, whole

__all__ = ["adam_preconditioner", "effective_preconditioner", "nadam_shares"]


def adam_preconditioner(
    optimizer: Optimizer, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None] | None = None
) -> list[Tensor]:
    r"""Return the diagonal P for which the coming step is :math:`\Delta w = -\mathrm{lr}\, m_{t+1} / P`.

    .. math::  P = (1-\beta_1^{t+1})\left(\sqrt{v_{t+1}/(1-\beta_2^{t+1})} + \epsilon\right), \qquad
               v_{t+1} = \beta_2 v_t + (1-\beta_2) g^2

    with the first moment :math:`m_{t+1}` as it is stored, not corrected, and decoupled weight decay apart. Call it
    between backward() and step(), with the gradients that the step will see (clipped, unscaled) in `.grad`; in the
    first step P is made of the gradient alone. Nothing is changed. Other optimizers divide by

    - Adam with amsgrad: the largest v so far; with L2 weight decay: v of the gradient with the decay in it.
    - RAdam: P over the rectification; :math:`1-\beta_1^{t+1}` alone in its first steps, in which it does not adapt.
    - NAdam: :math:`1-\prod\mu` for :math:`1-\beta_1^{t+1}`, so that the step is
      :math:`-\mathrm{lr}\,(c_g g + c_m m_{t+1})/P` with the shares of `nadam_shares`.
    - GIAdamW: :math:`v_t = g^2` before its first gradient. AdamD (no correction of m): no :math:`1-\beta_1^{t+1}`.
    - SGD: ones. Its momentum is part of the threshold.

    Size controls (AdamW2, RotationalAdamW, `wrap`) shorten or turn the step that P describes: P is that of the
    direction.

    Args:
        optimizer: one of torch's SGD, Adam, AdamW, NAdam, RAdam, or of warmfree's with Adam's or SGD's direction.
        parameters: of which to return P.
        gradients: in place of `.grad`, None for a parameter that is not stepped; local parts of sharded ones.

    Returns:
        One tensor per parameter, in float32 or wider, of a sharded one the local part. What the step leaves alone, for
        want of a gradient or because the optimizer does not have it, has P = inf.

    Raises:
        UnsupportedOptimizerError: no such preconditioner exists or is known (Lion, Muon, others); it says which are.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = torch.optim.Adam([weight], betas=(0.9, 0.99), eps=0.0)
        >>> weight.grad = torch.tensor([1.0, -4.0])
        >>> adam_preconditioner(optimizer, [weight])  # (1 - 0.9) |g|
        [tensor([0.1000, 0.4000])]

    Reference: Kalra & Barkeshli 2024, eq. 6, as their code has it (the printed form lacks the root); RAdam, NAdam,
    AdamD and GI-Adam are derived from their update in the same way.
    """
    known = recognise(optimizer)
    groups = {id(parameter): group for group in known.optimizer.param_groups for parameter in group["params"]}
    if gradients is None:
        gradients = [
            None if parameter.grad is None else part_of(parameter.grad, parameter) for parameter in parameters
        ]
    found = []
    for parameter, gradient in zip(parameters, gradients, strict=True):
        group = groups.get(id(parameter))
        if group is None or gradient is None:
            here = local(parameter)
            found.append(torch.full_like(here, math.inf, dtype=_wide(here)))
        else:
            found.append(_divisor(known, group, parameter, gradient))
    return found


def effective_preconditioner(
    optimizer: Optimizer, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None] | None = None
) -> tuple[list[Tensor], float]:
    r"""Return P with the learning rates of parameter groups in it, and the largest of them.

    :math:`P_i\,\mathrm{lr}_{max}/\mathrm{lr}_i`: what divides the momentum if all took steps of lr_max, so that one
    threshold on lr_max * eigenvalue holds for the whole. Of a step that a size control shortened last time, the
    learning rate counts times that factor (our choice); of one that is turned by an angle it counts in full, which
    means little: how far such a step goes does not depend on P.

    Args:
        optimizer: as for `adam_preconditioner`.
        parameters: likewise.
        gradients: likewise.

    Returns:
        The diagonal, inf where lr is 0, and the largest learning rate of these parameters. If all are 0: P itself, 0.

    Raises:
        UnsupportedOptimizerError: as for `adam_preconditioner`.

    Example:
        >>> weights = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
        >>> groups = [{"params": weights[:1]}, {"params": weights[1:], "lr": 0.1}]
        >>> optimizer = torch.optim.SGD(groups, lr=0.4)
        >>> for weight in weights:
        ...     weight.grad = torch.ones(1)
        >>> effective_preconditioner(optimizer, weights)
        ([tensor([1.]), tensor([4.])], 0.4)
    """
    divisors = adam_preconditioner(optimizer, parameters, gradients)
    rates = _rates(recognise(optimizer))
    lrs = [rates.get(id(parameter), 0.0) for parameter in parameters]
    largest = max(lrs, default=0.0)
    if largest == 0:
        return divisors, 0.0
    scaled = [
        divisor * (largest / lr) if lr else torch.full_like(divisor, math.inf)
        for divisor, lr in zip(divisors, lrs, strict=True)
    ]
    return scaled, largest


def nadam_shares(group: Mapping[str, Any], state: Mapping[str, Any]) -> tuple[float, float]:
    r"""Return the shares :math:`c_g = 1-\mu_t` and :math:`c_m` of gradient and momentum in NAdam's coming step."""
    mu, after, product = _nadam_momenta(group, state)
    return 1 - mu, after * (1 - product) / (1 - product * after)


def _nadam_momenta(group: Mapping[str, Any], state: Mapping[str, Any]) -> tuple[float, float, float]:
    """Momentum constants of the coming step and of that after it, and the product of all up to the coming step."""
    step = 1 + int(state.get("step", 0))
    beta1, decay = float(group["betas"][0]), group["momentum_decay"]
    mu, after = (beta1 * (1 - 0.5 * 0.96 ** (number * decay)) for number in (step, step + 1))
    return mu, after, float(state.get("mu_product", 1.0)) * mu


def _divisor(known: Recognised, group: Mapping[str, Any], parameter: Tensor, gradient: Tensor) -> Tensor:
    """Return the local part of P of one parameter that is about to be stepped."""
    wide, state = _wide(local(parameter)), known.optimizer.state.get(parameter, {})
    gradient = gradient.to(wide)
    if known.family == "sgd":
        return torch.ones_like(gradient)
    beta1, beta2 = (float(beta) for beta in group["betas"])
    step = 1 + int(state.get("step", 0))
    correction1, correction2 = 1 - beta1**step, 1 - beta2**step
    square = _second_moment(known, group, parameter, gradient, state)
    if square is None:
        return torch.full_like(gradient, math.inf)
    root, eps = square.sqrt(), float(group["eps"])
    if known.family == "radam":
        divisor = _rectified(root + eps, step, beta2) * correction1
    else:
        divisor = root / math.sqrt(correction2) + eps
        if known.family == "nadam":
            divisor *= 1 - _nadam_momenta(group, state)[2]
        elif known.corrects_momentum:
            divisor *= correction1
    # Without eps, what never had a gradient does not move.
    return divisor.masked_fill_(divisor == 0, math.inf)


def _second_moment(
    known: Recognised, group: Mapping[str, Any], parameter: Tensor, gradient: Tensor, state: Mapping[str, Any]
) -> Tensor | None:
    """Return what the coming step takes the root of; None if it waits for a first gradient."""
    decay, beta2 = float(group["weight_decay"]), float(group["betas"][1])
    if decay and not known.decouples and not group.get("decoupled_weight_decay", False):
        gradient = gradient + decay * local(parameter).detach()
    square = torch.zeros_like(gradient)
    if "exp_avg_sq" in state:
        square = local(state["exp_avg_sq"]).to(gradient.dtype)
    if "started" in state and float(state["started"]) == 0:
        if not float(whole(parameter.grad if parameter.grad is not None else gradient).abs().max()):
            return None
        square = gradient.square().clamp_(max=torch.finfo(gradient.dtype).max)
    square = beta2 * square + (1 - beta2) * gradient.square()
    if "max_exp_avg_sq" in state:
        square = square.maximum(local(state["max_exp_avg_sq"]).to(gradient.dtype))
    return square


def _rectified(root: Tensor, step: int, beta2: float) -> Tensor:
    """Return what RAdam divides by beside the first moment's correction."""
    correction = 1 - beta2**step
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * step * beta2**step / correction
    if not length > 5:
        return torch.ones_like(root)
    factor = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    return root / math.sqrt(correction * factor)


def _rates(known: Recognised) -> dict[int, float]:
    """Return the learning rate of each parameter by identity, times what size controls left of the last step."""
    report = getattr(known.outer, "step_report", None)
    values = report.fetch() if report is not None else {}
    rates = {}
    for number, group in enumerate(known.optimizer.param_groups):
        names = group.get("param_names") or [f"{number}.{index}" for index in range(len(group["params"]))]
        for name, parameter in zip(names, group["params"], strict=True):
            rates[id(parameter)] = float(group["lr"]) * values.get(name, {}).get("factor", 1.0)
    return rates


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
