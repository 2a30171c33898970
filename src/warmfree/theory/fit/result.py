"""What a fit found, and the rule that follows from it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from warmfree.schedule.smoothness import ReciprocalRule, SmoothnessRule
from warmfree.theory.fit.ranks import Phases
from warmfree.theory.fit.selection import ModelName
from warmfree.theory.fit.verdict import Verdict
from warmfree.theory.smoothness import Smoothness

__all__ = ["SmoothnessFit"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class SmoothnessFit:
    r"""An envelope :math:`K_0 + K_\rho \Delta^\rho` over the curvatures of a run, and what it is worth.

    Attributes:
        smoothness: the constants. A floor alone has growth 0, and then the exponent, 1, says nothing.
        model: which of the three envelopes it is: "floor", "power" (of the gap, without a floor) or "sum".
        f_star: infimum of the loss that the gaps are from.
        quantile: share of the weight that was to lie under the envelope.
        confidence: of the intervals.
        steps: of the points used, (n,), increasing.
        losses: (n,).
        gaps: losses minus f*, (n,).
        curvatures: (n,).
        intervals: of "exponent", "floor", "growth", "correlation", "even_correlation", and "f_star" if it was
            estimated; over the resamples, within the model. Of what the model lacks: (0, 0) for floor or growth, all
            that was searched for the exponent.
        explained: R1, the share of the pinball loss of a constant envelope that this one saves; 0 for a floor.
        correlation: Spearman's, of curvature with gap, over the points as they are.
        even_correlation: the same with weights that are even over the logarithm of the gap.
        covered: share of the points under the envelope.
        slack: the factor by which the envelope is above all points with at least half of the largest gap, three at
            least: by which the rule's first steps are too small if the run began there.
        inflation: the factor, at least 1, by which floor and growth have to be multiplied to cover every point.
        phases: those of a run in which curvature grows while the loss falls in one and not in the other; else None.
        block: points that a block of the bootstrap has.
        dropped: points that were left out, because they were no points.
        spikes: isolated points far above the envelope, which the fit sets aside; `covered` and `inflation` do not.
        verdict: "describes": curvature rises with the gap and the envelope follows; "flat": it does not depend on the
            gap; "reversed": it grows while the loss falls, over the run or a phase of it, and no envelope follows;
            "inconclusive".
        reasons: why, in sentences.
    """

    smoothness: Smoothness
    model: ModelName
    f_star: float
    quantile: float
    confidence: float
    steps: NDArray[np.int64] = field(repr=False)
    losses: Floats = field(repr=False)
    gaps: Floats = field(repr=False)
    curvatures: Floats = field(repr=False)
    intervals: Mapping[str, tuple[float, float]]
    explained: float
    correlation: float
    even_correlation: float
    covered: float
    slack: float
    inflation: float
    phases: Phases | None
    block: int
    dropped: int
    spikes: int
    verdict: Verdict
    reasons: tuple[str, ...]

    def rule(self, *, peak: float | None = None, safety: float = 0.5) -> SmoothnessRule:
        r"""Return the rule that the envelope allows, for `warmfree.schedule.LossDriven` with this fit's ``f_star``.

        Without a peak the learning rates are those of the geometry that curvature was measured in: of gradient descent
        for eigenvalues of the Hessian, of Adam for those of the preconditioned Hessian. With a peak floor and growth
        are multiplied by one factor, so that the largest learning rate is the peak and its dependence on the gap, as a
        fraction of the peak, stays: for an optimizer whose units are others.

        A power without a floor has no peak of its own. With one given the learning rate rises until the smallest gap of
        the points, where it is the peak: below, nothing was measured. Ours, as is the scaling.

        Args:
            peak: the largest learning rate, > 0; None: safety / floor, or unbounded without a floor.
            safety: c of the warmup step, > 0.

        Raises:
            ValueError: peak is not finite and > 0.
        """
        if peak is None:
            return self.smoothness.rule(safety=safety)
        _check_peak(peak)
        exponent, growth = self.smoothness.exponent, self.smoothness.growth
        floor = self.smoothness.floor or growth * (3.0 * float(self.gaps.min())) ** exponent
        return SmoothnessRule(
            exponent=exponent, floor=safety / peak, growth=growth / floor * (safety / peak), safety=safety
        )

    def reciprocal_rule(self, *, peak: float | None = None) -> ReciprocalRule:
        """Return the reciprocal of the envelope as a rule: `rule` without the room for noise, which warms up faster.

        Args:
            peak: as for `rule`. A power without a floor is at the peak at the smallest gap of the points, and above it
                below: let the optimizer's own learning rate, which nothing exceeds, be the peak.

        Raises:
            ValueError: peak is not finite and > 0.
        """
        constants = self.smoothness
        if peak is not None:
            _check_peak(peak)
        least = constants.floor or constants.growth * float(self.gaps.min()) ** constants.exponent
        return ReciprocalRule(
            exponent=constants.exponent,
            floor=constants.floor,
            growth=constants.growth,
            safety=1.0 if peak is None else peak * least,
        )


def _check_peak(peak: float) -> None:
    if not 0.0 < peak < math.inf:
        raise ValueError(f"peak must be finite and > 0 (the largest learning rate), got {peak!r}")
