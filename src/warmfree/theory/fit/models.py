"""The models of a run, fitted to its points and to their resamples, and with its infimum if that is not known."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from warmfree.theory.fit.envelope import Envelopes
from warmfree.theory.fit.infimum import best_infima, candidate_infima
from warmfree.theory.fit.points import Points, checked_gaps, fit_weights, isolated_spikes
from warmfree.theory.fit.resample import block_length, block_weights
from warmfree.theory.fit.selection import ModelFits, fit_models

__all__ = ["RunModels", "fit_run"]

Floats = NDArray[np.float64]

_REFINEMENTS = 20  # of the fit: the exponent to 1e-6
_REACH = 6
_REFINEMENTS_OF_RESAMPLES = 8  # to 1e-3: with 3, half of them stay at the fit itself
_REACH_OF_RESAMPLES = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class RunModels:
    """What was fitted to a run.

    Attributes:
        points: of the run.
        gaps: over f*, (n,).
        f_star: given, or the best of the candidates.
        infima: of the resamples, (B,); None if it was given.
        weights: of the points, (n,), with sum 1; 0 for spikes.
        spikes: how many points were set aside.
        multipliers: of the weights in the resamples, (B, n).
        block: points that have a multiplier in common.
        fits: to the points, B = 1.
        resampled: to the resamples.
    """

    points: Points
    gaps: Floats
    f_star: float
    infima: Floats | None
    weights: Floats
    spikes: int
    multipliers: Floats
    block: int
    fits: ModelFits
    resampled: ModelFits


def fit_run(points: Points, f_star: float | str, *, quantile: float, resamples: int, seed: int) -> RunModels:
    """Fit the three models to a run and to its resamples; arguments as for `fit_smoothness`."""
    logs = np.log(points.curvatures)
    infima = _candidates(points, f_star)
    weights = fit_weights(points.losses - infima[0])
    place, near = 0, None
    if isinstance(f_star, str):
        best, near = best_infima(points, infima, weights[None], quantile=quantile, near=None)
        place = int(best[0])
    gaps = points.losses - infima[place]
    fits = _fitted(gaps, logs, weights, quantile=quantile)
    residuals = logs - fits.envelopes["sum"].logarithm(np.log(gaps))[0]
    spikes = isolated_spikes(residuals)
    if spikes.any():
        weights = np.where(spikes, 0.0, weights) / weights[~spikes].sum()
        fits = _fitted(gaps, logs, weights, quantile=quantile)
        residuals = np.where(spikes, 0.0, logs - fits.envelopes["sum"].logarithm(np.log(gaps))[0])
    block = block_length(residuals)
    multipliers = block_weights(gaps.size, length=block, resamples=resamples, rng=np.random.default_rng(seed))
    which = np.zeros(resamples, np.int64)
    if near is not None:
        which, _ = best_infima(points, infima, multipliers * weights, quantile=quantile, near=near)
    parts, orders = [], []
    for number in np.unique(which):
        order = np.flatnonzero(which == number)
        parts.append(
            fit_models(
                np.log(points.losses - infima[number]),
                logs,
                multipliers[order] * weights,
                base=weights,
                quantile=quantile,
                refinements=_REFINEMENTS_OF_RESAMPLES,
                reach=_REACH_OF_RESAMPLES,
                near=fits,
            )
        )
        orders.append(order)
    return RunModels(
        points=points,
        gaps=gaps,
        f_star=float(infima[place]),
        infima=None if near is None else infima[which],
        weights=weights,
        spikes=int(spikes.sum()),
        multipliers=multipliers,
        block=block,
        fits=fits,
        resampled=_joined(parts, np.concatenate(orders)),
    )


def _fitted(gaps: Floats, logs: Floats, weights: Floats, *, quantile: float) -> ModelFits:
    return fit_models(
        np.log(gaps),
        logs,
        weights[None],
        base=weights,
        quantile=quantile,
        refinements=_REFINEMENTS,
        reach=_REACH,
    )


def _joined(parts: Sequence[ModelFits], order: NDArray[np.int64]) -> ModelFits:
    """Return fits of several groups of resamples as one, `order` saying which resample each one is."""
    back = np.argsort(order)
    names = list(parts[0].envelopes)
    fields = ("exponent", "floor", "growth", "loss")
    return ModelFits(
        envelopes={
            name: Envelopes(
                **{
                    field: np.concatenate([getattr(part.envelopes[name], field) for part in parts])[back]
                    for field in fields
                }
            )
            for name in names
        },
        rises={name: np.concatenate([part.rises[name] for part in parts])[back] for name in names},
        losses={name: np.concatenate([part.losses[name] for part in parts])[back] for name in names},
    )


def _candidates(points: Points, f_star: float | str) -> Floats:
    """Return the infima to choose from, from the lowest up."""
    if isinstance(f_star, str):
        if f_star != "estimate":
            raise ValueError(f"f_star must be a number or 'estimate', got {f_star!r}")
        return candidate_infima(points)
    checked_gaps(points, float(f_star))
    return np.array([float(f_star)])
