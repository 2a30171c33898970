"""Learning rates of the schedules, of the rules of the gap and of those that adapt."""

import math
from itertools import pairwise

import numpy as np
import pytest
from descent_cases import SEEDS
from hypothesis import assume, given
from hypothesis import strategies as st

from warmfree.schedule.smoothness import PeakedRule
from warmfree.theory.adaptive import AdaGradNorm, Backtracking, Clipped, Normalised, Polyak
from warmfree.theory.descent import descend
from warmfree.theory.functions import CoshBowl, Power
from warmfree.theory.smoothness import Smoothness
from warmfree.theory.steps import (
    Constant,
    Following,
    InverseSqrt,
    InverseTime,
    LinearWarmup,
    Reciprocal,
    State,
    StepDrop,
    Warmup,
    alimisis,
)

BOWL = CoshBowl(mu=1.0)
POINTS = np.array([[3.0, 1.0], [0.1, 0.2], [0.0, 0.0]])


def state(*, step=0, function=BOWL, points=POINTS, squares=None, runs=slice(None)):
    points = np.asarray(points, np.float64)
    gradient = function.gradient(points)
    sums = (gradient**2).sum(axis=1) if squares is None else np.asarray(squares)
    return State(step, function, points, function.gap(points), gradient, sums, runs)


