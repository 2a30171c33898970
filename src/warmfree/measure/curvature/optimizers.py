"""Which optimizers have a diagonal preconditioner that is known here, told by their names and options."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.optim import Optimizer

__all__ = ["UnsupportedOptimizerError", "recognise"]

_TORCH: dict[str, Literal["sgd", "adam", "nadam", "radam"]] = {
    "SGD": "sgd",
    "Adam": "adam",
    "AdamW": "adam",
    "NAdam": "nadam",
    "RAdam": "radam",
}
_KNOWN = f"torch's {', '.join(_TORCH)}, and warmfree's optimizers with Adam's or SGD's direction"


class UnsupportedOptimizerError(TypeError):
    """An optimizer whose preconditioner, and so whose stability threshold, is not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recognised:
    """An optimizer whose dynamics are known.

    Attributes:
        optimizer: the one that holds the state, without wrappers.
        outer: the one that makes the step and reports on it.
        family: whose formula it follows.
        corrects_momentum: whether the first moment's bias is corrected; False for AdamD.
        decouples: whether weight decay is never part of the gradient; False if the group says.
    """

    optimizer: Optimizer
    outer: Optimizer
    family: Literal["sgd", "adam", "nadam", "radam"]
    corrects_momentum: bool = True
    decouples: bool = False


def recognise(optimizer: Any) -> Recognised:
    """Find out what an optimizer does with a gradient.

    Wrappers that hold an optimizer as `optimizer` (Accelerate, Lightning) or are made by `warmfree.wrap` are looked
    into. A subclass counts as its parent unless it has a step of its own.

    Raises:
        UnsupportedOptimizerError: it is none of those known; the message says which those are.
    """
    outer = optimizer
    while isinstance(inner := getattr(outer, "optimizer", None), Optimizer):
        outer = inner
    core = outer
    if _is_ours(core, "WrappedOptimizer"):
        core = core.inner
    if any(group.get("maximize") for group in core.param_groups):
        raise UnsupportedOptimizerError(
            "maximize=True climbs: give the optimizer, and this, the negative loss instead"
        )
    if _is_ours(core, "SizedOptimizer"):
        direction = core.direction
        name = type(direction).__name__
        if name == "SGD":
            return Recognised(optimizer=core, outer=outer, family="sgd", decouples=True)
        if name == "Adam":
            return Recognised(
                optimizer=core,
                outer=outer,
                family="adam",
                corrects_momentum=direction.correct_momentum,
                decouples=True,
            )
        raise _unsupported(core, f"the direction {name} has no preconditioner")
    for kind in type(core).__mro__:
        if kind.__module__.startswith("torch.optim.") and kind is not Optimizer:
            if kind.__name__ not in _TORCH:
                break
            if inspect.unwrap(type(core).step) is not inspect.unwrap(
                getattr(torch.optim, kind.__name__).step
            ):
                raise _unsupported(
                    core, f"it makes a step of its own, not that of torch.optim.{kind.__name__}"
                )
            return Recognised(optimizer=core, outer=outer, family=_TORCH[kind.__name__])
    raise _unsupported(core, "its preconditioner is not known")


def _is_ours(optimizer: Optimizer, name: str) -> bool:
    """Return whether an optimizer is of a class of this package, which is not imported here."""
    return any(
        kind.__name__ == name and kind.__module__.startswith("warmfree.") for kind in type(optimizer).__mro__
    )


def _unsupported(optimizer: Optimizer, why: str) -> UnsupportedOptimizerError:
    return UnsupportedOptimizerError(
        f"no stability threshold for {type(optimizer).__name__}: {why}; known are {_KNOWN}. Plain sharpness can be "
        f"measured with any optimizer"
    )
