"""Trial training: steps of the caller's optimizer on the caller's model, none of which ever happened."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

from warmfree.measure.guard import Guard
from warmfree.measure.kept import Kept
from warmfree.measure.undisturbed import undisturbed
from warmfree.optim.sharding import is_dtensor

__all__ = ["Session", "bare", "unchanged"]


class Session:
    """What is kept while steps are tried.

    Attributes:
        guard: open it around the caller's own code.
        kept: weights and optimizer.
        weights: all parameters of the optimizer, once each.
    """

    def __init__(self, guard: Guard, kept: Kept, weights: list[Tensor]) -> None:
        self.guard, self.kept, self.weights = guard, kept, weights


@contextmanager
def unchanged(model: nn.Module, optimizer: Optimizer) -> Iterator[Session]:
    """Let a probe train a model, and leave everything as it was.

    On exit, also by an exception or Ctrl-C, these are to the last bit what they were: the weights of the optimizer and
    its state and options (see `Kept`), `.grad` of all parameters (the same tensors), buffers, training flags and plain
    attributes of modules, and random numbers (see `undisturbed`). Inside, `.grad` is None, the optimizer's step hooks
    do not run, and modules are in the mode that they were in.

    Args:
        model: what is trained; a DistributedDataParallel model, too.
        optimizer: of its parameters.

    Yields:
        The session.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> before = model.weight.clone()
        >>> with unchanged(model, optimizer):
        ...     model(torch.ones(1, 2)).sum().backward()
        ...     optimizer.step()
        >>> torch.equal(model.weight, before), model.weight.grad
        (True, None)
    """
    weights = list(
        {id(weight): weight for group in optimizer.param_groups for weight in group["params"]}.values()
    )
    everything = list({id(weight): weight for weight in (*model.parameters(), *weights)}.values())
    with ExitStack() as stack:
        guard = stack.enter_context(Guard())
        # A graph that the caller has not used yet may hold the weights: it need not know that they moved.
        plain = tuple(weight for weight in everything if not is_dtensor(weight) and not weight.is_inference())
        if plain:
            stack.enter_context(torch.autograd.grad_mode._unsafe_preserve_version_counter(plain))
        stack.enter_context(undisturbed(bare(model), evaluate=False))
        stack.enter_context(_without_hooks(optimizer))
        gradients = [weight.grad for weight in everything]
        kept = Kept(optimizer)
        try:
            for weight in everything:
                weight.grad = None
            yield Session(guard, kept, weights)
        finally:
            for weight, gradient in zip(everything, gradients, strict=True):
                weight.grad = gradient
            kept.restore()


def bare(model: nn.Module) -> nn.Module:
    """Return the module inside of DistributedDataParallel."""
    return cast(nn.Module, model.module) if isinstance(model, DistributedDataParallel) else model


@contextmanager
def _without_hooks(optimizer: Optimizer) -> Iterator[None]:
    """Let an optimizer, and those inside of it, step unseen."""
    everywhere = [torch_optimizer._global_optimizer_pre_hooks, torch_optimizer._global_optimizer_post_hooks]
    held = [(hooks, list(hooks.items())) for hooks in cast(list[dict[int, Any]], everywhere)]
    inside = list(_optimizers(optimizer))
    names = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    own = [(one, name, vars(one)[name]) for one in inside for name in names if name in vars(one)]
    try:
        for hooks, _ in held:
            hooks.clear()
        for one, name, _ in own:
            setattr(one, name, OrderedDict())
        yield
    finally:
        for hooks, items in held:
            hooks.update(items)
        for one, name, before in own:
            setattr(one, name, before)


def _optimizers(optimizer: Optimizer) -> Iterator[Optimizer]:
    yield optimizer
    for value in vars(optimizer).values():
        if isinstance(value, Optimizer) and value is not optimizer:
            yield from _optimizers(value)
