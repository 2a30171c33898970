"""The named optimizers: compositions of a direction and size controls."""

from __future__ import annotations

from typing import Any, Literal, Unpack

from torch import Tensor

from warmfree.optim.angular import AngularControl
from warmfree.optim.base import Execution, SizedOptimizer
from warmfree.optim.directions import Adam, Lion
from warmfree.optim.spectral import SpectralBound


class AdamW2(SizedOptimizer):
    r"""AdamW whose step is shortened so that :math:`\mathrm{lr}\,\sigma_1(\text{update})/\sigma_1(W) \le \tau`.

    .. math::  U = \hat m/(\sqrt{\hat v}+\epsilon), \quad a = \min(\mathrm{lr},\, \tau\sigma_1(W)/\sigma_1(U)), \quad
               W \leftarrow W - aU - a\lambda W

    Early updates have low rank and hence a large sigma_1: the bound is an automatic warmup, per matrix. Matrices,
    embeddings, heads and convolutions are bounded; vectors (biases, gains) are stepped by plain AdamW. With tau = inf
    the eager step is torch.optim.AdamW's bit for bit (on the CPU, and without `split`).

    Args:
        params: parameters, named parameters, or groups.
        lr: learning rate >= 0, a float or 0-D Tensor.
        betas: decay of first and second moments, each in [0, 1).
        eps: added to the root of the second moment, >= 0.
        weight_decay: decoupled, >= 0; multiplied by the shortened step.
        tau: largest relative growth of sigma_1 in a step, > 0. The paper's value was not found; 0.05 was the best of
            0.01 to 0.1 on a small GPT in runs of 300 and of 1200 steps (docs/log.md). Smaller is safer and slower.
        power_iterations: of weight and update each, a step, >= 1. The loss did not tell 1, 2 and 8 apart.
        execution: maximize, foreach, compile, fused, capturable, precision, nonfinite: see `SizedOptimizer`.

    Raises:
        ValueError: an option out of range.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(64, 64)
        >>> optimizer = AdamW2(model.parameters(), lr=1e-2)
        >>> model(torch.ones(8, 64)).square().mean().backward()
        >>> optimizer.step()
        >>> optimizer.step_report.fetch()["0.0"]["factor"] < 1
        True

    Reference: Qi et al. 2025, Algorithm 1.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        tau: float = 0.05,
        power_iterations: int = 2,
        **execution: Unpack[Execution],
    ) -> None:
        super().__init__(
            params,
            Adam(betas=betas, eps=eps),
            [SpectralBound(tau=tau, power_iterations=power_iterations)],
            lr=lr,
            weight_decay=weight_decay,
            **execution,
        )


class GIAdamW(SizedOptimizer):
    r"""AdamW whose second moment starts from the first gradient: :math:`v_0 = g_0^2`, bias correction kept.

    E[v] needs no correction, so keeping it is an automatic warmup :math:`\mathrm{lr}\sqrt{1-\beta_2^t}`: half of lr
    after 288 steps at beta2 = 0.999, after 6 at 0.95. By default g_0 is the first gradient the optimizer sees (v_1 =
    g_1^2); `prime()` takes it from a separate batch, as the authors do. A parameter starts at its first gradient that
    is not zero and is left alone before. An element that is zero in that gradient (a row of an embedding that is not
    in the batch) keeps v_0 = 0 and moves as under Adam.

    Args:
        params: parameters, named parameters, or groups.
        lr: learning rate >= 0, a float or 0-D Tensor.
        betas: decay of first and second moments, each in [0, 1).
        eps: added to the root of the second moment, >= 0.
        weight_decay: decoupled, >= 0.
        execution: maximize, foreach, compile, fused, capturable, precision, nonfinite: see `SizedOptimizer`.

    Raises:
        ValueError: an option out of range.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.zeros(3))
        >>> optimizer = GIAdamW([weight], lr=1.0, betas=(0.9, 0.96), weight_decay=0.0)
        >>> weight.grad = torch.tensor([5.0, -1.0, 0.1])
        >>> optimizer.step()
        >>> weight.detach()  # sqrt(1 - 0.96) of Adam's first step, which is lr * sign(g)
        tensor([-0.2000,  0.2000, -0.2000])

    Reference: Kalra & Barkeshli 2024, section 6.2 and appendix I.2.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        **execution: Unpack[Execution],
    ) -> None:
        super().__init__(
            params,
            Adam(betas=betas, eps=eps, gradient_start=True),
            lr=lr,
            weight_decay=weight_decay,
            **execution,
        )


