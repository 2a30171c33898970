r"""Both sides of an inequality at every step of a descent, where its assumptions hold, and what rounding may add.

**Rounding.** A computed gap is the exact gap of a point nearby, but for a few units in the last place, and so is the
point after a step. With a distance :math:`\delta` between the points of 16 such units of the norm,

.. math:: e(\Delta) = 10^{-13} \Delta + \delta \sqrt{2 \textstyle\int_0^\Delta \ell} + \tfrac12 \ell(\Delta) \delta^2

bounds the error of a gap. The second and third term are absolute: a run that has come within :math:`\delta` of a
minimiser away from 0 descends no further, whatever a bound says of exact arithmetic.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from warmfree.theory.norms import norms
from warmfree.theory.path import Path

__all__ = ["SMALLEST", "Assumption", "Bound", "Evaluation", "Sides", "Terms"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_RELATIVE = 1e-13  # error of a gap in its own units: some hundred operations
_NEARBY = 16.0 * float(np.finfo(np.float64).eps)  # distance of the point that was meant, in units of its norm
SMALLEST = 16.0 * float(np.finfo(np.float64).smallest_subnormal)


class Terms:
    """What bounds are made of, computed once for a path of T steps and n runs.

    Args:
        path: of a descent.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.function = path.function
        self.smoothness = path.function.smoothness
        self.gaps = path.gaps
        self.rates = path.learning_rates

    @cached_property
    def norms(self) -> Floats:
        """Norms of the gradients, (T + 1, n)."""
        return norms(self.path.gradients)

    @cached_property
    def moved(self) -> Floats:
        """How far each step went, (T, n); an infinite learning rate along a gradient of 0 moves nothing."""
        lengths = norms(self.path.estimates)
        return np.where(lengths == 0.0, 0.0, self.rates * lengths)

    @cached_property
    def curvatures(self) -> Floats:
        """The smoothness's bound of the curvature, (T + 1, n)."""
        return self.smoothness.curvature(self.gaps)

    @cached_property
    def sums(self) -> Floats:
        """Sum of the learning rates up to and with each step, (T, n)."""
        return np.cumsum(self.rates, axis=0)

    @cached_property
    def minimiser(self) -> Floats:
        """The minimiser, (d,); nan if there is none."""
        known = self.function.minimiser
        return np.full(self.function.dimension, math.nan) if known is None else known

    @cached_property
    def distances(self) -> Floats:
        """Distances to the minimiser, (T + 1, n)."""
        return norms(self.path.points - self.minimiser)

    @cached_property
    def nearby(self) -> Floats:
        """How far the point of each step, or the next, may be from the point that was meant, (T, n)."""
        sizes = norms(self.path.points)
        return _NEARBY * np.maximum(sizes[:-1], sizes[1:])

    @cached_property
    def point_errors(self) -> Floats:
        """Errors of the gaps, (T + 1, n)."""
        return self.error(self.gaps, _NEARBY * norms(self.path.points))

    @cached_property
    def step_errors(self) -> Floats:
        """Errors of what a bound says of one step, (T, n): of both gaps, and as much for step times gradient."""
        return 8.0 * (self.error(self.gaps[:-1], self.nearby) + self.error(self.gaps[1:], self.nearby))

    def error(self, gaps: Floats, nearby: Floats) -> Floats:
        """Return the error of gaps at points that may be so far from the ones that were meant."""
        moved = (
            self.smoothness.gradient(gaps) * nearby + 0.5 * self.smoothness.curvature(gaps) * nearby * nearby
        )
        return _RELATIVE * gaps + moved + SMALLEST


@dataclass(frozen=True)
class Assumption:
    """What a bound needs.

    Attributes:
        text: in words.
        where: from the terms to where it holds, broadcastable to the shape of the bound's sides.
    """

    text: str
    where: Callable[[Terms], Bools | bool]


