"""The search as points to draw: loss after a trial step over its learning rate."""

import math
from dataclasses import dataclass

from warmfree.schedule.critical import CriticalLR

__all__ = ["Curve", "curve_of"]

Point = tuple[float, float]

_HEADROOM = 2.0


@dataclass(frozen=True, slots=True)
class Curve:
    """What both plots of a search show.

    Attributes:
        lines: one a search, of points (learning rate, loss), ascending; losses may be inf.
        before: the loss before the step.
        label: what the losses are.
        lrs: the smallest and the largest learning rate to show.
        losses: the lowest and the highest loss to show; points above belong at the edge.
        critical: the critical learning rate, None if there is none.
        target: the optimizer's own.
    """

    lines: tuple[tuple[Point, ...], ...]
    before: float
    label: str
    lrs: Point
    losses: Point
    critical: float | None
    target: float

    @property
    def is_log(self) -> bool:
        """Whether losses can be drawn on a log axis."""
        return self.losses[0] > 0

    def height(self, loss: float) -> float:
        """Return where a loss lies between the lowest, 0, and the highest, 1; what is higher lies at 1."""
        low, high = self.losses
        if not loss < high:
            return 1.0
        if self.is_log:
            low, high, loss = math.log(low), math.log(high), math.log(max(loss, low))
        return max(loss - low, 0.0) / (high - low)

    def place(self, lr: float) -> float:
        """Return where a learning rate lies between the smallest, 0, and the largest, 1, on a log axis."""
        low, high = map(math.log, self.lrs)
        return (math.log(lr) - low) / (high - low)


def curve_of(critical: CriticalLR) -> Curve | None:
    """Return the points of a search; losses of several searches are relative to the one before the step.

    What lies above the dip by more than twice its depth is off the scale: those losses would hide the dip.

    Args:
        critical: what was found.

    Returns:
        None if there are no two learning rates to draw.
    """
    several = len(critical.searches) > 1
    lines = tuple(
        tuple(
            sorted(
                (trial.lr, trial.loss / (search.initial_loss if several else 1.0))
                for trial in search.trials
                if trial.lr > 0
            )
        )
        for search in critical.searches
    )
    points = [point for line in lines for point in line]
    finite = [loss for _, loss in points if math.isfinite(loss)]
    lrs = [lr for lr, _ in points] + [
        lr for lr in (critical.lr, critical.target) if lr is not None and lr > 0
    ]
    before = 1.0 if several else critical.searches[0].initial_loss if critical.searches else math.nan
    if len(set(lrs)) < 2 or not finite or not math.isfinite(before):
        return None
    low, high = min(*finite, before), max(*finite, before)
    depth = before - low
    if depth > 0:
        high = min(high, before + _HEADROOM * depth)
    margin = (high - low) * 0.05 or abs(low) * 0.05 or 1.0
    return Curve(
        lines=lines,
        before=before,
        label="loss after the step, over the loss before" if several else "loss after the step",
        lrs=(min(lrs) / 1.1, max(lrs) * 1.1),
        losses=(low - margin if low - margin > 0 or low <= 0 else low / 1.05, high + margin),
        critical=critical.lr,
        target=critical.target,
    )