class LionA(SizedOptimizer):
    r"""Lion scaled to the size of AdamW's updates: every update has RMS :math:`\sqrt{(1-b)/(1+b)}`, the first, too.

    .. math::  m \leftarrow bm + (1-b)g, \quad c = bm + (1-b)g, \quad
               w \leftarrow (1-\mathrm{lr}\,\lambda)w - \mathrm{lr}\sqrt{\tfrac{1-b}{1+b}}\,\mathrm{sign}(c)

    (c = m without Nesterov momentum.) The learning rate carries over from AdamW with beta1 = b; so does the weight
    decay if steps are to be alike, and about half of it if rotations are (`warmfree.translate_lr`). It is Lion with
    betas (b^2, b) at a learning rate scaled by the root.

    Args:
        params: parameters, named parameters, or groups.
        lr: learning rate >= 0, a float or 0-D Tensor.
        momentum: b in [0, 1).
        weight_decay: decoupled, >= 0.
        nesterov: look one step ahead.
        execution: maximize, foreach, compile, fused, capturable, precision, nonfinite: see `SizedOptimizer`.

    Raises:
        ValueError: an option out of range.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = LionA([weight], lr=1.0, momentum=0.6, weight_decay=0.0)
        >>> weight.grad = torch.tensor([100.0, -1e-6])
        >>> optimizer.step()
        >>> weight.detach()
        tensor([-0.5000,  0.5000])

    Reference: Kosson et al. 2024 (LionA). The constant is derived, the paper's was not found.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 1e-2,
        *,
        nesterov: bool = True,
        **execution: Unpack[Execution],
    ) -> None:
        super().__init__(
            params,
            Lion(momentum=momentum, nesterov=nesterov),
            lr=lr,
            weight_decay=weight_decay,
            **execution,
        )


class LionAR(SizedOptimizer):
    r"""LionA that turns each neuron by AdamW's equilibrium angle, from the first step on, and keeps its norm.

    The angle is :math:`\sqrt{2\,\mathrm{lr}\,\lambda\,(1-b)/(1+b)}`, times :math:`1-b^t` with inverse bias
    correction; see `AngularControl` for the step. Weight decay sets the angle and must be positive; parameters in
    groups without weight decay and vectors are stepped by LionA.

    Leave embeddings out, above all those tied to the head: rows that keep their initial norm bound the logits. Pass
    `parameter_groups(model, weight_decay=1.0, embedding_decay=0.0)`. The angle depends on lr * weight_decay, what is
    not rotated on lr alone: keep lr near that of AdamW or LionA and give the angle through weight_decay. Defaults are
    from a small GPT in 300 steps (docs/log.md); the lr and weight_decay of a long AdamW run give its settled angle.

    Args:
        params: parameters, named parameters, or groups.
        lr: learning rate >= 0, a float or 0-D Tensor.
        momentum: b in [0, 1). 0.95 was better than 0.9 and 0.98 there; the paper uses 0.98 for 5000 steps.
        weight_decay: > 0 here; 0 in a group makes it LionA.
        nesterov: look one step ahead.
        inverse_bias_correction: early updates smaller by 1 - b^t.
        per_neuron: keep norms and turn per neuron; False: per tensor.
        angle_schedule: "sqrt": the angle follows the root of the scheduled lr, as the equilibrium does. "linear": it
            is the peak's angle times lr/peak; the peak is the group's `peak_lr`, by default the lr given here.
        execution: maximize, foreach, compile, fused, capturable, precision, nonfinite: see `SizedOptimizer`.

    Raises:
        ValueError: an option out of range, or no weight decay.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.eye(2))
        >>> optimizer = LionAR([weight], lr=0.1, momentum=0.0, weight_decay=0.5)
        >>> weight.grad = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> optimizer.step()
        >>> weight.norm(dim=1).detach(), round(optimizer.step_report.fetch()["0.0"]["angle"], 4)
        (tensor([1., 1.]), 0.3063)

    Reference: Kosson et al. 2024 (LionAR), reconstructed; see `AngularControl` for what is our choice.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        momentum: float = 0.95,
        weight_decay: float = 1.0,
        *,
        nesterov: bool = True,
        inverse_bias_correction: bool = True,
        per_neuron: bool = True,
        angle_schedule: Literal["sqrt", "linear"] = "sqrt",
        **execution: Unpack[Execution],
    ) -> None:
        _require_weight_decay(type(self).__name__, weight_decay)
        control = AngularControl(
            per_neuron=per_neuron, schedule=angle_schedule, inverse_bias_correction=inverse_bias_correction
        )
        super().__init__(
            params,
            Lion(momentum=momentum, nesterov=nesterov),
            [control],
            lr=lr,
            weight_decay=weight_decay,
            **execution,
        )


