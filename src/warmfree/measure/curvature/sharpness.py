"""Sharpness of a model as it is, and as its optimizer sees it, in one call."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, TypedDict, Unpack

import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from warmfree.measure.curvature.differences import DifferenceHessian
from warmfree.measure.curvature.differentiable import twice_differentiable
from warmfree.measure.curvature.gradient import Gradient
from warmfree.measure.curvature.lanczos import MEMORY, lanczos
from warmfree.measure.curvature.operators import (
    Averaged,
    Hessian,
    Losses,
    NotTwiceDifferentiableError,
    Operator,
    Preconditioned,
    averaged,
)
from warmfree.measure.curvature.preconditioner import effective_preconditioner
from warmfree.measure.curvature.stability import stability_threshold
from warmfree.measure.undisturbed import undisturbed
from warmfree.optim.sharding import is_dtensor

__all__ = ["Search", "Sharpness", "preconditioned_sharpness", "sharpness"]

Method = Literal["exact", "differences"]


class Search(TypedDict, total=False):
    """How an eigenvalue is looked for.

    Attributes:
        start: `vector` of an earlier result, which saves products.
        tolerance: relative; default 0.01.
        max_products: default 20.
        seed: of the random start; default 0.
        memory: bytes for the basis; default 1 GiB. See `lanczos`.
        method: "exact" (second derivatives), "differences" (of gradients), or, by default, "auto": exact where it can
            be, differences for sharded parameters and for models without a second derivative. Differences take far
            less memory.
        keep_graph: False takes a little more time and less memory; default True. See `Hessian`.
        process_group: processes that hold the same plain weights and a batch each, over which the Hessian is averaged;
            default: that of a DistributedDataParallel model, else this process alone. FSDP2 averages by itself.
    """

    start: Sequence[Tensor] | None
    tolerance: float
    max_products: int
    seed: int
    memory: int
    method: Literal["auto", "exact", "differences"]
    keep_graph: bool
    process_group: dist.ProcessGroup | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Sharpness:
    """The top eigenvalue of a Hessian, plain or preconditioned.

    Attributes:
        value: the estimate; nan if the loss or a derivative was not finite.
        residual: an eigenvalue lies within it.
        error: what the estimate is probably off by, see `Eigenvalues.errors`.
        products: Hessian products made.
        converged: whether the tolerance was met.
        method: how products were made.
        vector: the unit eigenvector, one tensor per parameter, to start from the next time; None without a basis.
        threshold: above it training is unstable, see `Threshold.late`; None where no optimizer was given.
        early_threshold: above it a single step overshoots, see `Threshold.early`; likewise.
    """

    value: float
    residual: float
    error: float
    products: int
    converged: bool
    method: Method
    vector: list[Tensor] | None
    threshold: float | None = None
    early_threshold: float | None = None

    @property
    def ratio(self) -> float:
        """Value over threshold: above 1 training is unstable; nan without a threshold, 0 at learning rate 0."""
        return math.nan if self.threshold is None else self.value / self.threshold


def sharpness(
    model: nn.Module, loss: Losses, parameters: Sequence[Tensor] | None = None, **search: Unpack[Search]
) -> Sharpness:
    r"""Measure sharpness: the largest eigenvalue of the Hessian of the loss, :math:`\lambda_{max}(\nabla^2 L)`.

    The model is in eval mode meanwhile, attention goes through kernels that have a second derivative, and model,
    gradients and random numbers are as before afterwards.

    Args:
        model: called by `loss`; a DistributedDataParallel model, too. Under FSDP2 all processes have to call this.
        loss: returns the scalar loss of a batch; or several such functions with weights, for the mean over batches.
        parameters: in which to take it; None for all that require a gradient. See `blocks`.
        search: start, tolerance, max_products, seed, memory, method, keep_graph, process_group: see `Search`.

    Returns:
        The eigenvalue, how far it is to be trusted and what it took; the same in all processes.

    Raises:
        ValueError: no parameters, a loss that is not a scalar, or an option out of range.
        NotTwiceDifferentiableError: with `method="exact"`, if a part of the model has no second derivative.

    Example:
        >>> import torch
        >>> model = nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
        >>> found = sharpness(model, lambda: model(x).square().sum())  # the Hessian is 2 x^T x
        >>> round(found.value, 4), found.converged
        (18.0, True)

    Reference: Kalra & Barkeshli 2024, section 2; the estimator: see `lanczos`.
    """
    chosen = trainable(model) if parameters is None else list(parameters)
    return _measured(model, loss, chosen, None, search)


def preconditioned_sharpness(
    model: nn.Module, optimizer: Optimizer, loss: Losses, **search: Unpack[Search]
) -> Sharpness:
    r"""Measure sharpness as an optimizer sees it, :math:`\lambda_{max}(P^{-1/2} \nabla^2 L\, P^{-1/2})`, and its limit.

    P is that of the coming step (`effective_preconditioner`). Call it between backward() and step(): gradients are
    taken from `.grad`; if no parameter has one, the gradient of `loss` counts as the coming one. All else as for
    `sharpness`.

    Args:
        model: as for `sharpness`.
        optimizer: of the model's parameters: SGD, Adam and their relatives, see `adam_preconditioner`.
        loss: as for `sharpness`; best of the batch that the gradient is of.
        search: as for `sharpness`.

    Returns:
        The eigenvalue and the thresholds it is to be compared with.

    Raises:
        UnsupportedOptimizerError: the optimizer has no preconditioner that is known.
        ValueError: as for `sharpness`.
        NotTwiceDifferentiableError: as for `sharpness`.

    Example:
        >>> import torch
        >>> model = nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> found = preconditioned_sharpness(model, optimizer, lambda: model(x).square().sum())
        >>> round(found.value, 4), found.threshold, round(found.ratio, 4)
        (18.0, 20.0, 0.9)

    Reference: Kalra & Barkeshli 2024, eq. 6 and sections 4.2, 4.3.
    """
    owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    parameters = [parameter for parameter in trainable(model) if id(parameter) in owned]
    gradients = None
    if all(parameter.grad is None for parameter in parameters):
        gradients = _gradients(model, loss, parameters, search)
    divisors, lr = effective_preconditioner(optimizer, parameters, gradients)
    threshold = stability_threshold(optimizer, parameters, lr=lr)
    found = _measured(model, loss, parameters, divisors, search)
    return replace(found, threshold=threshold.late, early_threshold=threshold.early)


def trainable(model: nn.Module) -> list[Tensor]:
    """Return the parameters that require a gradient, tied ones once."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _measured(
    model: nn.Module, loss: Losses, parameters: list[Tensor], divisors: list[Tensor] | None, search: Search
) -> Sharpness:
    """Measure by the first method that works."""
    asked = search.get("method", "auto")
    if asked not in ("auto", "exact", "differences"):
        raise ValueError(f"method must be 'auto', 'exact' or 'differences', got {asked!r}")
    # The hooks by which FSDP2 gathers and reduces know of no second derivative.
    sharded = any(map(is_dtensor, parameters))
    if asked == "exact" or (asked == "auto" and not sharded):
        try:
            exact = Hessian(loss, parameters, keep_graph=search.get("keep_graph", True))
            with _apart(model), twice_differentiable(model):
                return _searched(exact, model, divisors, search, "exact")
        except NotTwiceDifferentiableError:
            if asked == "exact":
                raise
    with _apart(model):
        differences = DifferenceHessian(loss, parameters, others=trainable(model))
        return _searched(differences, model, divisors, search, "differences")


