"""What another run of the same kind might have shown: a bootstrap of the points of a run in blocks."""

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["autocorrelation", "block_length", "block_weights", "interval"]

Floats = NDArray[np.float64]

_MIN_BLOCKS = 8  # of a run: with fewer the resamples hardly differ in more than scale


def autocorrelation(residuals: Floats) -> float:
    """Return how much residuals have in common with the next one, in [0, 0.98], with Kendall's correction for bias.

    Args:
        residuals: in the order of the steps, (n,), n > 4.

    Reference: Kendall 1954, for the bias.
    """
    centred = residuals - residuals.mean()
    spread = float((centred**2).sum())
    if not spread > 0.0:
        return 0.0
    found = float((centred[1:] * centred[:-1]).sum()) / spread
    return min(max((residuals.size * found + 1.0) / (residuals.size - 4.0), 0.0), 0.98)


def block_length(residuals: Floats) -> int:
    r"""Return how many consecutive points go into a block.

    .. math:: \Big(\frac{3}{2}\Big)^{1/3} \Big(\frac{2 \varphi}{1 - \varphi^2}\Big)^{2/3} n^{1/3}

    at least 1 and at most an eighth of the points, phi the autocorrelation of the residuals from one point to the next.
    The formula is that for means of a first-order autoregression; that points of a run are unevenly spaced is left out.

    Args:
        residuals: of the envelope, in the order of the steps, (n,).

    Reference: Carlstein 1986; Hall, Horowitz & Jing 1995 for overlapping blocks. The limits are our choice.
    """
    phi = autocorrelation(residuals)
    length = 1.5 ** (1 / 3) * (2.0 * phi / (1.0 - phi**2)) ** (2 / 3) * residuals.size ** (1 / 3)
    return int(max(1, min(math.ceil(length), residuals.size // _MIN_BLOCKS)))


def block_weights(points: int, *, length: int, resamples: int, rng: np.random.Generator) -> Floats:
    """Return how much every point weighs in each resample, (resamples, points).

    All points of a block have the same weight, from the exponential distribution, and the first block of a resample is
    of a random length. With multinomial counts a third of the resamples would lack the first block, and with it the
    large gaps; here each resample has all of it, more or less.

    Reference: Rubin 1981, the Bayesian bootstrap; in blocks it is our choice.
    """
    offsets = rng.integers(length, size=resamples)
    blocks = (np.arange(points) + offsets[:, None]) // length
    weights = rng.exponential(size=(resamples, int(blocks.max()) + 1))
    return np.take_along_axis(weights, blocks, axis=1)


def interval(values: Floats, *, confidence: float) -> tuple[float, float]:
    """Return the central interval that holds a share of the values."""
    low, high = np.quantile(values, [0.5 - 0.5 * confidence, 0.5 + 0.5 * confidence])
    return float(low), float(high)
