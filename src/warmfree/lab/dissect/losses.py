"""When the loss of a failing run parts from those of the runs that went well."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["JUMP", "SMOOTHING", "STAY", "LossEvents", "find_loss_events", "smoothed"]

Losses = Mapping[int, float]

JUMP = 1.1
SMOOTHING = 4
STAY = 20


@dataclass(frozen=True, slots=True)
class LossEvents:
    """When a loss parted from the healthy ones.

    Attributes:
        jump: first step at which the training loss is not finite, or more than 1.1 times the highest of all healthy
            runs at that step; None if there is none.
        leaves: the smoothed loss is above those of all healthy runs for at least 20 steps, or to an end that is not
            finite: the first of these steps at which the loss itself is above theirs; None if there is none.
    """

    jump: int | None
    leaves: int | None

    @property
    def first(self) -> int | None:
        """The earlier of the two."""
        return min((step for step in (self.jump, self.leaves) if step is not None), default=None)


def find_loss_events(losses: Losses, healthy: Sequence[Losses]) -> LossEvents:
    """Find when a loss jumps, and when it leaves for good, held against healthy runs step by step.

    The smoothed loss is the mean over the step and the 4 before and after it. A loss that leaves by little may have
    done so up to 4 steps before `leaves`.

    Args:
        losses: of the failing run, by step.
        healthy: of the runs that went well; steps that none of them has are not judged.

    Raises:
        ValueError: there is no healthy run.

    Example:
        >>> find_loss_events({step: 1.0 if step < 30 else 2.0 for step in range(80)}, [dict.fromkeys(range(80), 1.0)])
        LossEvents(jump=30, leaves=30)
    """
    if not healthy:
        raise ValueError("no run went well: there is nothing to tell an unusual loss by")
    stretch = _stretch_above(smoothed(losses), [smoothed(each) for each in healthy])
    above = [step for step in sorted(losses) if _is_above(losses[step], _highest(healthy, step))]
    leaves = None if stretch is None else next((step for step in above if step >= stretch), stretch)
    return LossEvents(jump=_jump(losses, healthy), leaves=leaves)


def smoothed(losses: Losses) -> dict[int, float]:
    """Return the mean over each step and the 4 before and after it, as far as they are known; NaN if one is not finite.

    Example:
        >>> smoothed({0: 1.0, 1: 2.0, 9: 5.0})
        {0: 1.5, 1: 1.5, 9: 5.0}
    """
    means = {}
    for step in sorted(losses):
        near = [losses[s] for s in range(step - SMOOTHING, step + SMOOTHING + 1) if s in losses]
        means[step] = math.fsum(near) / len(near) if all(map(math.isfinite, near)) else math.nan
    return means


def _highest(healthy: Sequence[Losses], step: int) -> float | None:
    """Return the highest finite loss of healthy runs at a step; None if none has one."""
    known = [losses[step] for losses in healthy if math.isfinite(losses.get(step, math.nan))]
    return max(known, default=None)


def _is_above(loss: float, highest: float | None, factor: float = 1.0) -> bool:
    return not math.isfinite(loss) or (highest is not None and loss > factor * highest)


def _jump(losses: Losses, healthy: Sequence[Losses]) -> int | None:
    return next(
        (step for step in sorted(losses) if _is_above(losses[step], _highest(healthy, step), JUMP)), None
    )


def _stretch_above(losses: Losses, healthy: Sequence[Losses]) -> int | None:
    """Return the start of the first stretch above all healthy losses that is long, or ends with a loss not finite."""
    start, length, finite = None, 0, True
    for step in sorted(losses):
        highest, finite = _highest(healthy, step), math.isfinite(losses[step])
        if finite and highest is None:
            continue  # no healthy run got there
        if not _is_above(losses[step], highest):
            start, length = None, 0
            continue
        start = step if start is None else start
        length += 1
        if length >= STAY:
            return start
    return None if finite else start
