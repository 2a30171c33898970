"""Which runs failed and which went well: told from how they ended, never by hand."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from warmfree.lab.dissect.cases import CONTROL
from warmfree.lab.dissect.history import History

__all__ = ["FAILED", "HEALTHY", "Verdict", "judge"]

HEALTHY, FAILED = 1.1, 1.15


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a run went.

    Attributes:
        outcome: "healthy" with a final validation loss of at most 1.1 times the reference, "failed" above 1.15 times
            it or diverged, "between" else: then it is used for nothing.
        ratio: final validation loss over the reference; None when either is not known.
        reference: final validation loss of the control of the same seed, or where that did not go well, the median
            of those that did; None without any.
        own_control: whether the reference is of the same seed.
        reason: in words.
    """

    outcome: Literal["healthy", "failed", "between"]
    ratio: float | None
    reference: float | None
    own_control: bool
    reason: str


def judge(histories: Sequence[History]) -> dict[str, Verdict]:
    """Judge runs by their final validation losses relative to AdamW with warmup of the same seed.

    A control goes well when its loss is at most 1.1 times the median of all finished controls; runs of a seed whose
    control does not are held against the median of those that do.

    Args:
        histories: all runs of a model.

    Returns:
        A verdict by name of the run. Without any control that finished, runs that diverged have failed and all
        others are "between": there is nothing to hold them against.
    """
    controls = {
        history.cell.seed: history.final_val_loss
        for history in histories
        if history.cell.method == CONTROL and history.diverged is None and history.final_val_loss is not None
    }
    middle = median(controls.values()) if controls else None
    well = {seed: loss for seed, loss in controls.items() if middle is not None and loss <= HEALTHY * middle}
    reference = median(well.values()) if well else None
    return {
        history.name: _judge(history, well=well, middle=middle, reference=reference) for history in histories
    }


def _judge(
    history: History, *, well: dict[int, float], middle: float | None, reference: float | None
) -> Verdict:
    is_control = history.cell.method == CONTROL
    own = history.cell.seed in well and not is_control
    against = well[history.cell.seed] if own else middle if is_control else reference
    loss = history.final_val_loss
    ratio = None if loss is None or against is None else loss / against
    if history.diverged is not None:
        return Verdict("failed", ratio, against, own, f"diverged: {history.diverged}")
    if ratio is None or not math.isfinite(ratio):
        reason = "no control finished, so there is nothing to hold it against"
        return Verdict("between", None, against, own, reason)
    whose = "the control of its seed" if own else "the median of the controls"
    reason = f"validation loss {ratio:.2f} times {whose}"
    if ratio <= HEALTHY:
        return Verdict("healthy", ratio, against, own, reason)
    return Verdict("failed" if ratio > FAILED else "between", ratio, against, own, reason)
