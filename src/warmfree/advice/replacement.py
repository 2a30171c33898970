"""The optimizer that would need no warmup, for a run that has another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from warmfree.advice.translated import translated
from warmfree.advice.translation import translate_lr

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
        build: makes it.
    """

    replacement: Replacement
    build: Callable[[], Optimizer]


def replacement_for(optimizer: Optimizer, model: nn.Module) -> Alternative | None:
    """Return what would replace an optimizer of Adam's kind: AdamW2, with the same settings.

    None for other optimizers, for those that have stepped already (a replacement begins without their state), and for
    AdamW2 itself.
    """
    if any(optimizer.state.values()) and not hasattr(optimizer, "step_report"):
        return None
    if type(optimizer).__name__ == "AdamW2":
        return None
    try:
        found = translate_lr(optimizer, "AdamW2")
    except ValueError:
        return None
    return Alternative(
        replacement=Replacement(
            optimizer=found.optimizer,
            lr=found.lr,
            options=found.options,
            reason="the same settings, with no step growing a matrix's largest singular value by more than 5 %",
        ),
        build=lambda: translated(optimizer, "AdamW2", model=model),
    )
