"""Functions side by side, each of variables of its own."""

import numpy as np
from numpy.typing import NDArray

from warmfree.theory import closure
from warmfree.theory.function import Function

__all__ = ["Separable"]

Floats = NDArray[np.float64]


class Separable(Function):
    r"""The sum of functions of different variables.

    .. math:: f(w_1, \dots, w_k) = \sum_i f_i(w_i), \qquad \|\nabla^2 f\| = \max_i \|\nabla^2 f_i\|

    Smoothness: `warmfree.theory.closure.separable`. mu is the least of the functions'; None if one has none.

    Args:
        functions: at least one; the variables of the first come first.

    Raises:
        ValueError: there is none.

    Example:
        >>> from warmfree.theory.functions import CoshBowl, Exponential
        >>> both = Separable(CoshBowl(), Exponential(rate=2.0))
        >>> both.dimension, both.smoothness
        (3, Smoothness(exponent=1.0, floor=2.0, growth=4.0))

    Reference: ours.
    """

    def __init__(self, *functions: Function) -> None:
        if not functions:
            raise ValueError("Separable needs at least one function")
        self.functions = functions
        self.name = " + ".join(function.name for function in functions)
        self.dimension = sum(function.dimension for function in functions)
        self.infimum = sum(function.infimum for function in functions)
        self.smoothness = closure.separable(*(function.smoothness for function in functions))
        minimisers = [function.minimiser for function in functions if function.minimiser is not None]
        self.minimiser = np.concatenate(minimisers) if len(minimisers) == len(functions) else None
        self.is_convex = all(function.is_convex for function in functions)
        constants = [function.pl for function in functions if function.pl is not None]
        self.pl = min(constants) if len(constants) == len(functions) else None

    def blocks(self, points: Floats) -> list[Floats]:
        """Return the variables of each function, of shapes (..., d_i)."""
        ends = np.cumsum([function.dimension for function in self.functions])
        return np.split(points, ends[:-1], axis=-1)

    def contains(self, points: Floats) -> NDArray[np.bool_]:
        """Return which points are in the domain of all functions, of shape (...)."""
        inside = np.stack([function.contains(block) for function, block in self._pairs(points)])
        return np.asarray(inside.all(axis=0))

    def gap(self, points: Floats) -> Floats:
        """See `Function`."""
        with np.errstate(over="ignore"):
            gaps = np.stack([function.gap(block) for function, block in self._pairs(points)])
            return np.asarray(gaps.sum(axis=0))

    def gradient(self, points: Floats) -> Floats:
        """See `Function`."""
        return np.concatenate([function.gradient(block) for function, block in self._pairs(points)], axis=-1)

    def hessian(self, points: Floats) -> Floats:
        """See `Function`."""
        hessian, start = np.zeros((*points.shape, self.dimension)), 0
        for function, block in self._pairs(points):
            end = start + function.dimension
            hessian[..., start:end, start:end] = function.hessian(block)
            start = end
        return hessian

    def curvature(self, points: Floats) -> Floats:
        """See `Function`."""
        curvatures = np.stack([function.curvature(block) for function, block in self._pairs(points)])
        return np.asarray(curvatures.max(axis=0))

    def _pairs(self, points: Floats) -> list[tuple[Function, Floats]]:
        return list(zip(self.functions, self.blocks(points), strict=True))
