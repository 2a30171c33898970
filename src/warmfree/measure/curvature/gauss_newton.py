"""The generalised Gauss-Newton matrix as an operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from warmfree.measure.curvature.operators import (
    checked,
    differentiated,
    filled,
    same_draws,
    scalar,
    with_history,
)

__all__ = ["GaussNewton"]


class GaussNewton:
    r"""The generalised Gauss-Newton matrix: :math:`v \mapsto J^\top H_z J v`, without the model's own curvature.

    z are the model's outputs, J their Jacobian in the parameters and H_z the Hessian of the loss in z: positive
    semi-definite where the loss is convex in z, and the Fisher matrix for cross-entropy.

    Args:
        outputs: returns z, a tensor of any shape that requires a gradient.
        loss_of_outputs: returns the scalar loss of z.
        parameters: tensors that require a gradient; tied ones once.

    Raises:
        ValueError: there are no parameters, or one does not require a gradient.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> operator = GaussNewton(lambda: weight[:1] * weight[1:], lambda z: z.square().sum(), [weight])
        >>> operator([torch.tensor([1.0, 0.0])])  # J = [2, 1], H_z = 2
        [tensor([8., 4.])]

    Reference: Schraudolph 2002. J v by two transposed products: Townsend 2017.
    """

    def __init__(
        self,
        outputs: Callable[[], Tensor],
        loss_of_outputs: Callable[[Tensor], Tensor],
        parameters: Sequence[Tensor],
    ) -> None:
        self.parameters = checked(parameters)
        self._outputs = outputs
        self._loss = loss_of_outputs
        self._graphs: tuple[Tensor, Tensor, list[Tensor | None], Tensor, Tensor | None] | None = None

    def __call__(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Return the product with a vector.

        Raises:
            NotTwiceDifferentiableError: a part of the model has no second derivative.
        """
        if self._graphs is None:
            self._graphs = self._make()
        outputs, dummy, transposed, detached, slope = self._graphs
        zero = [torch.zeros_like(parameter) for parameter in self.parameters]
        pairs = [
            (gradient, vector.to(gradient.dtype))
            for gradient, vector in zip(transposed, vectors, strict=True)
            if gradient is not None and gradient.requires_grad
        ]
        if not pairs or slope is None or not slope.requires_grad:
            return zero
        rows, directions = zip(*pairs, strict=True)
        (change,) = differentiated(list(rows), [dummy], list(directions), retain_graph=True)
        if change is None:
            return zero
        (bent,) = differentiated([slope], [detached], [change], retain_graph=True)
        if bent is None:
            return zero
        return filled(differentiated([outputs], self.parameters, [bent], retain_graph=True), self.parameters)

    def _make(self) -> tuple[Tensor, Tensor, list[Tensor | None], Tensor, Tensor | None]:
        with torch.enable_grad(), same_draws(self.parameters):
            outputs = self._outputs()
            # J^T u is linear in u: its derivative in u along v is J v, whatever u is.
            dummy = torch.zeros_like(outputs, requires_grad=True)
            transposed = with_history(differentiated([outputs], self.parameters, [dummy], create_graph=True))
            detached = outputs.detach().requires_grad_()
            (slope,) = differentiated(scalar(self._loss(detached)), [detached], create_graph=True)
        return outputs, dummy, transposed, detached, slope
