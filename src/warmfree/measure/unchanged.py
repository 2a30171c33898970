"""Trial training: steps of the caller's optimizer on the caller's model, none of which ever happened."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
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
        weights: all parameters of the optimizer, once each.
        moved: whether weights or the optimizer's state may be other than on entry; whoever moves them sets it.
    """

    def __init__(self, guard: Guard, optimizer: Optimizer, weights: list[Tensor]) -> None:
        self.guard, self.weights, self.moved = guard, weights, False
        self._optimizer, self._kept = optimizer, Kept(optimizer)

    def kept_of(self, optimizer: Optimizer) -> Kept:
        """Return a copy of an optimizer as it is now, if possible the one that is there since entry."""
        return self._kept if optimizer is self._optimizer and not self.moved else Kept(optimizer)

    def restore(self) -> None:
        """Make weights and optimizer what they were on entry."""
        self._kept.restore()


@contextmanager
def unchanged(model: nn.Module, optimizer: Optimizer) -> Iterator[Session]:
    """Let a probe train a model, and leave everything as it was.

    On exit, also by an exception or Ctrl-C, these are to the last bit what they were: the weights of the optimizer and
    its state and options (see `Kept`), `.grad` of all parameters (the same tensors), buffers, training flags and plain
    attributes of modules, and random numbers (see `undisturbed`). Inside, `.grad` is None, the optimizer's step hooks
    do not run, and modules are in the mode that they were in. A graph that was built before, and not used yet, can be
    used afterwards.

    Args:
        model: what is trained; a DistributedDataParallel model, too.
        optimizer: of its parameters.

    Yields:
        What is kept, and the guard.

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
        # Casts of weights that moved, or that know no gradient, must not serve the training.
        stack.callback(torch.clear_autocast_cache)
        stack.enter_context(_same_versions([*everything, *model.buffers()]))
        stack.enter_context(undisturbed(model, evaluate=False))
        stack.enter_context(_without_hooks(_optimizers(optimizer)))
        stack.enter_context(_without_gradients(model, everything))
        session = Session(guard, optimizer, weights)
        stack.callback(session.restore)
        yield session


def bare(model: nn.Module) -> nn.Module:
    """Return the module inside of DistributedDataParallel."""
    return cast(nn.Module, model.module) if isinstance(model, DistributedDataParallel) else model


@contextmanager
def _same_versions(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Keep the version counters by which a graph tells that a tensor which it holds was changed."""
    plain = tuple(tensor for tensor in tensors if not is_dtensor(tensor) and not tensor.is_inference())
    if not plain:
        yield
        return
    with torch.autograd.grad_mode._unsafe_preserve_version_counter(plain):
        yield


@contextmanager
def _without_gradients(model: nn.Module, weights: Sequence[Tensor]) -> Iterator[None]:
    """Take the gradients away, and give them back."""
    gradients = [weight.grad for weight in weights]
    # Gradients that are views of DistributedDataParallel's buckets are written to by any backward pass.
    is_bucketed = any(isinstance(module, DistributedDataParallel) for module in model.modules())
    kept = Kept(*(gradient for gradient in gradients if gradient is not None and is_bucketed))
    try:
        for weight in weights:
            weight.grad = None
        yield
    finally:
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        kept.restore()


def _optimizers(optimizer: Optimizer) -> list[Optimizer]:
    """Find an optimizer and those inside of it."""
    found: list[Optimizer] = []
    waiting: list[Any] = [optimizer]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Optimizer) and not any(value is one for one in found):
            found.append(value)
            waiting += [item for name, item in vars(value).items() if name not in ("state", "param_groups")]
        elif isinstance(value, list | tuple):
            waiting += [item for item in value if isinstance(item, Optimizer)]
        elif isinstance(value, dict):
            waiting += [item for item in value.values() if isinstance(item, Optimizer)]
    return found


@contextmanager
def _without_hooks(optimizers: Sequence[Optimizer]) -> Iterator[None]:
    """Let optimizers step unseen."""
    everywhere = [torch_optimizer._global_optimizer_pre_hooks, torch_optimizer._global_optimizer_post_hooks]
    held = [(hooks, list(hooks.items())) for hooks in cast(list[dict[int, Any]], everywhere)]
    names = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    own = [(one, name, vars(one)[name]) for one in optimizers for name in names if name in vars(one)]
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
