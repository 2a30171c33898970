"""Whether the smoothness describes a run, in a word and in sentences.

The thresholds are ours, chosen on synthetic runs: curvatures that rise with the gap, fall with it, do both or neither,
with lognormal noise. Of 100 points with independent noise of 30 % and a flat curvature 76 % are called flat, 2 %
reversed and none described; if the noise is correlated by 0.8 from point to point, 58 %, 8 % and 6 %; of 30 such points
24 % are called reversed. The rest is inconclusive.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from warmfree.theory.fit.envelope import MAX_EXPONENT
from warmfree.theory.fit.ranks import Phase, Phases
from warmfree.theory.fit.selection import ModelName

__all__ = ["Evidence", "Verdict", "verdict"]

Verdict = Literal["describes", "flat", "reversed", "inconclusive"]

MIN_RANGE = 2.0  # of the gaps, their ends left out: below, no exponent can be told from another
# In size: a direction that 2 of 3 pairs of points share. The interval has to be beyond half of it.
MIN_CORRELATION = 0.4
MIN_EXPLAINED = 0.1  # R1 of the envelope: that of flat noise is below it in 9 of 10 runs
MIN_RISE = 1.5  # of the envelope: with rho = 1 its rule starts at 2/3 of the peak; with less, hardly lower
MAX_FLAT = 2.0  # what the rise may still be in a run that is called flat
# Of the envelope over all points at the largest gaps: with more the rule begins at less than a third of what it may.
MAX_SLACK = 3.0
MIN_CHANGE = 1.25  # of curvature over a run that is called reversed


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the verdict follows from.

    Attributes:
        model: which envelope the points ask for.
        exponent: rho.
        explained: R1 of that envelope.
        range: the third largest gap over the third smallest: no two points alone make a range.
        rise: of that envelope over that range, a factor.
        slack: the factor by which that envelope is above all points at the largest gaps.
        whole_rise: of floor and power together from the smallest gap to the largest.
        whole_rises: its interval.
        correlation: rank correlation of curvature with gap over the points.
        even_correlation: the same evenly over the logarithm of the gap.
        intervals: of both.
        whole: the run as one phase.
        phases: None if it has not two.
        confidence: of the intervals.
    """

    model: ModelName
    exponent: float
    explained: float
    range: float
    rise: float
    slack: float
    whole_rise: float
    whole_rises: tuple[float, float]
    correlation: float
    even_correlation: float
    intervals: Mapping[str, tuple[float, float]]
    whole: Phase
    phases: Phases | None
    confidence: float


def verdict(evidence: Evidence) -> tuple[Verdict, tuple[str, ...]]:
    """Return the verdict and its reasons.

    It describes if the points ask for an envelope that rises, and curvature falls with the loss, over the run or its
    early phase. Else it is reversed if curvature grows while the loss falls, over the run or a phase of it. Else it is
    flat if no rise worth a warmup is left in the interval, and inconclusive if one is.
    """
    rest = (_correlated(evidence), *_phases(evidence.phases))
    if evidence.range < MIN_RANGE:
        return "inconclusive", (
            f"The gap changes by a factor of {evidence.range:.3g} over the run (third largest over third smallest); "
            f"below {MIN_RANGE:g} no exponent can be told from another.",
            *rest,
        )
    if _follows(evidence) and _falls(evidence):
        return "describes", (_described(evidence), *rest)
    if _sharpens(evidence):
        return "reversed", (_reversed(evidence), *rest)
    low, high = evidence.whole_rises
    if evidence.whole_rise < MIN_RISE and high <= MAX_FLAT and not _seems_to_sharpen(evidence):
        return "flat", (
            f"Curvature hardly depends on the gap: an envelope rises by a factor of {evidence.whole_rise:.3g} over the "
            f"run ({_percent(evidence.confidence)} interval {low:.3g} to {high:.3g}). It allows a constant step and "
            "implies no warmup.",
            *rest,
        )
    return "inconclusive", (_undecided(evidence), *rest)


def _follows(evidence: Evidence) -> bool:
    """Return whether the points ask for an envelope that rises, and are near it where the run begins."""
    rises = evidence.model != "floor" and evidence.explained >= MIN_EXPLAINED and evidence.rise >= MIN_RISE
    return rises and evidence.slack <= MAX_SLACK


def _falls(evidence: Evidence) -> bool:
    """Return whether curvature falls with the loss, in the early phase or over the range of the gap."""
    if evidence.phases is not None and evidence.phases.early.direction != 0:
        return evidence.phases.early.direction > 0
    low = evidence.intervals["even_correlation"][0]
    return evidence.even_correlation >= MIN_CORRELATION and low > 0.5 * MIN_CORRELATION


