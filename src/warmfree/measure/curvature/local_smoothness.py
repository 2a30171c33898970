r"""How much the gradient changed per length of the step that was just made, on one and the same batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from warmfree.measure.curvature.loss_and_gradient import Draws, LossAndGradient, draws_of
from warmfree.measure.curvature.operators import Losses
from warmfree.measure.curvature.optimizers import UnsupportedOptimizerError, recognise
from warmfree.measure.curvature.preconditioner import effective_preconditioner
from warmfree.measure.curvature.sharpness import trainable
from warmfree.measure.real import as_real
from warmfree.measure.sums import whole_sums
from warmfree.optim.norms import compute_dtype, scalar_dtype
from warmfree.optim.sharding import local

__all__ = ["LocalSmoothness", "StepSmoothness"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSmoothness:
    r"""What one step did to the gradient of a loss, with :math:`\Delta w` and :math:`\Delta g` over that step.

    Attributes:
        value: :math:`\lVert\Delta g\rVert / \lVert\Delta w\rVert`, the local smoothness, in loss / weight^2; nan if
            nothing moved (`step_norm` is 0), or if a gradient or a weight is not finite.
        preconditioned: :math:`\lVert P^{-1/2}\Delta g\rVert / \lVert P^{1/2}\Delta w\rVert`, in 1 / learning rate; nan
            likewise; None where no optimizer was given.
        loss: on the batch, at the weights before the step.
        loss_after: on the batch, at the weights after it.
        step_norm: :math:`\lVert\Delta w\rVert`.
        gradient_norm: of the gradient before the step.
        gradient_change: :math:`\lVert\Delta g\rVert`.
        precision: relative precision of the narrowest type that the loss was computed in.
    """

    value: float
    preconditioned: float | None
    loss: float
    loss_after: float
    step_norm: float
    gradient_norm: float
    gradient_change: float
    precision: float

    @property
    def rounding(self) -> float:
        """The share of `value` that may be rounding, about: from 1 on it tells nothing.

        That is the precision times the norm of the gradient over the norm of its change (our estimate); inf where the
        gradient did not change.
        """
        rounding = self.precision * self.gradient_norm
        return rounding / self.gradient_change if self.gradient_change else math.inf


@dataclass(frozen=True, slots=True)
class _Before:
    """What is kept until the step is done; of sharded tensors the local parts."""

    parameters: list[Tensor]
    weights: list[Tensor]
    found: LossAndGradient.Found
    divisors: list[Tensor] | None
    draws: Draws


class LocalSmoothness:
    r"""Measure the smoothness of a loss along the steps of an optimizer, from two gradients on the same batch.

    .. math::
        L_t = \frac{\lVert \nabla f(w_{t+1}) - \nabla f(w_t) \rVert}{\lVert w_{t+1} - w_t \rVert}, \qquad
        L^P_t = \frac{\lVert P^{-1/2} (\nabla f(w_{t+1}) - \nabla f(w_t)) \rVert}{\lVert P^{1/2} (w_{t+1} - w_t) \rVert}

    Both are the length of a unit vector's image under the mean Hessian of the segment between the two points. So
    neither is above the largest :math:`\lVert\nabla^2 f\rVert` (of :math:`P^{-1/2}\nabla^2 f P^{-1/2}`) on that
    segment: they are lower estimates of the smoothness, for two gradients, where one product with the Hessian takes
    about four. For a quadratic they lie between the smallest and the largest magnitude of an eigenvalue.

    The second sees the loss as the optimizer does, with the P of the coming step (`effective_preconditioner`). Its unit
    is 1 / learning rate, and it compares with `preconditioned_sharpness` and `stability_threshold`. For Adam this P
    holds the first moment's bias correction, so that the first step can bear 2/(1-b1), not 2, over the learning rate.
    What P does not let move (no gradient, lr 0, of no optimizer) is left out of it; where P is almost 0, for want of
    gradients so far, a change of the gradient weighs as much as it does for the optimizer.

    Call `before` between backward() and step(), and `after` after step(); or put the step in a `with` block. Making
    one is free: where each step has a batch of its own, make one per step. The model is in eval mode meanwhile;
    weights, `.grad`, buffers, training flags and random numbers are as they were. It takes two gradients of `loss`, and
    from one call to the other copies of the weights, of the gradient, and of P.

    The shorter the step, the more of the change is rounding: see `StepSmoothness.rounding`. With AdamW on a small GPT
    both were right to 1 % in float32 down to a learning rate of 1e-7. Under bfloat16 autocast they were off by 7 % and
    18 % or less from 1e-4 on, and by factors of 6 to 100 at 1e-7, where `rounding` was above 2.

    Args:
        model: called by `loss`; a DistributedDataParallel model, too, whose gradients and losses are averaged over its
            processes. Under FSDP2 and tensor parallelism all processes have to call this.
        loss: returns the scalar loss of a batch; or several such functions with weights, for the mean over batches.
            It has to be of the same batch at both calls; what torch draws in it is the same at both.
        optimizer: makes the step; several if they step one after the other. None for `value` alone. Its P is made of
            `.grad`, unscaled; if no parameter has one, the gradient of `loss` counts as the coming one.
        parameters: in which to take it; None for all that require a gradient, tied ones once. Complex ones count as
            pairs of real ones, half-precision ones are compared in float32.
        process_group: processes that hold the same plain weights and a batch each, over which gradients are averaged;
            default: that of a DistributedDataParallel model, else this process alone. FSDP2 averages by itself.

    Raises:
        UnsupportedOptimizerError: an optimizer has no preconditioner that is known, or there are complex parameters;
            without `optimizer` the rest can be measured.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 3.0]])  # the Hessian of the loss is 2 x^T x: 2 and 18
        >>> loss = lambda: model(x).square().sum()
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        >>> _ = model.weight.data.copy_(torch.tensor([[0.0, 1.0]]))  # along the second eigenvector
        >>> loss().backward()
        >>> with LocalSmoothness(model, loss, optimizer) as probe:
        ...     optimizer.step()
        >>> found = probe.found
        >>> round(found.value, 3), round(found.preconditioned, 3), round(found.loss, 3), round(found.step_norm, 3)
        (18.0, 18.0, 9.0, 0.18)

    Reference: Liu et al. 2025, the local smoothness of their experiments; Alimisis et al. 2025 take consecutive
    stochastic gradients. The form on one batch, and the preconditioned one, are ours.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Losses,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        *,
        parameters: Sequence[Tensor] | None = None,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        self._model = model
        self._evaluate = LossAndGradient(model, loss, process_group=process_group)
        self._parameters = None if parameters is None else list(parameters)
        self._optimizers = _listed(optimizer)
        self._before: _Before | None = None
        self._found: StepSmoothness | None = None
        is_complex = any(parameter.is_complex() for parameter in self._chosen())
        for one in self._optimizers:
            recognise(one)
            if is_complex:
                raise UnsupportedOptimizerError(
                    f"the preconditioner of {type(one).__name__} is known for real parameters only, and some are "
                    f"complex; leave the optimizer out to measure without it"
                )

    @property
    def found(self) -> StepSmoothness:
        """What was found along the last step that was measured.

        Raises:
            RuntimeError: none was.
        """
        if self._found is None:
            raise RuntimeError("no step was measured: put optimizer.step() in `with probe:`, then ask")
        return self._found

    def before(self) -> None:
        """Keep weights, gradient and loss as they are before the step; a second call takes the place of the first.

        Raises:
            ValueError: there is no parameter, one does not require a gradient, or the loss is not a scalar.
        """
        self._before = None
        parameters = self._chosen()
        draws = draws_of(parameters)
        found = self._evaluate(parameters, draws)
        self._before = _Before(
            parameters=parameters,
            weights=[local(parameter).detach().clone() for parameter in parameters],
            found=found,
            divisors=_preconditioner(self._optimizers, parameters, found.gradient),
            draws=draws,
        )

    def after(self) -> StepSmoothness:
        """Compare weights and gradient after the step with those before it, and forget the latter.

        Raises:
            RuntimeError: `before` was not called before this step.
        """
        before, self._before = self._before, None
        if before is None:
            raise RuntimeError("call before() before the optimizer's step, and after() once after it")
        after = self._evaluate(before.parameters, before.draws)
        sums = _sums(before, after.gradient)
        step, change, norm = (math.sqrt(total) for total in sums[:3])
        preconditioned = None
        if before.divisors is not None:
            preconditioned = _ratio(math.sqrt(sums[4]), math.sqrt(sums[3]))
        self._found = StepSmoothness(
            value=_ratio(change, step),
            preconditioned=preconditioned,
            loss=before.found.loss,
            loss_after=after.loss,
            step_norm=step,
            gradient_norm=norm,
            gradient_change=change,
            precision=before.found.precision,
        )
        return self._found

    def __enter__(self) -> Self:
        self.before()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.after()
        self._before = None

    def _chosen(self) -> list[Tensor]:
        return trainable(self._model) if self._parameters is None else self._parameters


