"""What a search for the critical learning rate finds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["CriticalLR", "Outcome", "Search", "Trial", "combined"]

Outcome = Literal["found", "none", "uphill"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A step that was tried.

    Attributes:
        lr: its learning rate, of the first parameter group.
        loss: after it, on the step's own batches; inf if it is not finite.
    """

    lr: float
    loss: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """The search along one step.

    Attributes:
        outcome: "found"; "none" if the loss falls at every learning rate that was tried; "uphill" if it falls at none.
        lr: the critical learning rate, where the loss after the step is that before, interpolated in the bracket; None
            unless found.
        low: the largest learning rate tried below it, at which the loss falls; None if there is none.
        high: the smallest one tried above it, at which the loss rises; None if there is none.
        initial_loss: before the step.
        slope: derivative of the loss by the learning rate at 0, along the optimizer's own step: negative is downhill.
        trials: in the order in which they were made.
        forward_passes: of the model over the step's batches, those for the gradient and the initial loss included.
    """

    outcome: Outcome
    lr: float | None
    low: float | None
    high: float | None
    initial_loss: float
    slope: float
    trials: tuple[Trial, ...]
    forward_passes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CriticalLR:
    """The critical learning rate of a model in the state that it is in.

    Attributes:
        outcome: "found" if any search found one; else "none" if any loss fell throughout, else "uphill".
        lr: the median of what was found, of the first parameter group; None unless found.
        low: the smallest `low` of the searches that found one; without any, the largest learning rate tried at which
            a loss falls; None if there is none.
        high: the largest `high` of the searches that found one; None if there is none.
        searches: one for each step's batches.
        target: the optimizer's own learning rate, of the first parameter group.
        forward_passes: of the model over one step's batches, in all.
        backward_passes: likewise.
        seconds: wall time.

    Example:
        >>> import torch
        >>> from warmfree.schedule.critical import critical_lr
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        >>> found = critical_lr(model, lambda model, x: model(x).square().mean(), [torch.ones(4, 1)], optimizer)
        >>> round(found.lr, 2), round(found.ratio, 2)  # the Hessian is 2, and 2 / 2 = 1
        (1.0, 0.5)
    """

    outcome: Outcome
    lr: float | None
    low: float | None
    high: float | None
    searches: tuple[Search, ...]
    target: float
    forward_passes: int
    backward_passes: int
    seconds: float

    @property
    def spread(self) -> float:
        """Largest over smallest critical learning rate of the searches, >= 1; nan where none was found."""
        found = _found(self.searches)
        return max(found) / min(found) if found else math.nan

    @property
    def ratio(self) -> float:
        """Target over critical learning rate: above 1 the first step overshoots; nan where none was found."""
        return self.target / self.lr if self.lr is not None else math.nan


def combined(
    searches: Sequence[Search], *, target: float, backward_passes: int, seconds: float
) -> CriticalLR:
    """Join the searches along several steps."""
    found = _found(searches)
    lows = [
        search.low for search in searches if search.low is not None and (search.lr is not None or not found)
    ]
    highs = [
        search.high for search in searches if search.high is not None and (search.lr is not None or not found)
    ]
    outcomes = {search.outcome for search in searches}
    return CriticalLR(
        outcome=next(kind for kind in ("found", "none", "uphill") if kind in outcomes),
        # Learning rates are compared by ratios.
        lr=math.exp(statistics.median(map(math.log, found))) if found else None,
        low=(min(lows) if found else max(lows)) if lows else None,
        high=max(highs) if highs else None,
        searches=tuple(searches),
        target=target,
        forward_passes=sum(search.forward_passes for search in searches),
        backward_passes=backward_passes,
        seconds=seconds,
    )


def _found(searches: Sequence[Search]) -> list[float]:
    return [search.lr for search in searches if search.lr is not None]