def _sharpens(evidence: Evidence) -> bool:
    """Return whether curvature grows while the loss falls, over the run or in one of its phases."""
    if evidence.phases is not None:
        return True
    return _seems_to_sharpen(evidence) and evidence.intervals["correlation"][1] < -0.5 * MIN_CORRELATION


def _seems_to_sharpen(evidence: Evidence) -> bool:
    """Return whether the points alone, without their interval, would say so."""
    return evidence.correlation <= -MIN_CORRELATION and evidence.whole.change >= MIN_CHANGE


def _described(evidence: Evidence) -> str:
    kind = {
        "power": "a power of the gap without a floor, so that the rule has no peak within the run",
        "sum": "a floor and a power of the gap",
        "floor": "",
    }[evidence.model]
    edge = (
        f" The exponent is at the end of the search, {MAX_EXPONENT:g}: the envelope is a wall."
        if evidence.exponent > 0.98 * MAX_EXPONENT
        else ""
    )
    return (
        f"Curvature rises with the gap by a factor of {evidence.rise:.3g} over a range of {evidence.range:.3g}, and an "
        f"envelope of {kind} saves {_percent(evidence.explained)} of the loss of a constant one (R1).{edge}"
    )


def _reversed(evidence: Evidence) -> str:
    rising = evidence.whole
    where = "over the run"
    if evidence.phases is not None:
        early, late = evidence.phases.early, evidence.phases.late
        rising = late if late.direction < 0 else early
        where = f"from step {rising.steps[0]} to {rising.steps[1]}"
    holds = (
        "the smoothness holds only through its floor, the largest curvature, and does not"
        if evidence.model == "floor"
        else "an envelope over the whole run holds, but does not"
    )
    return (
        f"Curvature grows by a factor of {rising.change:.3g} while the loss falls, {where} (progressive sharpening): "
        f"{holds} say why warmup helps."
    )


def _undecided(evidence: Evidence) -> str:
    low, high = evidence.whole_rises
    rises = (
        f"An envelope of floor and power rises by a factor of {evidence.whole_rise:.3g} over the run "
        f"({_percent(evidence.confidence)} interval {low:.3g} to {high:.3g})"
    )
    if evidence.slack > MAX_SLACK and _falls(evidence):
        return (
            f"Curvature falls with the loss, but no envelope of this form follows: at the largest gaps it is "
            f"{evidence.slack:.3g} times the largest curvature there (at most {MAX_SLACK:g} is asked for), since "
            f"curvature does not rise any more where the run begins. {rises}."
        )
    if evidence.model != "floor" and evidence.whole_rise >= MIN_RISE > evidence.rise:
        return (
            f"{rises}, but only by {evidence.rise:.3g} without the two points at either end of the gap: two points do "
            "not make an envelope. Measure more often at the start."
        )
    return (
        f"The points do not decide. {rises}; what they ask for saves {_percent(evidence.explained)} of the loss of a "
        f"constant one (R1). Asked for are a rise of {MIN_RISE:g}, {_percent(MIN_EXPLAINED)} and a rank correlation of "
        f"{MIN_CORRELATION:g} evenly over the gap; for a flat run, a rise below {MAX_FLAT:g} for certain. Measure more "
        "points, or let the loss fall further."
    )


def _correlated(evidence: Evidence) -> str:
    (low, high), (least, most) = (evidence.intervals[name] for name in ("correlation", "even_correlation"))
    return (
        f"The rank correlation of curvature with the gap is {evidence.correlation:.2f} over the points "
        f"({_percent(evidence.confidence)} interval {low:.2f} to {high:.2f}) and {evidence.even_correlation:.2f} "
        f"evenly over the logarithm of the gap ({least:.2f} to {most:.2f})."
    )


def _phases(phases: Phases | None) -> tuple[str, ...]:
    if phases is None:
        return ()
    early, late = phases.early, phases.late
    said = (
        f"The run has two phases: up to step {early.steps[1]} curvature changes by a factor of {early.change:.3g} "
        f"(rank correlation with the gap {early.correlation:.2f}, {early.points} points), from step {late.steps[0]} on "
        f"by {late.change:.3g} ({late.correlation:.2f}, {late.points} points)."
    )
    if early.direction > 0:
        return (
            said,
            "A warmup is about the early phase: a fit of its points alone has the constants there; the floor has to "
            "cover what curvature grows to later.",
        )
    if early.direction < 0:
        return (
            said,
            "Curvature first grows: the beginning, which a warmup is about, is not what the envelope is made by.",
        )
    return (said,)


def _percent(share: float) -> str:
    return f"{100.0 * share:.0f} %"
