"""Descents step by step: what is kept, how runs end, what is refused; and counting steps without keeping any."""

import math

import numpy as np
import pytest
from descent_cases import SEEDS, Listed, line
from hypothesis import given, settings
from hypothesis import strategies as st

from warmfree.theory.adaptive import AdaGradNorm
from warmfree.theory.descent import descend, steps_to
from warmfree.theory.functions import CoshBowl, Exponential, Power, TwoLayer
from warmfree.theory.noise import ABCNoise
from warmfree.theory.steps import Constant, InverseTime, Reciprocal, StepRule, Warmup

BOWL = CoshBowl(mu=1.0)
NOISE = ABCNoise(gap=0.1, gradient=0.5, constant=0.01)


def test_a_descent_is_the_loop_anyone_would_write():
    starts = np.array([[2.0, 1.0], [-0.5, 0.3]])
    path = descend(BOWL, starts, InverseTime(0.1), steps=15)
    point = starts.copy()
    for step in range(15):
        np.testing.assert_allclose(path.points[step], point, rtol=1e-13)
        np.testing.assert_allclose(path.gaps[step], BOWL.gap(point), rtol=1e-12)
        np.testing.assert_allclose(path.gradients[step], BOWL.gradient(point), rtol=1e-12)
        np.testing.assert_allclose(path.curvatures[step], BOWL.curvature(point), rtol=1e-12)
        np.testing.assert_allclose(path.learning_rates[step], 0.1 / (1.0 + step))
        point = point - 0.1 / (1.0 + step) * BOWL.gradient(point)
    np.testing.assert_allclose(path.points[15], point, rtol=1e-13)
    assert (path.estimates == path.gradients[:-1]).all()
    assert (path.steps, path.noise, path.diverged.tolist()) == (15, None, [False, False])


def test_one_start_is_one_run_or_as_many_as_there_are_learning_rates():
    assert descend(BOWL, [1.0, 1.0], Constant(0.1), steps=2).points.shape == (3, 1, 2)
    path = descend(BOWL, [1.0, 1.0], Constant([0.1, 0.2, 0.3]), steps=2)
    assert path.points.shape == (3, 3, 2)
    assert path.learning_rates[1].tolist() == [0.1, 0.2, 0.3]
    with pytest.raises(ValueError, match="for 3 runs, but there are 2 starts"):
        descend(BOWL, [[1.0, 1.0], [2.0, 1.0]], Constant([0.1, 0.2, 0.3]), steps=2)


def test_a_run_ends_at_its_target_and_stays():
    path = descend(BOWL, [[0.5, 0.5], [5.0, 1.0]], Warmup(BOWL.smoothness), steps=40, target=1e-2)
    counts = path.steps_to(1e-2).astype(int)
    assert 0 < counts[0] < counts[1] <= 40
    for run, count in enumerate(counts):
        assert (path.gaps[:count, run] > 1e-2).all()
        assert path.gaps[count, run] <= 1e-2
        assert (path.points[count:, run] == path.points[count, run]).all()
        assert (path.learning_rates[count:, run] == 0.0).all()
        assert (path.learning_rates[:count, run] > 0.0).all()
    assert not path.diverged.any()


def test_a_run_that_overflows_stays_where_it_was_and_is_marked():
    path = descend(BOWL, [[2.0, 1.0], [0.1, 0.1]], Constant(3.0), steps=8)
    assert path.diverged.tolist() == [True, False] or path.diverged.all()
    assert path.diverged[0]
    for array in (path.points, path.gaps, path.gradients, path.estimates, path.learning_rates):
        assert np.isfinite(array).all()
    last = np.flatnonzero(path.learning_rates[:, 0])[-1]
    assert (path.points[last + 1 :, 0] == path.points[last + 1, 0]).all()
    assert last < 6


def test_one_run_does_not_disturb_another():
    starts = np.array([[2.0, 1.0], [0.4, 0.3], [5.0, 1.0]])
    rates = np.array([0.1, 0.5, 2.0])
    together = descend(BOWL, starts, Constant(rates), steps=30, target=1e-3)
    for run in range(3):
        alone = descend(BOWL, starts[run], Constant(rates[run]), steps=30, target=1e-3)
        np.testing.assert_array_equal(together.points[:, run], alone.points[:, 0])
        np.testing.assert_array_equal(together.learning_rates[:, run], alone.learning_rates[:, 0])