SCHEDULES = {
    "constant": (lambda lr: Constant(lr), lambda t: 1.0),
    "1/t": (lambda lr: InverseTime(lr, offset=3.0), lambda t: 3.0 / (3.0 + t)),
    "1/sqrt(t)": (lambda lr: InverseSqrt(lr, offset=2.0), lambda t: math.sqrt(2.0 / (2.0 + t))),
    "step drop": (lambda lr: StepDrop(lr, every=4, drop=0.1), lambda t: 0.1 ** (t // 4)),
    "linear warmup": (lambda lr: LinearWarmup(lr, steps=5), lambda t: min(1.0, (t + 1) / 5)),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_its_formula(name):
    make, expected = SCHEDULES[name]
    assert make(0.3).name == name
    for step in range(20):
        rates = make(0.3)(state(step=step))
        assert rates.shape == (3,)
        np.testing.assert_allclose(rates, 0.3 * expected(step), rtol=1e-14)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "linear warmup"])
def test_only_the_warmup_grows(name):
    rule = SCHEDULES[name][0](1.0)
    rates = [rule(state(step=step))[0] for step in range(50)]
    assert all(later <= earlier for earlier, later in pairwise(rates))


@pytest.mark.parametrize("name", SCHEDULES)
def test_each_run_may_have_its_own_learning_rate(name):
    make, expected = SCHEDULES[name]
    rule = make(np.array([0.1, 0.2, 0.4]))
    assert rule.runs == 3
    assert make(0.1).runs is None
    np.testing.assert_allclose(rule(state(step=7)), np.array([0.1, 0.2, 0.4]) * expected(7))
    left = state(step=7, points=POINTS[1:], runs=np.array([0, 2]))
    np.testing.assert_allclose(rule(left), np.array([0.1, 0.4]) * expected(7))


def test_the_learning_rates_given_are_not_those_kept():
    given_rates = np.array([0.1, 0.2, 0.4])
    rule = Constant(given_rates)
    given_rates[:] = 9.0
    assert rule(state()).tolist() == [0.1, 0.2, 0.4]


def test_warmup_and_reciprocal_are_those_of_the_smoothness():
    now = state()
    np.testing.assert_array_equal(Warmup(BOWL.smoothness)(now), 0.5 / np.maximum(2.0, 3.0 * now.gap))
    np.testing.assert_array_equal(
        Warmup(BOWL.smoothness, safety=1.0)(now), 1.0 / np.maximum(2.0, 3.0 * now.gap)
    )
    np.testing.assert_array_equal(Reciprocal(BOWL.smoothness)(now), 1.0 / (2.0 + now.gap))
    assert (Warmup(BOWL.smoothness)(now) <= Reciprocal(BOWL.smoothness)(now)).all()


def test_without_a_floor_the_step_at_the_minimum_is_not_bounded():
    quartic = Power(exponent=4.0)
    now = state(function=quartic, points=[[0.0], [1.0]])
    assert Reciprocal(quartic.smoothness)(now).tolist() == [math.inf, 1.0 / 3.0]
    assert Warmup(quartic.smoothness)(now)[0] == math.inf


@given(
    exponent=st.floats(0.05, 20.0),
    floor=st.floats(0.0, 1e3),
    growth=st.floats(1e-3, 1e3),
    gap=st.floats(0.0, 1e6),
)
def test_half_the_warmup_step_is_at_most_the_reciprocal(exponent, floor, growth, gap):
    """(K0 + x) / max(K0, 3^rho x) <= 1 + 3^-rho, so that up to c = 1/(1 + 3^-rho) the step is at most 1/l."""
    smoothness = Smoothness(exponent=exponent, floor=floor, growth=growth)
    limit = smoothness.curvature(gap)
    assume(limit == 0.0 or limit > 1e-300)  # subnormal numbers have not the digits
    for safety, most in ((0.5, 1.0), (1.0 / (1.0 + 3.0**-exponent), 1.0), (1.0, 1.0 + 3.0**-exponent)):
        step = smoothness.step(gap, safety=safety)
        assert limit == 0.0 or step * limit <= most * (1.0 + 1e-12)


def test_following_takes_the_rule_at_every_gap():
    rule = PeakedRule.from_start(peak=0.1, start=0.001, initial_gap=20.0, peak_gap=2.0)
    assert Following(rule).name == "PeakedRule"
    assert Following(rule, label="peaked").name == "peaked"
    now = state()
    assert Following(rule)(now).tolist() == [rule(gap) for gap in now.gap.tolist()]
    np.testing.assert_allclose(
        Following(BOWL.smoothness.rule())(now), Warmup(BOWL.smoothness)(now), rtol=1e-14
    )


def test_alimisis_is_the_published_step():
    now = state()
    np.testing.assert_allclose(alimisis(h0=2.0, h1=1.0)(now), 1.0 / (20.0 + 20.0 * now.gap), rtol=1e-14)
    np.testing.assert_allclose(alimisis(h0=2.0, h1=0.0)(now), 0.05)


def test_adaptive_rules_are_their_formulas():
    now = state(squares=[500.0, 2.0, 1.0])
    norm = np.linalg.norm(now.gradient[:2], axis=1)
    np.testing.assert_allclose(Polyak()(now)[:2], now.gap[:2] / norm**2)
    np.testing.assert_allclose(Clipped(0.3, threshold=0.1)(now)[:2], np.minimum(0.3, 0.1 / norm))
    np.testing.assert_allclose(Normalised(0.3)(now)[:2], 0.3 / norm)
    np.testing.assert_allclose(
        AdaGradNorm(0.3, initial=2.0)(now), 0.3 / np.sqrt(4.0 + np.array([500.0, 2.0, 1.0]))
    )


def test_where_the_gradient_is_0_nothing_is_divided_by_it():
    now = state()
    assert now.gradient[2].tolist() == [0.0, 0.0]
    assert Polyak()(now)[2] == Normalised(1.0)(now)[2] == Backtracking(1.0)(now)[2] == 0.0
    assert Clipped(0.3, threshold=1.0)(now)[2] == 0.3
    assert math.isfinite(AdaGradNorm(0.3)(now)[2])


def test_polyak_does_not_overflow_before_the_gap_does():
    steep = state(points=[[600.0, 0.0]], squares=[math.inf])
    assert steep.gradient[0, 0] > 1e155  # its square is no number
    assert Polyak()(steep)[0] == pytest.approx(1.0 / steep.gap[0], rel=1e-9)


@given(seed=SEEDS)
def test_polyak_never_moves_away_from_the_minimiser_of_a_convex_function(seed):
    generator = np.random.default_rng(seed)
    starts = 3.0 * generator.normal(size=(16, 2))
    path = descend(BOWL, starts, Polyak(), steps=20)
    away = np.linalg.norm(path.points, axis=-1)
    assert (away[1:] <= away[:-1] * (1.0 + 1e-12)).all()


@given(seed=SEEDS, lr=st.floats(1e-3, 1e3), shrink=st.floats(0.1, 0.9), sufficient=st.floats(0.05, 0.9))
def test_backtracking_takes_the_first_step_that_lowers_the_loss_enough(seed, lr, shrink, sufficient):
    points = np.random.default_rng(seed).normal(size=(5, 2)) * 2.0
    rule = Backtracking(lr, shrink=shrink, sufficient=sufficient)
    now = state(points=points)
    for run, rate in enumerate(rule(now)):
        slope = now.gradient[run]

        def enough(trial, slope=slope, run=run):
            with np.errstate(over="ignore"):
                after = BOWL.gap(points[run] - trial * slope)
            return after <= now.gap[run] - sufficient * (trial * np.linalg.norm(slope)) * np.linalg.norm(
                slope
            )

        tried = lr * shrink ** np.arange(200)
        expected = next(trial for trial in tried if enough(trial))
        assert rate == pytest.approx(expected, rel=1e-9)


def test_backtracking_gives_up_after_its_trials():
    assert Backtracking(1e6, trials=3)(state())[0] == 0.0
    assert Backtracking(1e6, trials=40)(state())[0] > 0.0


BAD = {
    "lr 0": lambda: Constant(0.0),
    "lr negative": lambda: Constant([0.1, -1.0]),
    "lr nan": lambda: Normalised(math.nan),
    "lr inf": lambda: InverseTime(math.inf),
    "lr matrix": lambda: Constant([[0.1]]),
    "lr empty": lambda: Constant([]),
    "offset": lambda: InverseTime(0.1, offset=0.0),
    "offset nan": lambda: InverseSqrt(0.1, offset=math.nan),
    "every": lambda: StepDrop(0.1, every=0),
    "every fractional": lambda: StepDrop(0.1, every=2.5),
    "drop": lambda: StepDrop(0.1, every=1, drop=1.5),
    "drop 0": lambda: StepDrop(0.1, every=1, drop=0.0),
    "steps": lambda: LinearWarmup(0.1, steps=0),
    "safety": lambda: Warmup(BOWL.smoothness, safety=0.0),
    "h0": lambda: alimisis(h0=0.0, h1=1.0),
    "h1": lambda: alimisis(h0=1.0, h1=-1.0),
    "threshold": lambda: Clipped(0.1, threshold=-1.0),
    "initial": lambda: AdaGradNorm(0.1, initial=0.0),
    "shrink": lambda: Backtracking(0.1, shrink=1.0),
    "sufficient": lambda: Backtracking(0.1, sufficient=0.0),
    "trials": lambda: Backtracking(0.1, trials=0),
}


@pytest.mark.parametrize("name", BAD)
def test_numbers_out_of_range_are_refused_by_name(name):
    with pytest.raises(ValueError, match=name.split()[0]):
        BAD[name]()