def _searched(
    operator: Operator, model: nn.Module, divisors: list[Tensor] | None, search: Search, method: Method
) -> Sharpness:
    """Look for the top eigenvalue of an operator, averaged and preconditioned."""
    group = _group(model, search)
    if group is not None:
        operator = Averaged(operator, group)
    if divisors is not None:
        operator = Preconditioned(operator, divisors)
    found = lanczos(
        operator,
        start=search.get("start"),
        tolerance=search.get("tolerance", 0.01),
        max_products=search.get("max_products", 20),
        seed=search.get("seed", 0),
        memory=search.get("memory", MEMORY),
    )
    return Sharpness(
        value=found.values[0],
        residual=found.residuals[0],
        error=found.errors[0],
        products=found.products,
        converged=found.converged,
        method=method,
        vector=found.vector,
    )


def _gradients(model: nn.Module, loss: Losses, parameters: list[Tensor], search: Search) -> list[Tensor]:
    """Return the local parts of the gradient of a loss, averaged as the Hessian is."""
    with _apart(model):
        found = Gradient(loss, parameters, others=trainable(model))()
    group = _group(model, search)
    return found if group is None else averaged(found, group)


@contextmanager
def _apart(model: nn.Module) -> Iterator[None]:
    """Keep a model and random numbers as they are, and DistributedDataParallel out of it."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        with undisturbed(model.module), model.no_sync():
            yield
    else:
        with undisturbed(model):
            yield


def _group(model: nn.Module, search: Search) -> dist.ProcessGroup | None:
    """Return the processes whose Hessians are averaged; None for this one alone."""
    if search.get("process_group") is None and isinstance(model, nn.parallel.DistributedDataParallel):
        return model.process_group
    return search.get("process_group")
