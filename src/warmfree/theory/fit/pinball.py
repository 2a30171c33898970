"""The loss whose minimiser is a quantile, for many candidates and many weightings of the points at once."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["mean_pinball", "profiled_quantile"]

Floats = NDArray[np.float64]

_ROUNDING = 1e-12  # by which a sum of weights may miss the share that it stands for


def profiled_quantile(residuals: Floats, weights: Floats, *, quantile: float) -> tuple[Floats, Floats]:
    r"""Return the weighted quantile of residuals, and the mean pinball loss around it, which no constant has lower.

    .. math::
        \min_q \frac{\sum_i w_i \varrho_\tau(r_i - q)}{\sum_i w_i}, \qquad
        \varrho_\tau(u) = u\,(\tau - \mathbb{1}[u < 0])

    Args:
        residuals: r, of shape (..., n).
        weights: w, at least 0 and not all 0, of a shape (..., n) that broadcasts with that of the residuals: the
            residuals are sorted once, however many weightings there are.
        quantile: tau, in (0, 1).

    Returns:
        q and the loss, each of the broadcast shape without its last axis.

    Example:
        >>> values, losses = profiled_quantile(np.array([3.0, 1.0, 2.0, 4.0]), np.ones(4), quantile=0.75)
        >>> float(values), float(losses)
        (3.0, 0.375)

    Reference: Koenker & Bassett 1978.
    """
    order = np.argsort(residuals, axis=-1)
    ordered = np.take_along_axis(residuals, order, axis=-1)
    shape = np.broadcast_shapes(residuals.shape, weights.shape)
    sorted_weights = np.take_along_axis(
        np.broadcast_to(weights, shape), np.broadcast_to(order, shape), axis=-1
    )
    below = np.cumsum(sorted_weights, axis=-1)
    total = below[..., -1]
    at = (below < (quantile * (1.0 - _ROUNDING)) * total[..., None]).sum(axis=-1)[..., None]
    values = np.take_along_axis(np.broadcast_to(ordered, shape), at, axis=-1)[..., 0]
    np.multiply(sorted_weights, ordered, out=sorted_weights)
    moments = np.cumsum(sorted_weights, axis=-1)
    share, moment = (np.take_along_axis(sums, at, axis=-1)[..., 0] for sums in (below, moments))
    losses = quantile * (moments[..., -1] - values * total) - (moment - values * share)
    return values, np.maximum(losses / total, 0.0)


def mean_pinball(residuals: Floats, weights: Floats, *, quantile: float) -> Floats:
    """Return the weighted mean pinball loss of residuals (..., n) as they are, of shape (...)."""
    losses = residuals * (quantile - (residuals < 0.0))
    mean: Floats = (losses * weights).sum(axis=-1) / weights.sum(axis=-1)
    return mean
