"""Functions with drawn parameters, rules that only tests need, and functions that claim more than they have."""

import copy
import math
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from warmfree.theory.function import Function
from warmfree.theory.functions import (
    CoshBowl,
    CurvedRiverValley,
    Exponential,
    ExponentialSum,
    Logistic,
    Power,
    RegularisedTwoLayer,
    RiverValley,
    Separable,
    TwoLayer,
)
from warmfree.theory.smoothness import Smoothness
from warmfree.theory.steps import State, StepRule

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Fraction(StepRule):
    """A multiple of 1/l(gap), for each run its own."""

    multiple: Floats
    name = "multiple of 1/l"

    def __call__(self, state: State) -> Floats:
        return self.multiple / state.function.smoothness.curvature(state.gap)


@dataclass(frozen=True, eq=False)
class Listed(StepRule):
    """Learning rates from a table, (T, n)."""

    rates: Floats
    name = "listed"

    def __call__(self, state: State) -> Floats:
        return self.rates[state.step][state.runs]


class Barrier(Function):
    """x^-k for x > 0: rho = 1 + 2/k is above 1, with equality everywhere; the infimum lies at infinity."""

    def __init__(self, power: float) -> None:
        self.power = power
        self.name = "barrier"
        self.dimension = 1
        self.infimum = 0.0
        self.smoothness = Smoothness(exponent=1.0 + 2.0 / power, floor=0.0, growth=power * (power + 1.0))
        self.minimiser = None
        self.is_convex = True
        self.pl = None

    def contains(self, points: Floats) -> NDArray[np.bool_]:
        return points[..., 0] > 0.0

    def gap(self, points: Floats) -> Floats:
        return np.abs(points[..., 0]) ** -self.power

    def gradient(self, points: Floats) -> Floats:
        return -self.power * np.sign(points) * np.abs(points) ** (-self.power - 1.0)

    def hessian(self, points: Floats) -> Floats:
        return (self.power * (self.power + 1.0) * np.abs(points) ** (-self.power - 2.0))[..., None]


def line(scale: float = 1.0) -> Function:
    """2 (cosh(s x) - 1): attains its smoothness everywhere, and has mu = 2 s^2, its curvature at the minimum."""
    return claiming(ExponentialSum([[scale], [-scale]]), pl=2.0 * scale**2)


def claiming(function: Function, **claims: object) -> Function:
    """The same function, which says of itself what the claims say."""
    changed = copy.copy(function)
    for name, value in claims.items():
        setattr(changed, name, value)
    return changed


def understated(function: Function, share: float) -> Function:
    """The function with constants of its smoothness that are smaller by a share."""
    known = function.smoothness
    less = Smoothness(
        exponent=known.exponent, floor=known.floor * (1.0 - share), growth=known.growth * (1.0 - share)
    )
    return claiming(function, smoothness=less)


def starts_of(function: Function, runs: int, generator: np.random.Generator) -> Floats:
    """Starts from very near to the origin to far up, in the function's domain."""
    size = 10.0 ** generator.uniform(-4.0, 1.2, size=(runs, 1))
    points = size * generator.normal(size=(runs, function.dimension))
    if isinstance(function, TwoLayer):
        points[:] = points[:, :1]
    elif isinstance(function, Barrier):
        points = np.maximum(np.abs(points), 1e-3)
    elif isinstance(function, Separable):
        ends = np.cumsum([part.dimension for part in function.functions])
        for part, block in zip(function.functions, np.split(points, ends[:-1], axis=1), strict=True):
            block[:] = starts_of(part, runs, generator)
    return points


def _numbers(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(math.log(low), math.log(high)).map(math.exp)


def _separable(seed: int) -> Logistic:
    generator = np.random.default_rng(seed)
    direction, features = generator.normal(size=3), generator.normal(size=(8, 3))
    return Logistic(features, np.where(features @ direction > 0.0, 1, -1))


def _overlapping(seed: int) -> Logistic:
    features = np.random.default_rng(seed).normal(size=(6, 2))
    return Logistic(np.concatenate([features, features]), [1] * 6 + [-1] * 6)


def _sum(seed: int) -> ExponentialSum:
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(5, 2))
    vectors = np.concatenate([vectors, -vectors.sum(axis=0, keepdims=True)])
    return ExponentialSum(vectors, np.exp(generator.normal(size=6)))


SEEDS = st.integers(0, 2**32 - 1)
FAMILIES: dict[str, st.SearchStrategy[Function]] = {
    "cosh": _numbers(1e-3, 2.0).map(lambda mu: CoshBowl(mu=mu)),
    "line": _numbers(0.1, 5.0).map(line),
    "power": st.builds(
        lambda exponent, dimension: Power(exponent=exponent, dimension=dimension),
        _numbers(2.05, 12.0),
        st.integers(1, 3),
    ),
    "exponential": _numbers(0.1, 5.0).map(lambda rate: Exponential(rate=-rate)),
    "barrier": _numbers(0.2, 4.0).map(Barrier),
    "exponential sum": SEEDS.map(_sum),
    "separable logistic": SEEDS.map(_separable),
    "overlapping logistic": SEEDS.map(_overlapping),
    "two layers": _numbers(0.1, 10.0).map(lambda target: TwoLayer(target=target)),
    "two layers, decayed": st.builds(
        lambda target, decay: RegularisedTwoLayer(target=target, decay=decay),
        _numbers(0.1, 5.0),
        _numbers(0.05, 5.0),
    ),
    "river": st.builds(
        lambda height, sharpness, slope: RiverValley(
            height=height, sharpness=sharpness, slope=slope * 2.0 * height * sharpness**2
        ),
        _numbers(0.1, 10.0),
        _numbers(0.1, 5.0),
        _numbers(1e-3, 0.999),
    ),
    "curved river": st.builds(
        lambda bend, slope: CurvedRiverValley(bend=bend, slope=slope),
        _numbers(0.01, 3.0),
        _numbers(1e-3, 2.0),
    ),
    "side by side": st.builds(
        lambda mu, target: Separable(CoshBowl(mu=mu), TwoLayer(target=target)),
        _numbers(1e-2, 2.0),
        _numbers(0.1, 10.0),
    ),
}
