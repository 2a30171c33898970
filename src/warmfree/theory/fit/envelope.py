r"""Quantile regression of the logarithm of curvature: floor, power of the gap, and their sum.

The sum :math:`K_0 + K_\rho \Delta^\rho` is searched by its exponent and its rise, the logarithm of the envelope at the
largest gap over that at the smallest; :math:`K_0` is then a quantile in closed form. The two nearly do not depend on
each other, unlike the constants themselves, and at its ends the rise gives the models that are nested: 0 is the floor
alone, :math:`\rho \log(\Delta_{\max} / \Delta_{\min})` the power alone.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from warmfree.theory.fit.pinball import mean_pinball, profiled_quantile
from warmfree.theory.fit.search import least_loss

__all__ = ["MAX_EXPONENT", "MIN_EXPONENT", "Envelopes", "fit_floor", "fit_power", "fit_sum"]

Floats = NDArray[np.float64]

# Below the least exponent a power is a constant over any range that a run has (2 decades: a factor of 1.26); above the
# largest the envelope is a wall at the largest gaps.
MIN_EXPONENT, MAX_EXPONENT = 0.05, 4.0

_EXPONENTS = 18  # of the grid, evenly in log
_RISES = 22  # of the grid, evenly
# Of an envelope, in the range of the curvatures themselves: with more it is above all of them at one end.
_MOST_RISE = 1.25
_STEEPEST = 0.999  # rise of the sum over that of a power: there the floor is next to nothing


@dataclass(frozen=True, kw_only=True, eq=False)
class Envelopes:
    """Envelopes of the same points under several weightings, each of shape (B,).

    Attributes:
        exponent: rho; what it is without growth says nothing.
        floor: K0.
        growth: K_rho.
        loss: the mean pinball loss.
    """

    exponent: Floats
    floor: Floats
    growth: Floats
    loss: Floats

    def logarithm(self, log_gaps: Floats) -> Floats:
        """Return the logarithm of the envelopes at gaps, of shape (B, n)."""
        with np.errstate(divide="ignore"):
            floor, growth = np.log(self.floor)[:, None], np.log(self.growth)[:, None]
        return np.logaddexp(floor, growth + self.exponent[:, None] * log_gaps)

    def rise(self, low: float, high: float) -> Floats:
        """Return by how much the logarithm of the envelopes rises between two logarithms of gaps, of shape (B,)."""
        ends = self.logarithm(np.array([low, high]))
        rises: Floats = ends[:, 1] - ends[:, 0]
        return rises

    def losses_on(self, log_gaps: Floats, logs: Floats, weights: Floats, *, quantile: float) -> Floats:
        """Return the mean pinball loss of every envelope on the same points, of shape (B,)."""
        return mean_pinball(logs - self.logarithm(log_gaps), weights, quantile=quantile)


def fit_floor(logs: Floats, weights: Floats, *, quantile: float) -> Envelopes:
    """Return the envelope that does not depend on the gap: a quantile of the curvatures.

    Args:
        logs: logarithms of the curvatures, (n,).
        weights: of the points, (B, n).
        quantile: in (0, 1).
    """
    values, losses = profiled_quantile(logs, weights, quantile=quantile)
    return Envelopes(
        exponent=np.ones_like(values), floor=np.exp(values), growth=np.zeros_like(values), loss=losses
    )


def fit_power(
    log_gaps: Floats,
    logs: Floats,
    weights: Floats,
    *,
    quantile: float,
    refinements: int,
    reach: int = 3,
    near: Envelopes | None = None,
) -> Envelopes:
    """Return the power of the gap alone, searched by its exponent; arguments as for `fit_sum`."""
    top, width = log_gaps.max(), np.ptp(log_gaps)
    steepest = min(max(_MOST_RISE * np.ptp(logs) / width, MIN_EXPONENT * 1.01), MAX_EXPONENT)
    exponents = np.geomspace(MIN_EXPONENT, steepest, 2 * _EXPONENTS)
    grid = np.log(exponents)[:, None]
    if near is not None:
        grid = np.concatenate([grid, np.log(near.exponent)[:, None]])
    scaled = log_gaps - top

    def shapes(at: Floats) -> Floats:
        shape: Floats = np.exp(at[..., :1]) * scaled
        return shape

    found, values, losses = least_loss(
        grid,
        np.array([np.log(exponents[1] / exponents[0])]),
        shapes,
        (np.log([MIN_EXPONENT]), np.log([steepest])),
        logs=logs,
        weights=weights,
        quantile=quantile,
        refinements=refinements,
        reach=reach,
    )
    exponent = np.exp(found[:, 0])
    return Envelopes(
        exponent=exponent,
        floor=np.zeros_like(values),
        growth=np.exp(values - exponent * top),
        loss=losses,
    )


def fit_sum(
    log_gaps: Floats,
    logs: Floats,
    weights: Floats,
    *,
    quantile: float,
    refinements: int,
    reach: int = 3,
    near: Envelopes | None = None,
    sparse: bool = False,
) -> Envelopes:
    """Return floor and power together.

    Args:
        log_gaps: logarithms of the gaps, (n,), not all the same.
        logs: logarithms of the curvatures, (n,), not all the same.
        weights: of the points, (B, n); every row is a fit of its own.
        quantile: in (0, 1): the share of the weight that is to lie under the envelope.
        refinements: how often the search looks nearer around what it found; each halves the error.
        reach: how many cells around it that is.
        near: an envelope found before, which the search looks at too.
        sparse: with a quarter of the grid.
    """
    top = log_gaps.max()
    scaled = log_gaps - top
    width = -scaled.min()

    def part(at: Floats) -> tuple[Floats, Floats]:
        """Return exponents and the power's part of the envelope over the floor's, at the largest gap."""
        exponent = np.exp(at[..., 0])
        rise = np.minimum(at[..., 1], _STEEPEST * exponent * width)
        return exponent, np.expm1(rise) / -np.expm1(rise - exponent * width)

    def shapes(at: Floats) -> Floats:
        exponent, ratio = part(at)
        shape: Floats = np.log1p(ratio[..., None] * np.exp(exponent[..., None] * scaled))
        return shape

    fewer = 2 if sparse else 1
    exponents = np.log(np.geomspace(MIN_EXPONENT, MAX_EXPONENT, _EXPONENTS // fewer))
    rises = np.linspace(0.0, _MOST_RISE * np.ptp(logs), _RISES // fewer)
    grid = np.stack(np.meshgrid(exponents, rises, indexing="ij"), axis=-1).reshape(-1, 2)
    grid = grid[grid[:, 1] - (rises[1] - rises[0]) < _STEEPEST * np.exp(grid[:, 0]) * width]
    if near is not None:
        known = np.stack([np.log(near.exponent), near.rise(log_gaps.min(), top)], axis=-1)
        grid = np.concatenate([grid, known])
    found, values, losses = least_loss(
        grid,
        np.array([exponents[1] - exponents[0], rises[1] - rises[0]]),
        shapes,
        (np.array([exponents[0], 0.0]), np.array([exponents[-1], rises[-1]])),
        logs=logs,
        weights=weights,
        quantile=quantile,
        refinements=refinements,
        reach=reach,
    )
    exponent, ratio = part(found)
    return Envelopes(
        exponent=exponent,
        floor=np.exp(values),
        growth=ratio * np.exp(values - exponent * top),
        loss=losses,
    )