class RotationalAdamW(SizedOptimizer):
    r"""AdamW that turns each neuron by its equilibrium angle on average, from the first step on, and keeps its norm.

    The angle is :math:`\sqrt{2\,\mathrm{lr}\,\lambda\,(1-\beta_1)/(1+\beta_1)}`; see `AngularControl` for the step.
    Weight decay sets the angle and must be positive; parameters in groups without weight decay and vectors are stepped
    by AdamW.

    Args:
        params: parameters, named parameters, or groups.
        lr: learning rate >= 0, a float or 0-D Tensor.
        betas: decay of first and second moments, each in [0, 1).
        eps: added to the root of the second moment, >= 0.
        weight_decay: > 0 here; 0 in a group makes it AdamW.
        update_norm_decay: average the squared update norm over steps with this constant in [0, 1); 0 makes the
            angle exact at every step.
        per_neuron: keep norms and turn per neuron; False: per tensor.
        zero_mean: keep each neuron's mean at zero. The first step then centres the weights and rescales them to their
            norm. The authors' default is to do so; weights that change by more than a step are a surprise: not ours.
        execution: maximize, foreach, compile, fused, capturable, precision, nonfinite: see `SizedOptimizer`.

    Raises:
        ValueError: an option out of range, or no weight decay.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(16, 4)
        >>> norms = model.weight.norm(dim=1).detach()
        >>> optimizer = RotationalAdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
        >>> model(torch.ones(8, 16)).square().mean().backward()
        >>> optimizer.step()
        >>> torch.allclose(model.weight.norm(dim=1), norms)
        True

    Reference: Kosson et al. 2023, arXiv 2305.17212, with the authors' defaults but for zero_mean.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        update_norm_decay: float = 0.9,
        per_neuron: bool = True,
        zero_mean: bool = False,
        **execution: Unpack[Execution],
    ) -> None:
        _require_weight_decay(type(self).__name__, weight_decay)
        control = AngularControl(
            per_neuron=per_neuron, update_norm_decay=update_norm_decay, zero_mean=zero_mean, eps=1e-8
        )
        super().__init__(
            params,
            Adam(betas=betas, eps=eps),
            [control],
            lr=lr,
            weight_decay=weight_decay,
            **execution,
        )


def _require_weight_decay(name: str, weight_decay: float) -> None:
    if not weight_decay > 0:
        raise ValueError(
            f"{name} derives the angle of its steps from weight_decay, which must be > 0, got {weight_decay}; "
            f"use an optimizer without rotation if you want no decay"
        )
