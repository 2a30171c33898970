"""A pass of a probe's own through a model, which leaves no trace in it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

__all__ = ["undisturbed"]


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Let a probe run a model, and leave the model and the random numbers as they were.

    Inside, every module is in eval mode (no dropout, no update of running statistics), compiled models run eagerly, so
    that hooks are seen and nothing is compiled anew, and random numbers are drawn from a copy of the state. On
    exit, also by an exception, training flags and generators are what they were, and modules under FSDP2 hold their
    shards only. Gradients are the caller's affair: use `torch.no_grad()` or `torch.autograd.grad`.

    Args:
        model: the module that will be called, not wrapped by DistributedDataParallel.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
        >>> with undisturbed(model), torch.no_grad():
        ...     same = torch.equal(model(torch.ones(1, 2)), model(torch.ones(1, 2)))
        >>> same, model.training, model[1].training
        (True, True, True)
    """
    modules = list(model.modules())
    flags = [module.training for module in modules]
    devices = {weight.device for weight in model.parameters() if weight.device.type not in ("cpu", "meta")}
    kinds = sorted({device.type for device in devices})
    try:
        for module in modules:
            module.training = False
        with torch.compiler.set_stance("force_eager"), torch.random.fork_rng(devices=[]):
            with _forked(kinds, devices):
                yield
    finally:
        for module, training in zip(modules, flags, strict=True):
            module.training = training
        for module in modules:
            # FSDP2 leaves the root module gathered after a forward pass that no backward pass follows.
            if hasattr(module, "_get_fsdp_state"):
                cast(Any, module).reshard()


@contextmanager
def _forked(kinds: list[str], devices: set[torch.device]) -> Iterator[None]:
    """Keep the generators of accelerators, one kind of device after the other."""
    if not kinds:
        yield
        return
    indices = [device.index or 0 for device in devices if device.type == kinds[0]]
    with torch.random.fork_rng(devices=indices, device_type=kinds[0]), _forked(kinds[1:], devices):
        yield
