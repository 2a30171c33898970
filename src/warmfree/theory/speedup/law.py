"""A law through measured points, with an interval: which power of the initial gap, of the number of steps."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from warmfree.theory.speedup.results import Law

__all__ = ["Form", "fit_law"]

Floats = NDArray[np.float64]
Form = Literal["power", "logarithm"]


def fit_law(
    variable: ArrayLike,
    quantity: ArrayLike,
    *,
    names: tuple[str, str],
    form: Form = "power",
    logs: float = 0,
    predicted: float | None = None,
    samples: ArrayLike | Sequence[Floats] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Law:
    r"""Fit a straight line by least squares and resample it.

    .. math:: \ln(Q \ln^k V) = \text{intercept} + \text{slope} \ln V
        \qquad\text{or}\qquad Q \ln^k V = \text{intercept} + \text{slope} \ln V

    Args:
        variable: V, (n,), > 1; at least three different ones.
        quantity: Q, (n,), > 0.
        names: of the quantity and of the variable.
        form: "power" is the first, "logarithm" the second.
        logs: k.
        predicted: the slope of theory.
        samples: (b, n), b measurements of all quantities by other instances or seeds: bootstrap samples of what is
            random in them. None if nothing is.
        resamples: how often the points, and one of the samples, are drawn anew for the interval. Draws with fewer than
            three different points are repeated.
        seed: of the draws.

    Raises:
        ValueError: fewer than three points, or a number out of its range.

    Example:
        >>> law = fit_law([10.0, 100.0, 1000.0], [20.0, 200.0, 2000.0], names=("steps", "gap"))
        >>> round(law.slope, 6), round(law.low, 6), round(law.high, 6)
        (1.0, 1.0, 1.0)
    """
    variables, quantities = np.asarray(variable, np.float64), np.asarray(quantity, np.float64)
    if variables.shape != quantities.shape or np.unique(variables).size < 3:
        raise ValueError(
            f"a law needs at least three different points, got {variables.size} and {quantities.size} numbers"
        )
    if not (variables > 1.0).all() or not (quantities > 0.0).all() or not np.isfinite(quantities).all():
        raise ValueError("a law needs variables > 1 and quantities > 0, all finite")
    x = np.log(variables)

    def line(which: NDArray[np.intp], values: Floats) -> tuple[float, float]:
        y = values * x[which] ** logs
        slope, intercept = np.polyfit(x[which], np.log(y) if form == "power" else y, 1)
        return float(slope), float(intercept)

    every = np.arange(variables.size)
    slope, intercept = line(every, quantities)
    drawn = quantities[None] if samples is None else np.asarray(samples, np.float64)
    generator = np.random.default_rng(seed)
    slopes: list[float] = []
    while len(slopes) < resamples:
        which = generator.choice(every, every.size)
        if np.unique(which).size >= 3:
            slopes.append(line(which, drawn[generator.integers(len(drawn))][which])[0])
    low, high = np.quantile(slopes, (0.025, 0.975))
    return Law(
        quantity=names[0],
        variable=names[1],
        form=form,
        logs=logs,
        slope=slope,
        intercept=intercept,
        low=float(low),
        high=float(high),
        predicted=predicted,
        points=tuple((float(v), float(q)) for v, q in zip(variables, quantities, strict=True)),
    )
