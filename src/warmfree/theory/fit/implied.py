"""The warmup that a fit implies: the learning rate that its rule would have had along the losses of a run."""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from warmfree.theory.fit.result import SmoothnessFit

__all__ = ["REACHED", "Implied", "implied"]

Floats = NDArray[np.float64]

REACHED = 0.95  # of the largest learning rate: the rule comes near to its peak slowly, and the last bit is no warmup


@dataclass(frozen=True, kw_only=True, eq=False)
class Implied:
    """A learning rate for every step of a run.

    Attributes:
        fractions: of the peak, in (0, 1], (T,): before every optimizer step.
        peak: the learning rate that is 1; inf for a rule without a peak, and then fractions are of the largest one.
        warmup_steps: the first step with at least 95 % of the largest learning rate of the run (our choice); 0 means no
            warmup.
        start: the fraction at the first step.
        reached: the largest fraction.
        sentence: the same in words.
    """

    fractions: Floats = field(repr=False)
    peak: float
    warmup_steps: int
    start: float
    reached: float
    sentence: str


def implied(
    fit: SmoothnessFit,
    losses: ArrayLike,
    *,
    peak: float | None = None,
    safety: float = 0.5,
    smoothing: float = 0.9,
    monotone: bool = True,
) -> Implied:
    r"""Return the learning rate that the rule of a fit would have had along a run.

    The numbers are those of `warmfree.schedule.LossDriven`, driven as a training loop drives it: with the first loss as
    the initial one, and after each optimizer step with the loss of that step. The losses are those of another rule's
    run: a run that followed this one would have had others.

    Args:
        fit: of the same run, or of one like it.
        losses: of every step, (T,), the first finite and above the fit's f*; others that are not finite are left out,
            as the scheduler does.
        peak: the largest learning rate, > 0; None: that of the fit's own units. See `SmoothnessFit.rule`.
        safety: c of the warmup step, > 0.
        smoothing: b, decay of the average of the losses, in [0, 1).
        monotone: False lets the learning rate fall when the averaged loss rises.

    Raises:
        ValueError: an argument is out of its range, or there are no losses.

    Example:
        >>> from warmfree.theory.fit.fitting import fit_smoothness
        >>> losses = np.geomspace(10.0, 0.1, 40)
        >>> found = implied(fit_smoothness(losses, 2.0 + losses), losses, peak=0.1, smoothing=0.0)
        >>> found.warmup_steps, round(found.start, 3), found.reached
        (24, 0.067, 1.0)

    Reference: Liu et al. 2025, for the rule.
    """
    trace = np.asarray(losses, np.float64)
    if trace.ndim != 1 or not trace.size:
        raise ValueError(f"losses must have shape (steps,) with at least one step, got {trace.shape}")
    if not fit.f_star < trace[0] < math.inf:
        raise ValueError(
            f"the first loss must be finite and above the fit's f_star={fit.f_star:g}, got {trace[0]:g}"
        )
    if not 0.0 <= smoothing < 1.0:
        raise ValueError(f"smoothing must be in [0, 1), got {smoothing!r}")
    rule = fit.rule(peak=peak, safety=safety)
    gaps = _followed_gaps(trace, f_star=fit.f_star, smoothing=smoothing, monotone=monotone)
    rates = np.array([rule.warmup(gap) for gap in gaps])
    if math.isinf(rule.peak):
        largest = float(rates.max())
        fractions = rates / largest if math.isfinite(largest) else np.isinf(rates).astype(np.float64)
    else:
        fractions = np.minimum(rates / rule.peak, 1.0)
    reached = float(fractions.max())
    warmup = int((fractions >= REACHED * reached).argmax())
    return Implied(
        fractions=fractions,
        peak=rule.peak,
        warmup_steps=warmup,
        start=float(fractions[0]),
        reached=reached,
        sentence=_sentence(warmup, fractions, steps=trace.size, peakless=math.isinf(rule.peak)),
    )


def _followed_gaps(losses: Floats, *, f_star: float, smoothing: float, monotone: bool) -> list[float]:
    """Return the gap that the scheduler follows before every step.

    The same sums in the same order as in `LossDriven`, so that a test can ask for the same numbers. It sees the first
    loss twice: as the initial one, and as that of the first step.
    """
    average = weight = 0.0
    found, gap = [], math.inf
    for loss in (float(losses[0]), *(float(loss) for loss in losses[:-1])):
        if math.isfinite(loss):
            average = smoothing * average + (1.0 - smoothing) * loss
            weight = smoothing * weight + (1.0 - smoothing)
            new = max(average / weight - f_star, 0.0)
            gap = min(new, gap) if monotone else new
        found.append(gap)
    return found


def _sentence(warmup: int, fractions: Floats, *, steps: int, peakless: bool) -> str:
    start, reached = float(fractions[0]), float(fractions.max())
    of = "its largest value" if peakless else "the peak"
    if warmup == 0:
        said = f"No warmup is implied: the rule allows {_percent(start)} of {of} at the first step"
    else:
        said = f"The rule starts at {_percent(start)} of {of} and warms up for {warmup} of {steps} steps"
    if peakless:
        return said + "; without a floor it has no peak, and rises as long as the loss falls."
    if reached < REACHED:
        return said + f"; the loss does not fall far enough for more than {_percent(reached)} of the peak."
    return said + "."


def _percent(share: float) -> str:
    return f"{100.0 * share:.3g} %"
