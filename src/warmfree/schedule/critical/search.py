r"""The search for the learning rate at which a step leaves the loss where it was, as a search on a line.

Kalra & Barkeshli 2024 (algorithms 1 and 2) double the learning rate until the loss rises, then bisect. So does this,
but for where it looks next. The slope s of the loss along the step comes with the gradient and costs nothing, and the
share of the decrease that it promises which curvature takes back,

.. math::  r(\eta) = \frac{L(\eta) - L(0) - s\eta}{-s\eta},

is 1 where the loss is what it was. On a quadratic loss it is proportional to the learning rate, so that one trial leads
to the critical learning rate and two more beside it make the bracket; on any power of it, and nearly so on what
networks do, it is a straight line in logarithms. Its secants are followed. Where they lead out of the bracket or gain
little, the bracket is halved, in the logarithm. (Our choice; counts are in the benchmarks.)
"""

from __future__ import annotations

import math
from collections.abc import Callable

from warmfree.schedule.critical.results import Outcome, Search, Trial

__all__ = ["find_critical"]

_GROWTH = 4.0  # without better knowledge, and its square where that was not enough, and so on
_LARGEST_GROWTH = 16.0
_LARGEST_SHRINKING = 256.0
_LEAST = 1.3  # for each guess that was followed and missed
_SMALLEST_UPHILL = 1e-3  # of the first learning rate: the slope is upward, and so is the loss down to here
_LARGEST = 1e9  # of the first learning rate: if the loss still falls, it will go on so


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
        slope_of: derivative of the loss by the learning rate at 0; asked after a trial until it is not nan.
        initial_loss: before the step.
        start: first learning rate tried, > 0.
        precision: the bracket's ends are no more than this fraction apart.
        tolerance: the loss at its upper end is no more than this fraction above the initial one (delta of algorithm 2).
        noise: losses that differ by less are not told apart.
        max_lr: largest learning rate tried.
        max_trials: most trials, >= 1.

    Returns:
        The search, with `forward_passes` counting trials alone.

    Example:
        >>> found = find_critical(
        ...     lambda lr: 3 - lr + 5 * lr**2,
        ...     lambda: -1.0,
        ...     initial_loss=3.0,
        ...     start=1.0,
        ...     precision=0.05,
        ...     tolerance=0.01,
        ...     noise=1e-6,
        ...     max_lr=float("inf"),
        ...     max_trials=18,
        ... )
        >>> round(found.lr, 6), found.forward_passes
        (0.2, 3)
    """
    line = _Line(initial_loss, precision=precision, tolerance=tolerance * abs(initial_loss), noise=noise)
    lr, largest = min(start, max_lr), min(start * _LARGEST, max_lr)
    while len(line.trials) < max_trials:
        loss = loss_at(lr)
        if math.isnan(line.slope):
            line.slope = slope_of()
        line.add(Trial(lr=lr, loss=loss))
        if line.low is None:
            if line.slope >= 0 and lr <= start * _SMALLEST_UPHILL:
                break
            lr = line.below()
        elif line.high is None:
            if line.low.lr >= largest:
                break
            lr = min(line.above(), largest)
        elif line.is_closed():
            break
        else:
            lr = line.inside()
    outcome: Outcome = "uphill" if line.low is None else "none" if line.high is None else "found"
    return Search(
        outcome=outcome,
        lr=line.crossing() if outcome == "found" else None,
        low=line.low.lr if line.low else None,
        high=line.high.lr if line.high else None,
        initial_loss=initial_loss,
        slope=line.slope,
        trials=tuple(line.trials),
        forward_passes=len(line.trials),
    )


class _Line:
    """Losses along a step, and the bracket around the crossing."""

    def __init__(self, initial_loss: float, *, precision: float, tolerance: float, noise: float) -> None:
        self.initial_loss, self.precision, self.tolerance, self.noise = (
            initial_loss,
            precision,
            tolerance,
            noise,
        )
        self.slope = math.nan
        self.trials: list[Trial] = []
        self.low: Trial | None = None  # the largest learning rate at which the loss falls
        self.high: Trial | None = None  # the smallest one, above it, at which it rises
        self._widths: list[float] = []  # of the brackets so far, in the logarithm
        self._followed = 0  # guesses outside of a bracket

    def add(self, trial: Trial) -> None:
        """Take in a trial; where the loss stays (a step below rounding) the slope decides whether it falls."""
        self.trials.append(trial)
        if trial.loss - self.initial_loss > (-self.noise if self.slope >= 0 else self.noise):
            self.high = trial
        else:
            self.low = trial
        if self.low is not None and self.high is not None:
            self._widths.append(math.log(self.high.lr / self.low.lr))

    def is_closed(self) -> bool:
        low, high = self._bracket()
        # Where the loss is a cliff, no bracket that can be told apart may be gentle enough.
        gentle = high.loss <= self.initial_loss + self.tolerance + self.noise
        return self._is_narrow() and (gentle or high.lr <= low.lr * (1 + self.precision / 4))

    def below(self) -> float:
        """Return the next learning rate where none is known to be safe."""
        assert self.high is not None
        guess, smallest = self._guess(), self.high.lr / _LARGEST_SHRINKING
        if guess is None:
            return max(self.high.lr / self._stride, smallest)
        return min(max(guess / self._aside, smallest), self.high.lr / self._least(guess >= smallest))

    def above(self) -> float:
        """Return the next learning rate where all were safe so far."""
        assert self.low is not None
        guess, largest = self._guess(), self.low.lr * _LARGEST_GROWTH
        if guess is None:
            return min(self.low.lr * self._stride, largest)
        return min(max(guess * self._aside, self.low.lr * self._least(guess <= largest)), largest)

    def inside(self) -> float:
        """Return the next learning rate within the bracket."""
        low, high = self._bracket()
        middle = math.sqrt(low.lr * high.lr)
        # Secants that took two trials and did not halve the bracket.
        stalls = len(self._widths) > 2 and self._widths[-1] > self._widths[-3] / 2
        guess = None if stalls else self._guess()
        if guess is None or not low.lr < guess < high.lr:
            return middle
        if self._is_narrow():  # and its upper end is too high
            aim = guess + 0.5 * self.tolerance * (high.lr - low.lr) / (high.loss - low.loss)
        elif high.lr / guess > guess / low.lr:
            # A little beyond the crossing, on the side that is farther away, so that the far end comes near.
            aim = guess * self._aside
        else:
            aim = guess / self._aside
        return aim if low.lr < aim < high.lr else middle

    def crossing(self) -> float:
        """Return the best guess within the bracket."""
        low, high = self._bracket()
        guess = self._guess()
        return math.sqrt(low.lr * high.lr) if guess is None else min(max(guess, low.lr), high.lr)

    def _bracket(self) -> tuple[Trial, Trial]:
        assert self.low is not None
        assert self.high is not None
        return self.low, self.high

    def _is_narrow(self) -> bool:
        low, high = self._bracket()
        return high.lr <= low.lr * (1 + self.precision)

    @property
    def _aside(self) -> float:
        return 1 + self.precision / 3

    @property
    def _stride(self) -> float:
        """Return the factor to go by where nothing can be guessed."""
        return _GROWTH ** min(len(self.trials), 4)

    def _least(self, follows: bool) -> float:
        """Return the least factor to go by: more for every guess that was followed and missed the crossing."""
        factor = max(1 + self.precision, _LEAST**self._followed)
        self._followed += follows
        return factor

    def _guess(self) -> float | None:
        """Return where a line in logarithms crosses: that through the bracket's ends, or the two nearest trials."""
        if self.low is not None and self.high is not None:
            points = [self._point(self.low), self._point(self.high)]
            if None in points:
                return None
        else:
            points = [self._point(trial) for trial in self.trials]
        known = sorted((point for point in points if point is not None), key=lambda point: abs(point[1]))
        if not known:
            return None
        x, y = known[0]
        power = 1.0  # of a quadratic loss
        if len(known) > 1:
            power = (known[1][1] - y) / (known[1][0] - x)
        if not power > 0:
            return None
        return math.exp(min(x - y / power, 700.0))

    def _point(self, trial: Trial) -> tuple[float, float] | None:
        """Return log learning rate and log r; None where r is lost in noise, infinite or negative."""
        promised = -self.slope * trial.lr
        taken_back = trial.loss - self.initial_loss + promised
        if not (promised > 0 and self.noise < taken_back < math.inf):
            return None
        return math.log(trial.lr), math.log(taken_back / promised)
