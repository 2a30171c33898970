r"""What the smoothness promises of a descent: inequalities with their assumptions, evaluated on a `Path`.

Below, :math:`\ell(\Delta) = K_0 + K_\rho \Delta^\rho` and :math:`\Lambda(\Delta) = \int_0^\Delta \ell`; f has the
smoothness on the sublevel set of every point that is spoken of. The proofs stand in `docs/theory.md`.
"""

import math

import numpy as np
from numpy.typing import NDArray

from warmfree.theory.evaluation import SMALLEST, Assumption, Bound, Evaluation, Sides, Terms
from warmfree.theory.norms import norms
from warmfree.theory.path import Path

__all__ = ["BOUNDS", "Bound", "Evaluation", "check_bounds"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_SLACK = 1.0 + 1e-12  # a learning rate of 1/l, rounded, is one of 1/l
_LIU = "Liu et al. 2025, the core of Theorem 1; the constant is ours"


def check_bounds(path: Path) -> tuple[Evaluation, ...]:
    """Evaluate all bounds on a path.

    Args:
        path: of `warmfree.theory.descent.descend`.

    Returns:
        One evaluation a bound, in the order of `BOUNDS`. Of those whose assumptions hold nowhere, `missing` says which.

    Example:
        >>> from warmfree.theory.descent import descend
        >>> from warmfree.theory.functions import CoshBowl
        >>> from warmfree.theory.steps import Reciprocal
        >>> bowl = CoshBowl(mu=1.0)
        >>> found = check_bounds(descend(bowl, [3.0, 1.0], Reciprocal(bowl.smoothness), steps=20))
        >>> all(each.holds for each in found), sum(each.checked for each in found)
        (True, 202)
        >>> print(found[-1])
        expected descent: not checked, missing: the noise is known, of at most 12 dimensions
    """
    terms = Terms(path)
    return tuple(bound.evaluate_terms(terms) for bound in BOUNDS)


# Assumptions, of a step t: shape (T, n).


def _taken(terms: Terms) -> Bools:
    return np.asarray(terms.rates > 0.0)


def _inside(terms: Terms) -> Bools:
    inside = terms.function.contains(terms.path.points)
    return np.asarray(inside[:-1] & inside[1:])


def _exact(terms: Terms) -> Bools:
    return np.asarray((terms.path.estimates == terms.path.gradients[:-1]).all(axis=-1))


def _at_most(multiple: float, terms: Terms) -> Bools:
    return np.asarray(terms.rates * terms.curvatures[:-1] <= multiple * _SLACK)


def _so_far(where: Bools) -> Bools:
    return np.asarray(np.logical_and.accumulate(where, axis=0))


_POINT_INSIDE = Assumption(
    "the point is in the function's domain", lambda terms: terms.function.contains(terms.path.points)
)
_TAKEN = Assumption("a step is taken", _taken)
_INSIDE = Assumption("the points before and after the step are in the function's domain", _inside)
_EXACT = Assumption("the gradient is exact", _exact)
_TWICE = Assumption("eta <= 2 / l(gap)", lambda terms: _at_most(2.0, terms))
_ONCE = Assumption("eta <= 1 / l(gap)", lambda terms: _at_most(1.0, terms))
_ALL_INSIDE = Assumption(
    "all points so far are in the function's domain", lambda terms: _so_far(_inside(terms))
)
_ALL_EXACT = Assumption(
    "all gradients so far are exact", lambda terms: _so_far(_exact(terms) | ~_taken(terms))
)
_ALL_ONCE = Assumption("eta <= 1 / l(gap) at all steps so far", lambda terms: _so_far(_at_most(1.0, terms)))
_CONVEX = Assumption("the function is convex", lambda terms: terms.function.is_convex)
_MINIMISER = Assumption("the infimum is attained", lambda terms: terms.function.minimiser is not None)
_PL = Assumption(
    "the function has a Polyak-Lojasiewicz constant", lambda terms: terms.function.pl is not None
)
_NOISE = Assumption(
    "the noise is known, of at most 12 dimensions",
    lambda terms: terms.path.noise is not None and terms.function.dimension <= 12,
)


# Sides.


def _smoothness(terms: Terms) -> Sides:
    limit = terms.curvatures
    shifted = terms.smoothness.curvature(terms.gaps + terms.point_errors)
    return Sides(terms.path.curvatures, limit, shifted - limit + 1e-12 * limit + SMALLEST)


def _gradient(terms: Terms) -> Sides:
    limit = terms.smoothness.gradient(terms.gaps)
    shifted = terms.smoothness.gradient(terms.gaps + terms.point_errors)
    nearby = np.concatenate([terms.nearby[:1], terms.nearby])
    lost = np.sqrt(terms.gaps) * math.sqrt(SMALLEST)  # where the smoothness underflows
    return Sides(terms.norms, limit, shifted - limit + 1e-12 * limit + terms.curvatures * nearby + lost)


def _descent(terms: Terms) -> Sides:
    return _lowered(terms, 1.0 - 0.5 * terms.rates * terms.curvatures[:-1])


def _half_descent(terms: Terms) -> Sides:
    return _lowered(terms, 0.5)


def _lowered(terms: Terms, share: Floats | float) -> Sides:
    fall = (terms.rates * terms.norms[:-1]) * terms.norms[:-1] * share
    return Sides(terms.gaps[1:], terms.gaps[:-1] - fall, terms.step_errors)


def _least_gradient(terms: Terms) -> Sides:
    fallen = np.maximum(terms.gaps[0] - terms.gaps[1:], 0.0)
    root = np.sqrt(terms.sums)  # the quotient under one root would underflow
    right = np.sqrt(2.0 * fallen) / root
    shifted = np.sqrt(2.0 * (fallen + np.cumsum(terms.step_errors, axis=0))) / root
    return Sides(np.minimum.accumulate(terms.norms[:-1], axis=0), right, shifted - right + 1e-12 * right)


def _distance(terms: Terms) -> Sides:
    rounding = 8.0 * (terms.nearby + np.finfo(np.float64).eps * norms(terms.minimiser))
    return Sides(terms.distances[1:], terms.distances[:-1], rounding + 1e-12 * terms.distances[:-1])


def _potential(terms: Terms) -> Sides:
    start = terms.distances[0]
    right = 0.5 * start * (start / terms.sums)
    errors = np.cumsum(terms.sums * terms.step_errors + 8.0 * start * terms.nearby, axis=0) / terms.sums
    return Sides(terms.gaps[1:], right, errors + 1e-12 * right)


def _reciprocal(terms: Terms) -> Sides:
    start = terms.distances[0]
    right = 1.0 / (1.0 / terms.gaps[0] + 0.5 * (terms.sums / start) / start)
    return Sides(terms.gaps[1:], right, np.cumsum(terms.step_errors, axis=0) + 1e-12 * right)


def _contraction(terms: Terms) -> Sides:
    factors = 1.0 - (terms.function.pl or math.nan) * terms.rates
    rounding = np.empty_like(factors)
    carried = np.zeros(factors.shape[1])
    for step, factor in enumerate(factors):  # an error shrinks from there on as the gap does
        carried = np.abs(factor) * carried + terms.step_errors[step]
        rounding[step] = carried
    return Sides(terms.gaps[1:], terms.gaps[0] * np.cumprod(factors, axis=0), rounding)


def _any_direction(terms: Terms) -> Sides:
    gaps, moved = terms.gaps[:-1], terms.moved
    bent = 0.5 * _curvature_within(terms, moved) * moved * moved
    along = np.einsum("tnd,tnd->tn", terms.path.gradients[:-1], terms.rates[..., None] * terms.path.estimates)
    rounding = terms.step_errors + 1e-12 * (terms.norms[:-1] * moved + bent)
    return Sides(terms.gaps[1:], gaps - along + bent, rounding)


def _curvature_within(terms: Terms, distances: Floats) -> Floats:
    """Return the most that the curvature may be within distances of the points before each step."""
    gaps = terms.gaps[:-1] + SMALLEST  # one that underflowed to 0 is none of a minimiser, and can grow
    known = np.where(np.isnan(distances), math.inf, distances)
    return terms.smoothness.curvature(terms.smoothness.gap_within(gaps, known))


def _expected_descent(terms: Terms) -> Sides:
    noise = terms.path.noise
    assert noise is not None  # the bound needs it
    gaps, slopes, rates = terms.gaps[:-1], terms.norms[:-1], terms.rates
    reach = np.where(rates > 0.0, rates * (slopes + noise.largest(gaps, slopes)), 0.0)
    lengths = np.hypot(rates * slopes, rates * noise.deviation(gaps, slopes))
    bent = 0.5 * _curvature_within(terms, reach) * lengths * lengths
    mean, errors, inside = np.empty_like(gaps), np.empty_like(gaps), np.empty(gaps.shape, np.bool_)
    for step in range(len(gaps)):  # 2^d points for each run: one step at a time
        estimates = noise.outcomes(terms.path.gradients[step], gaps[step])
        points = terms.path.points[step] - rates[step][:, None] * estimates
        inside[step] = terms.function.contains(points).all(axis=0)
        after = terms.function.gap(points)
        after = np.where(np.isnan(after), math.inf, after)
        mean[step] = after.mean(axis=0)
        errors[step] = terms.error(after, terms.nearby[step]).mean(axis=0)
    right = np.where(inside, gaps - rates * slopes * slopes + bent, math.inf)
    return Sides(mean, right, terms.step_errors + 8.0 * errors + 1e-12 * (rates * slopes * slopes + bent))


SMOOTHNESS = Bound(
    name="smoothness",
    statement="||H(w)|| <= l(gap) = K0 + K_rho gap^rho",
    source="Liu et al. 2025, the definition",
    needs=(_POINT_INSIDE,),
    sides=_smoothness,
)
GRADIENT = Bound(
    name="gradient",
    statement="||grad f(w)|| <= sqrt(2 L(gap)), L the integral of l from 0",
    source="ours",
    needs=(_POINT_INSIDE,),
    sides=_gradient,
)
DESCENT = Bound(
    name="descent",
    statement="gap' <= gap - eta (1 - eta l(gap) / 2) ||grad f||^2",
    source="ours",
    needs=(_TAKEN, _INSIDE, _EXACT, _TWICE),
    sides=_descent,
)
HALF_DESCENT = Bound(
    name="half descent",
    statement="gap' <= gap - (eta / 2) ||grad f||^2",
    source=_LIU,
    needs=(_TAKEN, _INSIDE, _EXACT, _ONCE),
    sides=_half_descent,
)
LEAST_GRADIENT = Bound(
    name="least gradient",
    statement="min_{t<T} ||grad f(w_t)|| <= sqrt(2 (gap_0 - gap_T) / sum_{t<T} eta_t)",
    source=_LIU,
    needs=(_TAKEN, _ALL_INSIDE, _ALL_EXACT, _ALL_ONCE),
    sides=_least_gradient,
)
DISTANCE = Bound(
    name="distance",
    statement="||w' - w*|| <= ||w - w*||",
    source="ours",
    needs=(_TAKEN, _INSIDE, _EXACT, _TWICE, _CONVEX, _MINIMISER),
    sides=_distance,
)
POTENTIAL = Bound(
    name="convex rate",
    statement="gap_T <= ||w_0 - w*||^2 / (2 sum_{t<T} eta_t)",
    source="ours",
    needs=(_TAKEN, _ALL_INSIDE, _ALL_EXACT, _ALL_ONCE, _CONVEX, _MINIMISER),
    sides=_potential,
)
RECIPROCAL = Bound(
    name="convex rate from the first gap",
    statement="gap_T <= 1 / (1 / gap_0 + sum_{t<T} eta_t / (2 ||w_0 - w*||^2))",
    source="ours",
    needs=(_TAKEN, _ALL_INSIDE, _ALL_EXACT, _ALL_ONCE, _CONVEX, _MINIMISER),
    sides=_reciprocal,
)
CONTRACTION = Bound(
    name="Polyak-Lojasiewicz rate",
    statement="gap_T <= gap_0 prod_{t<T} (1 - mu eta_t)",
    source="ours",
    needs=(_TAKEN, _ALL_INSIDE, _ALL_EXACT, _ALL_ONCE, _PL),
    sides=_contraction,
)
ANY_DIRECTION = Bound(
    name="any direction",
    statement="gap' <= gap - eta <grad f, g> + (eta^2 / 2) l(M) ||g||^2, M the most within eta ||g||",
    source="ours",
    needs=(_TAKEN, _INSIDE),
    sides=_any_direction,
)
EXPECTED_DESCENT = Bound(
    name="expected descent",
    statement="E gap' <= gap - eta ||grad f||^2 + (eta^2 / 2) l(M) ((1 + B) ||grad f||^2 + A gap + C), eta given",
    source="ours; the condition on the noise is that of Liu et al. 2025",
    needs=(_TAKEN, _INSIDE, _NOISE),
    sides=_expected_descent,
)

BOUNDS = (
    SMOOTHNESS,
    GRADIENT,
    DESCENT,
    HALF_DESCENT,
    LEAST_GRADIENT,
    DISTANCE,
    POTENTIAL,
    RECIPROCAL,
    CONTRACTION,
    ANY_DIRECTION,
    EXPECTED_DESCENT,
)
