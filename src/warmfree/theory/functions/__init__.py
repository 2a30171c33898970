"""Example functions with known constants; `FUNCTIONS` has one of each kind by name."""

from collections.abc import Callable

import numpy as np

from warmfree.theory.function import Function
from warmfree.theory.functions.cosh import CoshBowl
from warmfree.theory.functions.exponential import Exponential, ExponentialSum
from warmfree.theory.functions.logistic import Logistic
from warmfree.theory.functions.power import Power
from warmfree.theory.functions.separable import Separable
from warmfree.theory.functions.two_layer import RegularisedTwoLayer, TwoLayer
from warmfree.theory.functions.valley import CurvedRiverValley, RiverValley

__all__ = [
    "FUNCTIONS",
    "CoshBowl",
    "CurvedRiverValley",
    "Exponential",
    "ExponentialSum",
    "Logistic",
    "Power",
    "RegularisedTwoLayer",
    "RiverValley",
    "Separable",
    "TwoLayer",
    "make_function",
]


def _star() -> Function:
    """Three unit vectors with equal angles: the sum of exponentials has its minimum, 3, at 0."""
    angles = np.array([0.0, 2.0, 4.0]) * np.pi / 3.0
    return ExponentialSum(np.stack([np.cos(angles), np.sin(angles)], axis=1))


def _separated() -> Function:
    """The second coordinate separates the classes, with the smallest margin at the longest vector."""
    return Logistic([[3.0, 1.0], [-1.0, 2.0], [1.0, -2.0], [0.5, -1.5]], [1, 1, -1, -1])


def _overlapping() -> Function:
    """No line separates the classes: each has a sample amid the other's."""
    features = [[2.0, 1.0], [1.0, 2.0], [-1.0, -1.0], [-2.0, -1.0], [-1.0, -2.0], [1.0, 1.0]]
    return Logistic(features, [1, 1, 1, -1, -1, -1])


FUNCTIONS: dict[str, Callable[[], Function]] = {
    "cosh": CoshBowl,
    "power4": lambda: Power(exponent=4.0),
    "power6": lambda: Power(exponent=6.0),
    "exponential": Exponential,
    "exponential-sum": _star,
    "logistic": _separated,
    "logistic-overlapping": _overlapping,
    "two-layer": TwoLayer,
    "regularised-two-layer": RegularisedTwoLayer,
    "river-valley": RiverValley,
    "curved-river-valley": CurvedRiverValley,
}


def make_function(name: str) -> Function:
    """Return the example of a name.

    Args:
        name: a key of `FUNCTIONS`.

    Raises:
        ValueError: there is no such example.

    Example:
        >>> make_function("cosh").smoothness
        Smoothness(exponent=1.0, floor=2.0, growth=1.0)
    """
    if name not in FUNCTIONS:
        raise ValueError(f"no example function is called {name!r}; there are {', '.join(FUNCTIONS)}")
    return FUNCTIONS[name]()
