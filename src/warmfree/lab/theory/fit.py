"""``warmfree theory fit``: the constants of a run, whether they describe it, and the warmup that they imply."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from warmfree import __version__
from warmfree.lab.theory.finding import Finding, Table, Tile
from warmfree.lab.theory.fit_code import code_for
from warmfree.lab.theory.fit_figures import draw_cloud, draw_rates
from warmfree.lab.theory.implied import Comparison, compare_warmups
from warmfree.lab.theory.measured import KINDS, Measured
from warmfree.report.wording import count, number, percent
from warmfree.theory.fit import SmoothnessFit, fit_smoothness
from warmfree.theory.fit.implied import REACHED
from warmfree.theory.fit.verdict import Verdict

__all__ = ["FitOptions", "find_fit", "infimum_of"]

Infimum = float | Literal["estimate"]

_VERDICTS: Mapping[Verdict, str] = {
    "describes": "The theory describes this run: its curvature rises with its loss, and an envelope follows.",
    "flat": "The curvature of this run does not depend on its loss: the theory implies no warmup.",
    "reversed": "The curvature of this run grows while its loss falls: the theory does not describe it.",
    "inconclusive": "These points leave open whether the theory describes this run.",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class FitOptions:
    """How to fit, and how large a step to allow.

    Attributes:
        f_star: infimum of the loss.
        quantile: share of the points under the envelope, in [0.5, 1).
        peak: the learning rate at which the warmup ends; None: the largest that was used, if it is known.
        safety: c of the warmup step, > 0.
    """

    f_star: Infimum = 0.0
    quantile: float = 0.95
    peak: float | None = None
    safety: float = 0.5


def infimum_of(text: str) -> Infimum:
    """Read what was given as infimum.

    Raises:
        ValueError: it is neither a number nor "estimate".
    """
    if text == "estimate":
        return "estimate"
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"--f-star must be a finite number or estimate, got {text!r}")
    return value


def find_fit(
    measured: Measured,
    others: Sequence[Measured],
    options: FitOptions,
    *,
    progress: Callable[[str], None] | None = None,
) -> Finding:
    """Fit the smoothness, and say what it implies.

    Args:
        measured: the curvature that is asked about.
        others: other kinds of the same run, whose verdicts are told beside it.
        options: how to fit.
        progress: called with what is being done.

    Raises:
        ValueError: too few points, losses that are not above the infimum, or an option out of range.
    """
    if options.peak is not None and not 0.0 < options.peak < math.inf:
        raise ValueError(f"--peak must be finite and > 0, got {options.peak}")
    if not 0.0 < options.safety < math.inf:
        raise ValueError(f"--safety must be finite and > 0, got {options.safety}")
    fit = _fit(measured, options, progress)
    compared = [(each, _attempt(each, options, progress)) for each in others]
    implied = compare_warmups(fit, measured, peak=options.peak, safety=options.safety)
    return Finding(
        title=f"What the curvature of {measured.name} implies",
        facts=(
            measured.title,
            count(len(fit.steps), "point"),
            *(str(measured.facts[name]) for name in ("model", "optimizer") if name in measured.facts),
            f"infimum {number(fit.f_star)}" + (" (estimated)" if options.f_star == "estimate" else ""),
        ),
        sentences=(
            _VERDICTS[fit.verdict],
            *fit.reasons,
            *_say_warmup(fit, measured, implied),
            measured.why,
            f"The loss of a point is that of {measured.loss_of}.",
            *measured.notes,
        ),
        tiles=_tiles(fit, implied),
        parts=(
            draw_cloud(fit, measured),
            draw_rates(fit, measured, implied),
            _constants(fit, measured, implied),
            *([_kinds(measured, fit, compared)] if compared else []),
        ),
        code=() if fit.model == "floor" else (code_for(implied, fit),),
        paper=(
            "The condition, the warmup step up to its constant, and the picture of curvature against loss with "
            "the infimum at 0: Liu et al. 2025.",
        ),
        ours=(
            "The fit: quantile regression under weights that are even over the logarithm of the gap, the "
            "choice between floor, power and both, the intervals, the verdict and its thresholds.",
            f"c = {number(options.safety)}, and the scaling of the rule to a peak.",
            "Local smoothness is a lower estimate of the curvature on the way of a step, so that an envelope "
            "of it may lie below that of the Hessian's norm.",
        ),
        origin={
            **measured.facts,
            "quantity": measured.kind,
            "quantile": options.quantile,
            "confidence of intervals": _whole(fit.confidence),
            "points in a block of the bootstrap": fit.block,
            "warmfree": __version__,
        },
        data=_data(fit, measured, implied, compared),
    )


def _fit(measured: Measured, options: FitOptions, progress: Callable[[str], None] | None) -> SmoothnessFit:
    if progress is not None:
        progress(f"fitting {count(len(measured.steps), 'point')} of {measured.title}")
    return fit_smoothness(
        measured.losses,
        measured.curvatures,
        steps=measured.steps,
        f_star=options.f_star,
        quantile=options.quantile,
    )


def _attempt(
    measured: Measured, options: FitOptions, progress: Callable[[str], None] | None
) -> SmoothnessFit | None:
    """Fit a kind that was not asked about; None where that cannot be done."""
    try:
        return _fit(measured, options, progress)
    except ValueError:
        return None


def _say_warmup(fit: SmoothnessFit, measured: Measured, implied: Comparison) -> list[str]:
    said = []
    if fit.verdict != "describes":
        said.append(
            "What follows is what an envelope over the curvature allows, not what the theory explains."
        )
    scaled = "" if implied.peak is None else f", with a peak of {number(implied.peak)}"
    said.append(f"{implied.found.sentence.removesuffix('.')}; on the losses of this run{scaled}.")
    if implied.used is not None:
        was = f"a warmup of {count(implied.used, 'step')}" if implied.used else "no warmup"
        said.append(
            f"The run used {was}, counted up to {_whole(REACHED)} of the largest learning rate, as here."
        )
    if measured.is_preconditioned and implied.own_peak is not None:
        own = f"In its own units the envelope allows a learning rate of up to {number(implied.own_peak)}"
        if len(measured.lrs):
            largest = float(measured.lrs.max())
            own += (
                f"; the run's largest, {number(largest)}, is {number(largest / implied.own_peak)} times that"
            )
        said.append(f"{own}.")
    return said


def _tiles(fit: SmoothnessFit, implied: Comparison) -> tuple[Tile, ...]:
    low, high = fit.intervals["exponent"]
    interval = f"{_whole(fit.confidence)} interval {_span(low, high)}"
    exponent = Tile("Power of the gap, rho", number(fit.smoothness.exponent), interval)
    if fit.model == "floor":
        exponent = Tile("Power of the gap, rho", "none", "the envelope is a floor")
    used = "" if implied.used is None else f"used: {implied.used:,}"
    return (
        Tile("Verdict", fit.verdict, f"rank correlation with the gap {fit.correlation:.2f}"),
        exponent,
        Tile("Implied warmup, steps", f"{implied.warmup:,}", used),
    )


def _whole(share: float) -> str:
    return f"{100.0 * share:.0f} %"


def _span(low: float, high: float) -> str:
    return f"{number(low)} to {number(high)}"


def _constants(fit: SmoothnessFit, measured: Measured, implied: Comparison) -> Table:
    smooth, intervals = fit.smoothness, fit.intervals
    unit = "1 / learning rate" if measured.is_preconditioned else "of the curvature"
    correlations = (
        ("rank correlation with the gap", fit.correlation, intervals["correlation"]),
        ("the same, evenly over the gap", fit.even_correlation, intervals["even_correlation"]),
    )
    rows = [
        ("power of the gap, rho", number(smooth.exponent), _span(*intervals["exponent"]), ""),
        ("floor, K0", number(smooth.floor), _span(*intervals["floor"]), unit),
        ("growth, K_rho", number(smooth.growth), _span(*intervals["growth"]), f"{unit} / loss^rho"),
        *(
            (name, f"{value:.2f}", f"{low:.2f} to {high:.2f}", "")
            for name, value, (low, high) in correlations
        ),
        (
            "infimum, f*",
            number(fit.f_star),
            _span(*intervals["f_star"]) if "f_star" in intervals else "",
            "loss",
        ),
        ("loss saved over a floor, R1", percent(fit.explained), "", ""),
        ("points under the envelope", percent(fit.covered), "", ""),
        ("envelope over all early points", number(fit.slack), "", ""),
        ("factor to cover all points", number(fit.inflation), "", ""),
        ("largest gap with the peak", number(implied.rule.peak_gap), "", "loss"),
    ]
    if fit.model == "floor":
        rows = [row for row in rows if not row[0].startswith(("power", "growth", "largest"))]
    return Table(
        "constants",
        "Constants",
        f"The envelope over the curvatures, with {_whole(fit.confidence)} intervals of a block bootstrap",
        ("constant", "value", "interval", "unit"),
        tuple(rows),
        words=frozenset({"unit"}),
        notes="Intervals are within the chosen model, and too narrow for runs whose points are strongly correlated.",
    )


def _kinds(
    measured: Measured, fit: SmoothnessFit, compared: Sequence[tuple[Measured, SmoothnessFit | None]]
) -> Table:
    rows = [
        (
            each.title,
            "-" if found is None else found.verdict,
            "-" if found is None or found.model == "floor" else number(found.smoothness.exponent),
            "-" if found is None else f"{found.correlation:.2f}",
            f"{len(each.steps):,}",
        )
        for each, found in sorted(((measured, fit), *compared), key=lambda pair: KINDS.index(pair[0].kind))
    ]
    return Table(
        "kinds",
        "What other measures say",
        "The verdict on each kind of curvature in the record",
        ("curvature", "verdict", "rho", "rank correlation", "points"),
        tuple(rows),
        words=frozenset({"verdict"}),
        notes="A verdict that only one of them gives should be believed less. A hyphen: too few points, or a floor "
        "alone.",
    )


def _data(
    fit: SmoothnessFit,
    measured: Measured,
    implied: Comparison,
    compared: Sequence[tuple[Measured, SmoothnessFit | None]],
) -> dict[str, Any]:
    return {
        **described(fit),
        "curvature": measured.kind,
        "why": measured.why,
        "loss_of": measured.loss_of,
        "notes": measured.notes,
        "source": measured.facts,
        "rule": asdict(implied.rule),
        "implied": {
            "peak": implied.peak,
            "start": implied.found.start,
            "reached": implied.found.reached,
            "steps": implied.warmup,
            "of_largest": REACHED,
            "used_steps": implied.used,
            "own_peak": implied.own_peak,
        },
        "points": {
            "steps": fit.steps,
            "losses": fit.losses,
            "gaps": fit.gaps,
            "curvatures": fit.curvatures,
        },
        "others": [
            {"curvature": each.kind, **({"verdict": None} if found is None else described(found))}
            for each, found in compared
        ],
    }


def described(fit: SmoothnessFit) -> dict[str, Any]:
    """Return what a fit found, without its points, as plain values."""
    smooth = fit.smoothness
    return {
        "verdict": fit.verdict,
        "reasons": fit.reasons,
        "model": fit.model,
        "exponent": smooth.exponent,
        "floor": smooth.floor,
        "growth": smooth.growth,
        "f_star": fit.f_star,
        "quantile": fit.quantile,
        "confidence": fit.confidence,
        "intervals": fit.intervals,
        "explained": fit.explained,
        "correlation": fit.correlation,
        "covered": fit.covered,
        "inflation": fit.inflation,
        "number_of_points": len(fit.steps),
    }
