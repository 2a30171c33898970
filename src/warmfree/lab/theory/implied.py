"""The warmup that a fit implies on the losses of its run, beside the one that the run used."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from warmfree.lab.theory.measured import Measured
from warmfree.schedule.smoothness import SmoothnessRule
from warmfree.theory.fit import Implied, SmoothnessFit, implied
from warmfree.theory.fit.implied import REACHED

__all__ = ["Comparison", "compare_warmups"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """What `LossDriven` would do with a fit's rule on the losses of its run, and what the run did.

    Attributes:
        rule: scaled to the peak, if there is one.
        peak: the largest learning rate; None if neither asked for nor known from the run.
        found: the learning rates as fractions of the peak.
        steps: of the learning rates, (n,).
        warmup: steps of the implied warmup.
        own_rates: the learning rates in the units of the curvature, (n,); empty if nothing bounds the last of them.
        own_peak: the largest learning rate that the envelope allows in those units; None without a floor.
        initial_loss: the first loss.
        used: steps of the warmup that the run used, by the same count; None if its learning rates are not known.
    """

    rule: SmoothnessRule
    peak: float | None
    found: Implied
    steps: Ints
    warmup: int
    own_rates: Floats
    own_peak: float | None
    initial_loss: float
    used: int | None


def compare_warmups(
    fit: SmoothnessFit, measured: Measured, *, peak: float | None, safety: float
) -> Comparison:
    """Follow a fit's rule along its run.

    Args:
        fit: the envelope.
        measured: the run.
        peak: the largest learning rate; None takes the largest that was used.
        safety: c.
    """
    steps, losses = measured.loss_steps, measured.loss_curve
    usable = np.isfinite(losses) & (losses > fit.f_star)
    if not usable.any():
        steps, losses, usable = fit.steps, fit.losses, np.ones(len(fit.steps), np.bool_)
    first = int(usable.argmax())  # the rule needs a first loss to start from
    steps, losses = steps[first:], losses[first:]
    if peak is None and len(measured.lrs) and measured.lrs.max() > 0.0:
        peak = float(measured.lrs.max())
    found = implied(fit, losses, peak=peak, safety=safety)
    own = fit.rule(safety=safety)
    return Comparison(
        rule=fit.rule(peak=peak, safety=safety),
        peak=peak,
        found=found,
        steps=steps,
        warmup=int(steps[found.warmup_steps] - steps[0]),
        own_rates=_absolute(own, implied(fit, losses, safety=safety), gap=float(losses[0]) - fit.f_star),
        own_peak=own.peak if math.isfinite(own.peak) else None,
        initial_loss=float(losses[0]),
        used=_used(measured),
    )


def _absolute(rule: SmoothnessRule, found: Implied, *, gap: float) -> Floats:
    """Return learning rates from fractions, the first of which is that of a gap."""
    if not found.start > 0.0:
        return np.zeros(0)
    return found.fractions * (rule.warmup(gap) / found.start)


def _used(measured: Measured) -> int | None:
    if not len(measured.lrs) or not measured.lrs.max() > 0.0:
        return None
    reached = measured.lrs >= REACHED * measured.lrs.max()
    return int(measured.lr_steps[reached.argmax()] - measured.lr_steps[0])
