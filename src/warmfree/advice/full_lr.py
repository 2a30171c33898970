"""The learning rate that a run is to reach, where a schedule holds the optimizer below it now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

__all__ = ["at_full_lr", "full_lr"]


def full_lr(group: Mapping[str, Any]) -> float:
    """Return the largest learning rate that a parameter group, or a scheduler in it, speaks of.

    Example:
        >>> full_lr({"lr": 0.0, "initial_lr": 0.1})
        0.1
    """
    rates = (group.get(name) for name in ("lr", "initial_lr", "max_lr"))
    return max((float(rate) for rate in rates if rate is not None), default=0.0)


@contextmanager
def at_full_lr(optimizer: Optimizer) -> Iterator[None]:
    """Hold every group of an optimizer at its full learning rate until exit."""
    held = [(group, group["lr"]) for group in optimizer.param_groups if group.get("lr") is not None]
    copies = [lr.clone() if isinstance(lr, Tensor) else lr for _, lr in held]
    try:
        for group, lr in held:
            if isinstance(lr, Tensor):
                lr.fill_(full_lr(group))
            else:
                group["lr"] = full_lr(group)
        yield
    finally:
        for (group, lr), copy in zip(held, copies, strict=True):
            if isinstance(lr, Tensor):
                lr.copy_(copy)
            group["lr"] = lr
