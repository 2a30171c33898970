"""Every bound holds at every step where its assumptions do, and fails where one is taken away."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from descent_cases import FAMILIES, SEEDS, Fraction, claiming, line, starts_of, understated
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from warmfree.theory import bounds
from warmfree.theory.adaptive import AdaGradNorm, Backtracking, Clipped, Normalised, Polyak
from warmfree.theory.bounds import BOUNDS, check_bounds
from warmfree.theory.descent import descend
from warmfree.theory.functions import FUNCTIONS, CoshBowl, Exponential, Power, TwoLayer, make_function
from warmfree.theory.noise import ABCNoise
from warmfree.theory.steps import Constant, InverseSqrt, LinearWarmup, Reciprocal, Warmup

RUNS, STEPS = 320, 20


def obedient(function, generator):
    """Rules that obey the assumptions of every bound on the learning rate."""
    multiples = generator.uniform(0.0, 1.0, RUNS)
    safety = generator.uniform(0.05, 0.5)
    return [Fraction(multiples), Reciprocal(function.smoothness), Warmup(function.smoothness, safety=safety)]


def unruly(generator):
    """Rules that obey them at some steps or not at all."""
    rates = 10.0 ** generator.uniform(-4.0, 1.0, RUNS)
    return [
        Fraction(generator.uniform(0.0, 4.0, RUNS)),
        Constant(rates),
        InverseSqrt(rates),
        LinearWarmup(rates, steps=10),
        Polyak(),
        Clipped(rates, threshold=0.3),
        Normalised(rates),
        AdaGradNorm(rates),
        Backtracking(1.0),
    ]


def test_every_bound_holds_at_every_step_of_every_function():
    """More than 1e5 random instances a bound and a function where it says more than rounding."""
    checked = Counter()

    @settings(max_examples=8, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(seed=SEEDS, data=st.data())
    def hold(seed, data):
        generator = np.random.default_rng(seed)
        for name, family in FAMILIES.items():
            function = data.draw(family, label=name)
            starts = starts_of(function, RUNS, generator)
            sizes = 10.0 ** generator.uniform(-3.0, 1.0, 3) * generator.integers(0, 2, 3)
            noise = ABCNoise(gap=sizes[0], gradient=sizes[1], constant=sizes[2])
            wild = generator.choice(unruly(generator) + obedient(function, generator))
            for rule, by in (
                (generator.choice(obedient(function, generator)), None),
                (wild, data.draw(st.sampled_from([None, noise, noise]))),
            ):
                path = descend(function, starts, rule, steps=STEPS, noise=by, seed=seed)
                for found in check_bounds(path):
                    assert found.holds, (name, str(found), rule.name, by)
                    checked[found.bound.name] += found.checked
                    checked[name] += found.checked

    hold()
    for bound in BOUNDS:
        assert checked[bound.name] >= 1e5, (bound.name, checked[bound.name])
    for name in FAMILIES:
        assert checked[name] >= 1e5, (name, checked[name])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_not_checked_says_why(name):
    function = make_function(name)
    starts = starts_of(function, 8, np.random.default_rng(0))
    found = check_bounds(descend(function, starts, Warmup(function.smoothness), steps=10))
    for evaluation in found:
        assert evaluation.holds
        if evaluation.missing:
            assert not evaluation.checked
            assert evaluation.missing[0] in evaluation.bound.assumptions
            assert evaluation.missing[0] in str(evaluation)
            assert math.isnan(evaluation.margin)
        else:
            assert evaluation.checked
            assert "holds" in str(evaluation)
    missing = {evaluation.bound.name for evaluation in found if evaluation.missing}
    convex = {"distance", "convex rate", "convex rate from the first gap"}
    assert "expected descent" in missing
    assert ("Polyak-Lojasiewicz rate" in missing) == (function.pl is None)
    assert missing.isdisjoint(convex) == (function.is_convex and function.minimiser is not None)


# One assumption taken away at a time. Each test first shows that the bound holds with it.


def near_the_minimum(function, multiple, *, steps=1, start=1e-3):
    points = start * np.linspace(0.5, 1.0, 16)[:, None] * np.ones(function.dimension)
    return descend(function, points, Fraction(np.full(16, multiple)), steps=steps)


def found_out(bound, path, claimed):
    """Whether the bound holds for what the function is, and fails for what it claims to be."""
    true, false = bound.evaluate(path), bound.evaluate(replace(path, function=claimed))
    assert true.holds
    assert false.assumed.any()
    assert ("VIOLATED" in str(false)) is not false.holds
    return not false.holds


@pytest.mark.parametrize("bound", [bounds.SMOOTHNESS, bounds.GRADIENT, bounds.ANY_DIRECTION, bounds.DESCENT])
def test_constants_understated_by_a_hundredth_are_found_out(bound):
    function = line()
    path = descend(function, np.linspace(0.01, 6.0, 32)[:, None], Fraction(np.full(32, 1e-3)), steps=2)
    assert found_out(bound, path, understated(function, 0.01))


@pytest.mark.parametrize(
    ("bound", "multiple"), [(bounds.HALF_DESCENT, 1.0), (bounds.LEAST_GRADIENT, 1.0), (bounds.DISTANCE, 2.0)]
)
def test_learning_rates_from_constants_understated_by_a_hundredth_are_too_large(bound, multiple):
    """The learning rate is the most that the claimed constants allow."""
    function = line()
    claimed = understated(function, 0.01)
    assert bound.evaluate(near_the_minimum(function, multiple)).holds
    path = near_the_minimum(claimed, multiple)
    assert not bound.evaluate(path).holds
    assert not bound.evaluate(replace(path, function=function)).assumed.any()


@pytest.mark.parametrize(
    ("bound", "multiple"),
    [
        (bounds.HALF_DESCENT, 1.1),
        (bounds.LEAST_GRADIENT, 1.1),
        (bounds.POTENTIAL, 1.9),
        (bounds.RECIPROCAL, 1.9),
        (bounds.CONTRACTION, 2.1),
        (bounds.DISTANCE, 2.1),
    ],
)
def test_a_learning_rate_beyond_the_bound_breaks_it(bound, multiple):
    for allowed in (0.3, 0.8, 1.9 if bound is bounds.DISTANCE else 0.9):
        evaluation = bound.evaluate(near_the_minimum(line(), allowed, steps=20))
        assert evaluation.holds
        assert evaluation.checked >= 16
    beyond = bound.evaluate(near_the_minimum(line(), multiple, steps=20))
    assert beyond.violated.any()
    assert not beyond.assumed.any()
    assert beyond.missing


def test_beyond_2_over_the_smoothness_the_gap_rises_and_far_beyond_the_descent_fails():
    below, above = near_the_minimum(line(), 1.99), near_the_minimum(line(), 2.1)
    assert (below.gaps[1] < below.gaps[0]).all()
    assert (above.gaps[1] > 1.2 * above.gaps[0]).all()
    far = bounds.DESCENT.evaluate(descend(line(), [2.0], Fraction(np.array([10.0])), steps=1))
    assert far.violated.all()
    assert not far.assumed.any()


@pytest.mark.parametrize("bound", [bounds.POTENTIAL, bounds.RECIPROCAL, bounds.DISTANCE])
def test_without_convexity_the_convex_bounds_fail(bound):
    """From beside the saddle the gap stays for long; from the other side the path leads to the other minimum."""
    saddle = TwoLayer(target=1.0)
    path = descend(saddle, [[1e-8, 1e-8], [-0.1, -0.1]], Reciprocal(saddle.smoothness), steps=60)
    assert "the function is convex" in bound.evaluate(path).missing
    assert not bound.evaluate(replace(path, function=claiming(saddle, is_convex=True))).holds


def test_without_a_polyak_lojasiewicz_constant_no_linear_rate_holds():
    quartic = Power(exponent=4.0)
    path = descend(quartic, [0.5], Constant(0.1), steps=200)
    assert bounds.CONTRACTION.evaluate(path).missing
    assert not bounds.CONTRACTION.evaluate(replace(path, function=claiming(quartic, pl=1.0))).holds
    bowl = CoshBowl(mu=0.01)
    path = descend(bowl, [0.0, 1.0], Constant(0.1), steps=100)
    assert bounds.CONTRACTION.evaluate(path).holds
    assert not bounds.CONTRACTION.evaluate(replace(path, function=claiming(bowl, pl=0.03))).holds


def test_without_balance_two_layers_have_no_smoothness():
    balanced = TwoLayer(target=1.0)
    steep = [[8.0, 0.2], [30.0, 0.1]]
    with pytest.raises(ValueError, match="do not hold at all of these points"):
        descend(balanced, steep, Reciprocal(balanced.smoothness), steps=3)
    everywhere = claiming(balanced, contains=lambda points: np.ones(points.shape[:-1], np.bool_))
    path = descend(everywhere, steep, Reciprocal(balanced.smoothness), steps=3)
    for bound in (bounds.SMOOTHNESS, bounds.GRADIENT, bounds.HALF_DESCENT, bounds.ANY_DIRECTION):
        assert not bound.evaluate(path).holds
        assert not bound.evaluate(replace(path, function=balanced)).assumed.any()


class Louder(ABCNoise):
    """Twice the noise that it says."""

    def _scale(self, gradient, gap):
        return 2.0 * super()._scale(gradient, gap)


class Biased(ABCNoise):
    """Half the gradient in the mean."""

    def outcomes(self, gradient, gap):
        return super().outcomes(gradient, gap) - 0.5 * gradient


def test_the_expected_descent_needs_the_noise_and_the_constants_that_are_stated():
    bound, function = bounds.EXPECTED_DESCENT, line()
    starts = np.linspace(0.01, 0.02, 8)[:, None]

    def evaluated(kind, claimed=function):
        noise = kind(gap=1e-4, gradient=0.1, constant=1e-6)
        path = descend(function, starts, Reciprocal(function.smoothness), steps=3, noise=noise)
        return bound.evaluate(replace(path, function=claimed))

    true = evaluated(ABCNoise)
    assert true.holds
    assert true.checked == 24
    assert not evaluated(Louder).holds
    assert not evaluated(Biased).holds
    assert not evaluated(ABCNoise, understated(function, 0.01)).holds


def test_the_expected_descent_is_an_expectation():
    """The mean over the outcomes is that of many draws, within four standard errors."""
    bowl, noise = CoshBowl(mu=0.5), ABCNoise(gap=0.1, gradient=0.2, constant=0.3)
    start = np.tile([1.0, 1.0], (40_000, 1))
    path = descend(bowl, start, Reciprocal(bowl.smoothness), steps=1, noise=noise, seed=3)
    exact = bounds.EXPECTED_DESCENT.evaluate(path).left[0, 0]
    drawn = path.gaps[1]
    assert abs(drawn.mean() - exact) < 4.0 * drawn.std() / math.sqrt(drawn.size)
    assert drawn.std() > 0.01 * exact


def test_bounds_for_exact_gradients_fail_with_noise_and_do_not_speak_of_it():
    function = line()
    noise = ABCNoise(constant=1.0)
    path = descend(function, np.full((64, 1), 0.01), Reciprocal(function.smoothness), steps=3, noise=noise)
    for bound in (bounds.DESCENT, bounds.HALF_DESCENT, bounds.DISTANCE, bounds.CONTRACTION):
        evaluation = bound.evaluate(path)
        assert evaluation.violated.any()
        assert not evaluation.assumed.any()
    assert bounds.ANY_DIRECTION.evaluate(path).holds


def test_steps_after_the_end_of_a_run_are_not_counted():
    bowl = CoshBowl(mu=1.0)
    path = descend(bowl, [[0.5, 0.5], [3.0, 1.0]], Reciprocal(bowl.smoothness), steps=60, target=1e-3)
    counted = bounds.HALF_DESCENT.evaluate(path).assumed.sum(axis=0)
    assert counted.tolist() == path.steps_to(1e-3).tolist()


def test_a_bound_that_overflows_says_nothing():
    steep = Exponential(rate=1.0)
    path = descend(steep, [700.0], Constant(1e-300), steps=2, noise=ABCNoise(gradient=1e300))
    evaluation = bounds.ANY_DIRECTION.evaluate(path)
    assert evaluation.holds
    assert not np.isnan(evaluation.right).any()


def test_a_gap_that_underflowed_to_0_is_none_of_a_minimiser():
    """From e^-750 a step to e^-730, which is a number again, is no violation; from a true minimiser it would be."""
    vanishing = Exponential(rate=-1.0)
    path = descend(vanishing, [750.0], Constant(20.0), steps=4, noise=ABCNoise(constant=1.0), seed=1)
    assert path.gaps[0, 0] == 0.0
    assert path.gaps.max() > 0.0
    assert bounds.ANY_DIRECTION.evaluate(path).holds
    assert bounds.EXPECTED_DESCENT.evaluate(path).holds
    quartic = Power(exponent=4.0)
    lying = claiming(quartic, gap=lambda points: 1e-3 * quartic.gap(points))
    path = descend(lying, [1.0], Constant(0.01), steps=4)
    assert not bounds.ANY_DIRECTION.evaluate(path).holds


def test_a_bound_states_what_it_is():
    names = [bound.name for bound in BOUNDS]
    assert len(set(names)) == len(names) == 11
    for bound in BOUNDS:
        assert "<=" in bound.statement
        assert bound.source
        assert bound.assumptions
