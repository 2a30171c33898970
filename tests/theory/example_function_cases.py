"""The example functions once more, as formulas for sympy, and where to look at them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import sympy
from numpy.typing import NDArray

from warmfree.theory.function import Function
from warmfree.theory.functions import (
    CoshBowl,
    CurvedRiverValley,
    Exponential,
    ExponentialSum,
    Power,
    RegularisedTwoLayer,
    RiverValley,
    Separable,
    TwoLayer,
    make_function,
)

__all__ = ["CASES", "Case", "random_points"]

Floats = NDArray[np.float64]
X, Y, Z = sympy.symbols("x y z", real=True)
exp, cosh, sin, sqrt = sympy.exp, sympy.cosh, sympy.sin, sympy.sqrt


@dataclass(frozen=True)
class Case:
    """An example, its value as a formula of its variables, and where it is tight.

    Attributes:
        make: the function.
        formula: f(w), with exact numbers.
        tight: points where the curvature comes to the bound.
        fraction: of the bound that it comes to there; 1 but for roundings unless said otherwise.
        floor, growth: by which factor below 1 the constant fails somewhere; None where it does not matter.
    """

    make: Callable[[], Function]
    formula: sympy.Expr
    tight: Floats
    fraction: float = 1.0
    floor: float | None = 0.99
    growth: float | None = 0.99


def _rational(number: float) -> sympy.Rational:
    return sympy.Rational(str(number))


def _cosh(mu: float) -> sympy.Expr:
    return 2 * (cosh(X) - 1) + _rational(mu) / 2 * Y**2


def _logistic(rows: list[list[float]], labels: list[int]) -> sympy.Expr:
    margins = [
        label * (_rational(a) * X + _rational(b) * Y) for (a, b), label in zip(rows, labels, strict=True)
    ]
    return sum(sympy.log(1 + exp(-margin)) for margin in margins) / len(rows)


def _river(slope: float) -> sympy.Expr:
    return _rational(slope) * (sqrt(1 + Y**2) - 1)


def _line(values: Floats, direction: tuple[float, ...]) -> Floats:
    return values[:, None] * np.array(direction)


AWAY = np.geomspace(1e-3, 30.0, 100)
SEPARATED = [[3.0, 1.0], [-1.0, 2.0], [1.0, -2.0], [0.5, -1.5]], [1, 1, -1, -1]
OVERLAPPING = (
    [[2.0, 1.0], [1.0, 2.0], [-1.0, -1.0], [-2.0, -1.0], [-1.0, -2.0], [1.0, 1.0]],
    [1, 1, 1, -1, -1, -1],
)
STAR = exp(X) + exp(-X / 2 + sqrt(3) / 2 * Y) + exp(-X / 2 - sqrt(3) / 2 * Y)
TWO = (X * Y - 1) ** 2 / 2


def _bend(bend: float) -> Floats:
    """Away from the river, from where it turns as its constant says is the worst."""
    away = np.linspace(0.0, 30.0, 200)
    sine = (1.0 - 1.0 / CurvedRiverValley(bend=bend).smoothness.growth) / (2.0 * bend)
    return np.stack([bend * sine + away, np.full_like(away, np.arcsin(sine))], axis=-1)


def _regularised(target: float, decay: float) -> Floats:
    weight = np.sqrt(target + 0.5 * decay)
    return np.concatenate([[[weight, weight]], _line(np.geomspace(10.0, 1e6, 50), (1.0, 0.0))])


CASES: dict[str, Case] = {
    "cosh": Case(lambda: make_function("cosh"), _cosh(1.0), _line(AWAY, (1.0, 0.0))),
    "cosh, flat": Case(lambda: CoshBowl(mu=0.01), _cosh(0.01), _line(AWAY, (1.0, 0.0))),
    "cosh, round": Case(lambda: CoshBowl(mu=2.0), _cosh(2.0), _line(AWAY, (1.0, 0.0))),
    "power4": Case(lambda: make_function("power4"), X**4 / 4, AWAY[:, None], floor=None),
    "power6": Case(lambda: make_function("power6"), X**6 / 6, AWAY[:, None], floor=None),
    "power8, three": Case(
        lambda: Power(exponent=8.0, dimension=3),
        (X**8 + Y**8 + Z**8) / 8,
        _line(AWAY, (0.0, -1.0, 0.0)),
        floor=None,
    ),
    "exponential": Case(lambda: make_function("exponential"), exp(X), AWAY[:, None], floor=None),
    "exponential, falling": Case(
        lambda: Exponential(rate=-2.5), exp(-_rational(2.5) * X), -AWAY[:, None], floor=None
    ),
    "exponential-sum": Case(lambda: make_function("exponential-sum"), STAR, _line(AWAY, (1.0, 0.0))),
    "exponential-sum, vanishing": Case(
        lambda: ExponentialSum([[1.0, 0.0], [1.0, 1.0]], [2.0, 0.5]),
        2 * exp(X) + exp(X + Y) / 2,
        np.array([[0.0, 40.0]]),
        floor=None,
    ),
    "exponential-sum, uneven": Case(
        lambda: ExponentialSum([[1.0, 0.0], [-2.0, 1.0], [0.5, -1.0]], [3.0, 0.1, 1.0]),
        3 * exp(X) + exp(-2 * X + Y) / 10 + exp(X / 2 - Y),
        _line(np.linspace(0.0, 12.0, 200), (-2.0, 1.0)),
    ),
    "logistic": Case(
        lambda: make_function("logistic"),
        _logistic(*SEPARATED),
        _line(AWAY, (0.0, 1.0)),
        fraction=0.999999,
        floor=None,
    ),
    # Far from tight: the constant smoothness is the better bound.
    "logistic-overlapping": Case(
        lambda: make_function("logistic-overlapping"),
        _logistic(*OVERLAPPING),
        np.array([[0.16, 0.16], [0.29, 0.28]]),
        fraction=0.285,
        floor=0.25,
        growth=None,
    ),
    "two-layer": Case(lambda: make_function("two-layer"), TWO, _line(1.0 + AWAY, (1.0, 1.0))),
    "two-layer, far": Case(
        lambda: TwoLayer(target=50.0), (X * Y - 50) ** 2 / 2, _line(7.1 + AWAY, (1.0, 1.0))
    ),
    "regularised-two-layer": Case(
        lambda: make_function("regularised-two-layer"), TWO + (X**2 + Y**2) / 4, _regularised(1.0, 0.5)
    ),
    "regularised-two-layer, weakly": Case(
        lambda: RegularisedTwoLayer(target=3.0, decay=0.01),
        (X * Y - 3) ** 2 / 2 + (X**2 + Y**2) / 200,
        _regularised(3.0, 0.01),
    ),
    "regularised-two-layer, strongly": Case(
        lambda: RegularisedTwoLayer(target=0.5, decay=2.0),
        (X * Y - sympy.Rational(1, 2)) ** 2 / 2 + X**2 + Y**2,
        _regularised(0.5, 2.0),
    ),
    "river-valley": Case(
        lambda: make_function("river-valley"), 2 * (cosh(X) - 1) + _river(0.1), _line(AWAY, (1.0, 0.0))
    ),
    "river-valley, sharp": Case(
        lambda: RiverValley(height=0.5, sharpness=8.0, slope=0.01),
        cosh(8 * X) - 1 + _river(0.01),
        _line(AWAY / 8.0, (1.0, 0.0)),
    ),
    "curved-river-valley": Case(
        lambda: make_function("curved-river-valley"),
        2 * (cosh(X - sin(Y)) - 1) + _river(0.1),
        _bend(1.0),
        floor=0.98,
    ),
    "curved-river-valley, slightly": Case(
        lambda: CurvedRiverValley(bend=0.3, slope=0.01),
        2 * (cosh(X - sympy.Rational(3, 10) * sin(Y)) - 1) + _river(0.01),
        _bend(0.3),
        floor=0.98,
    ),
    "separable": Case(
        lambda: Separable(CoshBowl(), Exponential(rate=2.0)),
        _cosh(1.0) + exp(2 * Z),
        np.concatenate([[[0.0, 0.0, -400.0]], _line(AWAY, (0.0, 0.0, 1.0))]),
    ),
}


def random_points(function: Function, random: np.random.Generator, count: int) -> Floats:
    """Points at distances of many scales around the minimiser, or 0, inside the domain."""
    centre = np.zeros(function.dimension) if function.minimiser is None else function.minimiser
    directions = random.normal(size=(count, function.dimension))
    if not function.contains(directions).all():
        directions = np.repeat(directions[:, :1], function.dimension, axis=1)
        centre = np.full(function.dimension, centre[0])
    lengths = 10.0 ** random.uniform(-8.0, 1.5, (count, 1))
    return centre + lengths * directions / np.linalg.norm(directions, axis=1, keepdims=True)
