"""The weights and all that an optimizer remembers, kept to be put back to the last bit."""

from __future__ import annotations

from collections import deque
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from warmfree.optim.sharding import is_dtensor, local

__all__ = ["Kept"]

_NOT_ENTERED = (type, ModuleType, FunctionType, MethodType, nn.Module)


class Kept:
    """A copy of everything that a step may change in an optimizer and in its weights.

    Kept are the weights, the state, the options of the groups and all attributes of the optimizer and of optimizers
    inside of it, through dicts, lists, tuples, sets and deques; in the state through objects, too, such as the
    preconditioners of Shampoo. Tensors get back their elements in the memory that they are in; containers get back the
    very objects that they held, so that state which a step creates is gone again. Attributes of other kinds are put
    back as references: what an optimizer changes within an object beside its state stays changed.

    Costs the memory of the weights and the state, once. Sharded tensors are kept where they lie, each process its part.

    Args:
        values: optimizers of torch.optim's kind, and tensors.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = torch.optim.Adam([weight], lr=0.1)
        >>> kept = Kept(optimizer)
        >>> weight.grad = torch.ones(2)
        >>> optimizer.step()
        >>> kept.restore()
        >>> weight.tolist(), len(optimizer.state)
        ([1.0, 1.0], 0)
    """

    def __init__(self, *values: Optimizer | Tensor) -> None:
        self._seen: set[int] = set()
        self._tensors: list[tuple[Tensor, Tensor, Tensor]] = []  # itself, its memory here, a copy
        self._containers: list[tuple[Any, Any]] = []  # itself, its items
        self._generators: list[tuple[torch.Generator, Tensor]] = []
        self._copies: dict[int, Tensor] = {}
        for value in values:
            self._keep(value)

    def restore(self) -> None:
        """Make everything what it was; as often as you like."""
        for container, items in self._containers:
            _put_back(container, items)
        with torch.no_grad():
            for tensor, memory, copy in self._tensors:
                if type(tensor) in (Tensor, nn.Parameter):
                    tensor.data = memory  # it may have been given another
                memory.copy_(copy)
        for generator, state in self._generators:
            generator.set_state(state)

    def copy_of(self, tensor: Tensor) -> Tensor:
        """Return what a tensor held, the local part of a sharded one; not to be written to."""
        return self._copies[id(tensor)]

    def _keep(self, value: Any, *, is_state: bool = False) -> None:
        if id(value) in self._seen:
            return
        if isinstance(value, Tensor):
            self._seen.add(id(value))
            # An alias that keeps the memory, should the tensor be given another.
            memory = (local(value) if is_dtensor(value) else value).data
            copy = memory.clone()
            self._tensors.append((value, memory, copy))
            self._copies[id(value)] = copy
        elif isinstance(value, Optimizer):
            self._seen.add(id(value))
            self._keep(value.state, is_state=True)
            self._keep(vars(value))
        elif isinstance(value, torch.Generator):
            self._seen.add(id(value))
            self._generators.append((value, value.get_state()))
        elif isinstance(value, dict):
            self._hold(value, list(value.items()))
            for key, item in value.items():
                self._keep(key)
                self._keep(item, is_state=is_state)
        elif isinstance(value, list | set | deque):
            self._hold(value, list(value))
            for item in value:
                self._keep(item, is_state=is_state)
        elif isinstance(value, tuple):
            for item in value:
                self._keep(item, is_state=is_state)
        elif is_state and hasattr(value, "__dict__") and not isinstance(value, _NOT_ENTERED):
            self._keep(vars(value), is_state=True)

    def _hold(self, container: Any, items: list[Any]) -> None:
        self._seen.add(id(container))
        self._containers.append((container, items))


def _put_back(container: Any, items: list[Any]) -> None:
    """Give a container the items that it had, if it has others."""
    if isinstance(container, dict):
        now = container.items()
        if len(now) != len(items) or any(
            key is not old_key or item is not old
            for (key, item), (old_key, old) in zip(now, items, strict=True)
        ):
            container.clear()
            container.update(items)
    elif isinstance(container, set):
        if {id(item) for item in container} != {id(item) for item in items}:
            container.clear()
            container.update(items)
    elif len(container) != len(items) or any(a is not b for a, b in zip(container, items, strict=True)):
        container.clear()
        container.extend(items)
