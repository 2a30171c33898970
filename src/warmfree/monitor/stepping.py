"""Hooks around the step of one or several optimizers, however it is called."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, cast

import torch
from torch.optim import Optimizer

__all__ = ["StepHooks", "unwrapped"]


def _step(self: Optimizer) -> None:
    """Stand for any optimizer's step."""


# What torch wraps around every step(), which calls the hooks.
_HOOKED = cast(Any, Optimizer.profile_hook_step(_step)).__code__


class StepHooks:
    """Call one function before the first optimizer's step, when gradients are there, and one after the last's.

    With a closure, gradients are there after its first call. A subclass's `step` that calls its parent's is one step.
    Where training compiles the step, the functions stay outside of the graph.

    Args:
        optimizers: in the order in which they step.
        before: takes the first optimizer.
        after: called after a step that did not raise.
    """

    def __init__(
        self, optimizers: Sequence[Optimizer], before: Callable[[Optimizer], None], after: Callable[[], None]
    ) -> None:
        self._before, self._after = before, after
        outside = cast(Any, torch.compiler.disable)
        self._handles = [
            optimizers[0].register_step_pre_hook(outside(self._enter)),
            optimizers[-1].register_step_post_hook(outside(self._leave)),
        ]

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _enter(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        if _is_nested(optimizer):
            return None
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._before(optimizer)
            return None
        called = False

        def then_measure() -> Any:
            nonlocal called
            loss = closure()
            if not called:
                called = True
                self._before(optimizer)
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": then_measure}
        return (args[0], then_measure, *args[2:]), kwargs

    def _leave(self, optimizer: Optimizer, *_: Any) -> None:
        if not _is_nested(optimizer):
            self._after()


def unwrapped(given: Optimizer | Sequence[Optimizer]) -> tuple[Optimizer, ...]:
    """Return the optimizers themselves.

    Raises:
        TypeError: one is none.
        ValueError: there is none.
    """
    optimizers: list[Any] = list(given) if isinstance(given, list | tuple) else [given]
    for index, optimizer in enumerate(optimizers):
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"the monitor needs a torch.optim.Optimizer, got {type(optimizer).__name__}")
        while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
            optimizer = inner  # accelerate's wrapper passes step() on
        optimizers[index] = optimizer
    if not optimizers:
        raise ValueError("the monitor needs at least one optimizer, got an empty sequence")
    return tuple(optimizers)


def _is_nested(optimizer: Optimizer) -> bool:
    """Return whether this step() was called by another one of the same optimizer."""
    depth = 0
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and depth < 2:
        if frame.f_code is _HOOKED and frame.f_locals.get("self") is optimizer:
            depth += 1
        frame = frame.f_back
    return depth > 1