@dataclass(frozen=True)
class Sides:
    """Left and right hand side, and by how much rounding may have moved one against the other, of one shape."""

    left: Floats
    right: Floats
    rounding: Floats


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A bound on a path. Rows are the points, (T + 1, n), or the steps, (T, n), that the bound speaks of.

    Attributes:
        bound: which.
        left: left-hand sides; nan throughout if they cannot be computed.
        right: right-hand sides, inf where the bound says nothing.
        rounding: by how much a left side may exceed its right side for reasons of rounding.
        assumed: where all assumptions hold, and a step was taken.
        missing: the assumptions that hold nowhere.
    """

    bound: "Bound"
    left: Floats
    right: Floats
    rounding: Floats
    assumed: Bools
    missing: tuple[str, ...]

    @property
    def violated(self) -> Bools:
        """Where the left side exceeds the right side by more than rounding, whether the assumptions hold or not."""
        return ~(self.left <= self.right + self.rounding)

    @property
    def holds(self) -> bool:
        """Whether the bound holds wherever its assumptions do; True, too, where they never do: see `checked`."""
        return not (self.violated & self.assumed).any()

    @property
    def telling(self) -> Bools:
        """Where the assumptions hold, and the bound is finite and more than a million times the rounding."""
        larger = np.maximum(np.abs(self.left), np.abs(self.right))
        told = np.isfinite(self.right) & (larger > 0.0) & (self.rounding <= 1e-6 * larger)
        return np.asarray(self.assumed & told)

    @property
    def checked(self) -> int:
        """At how many steps and runs the bound is `telling`."""
        return int(self.telling.sum())

    @property
    def margin(self) -> float:
        """The least (right - left) / max(|left|, |right|) where it is `telling`: 0 if tight; nan if it never is."""
        left, right = self.left[self.telling], self.right[self.telling]
        if not left.size:
            return math.nan
        return float(((right - left) / np.maximum(np.abs(left), np.abs(right))).min())

    def __str__(self) -> str:
        """Say what was found, in one line."""
        if not self.holds:
            where = int((self.violated & self.assumed).sum())
            return f"{self.bound.name}: VIOLATED at {where} of {int(self.assumed.sum())} steps"
        if not self.checked:
            reason = "; ".join(self.missing) or "its assumptions never hold together, or it says nothing"
            return f"{self.bound.name}: not checked, missing: {reason}"
        return f"{self.bound.name}: holds at {self.checked} steps, margin {self.margin:.2g}"


@dataclass(frozen=True, eq=False)
class Bound:
    """An inequality about a descent, with what it needs and where it is from.

    Attributes:
        name: for tables.
        statement: the inequality in one line.
        source: paper and theorem, or "ours".
        needs: the assumptions.
        sides: from the terms of a path to both sides.
    """

    name: str
    statement: str
    source: str
    needs: tuple[Assumption, ...]
    sides: Callable[[Terms], Sides]

    @property
    def assumptions(self) -> tuple[str, ...]:
        """The assumptions in words, beside the smoothness."""
        return tuple(need.text for need in self.needs)

    def evaluate(self, path: Path) -> Evaluation:
        """Return both sides at every step of a path, and where the assumptions hold.

        Args:
            path: of a descent.
        """
        return self.evaluate_terms(Terms(path))

    def evaluate_terms(self, terms: Terms) -> Evaluation:
        """Return what `evaluate` does, from terms that several bounds share."""
        with np.errstate(all="ignore"):  # what overflows becomes inf, and a bound of inf says nothing
            held = [np.asarray(need.where(terms)) for need in self.needs]
            missing = tuple(
                need.text for need, where in zip(self.needs, held, strict=True) if not where.any()
            )
            if any(where.ndim == 0 and not where for where in held):
                unknown = np.full(terms.rates.shape, math.nan)
                return Evaluation(self, unknown, unknown, unknown, np.zeros(unknown.shape, np.bool_), missing)
            sides = self.sides(terms)
            assumed = np.ones(sides.left.shape, np.bool_)
            for where in held:
                assumed = assumed & where
        # Where terms overflowed the bound says nothing.
        known = ~np.isnan(sides.right) & np.isfinite(sides.rounding)
        right, rounding = np.where(known, sides.right, math.inf), np.where(known, sides.rounding, 0.0)
        return Evaluation(self, sides.left, right, rounding, assumed, missing)