def test_noise_repeats_with_its_seed_and_is_kept():
    paths = [descend(BOWL, [1.0, 1.0], Constant(0.1), steps=20, noise=NOISE, seed=seed) for seed in (3, 3, 4)]
    np.testing.assert_array_equal(paths[0].points, paths[1].points)
    assert (paths[0].points[1:] != paths[2].points[1:]).any()
    path = paths[0]
    assert path.noise is NOISE
    moved = path.points[:-1] - path.learning_rates[..., None] * path.estimates
    np.testing.assert_array_equal(path.points[1:], moved)
    size = np.linalg.norm(path.estimates - path.gradients[:-1], axis=-1)
    norms = np.linalg.norm(path.gradients[:-1], axis=-1)
    np.testing.assert_allclose(size, NOISE.largest(path.gaps[:-1], norms), rtol=1e-9)


def test_rules_see_the_estimates_and_their_sum():
    path = descend(BOWL, [1.0, 1.0], AdaGradNorm(0.5, initial=0.1), steps=10, noise=NOISE)
    squares = np.cumsum((path.estimates**2).sum(axis=-1), axis=0)
    np.testing.assert_allclose(path.learning_rates, 0.5 / np.sqrt(0.01 + squares), rtol=1e-12)


def test_an_unbounded_step_along_a_gradient_of_0_moves_nothing():
    quartic = Power(exponent=4.0, dimension=2)
    path = descend(quartic, [[0.0, 0.0], [1.0, 0.0]], Reciprocal(quartic.smoothness), steps=3)
    assert path.points[:, 0].tolist() == [[0.0, 0.0]] * 4
    assert not path.diverged.any()
    assert steps_to(
        quartic, [[1.0, 0.0]], Reciprocal(quartic.smoothness), target=1e-6, limit=50
    ).tolist() == [path_count(quartic)]


def path_count(quartic):
    path = descend(quartic, [1.0, 0.0], Reciprocal(quartic.smoothness), steps=50)
    return float(path.steps_to(1e-6)[0])


@settings(max_examples=30)
@given(seed=SEEDS, target=st.floats(1e-8, 1.0), noisy=st.booleans())
def test_counting_is_descending_without_keeping(seed, target, noisy):
    """Without noise the numbers of steps are the same for all runs; with it for one run, which draws alone."""
    generator = np.random.default_rng(seed)
    runs = 1 if noisy else 12
    starts = generator.normal(size=(runs, 2)) * 3.0
    noise = ABCNoise(gradient=0.3) if noisy else None
    rule = Constant(10.0 ** generator.uniform(-2.0, 0.5, runs))
    path = descend(BOWL, starts, rule, steps=120, target=target, noise=noise, seed=seed)
    counts = steps_to(BOWL, starts, rule, target=target, limit=120, noise=noise, seed=seed)
    np.testing.assert_array_equal(counts, path.steps_to(target))


def test_runs_that_go_on_keep_their_own_sums():
    starts = np.array([[0.1, 0.1], [4.0, 1.0], [0.2, 0.1], [2.0, 1.0]])
    rule = AdaGradNorm(np.array([0.3, 0.9, 0.3, 0.6]), initial=0.5)
    expected = descend(BOWL, starts, rule, steps=500, target=1e-3).steps_to(1e-3)
    assert len(set(expected)) == 3
    np.testing.assert_array_equal(steps_to(BOWL, starts, rule, target=1e-3, limit=500), expected)


@pytest.mark.parametrize(("c", "expected"), [(0.5, [28, 38, 50, 56, 62]), (1.0, [12, 18, 24, 27, 30])])
def test_steps_of_the_warmup_on_the_cosh_bowl(c, expected):
    starts = [[a, 1.0] for a in (2.0, 4.0, 6.0, 7.0, 8.0)]
    counts = steps_to(BOWL, starts, Warmup(BOWL.smoothness, safety=c), target=1e-6, limit=100)
    assert counts.tolist() == expected


@pytest.mark.parametrize(("a", "expected"), [(2.0, 9), (4.0, 42), (6.0, 218), (7.0, 512), (8.0, 1221)])
def test_steps_of_the_best_constant_learning_rate_on_the_cosh_bowl(a, expected):
    """Tried on a grid up to twice the largest that comes back."""
    rates = np.linspace(0.3, 2.0, 1701) * a / math.sinh(a)
    counts = steps_to(BOWL, [a, 1.0], Constant(rates), target=1e-6, limit=3 * expected)
    assert np.nanmin(counts) == expected
    assert np.isnan(counts[rates > 1.001 * a / math.sinh(a)]).all()


def test_runs_that_ended_are_not_evaluated_again():
    class Counting(CoshBowl):
        evaluated = 0

        def gap(self, points):
            Counting.evaluated += len(points)
            return super().gap(points)

    bowl = Counting(mu=1.0)
    rates = np.array([0.4] * 99 + [1e-6])
    steps_to(bowl, [0.5, 0.5], Constant(rates), target=1e-3, limit=1000)
    assert Counting.evaluated < 100 * 30 + 1000