def _preconditioner(
    optimizers: Sequence[Optimizer], parameters: list[Tensor], gradient: list[Tensor]
) -> list[Tensor] | None:
    """Return P of the coming step, for the largest learning rate of all optimizers."""
    if not optimizers:
        return None
    coming = gradient if all(parameter.grad is None for parameter in parameters) else None
    parts = [effective_preconditioner(optimizer, parameters, coming) for optimizer in optimizers]
    largest = max(lr for _, lr in parts)
    scaled: list[Tensor] = []
    for divisors, lr in parts:
        factor = largest / lr if lr else (math.inf if largest else 1.0)
        ours = [divisor * factor for divisor in divisors] if factor != 1 else divisors
        # What an optimizer does not have is inf in its P.
        scaled = [mine.minimum(own) for mine, own in zip(scaled, ours, strict=True)] if scaled else ours
    return scaled


def _sums(before: _Before, gradient: Sequence[Tensor]) -> list[float]:
    """Return sums of squares over all parameters: step, change, gradient; step and change as P sees them."""
    rows = []
    with torch.no_grad():
        for index, parameter in enumerate(before.parameters):
            old, new = as_real(before.weights[index]), as_real(local(parameter))
            first, second = as_real(before.found.gradient[index]), as_real(gradient[index])
            dtype = compute_dtype(new)
            step, change = new.to(dtype) - old.to(dtype), second.to(dtype) - first.to(dtype)
            row = [_square(step), _square(change), _square(first)]
            if before.divisors is not None:
                root = before.divisors[index].sqrt()
                # Weight decay moves what P does not let move.
                row += [_square((step * root).masked_fill_(root.isinf(), 0.0)), _square(change / root)]
            rows.append(torch.stack(row))
    return [sum(sums) for sums in zip(*whole_sums(rows, before.parameters), strict=True)]


def _square(tensor: Tensor) -> Tensor:
    """Return the sum of squares, in float64 where the device has it."""
    norm: Tensor = torch.linalg.vector_norm(tensor, dtype=scalar_dtype(tensor.device))
    return norm * norm


def _ratio(change: float, step: float) -> float:
    """Return a quotient; nan where the step is zero or something is not finite."""
    return change / step if step > 0 and math.isfinite(change) and math.isfinite(step) else math.nan


def _listed(optimizer: Optimizer | Sequence[Optimizer] | None) -> list[Optimizer]:
    if optimizer is None:
        return []
    return list(optimizer) if isinstance(optimizer, list | tuple) else [cast(Optimizer, optimizer)]
