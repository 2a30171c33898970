r"""Curvatures as symmetric operators: from a vector with one tensor per parameter to another.

What estimates eigenvalues (`lanczos`) knows no models, and what is here knows no eigenvalues. Vectors are lists of
plain tensors; of a parameter that is sharded over processes they hold the local part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from warmfree.measure.curvature.graph import hides_history

__all__ = [
    "Averaged",
    "Hessian",
    "Losses",
    "NotTwiceDifferentiableError",
    "Operator",
    "Preconditioned",
]

Loss = Callable[[], Tensor]
# One batch, or several with their weights, of which the weighted mean is taken.
Losses = Loss | Sequence[tuple[Loss, float]]

# What torch says where a second derivative is missing: of its own kernels, and of functions that others wrote.
_MISSING = ("derivative for ", "once_differentiable", "double backward")


class NotTwiceDifferentiableError(RuntimeError):
    """A part of the model has no second derivative; finite differences of gradients need none."""


class Operator(Protocol):
    """A symmetric linear map of vectors with one tensor per parameter."""

    @property
    def parameters(self) -> list[Tensor]:
        """What the vectors are changes of."""

    def __call__(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Return the product with a vector."""


class Hessian:
    r"""The Hessian of a loss: :math:`v \mapsto \nabla_w \langle \nabla_w L, v\rangle`, reverse over reverse.

    The graph of the first gradient is made once and serves all products, until the operator is thrown away; weights
    must not change in between. The parameters' `.grad` is never touched. Parameters that the loss does not depend on
    have zero rows. Wants a model that is twice differentiable: see `twice_differentiable`. A custom function whose
    backward pass runs a kernel of its own, unseen by torch, counts as linear: check such models with differences.

    Args:
        loss: returns the scalar loss of a batch; or several such functions with weights > 0 (number of samples, say),
            for the weighted mean. With several, graphs are not kept.
        parameters: tensors that require a gradient; tied ones once.
        keep_graph: False makes the first gradient anew for every product. With a small GPT that took a quarter longer
            and a quarter less memory, which is 3 to 4 times that of a gradient; `DifferenceHessian` takes half as much
            again as a gradient.

    Raises:
        ValueError: there are no parameters, one does not require a gradient, or a weight is not positive.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> hessian = Hessian(lambda: weight[0] ** 2 * weight[1], [weight])  # [[2 w1, 2 w0], [2 w0, 0]]
        >>> hessian([torch.tensor([1.0, 0.0])])
        [tensor([4., 2.])]

    Reference: Pearlmutter 1994 for the product.
    """

    def __init__(self, loss: Losses, parameters: Sequence[Tensor], *, keep_graph: bool = True) -> None:
        self.parameters = checked(parameters)
        self._losses = weighted(loss)
        self._keep = keep_graph and len(self._losses) == 1
        self._gradients: list[Tensor | None] | None = None

    def __call__(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Return the product with a vector.

        Raises:
            NotTwiceDifferentiableError: a part of the model has no second derivative.
        """
        total = [torch.zeros_like(parameter) for parameter in self.parameters]
        for loss, weight in self._losses:
            gradients = self._gradients
            if gradients is None:
                gradients = self._first(loss)
                self._gradients = gradients if self._keep else None
            torch._foreach_add_(total, self._second(gradients, vectors), alpha=weight)
        return total

    def _first(self, loss: Loss) -> list[Tensor | None]:
        with torch.enable_grad(), same_draws(self.parameters):
            return with_history(differentiated(scalar(loss()), self.parameters, create_graph=True))

    def _second(self, gradients: Sequence[Tensor | None], vectors: Sequence[Tensor]) -> list[Tensor]:
        # A gradient without a history is constant: the loss is linear in that parameter.
        pairs = [
            (gradient, vector.to(gradient.dtype))
            for gradient, vector in zip(gradients, vectors, strict=True)
            if gradient is not None and gradient.requires_grad
        ]
        if not pairs:
            return [torch.zeros_like(parameter) for parameter in self.parameters]
        outputs, directions = zip(*pairs, strict=True)
        found = differentiated(list(outputs), self.parameters, list(directions), retain_graph=self._keep)
        return filled(found, self.parameters)


class Preconditioned:
    r"""An operator between roots of a diagonal: :math:`P^{-1/2} A P^{-1/2}`, symmetric, with the eigenvalues of P^-1 A.

    Args:
        operator: A.
        preconditioner: the diagonal of P, one tensor > 0 per parameter; inf for what does not move, whose rows are
            zero.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> hessian = Hessian(lambda: 2 * weight.square().sum(), [weight])
        >>> Preconditioned(hessian, [torch.tensor([1.0, 4.0])])([torch.ones(2)])
        [tensor([4., 1.])]

    Reference: Kalra & Barkeshli 2024, eq. 6, in the form that is symmetric.
    """

    def __init__(self, operator: Operator, preconditioner: Sequence[Tensor]) -> None:
        self.parameters = operator.parameters
        self._operator = operator
        self._roots = [tensor.rsqrt() for tensor in preconditioner]

    def __call__(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Return the product with a vector."""
        inner = self._operator([root * vector for root, vector in zip(self._roots, vectors, strict=True)])
        return [root * vector for root, vector in zip(self._roots, inner, strict=True)]


class Averaged:
    """The mean of an operator over processes that hold the same weights and have batches of their own (DDP).

    Args:
        operator: of this process's batch.
        group: the processes; None for all.
    """

    def __init__(self, operator: Operator, group: dist.ProcessGroup | None = None) -> None:
        self.parameters = operator.parameters
        self._operator = operator
        self._group = group

    def __call__(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Return the product with a vector, the same in all processes; collective."""
        return averaged(self._operator(vectors), self._group)


def averaged(tensors: Sequence[Tensor], group: dist.ProcessGroup | None = None) -> list[Tensor]:
    """Return the mean of plain tensors over processes, in one all-reduce per type and device."""
    kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for index, tensor in enumerate(tensors):
        kinds.setdefault((tensor.dtype, tensor.device), []).append(index)
    result = list(tensors)
    for indices in kinds.values():
        flat = torch.cat([tensors[index].reshape(-1) for index in indices])
        dist.all_reduce(flat, group=group)
        flat /= dist.get_world_size(group)
        pieces = torch.split(flat, [tensors[index].numel() for index in indices])
        for index, piece in zip(indices, pieces, strict=True):
            result[index] = piece.view(tensors[index].shape)
    return result


def weighted(loss: Losses) -> list[tuple[Loss, float]]:
    """Return losses with weights that add up to 1.

    Raises:
        ValueError: there is none, or a weight is not positive.
    """
    losses = [(loss, 1.0)] if callable(loss) else list(loss)
    if not losses or not all(weight > 0 for _, weight in losses):
        raise ValueError(f"losses must have weights > 0, got {[weight for _, weight in losses]}")
    total = sum(weight for _, weight in losses)
    return [(function, weight / total) for function, weight in losses]


def checked(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return parameters as a list.

    Raises:
        ValueError: there are none, or one does not require a gradient or is there twice.
    """
    if not parameters:
        raise ValueError("curvature needs at least one parameter that requires a gradient, got none")
    if frozen := [tuple(parameter.shape) for parameter in parameters if not parameter.requires_grad]:
        raise ValueError(
            f"curvature needs parameters that require a gradient; those of shape {frozen} do not"
        )
    if len({id(parameter) for parameter in parameters}) < len(parameters):
        raise ValueError("a parameter is listed twice; list tied parameters once")
    return list(parameters)


def scalar(loss: Tensor) -> list[Tensor]:
    """Return a loss as a list of one.

    Raises:
        ValueError: it has more than one element, or no gradient.
    """
    if loss.numel() != 1:
        raise ValueError(
            f"loss must return a scalar, got a tensor of shape {tuple(loss.shape)}; take its mean"
        )
    if not loss.requires_grad:
        raise ValueError(
            "loss has no gradient: it depends on no parameter that requires one, or is under no_grad"
        )
    return [loss]


def same_draws(parameters: Sequence[Tensor]) -> Any:
    """Let random numbers that a loss draws be the same in every evaluation of it."""
    devices = {parameter.device for parameter in parameters if parameter.device.type == "cuda"}
    return torch.random.fork_rng(devices=sorted(device.index or 0 for device in devices))


def differentiated(
    outputs: list[Tensor], inputs: list[Tensor], directions: list[Tensor] | None = None, **options: bool
) -> list[Tensor | None]:
    """Call torch.autograd.grad and say plainly if a second derivative is missing."""
    try:
        return list(torch.autograd.grad(outputs, inputs, directions, allow_unused=True, **options))
    except (RuntimeError, NotImplementedError) as error:
        if any(words in str(error) for words in _MISSING):
            raise NotTwiceDifferentiableError(
                f"a part of the model cannot be differentiated twice ({str(error).splitlines()[0]}); run it within "
                f"twice_differentiable(model), or use finite differences"
            ) from error
        raise


def with_history(gradients: list[Tensor | None]) -> list[Tensor | None]:
    """Return gradients that are to be differentiated again.

    Raises:
        NotTwiceDifferentiableError: a custom function among those that made them is marked as differentiable once.
    """
    if hides_history(gradients):
        raise NotTwiceDifferentiableError(
            "a custom function of the model is marked once_differentiable; use finite differences"
        )
    return gradients


def filled(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> list[Tensor]:
    """Put zeros where the loss does not depend on a parameter."""
    return [
        torch.zeros_like(parameter) if gradient is None else gradient.detach()
        for gradient, parameter in zip(gradients, parameters, strict=True)
    ]
