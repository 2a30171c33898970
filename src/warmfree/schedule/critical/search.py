r"""The search for the learning rate at which a step leaves the loss where it was, as a search on a line.

Kalra & Barkeshli 2024 (algorithms 1 and 2) double the learning rate until the loss rises, then bisect. So does this,
but for where it looks next. On a quadratic loss the *mean slope* along the step, :math:`(L(\eta) - L(0))/\eta`, is
linear in :math:`\eta`, and its value at 0 is the gradient along the step, which costs nothing. The line through two
points of it leads to the critical learning rate at once, and two more trials beside it make the bracket. Where the line leads
out of the bracket or gains little, the bracket is halved, in the logarithm. (Our choice; counts are in the benchmarks.)
"""

from __future__ import annotations

import math
from collections.abc import Callable

from warmfree.schedule.critical.results import Outcome, Search, Trial

__all__ = ["find_critical"]

_GROWTH = 4.0  # without better knowledge
_DOUBLING = 2.0  # the paper's k
_LARGEST_GROWTH = 16.0
_SMALLEST = 1e-8  # of where the search starts: a step this small that still raises the loss goes uphill
_SMALLEST_UPHILL = 1e-3  # the same where the slope says so, too


def find_critical(
    loss_at: Callable[[float], float],
    slope_of: Callable[[], float],
    *,
    initial_loss: float,
    start: float,
    precision: float,
    tolerance: float,
    noise: float,
    max_lr: float,
    max_trials: int,
) -> Search:
    """Find where the loss after a step equals the loss before.

    Args:
        loss_at: tries a step with a learning rate; returns the loss, inf if it is not finite.
        slope_of: derivative of the loss by the learning rate at 0; asked after the first trial.
        initial_loss: before the step.
        start: first learning rate tried, > 0.
        precision: the bracket's ends are no more than this fraction apart.
        tolerance: the loss at its upper end is no more than this fraction above the initial one (delta of algorithm 2).
        noise: losses that differ by less are not told apart.
        max_lr: largest learning rate tried.
        max_trials: most trials, >= 1.

    Returns:
        The search, with `forward_passes` counting trials alone.
    """
    line = _Line(initial_loss, noise)
    lr = min(start, max_lr)
    smallest = start * _SMALLEST
    slope = math.nan
    while len(line.trials) < max_trials:
        line.add(Trial(lr=lr, loss=loss_at(lr)))
        if len(line.trials) == 1:
            slope = line.slope = slope_of()
            if not slope < 0:
                smallest = start * _SMALLEST_UPHILL
        if line.low is None:
            assert line.high is not None
            if line.high.lr <= smallest:
                break
            lr = max(line.below(), smallest)
        elif line.high is None:
            if line.low.lr >= max_lr:
                break
            lr = min(line.above(), max_lr)
        elif line.is_closed(precision, tolerance):
            break
        else:
            lr = line.inside(precision)
    outcome: Outcome = "uphill" if line.low is None else "none" if line.high is None else "found"
    return Search(
        outcome=outcome,
        lr=line.crossing() if outcome == "found" else None,
        low=line.low.lr if line.low else None,
        high=line.high.lr if line.high else None,
        initial_loss=initial_loss,
        slope=slope,
        trials=tuple(line.trials),
        forward_passes=len(line.trials),
    )


class _Line:
    """Losses along a step, and the bracket around the crossing."""

    def __init__(self, initial_loss: float, noise: float) -> None:
        self.initial_loss, self.noise = initial_loss, noise
        self.slope = math.nan
        self.trials: list[Trial] = []
        self.low: Trial | None = None  # the largest learning rate at which the loss falls
        self.high: Trial | None = None  # the smallest one, above it, at which it rises
        self._width = math.inf
        self._stalled = False

    def add(self, trial: Trial) -> None:
        """Take in a trial; one that leaves the loss where it is (a step below rounding) counts as falling."""
        self.trials.append(trial)
        if trial.loss - self.initial_loss > self.noise:
            self.high = trial
        else:
            self.low = trial
        if self.low is not None and self.high is not None:
            width = math.log(self.high.lr / self.low.lr)
            self._stalled = width > self._width / 2
            self._width = width

    def is_closed(self, precision: float, tolerance: float) -> bool:
        assert self.low is not None
        assert self.high is not None
        near = self.high.lr <= self.low.lr * (1 + precision)
        limit = self.initial_loss + tolerance * abs(self.initial_loss) + self.noise
        # Where the loss is a cliff, no bracket that can be told apart may be gentle enough.
        return near and (self.high.loss <= limit or self.high.lr <= self.low.lr * (1 + precision / 16))

    def below(self) -> float:
        """Return the next learning rate where none is known to be safe."""
        assert self.high is not None
        guess = self._root((0.0, self.slope), self._point(self.high)) if self.slope < 0 else None
        if guess is None:
            return self.high.lr / _GROWTH
        # The line was wrong before: not all the way again in small steps.
        largest = self.high.lr / (1.05 if len(self.trials) == 1 else _DOUBLING)
        return min(max(guess * 0.98, self.high.lr / _LARGEST_GROWTH**2), largest)

    def above(self) -> float:
        """Return the next learning rate where all were safe so far."""
        assert self.low is not None
        guess = self._root((0.0, self.slope), self._point(self.low)) if self.slope < 0 else None
        if guess is None or guess <= self.low.lr:
            return self.low.lr * _GROWTH
        smallest = self.low.lr * (1.05 if len(self.trials) == 1 else _DOUBLING)
        return min(max(guess * 1.02, smallest), self.low.lr * _LARGEST_GROWTH)

    def inside(self, precision: float) -> float:
        """Return the next learning rate within the bracket."""
        assert self.low is not None
        assert self.high is not None
        middle = math.sqrt(self.low.lr * self.high.lr)
        guess = None if self._stalled else self._root(self._point(self.low), self._point(self.high))
        if guess is None or not self.low.lr < guess < self.high.lr:
            return middle
        # Aim a little beyond the crossing, on the side that is farther away, so that the far end comes near.
        aside = 1 + precision / 3
        guess = guess * aside if self.high.lr / guess > guess / self.low.lr else guess / aside
        return guess if self.low.lr < guess < self.high.lr else middle

    def crossing(self) -> float:
        """Return the best guess within the bracket."""
        assert self.low is not None
        assert self.high is not None
        guess = self._root(self._point(self.low), self._point(self.high))
        inside = guess is not None and self.low.lr <= guess <= self.high.lr
        return guess if guess is not None and inside else math.sqrt(self.low.lr * self.high.lr)

    def _point(self, trial: Trial) -> tuple[float, float]:
        """Return a learning rate and the mean slope up to it."""
        return trial.lr, (trial.loss - self.initial_loss) / trial.lr

    def _root(self, first: tuple[float, float], second: tuple[float, float]) -> float | None:
        """Return where the line through two points is 0; None if it does not rise, or a point is lost in noise."""
        (x1, y1), (x2, y2) = first, second
        known = all(math.isfinite(y) for y in (y1, y2)) and abs(y2) * x2 > self.noise
        if not known or y2 <= y1:
            return None
        return x1 - y1 * (x2 - x1) / (y2 - y1)
