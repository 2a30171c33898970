"""Gradients of a probe's own, plain or sharded, which leave `.grad` as it was."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from warmfree.measure.curvature.graph import precision_of
from warmfree.measure.curvature.operators import Losses, checked, differentiated, same_draws, scalar, weighted
from warmfree.measure.curvature.sharded import part_of
from warmfree.optim.sharding import is_dtensor

__all__ = ["Gradient"]


class Gradient:
    """The gradient of a loss at the weights as they are when it is called.

    The gradients of DTensors (FSDP2, tensor parallel) are made by backward() and taken from `.grad`, since there they
    are reduced; this is collective. `.grad` is put back. All others are made without touching it.

    Args:
        loss: returns the scalar loss of a batch; or several such functions with weights > 0, for the weighted mean.
        parameters: tensors that require a gradient; tied ones once.
        others: with DTensors, all other parameters of the model, for their `.grad` to be left as it was, too.

    Attributes:
        precision: relative precision of the narrowest type in which the first loss was computed; 0 before.

    Raises:
        ValueError: there are no parameters, one does not require a gradient, or a weight is not positive.
        RuntimeError: a DTensor has hooks that run when its gradient is there, such as an optimizer's step.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> Gradient(lambda: weight.square().sum(), [weight])()
        [tensor([2., 4.])]
    """

    def __init__(self, loss: Losses, parameters: Sequence[Tensor], *, others: Iterable[Tensor] = ()) -> None:
        self._parameters = checked(parameters)
        self._losses = weighted(loss)
        self._all = list({id(tensor): tensor for tensor in (*parameters, *others)}.values())
        self._sharded = any(map(is_dtensor, parameters))
        self.precision = 0.0
        if self._sharded and any(
            getattr(tensor, "_post_accumulate_grad_hooks", None) for tensor in self._all
        ):
            raise RuntimeError(
                "a parameter has a hook that runs when its gradient is there, which a measurement of a sharded model "
                "would set off; remove it meanwhile"
            )

    def __call__(self) -> list[Tensor]:
        """Return a tensor per parameter, the local part of a sharded one; zero where the loss does not depend on it."""
        total: list[Tensor] = []
        for loss, weight in self._losses:
            with torch.enable_grad(), same_draws(self._parameters):
                (value,) = scalar(loss())
                self.precision = self.precision or precision_of([value])
                found = self._backward(value) if self._sharded else differentiated([value], self._parameters)
            parts = [
                part_of(gradient, parameter) * weight
                for gradient, parameter in zip(found, self._parameters, strict=True)
            ]
            total = list(torch._foreach_add(total, parts)) if total else parts
        return total

    def _backward(self, value: Tensor) -> list[Tensor | None]:
        kept = [parameter.grad for parameter in self._all]
        try:
            for parameter in self._all:
                parameter.grad = None
            value.backward()  # type: ignore[no-untyped-call]
            return [parameter.grad for parameter in self._parameters]
        finally:
            for parameter, gradient in zip(self._all, kept, strict=True):
                parameter.grad = gradient
