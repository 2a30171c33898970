r"""The infimum of the loss as one more constant of the fit: how little the points say of it.

For :math:`\rho = 1` with a floor nothing at all: :math:`K_0 + K_1 (L - f^*)` is the same line for every :math:`f^*`.
For other exponents the bend of the envelope in logarithms depends on it.
"""

import numpy as np
from numpy.typing import NDArray

from warmfree.theory.fit.envelope import Envelopes, fit_sum
from warmfree.theory.fit.points import Points

__all__ = ["best_infima", "candidate_infima"]

Floats = NDArray[np.float64]

_CANDIDATES = 14
_NEAREST = (
    0.02  # of the way from the smallest loss to the bound: nearer, a single point has most of the range
)
_TIE = 1e-9  # mean pinball loss in logarithms that is no better


def candidate_infima(points: Points) -> Floats:
    """Return infima to try, from the lowest up, evenly in the logarithm of their distance from the smallest loss.

    The lowest is 0 for losses that are all above 0; else as far below the smallest loss as the largest is above it.
    """
    least, largest = float(points.losses.min()), float(points.losses.max())
    room = least if least > 0.0 else max(largest - least, abs(least))
    if room == 0.0:
        raise ValueError("f_star cannot be estimated from losses that are all 0; give a number below 0")
    candidates: Floats = least - room * np.geomspace(1.0, _NEAREST, _CANDIDATES)
    return candidates


def best_infima(
    points: Points, candidates: Floats, weights: Floats, *, quantile: float, near: list[Envelopes] | None
) -> tuple[NDArray[np.int64], list[Envelopes]]:
    """Return the number of the candidate with the least loss under every weighting, (B,), and the fits to each.

    Of candidates that are equally good, the lowest.

    Args:
        points: of the run.
        candidates: infima, from the lowest up.
        weights: (B, n), the same for all candidates, or their losses could not be compared.
        quantile: in (0, 1).
        near: for every candidate the fit to the points, if these are resamples; then the search is a rougher one.
    """
    logs = np.log(points.curvatures)
    fits = [
        fit_sum(
            np.log(points.losses - f_star),
            logs,
            weights,
            quantile=quantile,
            refinements=20 if near is None else 1,
            reach=6 if near is None else 3,
            near=None if near is None else near[place],
            sparse=near is not None,
        )
        for place, f_star in enumerate(candidates)
    ]
    losses = np.stack([fit.loss for fit in fits])
    return (losses <= losses.min(axis=0) + _TIE).argmax(axis=0), fits
