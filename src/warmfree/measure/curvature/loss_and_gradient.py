"""A loss and its gradient at the weights as they are: over all processes, and without a trace in the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from warmfree.measure.curvature.gradient import Gradient
from warmfree.measure.curvature.operators import Loss, Losses, averaged, weighted
from warmfree.measure.curvature.sharpness import trainable
from warmfree.measure.undisturbed import undisturbed
from warmfree.optim.sharding import is_dtensor, local, whole

__all__ = ["Draws", "LossAndGradient", "draws_of", "mean_over_processes"]

Draws = Sequence[tuple[torch.Generator, Tensor]]
"""Generators, and the states in which a loss is to find them."""


class LossAndGradient:
    """Evaluate a loss with its gradient, in eval mode; weights, `.grad`, buffers and random numbers stay as they are.

    Args:
        model: called by `loss`; a DistributedDataParallel model, too.
        loss: as for `Gradient`.
        process_group: processes that hold the same plain weights and a batch each; None for those of a
            DistributedDataParallel model, else this process alone.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> _ = model.weight.data.fill_(1.0)
        >>> evaluate = LossAndGradient(model, lambda: model(torch.tensor([1.0, 2.0])).square().sum())
        >>> found = evaluate(list(model.parameters()))
        >>> found.loss, found.gradient
        (9.0, [tensor([[ 6., 12.]])])
    """

    class Found(NamedTuple):
        """The mean over batches and processes.

        Attributes:
            loss: its value.
            gradient: a tensor per parameter, the local part of a sharded one.
            precision: relative precision of the narrowest type that the loss was computed in.
        """

        loss: float
        gradient: list[Tensor]
        precision: float

    def __init__(
        self, model: nn.Module, loss: Losses, *, process_group: dist.ProcessGroup | None = None
    ) -> None:
        self._model = model
        self._losses = weighted(loss)
        self._group = process_group
        if process_group is None and isinstance(model, DistributedDataParallel):
            self._group = model.process_group

    def __call__(self, parameters: Sequence[Tensor], draws: Draws = ()) -> Found:
        """Evaluate at the weights as they are; collective where there are several processes.

        Args:
            parameters: tensors that require a gradient; tied ones once.
            draws: what `draws_of` has returned, for the random numbers of that time.

        Raises:
            ValueError: as for `Gradient`, or the loss is not a scalar.
        """
        values: list[Tensor] = []
        losses = [(_noted(loss, values), weight) for loss, weight in self._losses]
        gradient = Gradient(losses, parameters, others=trainable(self._model))
        with _apart(self._model):
            for generator, state in draws:
                generator.set_state(state)
            found = gradient()
        if self._group is not None:
            found = averaged(found, self._group)
        loss = sum(whole(value).item() * weight for value, (_, weight) in zip(values, losses, strict=True))
        return self.Found(mean_over_processes(loss, parameters, self._group), found, gradient.precision)


def draws_of(parameters: Sequence[Tensor]) -> Draws:
    """Return the generators that a loss may draw from, those of torch on the CPU and CUDA, as they are."""
    devices = {local(parameter).device for parameter in parameters}
    generators = [torch.default_generator]
    generators += [
        torch.cuda.default_generators[device.index or 0] for device in devices if device.type == "cuda"
    ]
    return [(generator, generator.get_state()) for generator in generators]


def mean_over_processes(
    value: float, parameters: Sequence[Tensor], group: dist.ProcessGroup | None = None
) -> float:
    """Return the mean of a number, such as the loss of a batch, over the processes that a gradient is a mean over.

    Args:
        value: of this process.
        parameters: whose gradient it is; of DTensors all processes of the mesh are counted.
        group: processes that hold the same plain weights; None for this one alone.

    Example:
        >>> mean_over_processes(2.5, [torch.ones(3)])
        2.5
    """
    meshes = dict.fromkeys(cast(Any, tensor).device_mesh for tensor in parameters if is_dtensor(tensor))
    groups = [mesh.get_group(axis) for mesh in meshes for axis in range(mesh.ndim) if mesh.size(axis) > 1]
    for one in dict.fromkeys(groups if group is None else [group, *groups]):
        device = torch.device("cuda" if dist.get_backend(one) == "nccl" else "cpu")
        total = torch.tensor(value, dtype=torch.float64, device=device)
        dist.all_reduce(total, group=one)
        value = total.item() / dist.get_world_size(one)
    return value


def _noted(loss: Loss, values: list[Tensor]) -> Loss:
    """Return a loss that notes its values."""

    def call() -> Tensor:
        value = loss()
        values.append(value.detach())
        return value

    return call


@contextmanager
def _apart(model: nn.Module) -> Iterator[None]:
    """Keep a model and random numbers as they are, DistributedDataParallel out of it, and casts of weights fresh."""
    is_parallel = isinstance(model, DistributedDataParallel)
    inner = cast(nn.Module, model.module) if is_parallel else model
    # Within one autocast block around a whole step, casts of the weights before it would serve after it.
    torch.clear_autocast_cache()
    try:
        with undisturbed(inner), cast(Any, model).no_sync() if is_parallel else nullcontext():
            yield
    finally:
        torch.clear_autocast_cache()
