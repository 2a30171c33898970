"""The smoothness of a run from points of loss and curvature."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from warmfree.theory.fit.envelope import MAX_EXPONENT, MIN_EXPONENT
from warmfree.theory.fit.models import RunModels, fit_run
from warmfree.theory.fit.points import checked_points, even_weights, third
from warmfree.theory.fit.ranks import spearman, two_phases, whole_run
from warmfree.theory.fit.resample import interval
from warmfree.theory.fit.result import SmoothnessFit
from warmfree.theory.fit.selection import ModelName, chosen_model, gain
from warmfree.theory.fit.verdict import Evidence, verdict
from warmfree.theory.smoothness import Smoothness

__all__ = ["fit_smoothness"]

Floats = NDArray[np.float64]

_TOUCHING = 1e-9  # by which a point may exceed the envelope that goes through it: rounding


def fit_smoothness(
    losses: ArrayLike,
    curvatures: ArrayLike,
    *,
    steps: Sequence[int] | NDArray[np.integer] | None = None,
    f_star: float | Literal["estimate"] = 0.0,
    quantile: float = 0.95,
    resamples: int = 200,
    confidence: float = 0.9,
    seed: int = 0,
    drop_invalid: bool = False,
) -> SmoothnessFit:
    r"""Fit an envelope of (rho, K0, K_rho)-smoothness to points of one run.

    .. math::
        \min_{K_0, K_\rho, \rho} \sum_i w_i \varrho_\tau\big(\log L_i - \log(K_0 + K_\rho \Delta_i^\rho)\big), \qquad
        \varrho_\tau(u) = u\,(\tau - \mathbb{1}[u < 0])

    quantile regression of the logarithm of curvature, so that tau of the weight lies under the envelope and a few
    outliers do not raise it; `SmoothnessFit.inflation` says what covering all would take. Floor alone and power alone
    are fitted too, and the simplest that the points do not reject is taken. The paper shows such points and leaves the
    fit open: all of it is ours.

    - Points weigh less where there are many at similar gaps: most lie late, at small gaps, and a warmup is about the
      early ones; see `warmfree.theory.fit.points.fit_weights`.
    - Intervals are from a bootstrap that weighs blocks of consecutive points, as long as the residuals' correlation
      asks for. They are too narrow: those of 90 % hold a constant (rho of 1 or 2, 150 points) in 80 to 92 of 100 runs
      if the noise is independent and the points lie evenly over log gap, in 63 to 91 if few lie at large gaps, and in
      44 to 76 if the noise is correlated by 0.8 from point to point; for rho = 1/2 in as few as 16.
    - ``f_star="estimate"`` chooses among 14 infima between 0 (for losses > 0) and the smallest loss the one whose
      envelope fits best. The points say little of it, and for rho = 1 with a floor nothing: read its interval.

    Args:
        losses: of the points, (n,), at least 12; of the same objective as the curvature.
        curvatures: spectral norm or largest eigenvalue of the Hessian there, (n,), > 0, in any one unit.
        steps: of the points, distinct; sorted here. None: 0, 1, ...
        f_star: infimum of the loss, below all losses; or "estimate".
        quantile: tau, in [0.5, 1).
        resamples: of the bootstrap, at least 20.
        confidence: of the intervals, in (0, 1).
        seed: of the bootstrap.
        drop_invalid: leave out points that are not finite or whose curvature is not > 0, and count them.

    Raises:
        ValueError: an argument is out of its range, points are not finite or have a curvature that is not > 0, fewer
            than 12 are left, or a loss is not above f_star.

    Example:
        >>> losses = np.geomspace(10.0, 0.1, 40)
        >>> fit = fit_smoothness(losses, 2.0 + losses)  # as along 2 (cosh x - 1)
        >>> fit.verdict, fit.model, round(fit.smoothness.exponent, 4), round(fit.smoothness.floor, 4)
        ('describes', 'sum', 1.0, 2.0)
        >>> round(fit.rule().peak, 4)
        0.25

    Reference: Liu et al. 2025, for the smoothness; Koenker & Bassett 1978, for quantile regression.
    """
    _check(quantile=quantile, resamples=resamples, confidence=confidence)
    points = checked_points(losses, curvatures, steps=steps, drop=drop_invalid)
    run = fit_run(points, f_star, quantile=quantile, resamples=resamples, seed=seed)
    model = chosen_model(run.fits, run.resampled, confidence=confidence)
    envelope = run.fits.envelopes[model]
    smoothness = Smoothness(
        exponent=float(envelope.exponent[0]), floor=float(envelope.floor[0]), growth=float(envelope.growth[0])
    )
    over = points.curvatures / smoothness.curvature(run.gaps)
    evidence = _evidence(run, model, smoothness, over, confidence=confidence)
    word, reasons = verdict(evidence)
    return SmoothnessFit(
        smoothness=smoothness,
        model=model,
        f_star=run.f_star,
        quantile=quantile,
        confidence=confidence,
        steps=points.steps,
        losses=points.losses,
        gaps=run.gaps,
        curvatures=points.curvatures,
        intervals=evidence.intervals,
        explained=evidence.explained,
        correlation=evidence.correlation,
        even_correlation=evidence.even_correlation,
        covered=float((over <= 1.0 + _TOUCHING).mean()),
        slack=evidence.slack,
        inflation=max(float(over.max()), 1.0),
        phases=evidence.phases,
        block=run.block,
        dropped=points.dropped,
        spikes=run.spikes,
        verdict=word,
        reasons=(*reasons, *_notes(run, evidence.intervals, confidence=confidence)),
    )


def _check(*, quantile: float, resamples: int, confidence: float) -> None:
    if not 0.5 <= quantile < 1.0:
        raise ValueError(
            f"quantile must be in [0.5, 1), got {quantile!r}: an envelope lies above most points"
        )
    if isinstance(resamples, bool) or not isinstance(resamples, int) or resamples < 20:
        raise ValueError(f"resamples must be an int of at least 20, got {resamples!r}")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be in (0, 1), got {confidence!r}")


def _evidence(
    run: RunModels, model: ModelName, smoothness: Smoothness, over: Floats, *, confidence: float
) -> Evidence:
    """Return what the verdict follows from; `over` is curvature over the envelope."""
    gaps, curvatures, steps = run.gaps, run.points.curvatures, run.points.steps
    first = gaps >= min(0.5 * gaps.max(), np.sort(gaps)[-3])
    low, high = third(gaps)
    return Evidence(
        model=model,
        exponent=smoothness.exponent,
        explained=float(gain(run.fits, model, "floor")[0]),
        range=high / low,
        rise=float(smoothness.curvature(high) / smoothness.curvature(low)),
        slack=1.0 / float(over[first].max()),
        whole_rise=float(run.fits.rises["sum"][0]),
        whole_rises=interval(run.resampled.rises["sum"], confidence=confidence),
        correlation=float(spearman(gaps, curvatures)),
        even_correlation=float(spearman(gaps, curvatures, weights=even_weights(gaps))),
        intervals=_intervals(run, model, confidence=confidence),
        whole=whole_run(steps, np.log(gaps), np.log(curvatures)),
        phases=two_phases(steps, np.log(gaps), np.log(curvatures)),
        confidence=confidence,
    )


def _intervals(run: RunModels, model: ModelName, *, confidence: float) -> dict[str, tuple[float, float]]:
    envelopes, curvatures = run.resampled.envelopes[model], run.points.curvatures
    drawn = {
        "exponent": envelopes.exponent,
        "floor": envelopes.floor,
        "growth": envelopes.growth,
        "correlation": spearman(run.gaps, curvatures, multipliers=run.multipliers),
        "even_correlation": spearman(
            run.gaps, curvatures, weights=even_weights(run.gaps), multipliers=run.multipliers
        ),
    }
    if run.infima is not None:
        drawn["f_star"] = run.infima
    found = {name: interval(values, confidence=confidence) for name, values in drawn.items()}
    if model == "floor":
        found["exponent"] = (MIN_EXPONENT, MAX_EXPONENT)
    return found


def _notes(
    run: RunModels, intervals: Mapping[str, tuple[float, float]], *, confidence: float
) -> tuple[str, ...]:
    said = []
    if run.infima is not None:
        low, high = intervals["f_star"]
        said.append(
            f"f_star was estimated as {run.f_star:.3g}; resamples chose between {low:.3g} and {high:.3g} "
            f"({100.0 * confidence:.0f} % interval). Points identify it weakly, and for rho = 1 with a floor not at "
            "all, where it trades for the floor: give the infimum if you know it."
        )
    if run.spikes:
        said.append(
            f"{run.spikes} isolated points are far above the envelope and were set aside, but for the inflation that "
            "covers all points."
        )
    if run.points.dropped:
        said.append(f"{run.points.dropped} points were left out: not finite, or a curvature not > 0.")
    return tuple(said)
