r"""Gradient descent, exact or with noise, of many runs side by side, :math:`w_{t+1} = w_t - \eta_t g_t`."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from warmfree.theory.function import Function
from warmfree.theory.noise import ABCNoise
from warmfree.theory.path import Path
from warmfree.theory.steps import State, StepRule

__all__ = ["descend", "steps_to"]

Floats = NDArray[np.float64]


def descend(
    function: Function,
    start: ArrayLike,
    rule: StepRule,
    *,
    steps: int,
    target: float | None = None,
    noise: ABCNoise | None = None,
    seed: int = 0,
) -> Path:
    """Descend from one start or many, and keep everything.

    A run that reaches the target stays there, with learning rate 0; so does one whose next point, gap or gradient would
    not be finite, at the last that was, and is marked as diverged. The same seed gives the same path.

    Args:
        function: what is descended.
        start: (n, d), or (d,) for one run, or for as many as the rule has learning rates.
        rule: the learning rates.
        steps: T, at least 1. The path has as many, even if all runs end before.
        target: a gap, finite and at least 0, at which a run ends; None ends none.
        noise: by which the gradients are estimated; None takes the gradients themselves.
        seed: of the noise.

    Raises:
        ValueError: a number is out of its range, the start does not suit the function, or the rule returned learning
            rates that are negative, NaN, or of another shape.

    Example:
        >>> from warmfree.theory.functions import CoshBowl
        >>> from warmfree.theory.steps import Constant
        >>> path = descend(CoshBowl(mu=1.0), [2.0, 1.0], Constant(0.25), steps=100, target=1e-6)
        >>> path.gaps.shape, path.diverged.tolist()
        ((101, 1), [False])
    """
    point, gap = _begin(function, start, rule, steps=steps, target=target)
    runs, dimension = point.shape
    generator = np.random.default_rng(seed)
    points = np.empty((steps + 1, runs, dimension))
    gradients = np.empty_like(points)
    gaps, curvatures = np.empty((steps + 1, runs)), np.empty((steps + 1, runs))
    estimates, rates = np.empty((steps, runs, dimension)), np.empty((steps, runs))
    diverged = np.zeros(runs, np.bool_)
    squares = np.zeros(runs)
    with np.errstate(all="ignore"):
        gradient = function.gradient(point)
        for step in range(steps + 1):
            points[step], gaps[step], gradients[step] = point, gap, gradient
            curvatures[step] = function.curvature(point)
            if step == steps:
                break
            estimate = gradient if noise is None else noise.draw(generator, gradient, gap)
            squares = squares + np.einsum("nd,nd->n", estimate, estimate)
            state = State(step, function, point, gap, estimate, squares)
            lr = _rates(rule, state)
            moved = _moved(state, lr)
            new_gap, new_gradient = function.gap(moved), function.gradient(moved)
            going = ~diverged if target is None else ~diverged & (gap > target)
            lost = going & ~(_finite(moved) & np.isfinite(new_gap) & _finite(new_gradient))
            diverged |= lost
            going &= ~lost
            # An infinite estimate times a learning rate of 0 would be NaN.
            usable = ~diverged & _finite(estimate)
            estimates[step] = np.where(usable[:, None], estimate, gradient)
            rates[step] = np.where(going, lr, 0.0)
            point = np.where(going[:, None], moved, point)
            gap = np.where(going, new_gap, gap)
            gradient = np.where(going[:, None], new_gradient, gradient)
    return Path(
        function=function,
        points=points,
        gaps=gaps,
        gradients=gradients,
        estimates=estimates,
        learning_rates=rates,
        curvatures=curvatures,
        diverged=diverged,
        noise=noise,
    )


def steps_to(
    function: Function,
    start: ArrayLike,
    rule: StepRule,
    *,
    target: float,
    limit: int,
    noise: ABCNoise | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    every: int = 100_000,
) -> Floats:
    """Count the steps to a gap, and keep nothing: for millions of steps.

    The steps are those of `descend`, but runs that have come to their end are left out, so that with noise the others
    draw other numbers than there.

    Args:
        function: what is descended.
        start: (n, d), or (d,) for one run, or for as many as the rule has learning rates.
        rule: the learning rates.
        target: the gap, finite and at least 0.
        limit: the most steps, at least 1.
        noise: by which the gradients are estimated; None takes the gradients themselves.
        seed: of the noise.
        progress: called every so many steps with the number of steps and how many runs still go.
        every: how many.

    Returns:
        The first step with a gap of at most the target, of shape (n,); nan where it diverged or was not reached.

    Raises:
        ValueError: as for `descend`.

    Example:
        >>> from warmfree.theory.functions import CoshBowl
        >>> from warmfree.theory.steps import Constant
        >>> steps_to(CoshBowl(mu=1.0), [2.0, 1.0], Constant([0.1, 3.0]), target=1e-6, limit=1000).tolist()
        [63.0, nan]
    """
    point, gap = _begin(function, start, rule, steps=limit, target=target)
    if every < 1:
        raise ValueError(f"every must be at least 1 step, got {every!r}")
    found = np.full(len(point), math.nan)
    found[gap <= target] = 0.0
    generator = np.random.default_rng(seed)
    runs = np.flatnonzero(gap > target)
    point, gap, squares = point[runs], gap[runs], np.zeros(runs.size)
    with np.errstate(all="ignore"):
        for step in range(limit if runs.size else 0):
            estimate = function.gradient(point)
            if noise is not None:
                estimate = noise.draw(generator, estimate, gap)
            squares += np.einsum("nd,nd->n", estimate, estimate)
            state = State(step, function, point, gap, estimate, squares, runs)
            point = _moved(state, _rates(rule, state))
            gap = function.gap(point)
            here = _finite(point)
            going = here & (gap > target) & (gap < math.inf)
            if not going.all():
                found[runs[here & (gap <= target)]] = step + 1.0
                runs, point, gap, squares = runs[going], point[going], gap[going], squares[going]
                if not runs.size:
                    break
            if progress is not None and (step + 1) % every == 0:
                progress(step + 1, runs.size)
    return found


def _begin(
    function: Function, start: ArrayLike, rule: StepRule, *, steps: int, target: float | None
) -> tuple[Floats, Floats]:
    """Check what a descent begins with; return points (n, d) and gaps (n,)."""
    point = np.atleast_2d(np.array(start, np.float64))
    if point.ndim != 2 or not point.shape[0]:
        raise ValueError(f"start must have shape (d,) or (n, d) with n >= 1, got {np.shape(start)}")
    function.check(point)
    if rule.runs not in (None, len(point)):
        if len(point) != 1:
            raise ValueError(
                f"rule {rule.name!r} has learning rates for {rule.runs} runs, but there are {len(point)} starts: "
                "give one start, or as many as learning rates"
            )
        point = np.repeat(point, rule.runs, axis=0)
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or steps < 1:
        raise ValueError(f"the number of steps must be an int of at least 1, got {steps!r}")
    if target is not None and not 0.0 <= target < math.inf:
        raise ValueError(f"target must be a finite gap >= 0, got {target!r}")
    with np.errstate(all="ignore"):
        gap, gradient = function.gap(point), function.gradient(point)
    bad = ~(np.isfinite(gap) & _finite(gradient))
    if bad.any():
        raise ValueError(
            f"start {int(bad.argmax())} has a gap or a gradient that is not finite in float64: "
            "begin nearer to the minimum"
        )
    return point, gap


def _moved(state: State, rates: Floats) -> Floats:
    """Return the points after a step."""
    point = state.point - rates[:, None] * state.gradient
    if not np.isfinite(point).all():  # an infinite learning rate along a gradient of 0 moves nothing
        point = np.where(state.gradient == 0.0, state.point, point)
    return point


def _rates(rule: StepRule, state: State) -> Floats:
    """Return the learning rates, or say what is wrong with them."""
    rates = rule(state)
    if np.shape(rates) != state.gap.shape:
        raise ValueError(
            f"rule {rule.name!r} returned learning rates of shape {np.shape(rates)} at step {state.step}, "
            f"expected one a run, {state.gap.shape}"
        )
    if not (rates >= 0.0).all():
        where = int((~(rates >= 0.0)).argmax())
        raise ValueError(
            f"rule {rule.name!r} returned the learning rate {rates[where]} at step {state.step} for the gap "
            f"{state.gap[where]}; expected a number >= 0"
        )
    return rates


def _finite(vectors: Floats) -> NDArray[np.bool_]:
    """Return which of (n, d) vectors are finite."""
    return np.asarray(np.isfinite(vectors).all(axis=1))
