"""The optimizer that would need no warmup, for a run that has another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from warmfree.advice.pace import peak_lr, settings_of
from warmfree.advice.translated import translated
from warmfree.advice.translation import translate_lr
from warmfree.measure.momentum import unwrapped
from warmfree.optim import SpectralBound

__all__ = ["Alternative", "Replacement", "replacement_for"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Replacement:
    """An optimizer to use in place of the run's own.

    Attributes:
        optimizer: name of its class.
        lr: its peak learning rate.
        options: keyword arguments for its constructor, beside lr; of the first parameter group with weight decay.
        reason: why this one, in words.
    """

    optimizer: str
    lr: float
    options: dict[str, Any]
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Alternative:
    """A replacement, and how to build it for the run's own parameters.

    Attributes:
        replacement: what it is.
        build: makes it, without state of earlier steps.
    """

    replacement: Replacement
    build: Callable[[], Optimizer]


def replacement_for(optimizer: Optimizer, model: nn.Module) -> Alternative | None:
    """Return what would replace an optimizer of Adam's kind: AdamW2, with the same settings.

    None for other optimizers, for those that have stepped already (a replacement begins without their state), and for
    those that have AdamW2's bound. It is at the learning rate that the optimizer has now, also where a schedule will
    change that.

    Example:
        >>> import torch
        >>> model = nn.Linear(2, 2)
        >>> found = replacement_for(torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1), model)
        >>> found.replacement.optimizer, found.replacement.lr, found.replacement.options["weight_decay"]
        ('AdamW2', 0.001, 0.1)
    """
    plain = unwrapped(optimizer)
    is_bounded = any(isinstance(control, SpectralBound) for control in getattr(optimizer, "controls", ()))
    if is_bounded or any(map(_has_stepped, plain.state.values())):
        return None

    def build() -> Optimizer:
        new = translated(plain, "AdamW2", model=model)
        for group, own in zip(new.param_groups, plain.param_groups, strict=True):
            group["lr"] *= _present(plain, own)
        return new

    try:
        if any(settings_of(plain, group).signs for group in plain.param_groups):
            return None
        found = translate_lr(plain, "AdamW2")
        build()  # what speaks against it is said when it is made
    except (TypeError, ValueError):
        return None
    main = next((group for group in plain.param_groups if group.get("weight_decay")), plain.param_groups[0])
    return Alternative(
        replacement=Replacement(
            optimizer=found.optimizer,
            lr=found.lr * _present(plain, main),
            options=found.options,
            reason="the same settings, with no step growing a matrix's largest singular value by more than 5 %",
        ),
        build=build,
    )


def _has_stepped(state: dict[str, Any]) -> bool:
    """Return whether the state of a parameter is more than what a constructor makes."""
    return bool(state) and float(state.get("step", 1)) > 0


def _present(optimizer: Optimizer, group: dict[str, Any]) -> float:
    """Return the present learning rate of a group in multiples of the one that a scheduler scales."""
    waits = not any(float(other["lr"]) for other in optimizer.param_groups)  # for a warmup from 0
    return 1.0 if waits else float(group["lr"]) / peak_lr(group)
