"""Synthetic runs: losses that fall, and curvatures with a known envelope."""

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def correlated_noise(points: int, correlation: float, rng: np.random.Generator) -> Floats:
    """A first-order autoregression with standard deviation 1."""
    noise = rng.normal(size=points)
    for i in range(1, points):
        noise[i] = correlation * noise[i - 1] + np.sqrt(1.0 - correlation**2) * noise[i]
    return noise


def falling_losses(points: int, rng: np.random.Generator, *, late: bool = False) -> Floats:
    """From 10 to 0.05, evenly in log or with most points late, and noise of 10 %."""
    time = np.arange(points) / points
    falls = 0.05 + 9.95 / (1.0 + 60.0 * time) ** 1.5 if late else 10.0 * (0.05 / 10.0) ** time
    return falls * np.exp(0.1 * rng.normal(size=points))


def synthetic_run(
    curvature: Callable[[Floats], Floats],
    *,
    points: int = 100,
    noise: float = 0.1,
    correlation: float = 0.0,
    seed: int = 0,
    late: bool = False,
) -> tuple[Floats, Floats]:
    """Losses, and curvatures with lognormal noise."""
    rng = np.random.default_rng(seed)
    losses = falling_losses(points, rng, late=late)
    return losses, curvature(losses) * np.exp(noise * correlated_noise(points, correlation, rng))


def raised(quantile: float, noise: float) -> float:
    """The factor by which the quantile of the noise lies above its middle."""
    return float(np.exp(NormalDist().inv_cdf(quantile) * noise))


def two_phased(early: float, late: float) -> Callable[[Floats], Floats]:
    """A curvature that falls by a factor until the median of the gap, and grows by another one below it."""

    def curvature(gaps: Floats) -> Floats:
        logs = np.log(gaps)
        middle = np.median(logs)
        above = np.log(early) * (logs - middle) / (logs.max() - middle)
        below = np.log(late) * (middle - logs) / (middle - logs.min())
        return np.exp(np.where(logs > middle, above, below))

    return curvature