def test_starts_at_the_target_take_no_step():
    assert steps_to(BOWL, [[0.0, 0.0], [1e-4, 0.0]], Constant(0.1), target=1e-3, limit=5).tolist() == [
        0.0,
        0.0,
    ]
    path = descend(BOWL, [1e-4, 0.0], Constant(0.1), steps=3, target=1e-3)
    assert (path.points == path.points[0]).all()


def test_runs_that_diverge_or_come_too_late_have_no_number():
    counts = steps_to(BOWL, [2.0, 1.0], Constant([0.1, 3.0, 1e-4]), target=1e-6, limit=100)
    assert counts[0] == 63.0
    assert np.isnan(counts[1:]).all()
    # A loss that vanishes at infinity is not reached by overflowing there.
    assert np.isnan(steps_to(Exponential(rate=-1.0), [-709.0], Constant(1e10), target=1e-6, limit=5)).all()


def test_progress_is_reported_and_an_interrupt_passes_through():
    seen = []
    steps_to(
        BOWL,
        [2.0, 1.0],
        Constant([1e-6, 0.3]),
        target=1e-6,
        limit=100,
        progress=lambda *now: seen.append(now),
        every=25,
    )
    assert seen == [(25, 1), (50, 1), (75, 1), (100, 1)]

    def interrupt(step, running):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        steps_to(BOWL, [2.0, 1.0], Constant(1e-6), target=1e-6, limit=100, progress=interrupt, every=1)


class Returning(StepRule):
    name = "my rule"

    def __init__(self, rates):
        self.rates = rates

    def __call__(self, state):
        return self.rates if state.step == 2 else np.full(state.gap.shape, 0.1)


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        (np.array([-0.1]), "rule 'my rule' returned the learning rate -0.1 at step 2"),
        (np.array([math.nan]), "rule 'my rule' returned the learning rate nan at step 2"),
        (0.1, r"rule 'my rule' returned learning rates of shape \(\) at step 2"),
        (np.array([0.1, 0.1]), r"rule 'my rule' returned learning rates of shape \(2,\) at step 2"),
    ],
)
def test_bad_learning_rates_are_refused_with_rule_and_step(rates, message):
    with pytest.raises(ValueError, match=message):
        descend(BOWL, [2.0, 1.0], Returning(rates), steps=5)
    with pytest.raises(ValueError, match=message):
        steps_to(BOWL, [2.0, 1.0], Returning(rates), target=1e-9, limit=5)


REFUSED = {
    "steps": ({"steps": 0}, "at least 1"),
    "steps fractional": ({"steps": 2.5}, "an int of at least 1"),
    "target negative": ({"target": -1.0}, "target must be a finite gap"),
    "target nan": ({"target": math.nan}, "target must be a finite gap"),
    "start nan": ({"start": [math.nan, 0.0]}, "must be finite"),
    "start long": ({"start": [0.0, 0.0, 0.0]}, "must have shape"),
    "start deep": ({"start": np.zeros((2, 2, 2))}, "start must have shape"),
    "no start": ({"start": np.zeros((0, 2))}, "start must have shape"),
    "start too high": ({"start": [1e3, 0.0]}, "start 0 has a gap or a gradient that is not finite"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_descended_is_refused(name):
    changes, message = REFUSED[name]
    given_start = changes.get("start", [1.0, 1.0])
    target = changes.get("target", 1e-3)
    steps = changes.get("steps", 5)
    with pytest.raises(ValueError, match=message):
        descend(BOWL, given_start, Constant(0.1), steps=steps, target=target)
    with pytest.raises(ValueError, match=message):
        steps_to(BOWL, given_start, Constant(0.1), target=target, limit=steps)


def test_starts_outside_the_domain_and_no_progress_interval_are_refused():
    with pytest.raises(ValueError, match="do not hold"):
        descend(TwoLayer(target=1.0), [1.0, 2.0], Constant(0.1), steps=5)
    with pytest.raises(ValueError, match="every must be at least 1"):
        steps_to(BOWL, [1.0, 1.0], Constant(0.1), target=1e-3, limit=5, every=0)


def test_the_starts_given_are_left_alone():
    starts = np.array([[2.0, 1.0]])
    descend(BOWL, starts, Constant(0.1), steps=3)
    steps_to(BOWL, starts, Constant(0.1), target=1e-3, limit=3)
    assert starts.tolist() == [[2.0, 1.0]]


def test_a_table_of_learning_rates_follows_its_runs():
    """Runs that are left keep their own columns."""
    rates = np.tile([[0.45], [0.01], [0.2]], (1, 50)).T
    counts = steps_to(line(), [1.0], Constant(rates[0]), target=1e-6, limit=50)
    starts = np.ones((3, 1))
    np.testing.assert_array_equal(steps_to(line(), starts, Listed(rates), target=1e-6, limit=50), counts)
