"""Fitted laws, powers, wrong constants, and the one call that runs it all."""

import json
import math
from functools import partial

import numpy as np
import pytest

from warmfree.theory.functions import CoshBowl
from warmfree.theory.speedup import fit_law, mistakes, power_laws, power_steps, run_speedup
from warmfree.theory.speedup.mistakes import MistakenWarmup
from warmfree.theory.speedup.valley import gaps_to
from warmfree.theory.steps import State, Warmup

NAMES = ("steps", "gap")


@pytest.fixture(scope="module")
def powers():
    return power_steps(starts=[2.5, 4.0, 6.0, 10.0], powers=[4])


def run_a_little(monkeypatch, progress=None):
    few = partial(power_steps, powers=[4], starts=[2.5, 3.5, 5.0])
    monkeypatch.setattr("warmfree.theory.speedup.run.power_steps", few)
    return run_speedup(largest_gap=30.0, longest=64, seeds=1, seed=3, progress=progress)


def test_a_law_with_a_logarithm_is_found_with_its_logarithm():
    gaps = np.geomspace(100, 1e6, 9)
    steps = 3 * gaps / np.log(gaps)
    plain, corrected = (fit_law(gaps, steps, names=NAMES, logs=logs) for logs in (0, 1))
    assert corrected.slope == pytest.approx(1)
    assert corrected.intercept == pytest.approx(math.log(3))
    assert corrected.high - corrected.low < 1e-9
    assert 0.8 < plain.slope < 0.95
    assert plain.low < plain.slope < plain.high
    per_fold = fit_law(gaps, 6 * np.log(gaps) + 5, names=NAMES, form="logarithm")
    assert (per_fold.slope, per_fold.intercept) == pytest.approx((6, 5))


def test_intervals_cover_the_true_exponent_about_as_often_as_they_say():
    generator = np.random.default_rng(0)
    variable = np.geomspace(10, 1e4, 7)
    covered = 0
    for seed in range(60):
        drawn = 2 * variable**0.5 * np.exp(0.1 * generator.standard_normal((400, variable.size)))
        measured = drawn[:20].mean(axis=0)
        samples = [drawn[generator.integers(0, 20, 20)].mean(axis=0) for _ in range(40)]
        law = fit_law(variable, measured, names=NAMES, samples=samples, resamples=150, seed=seed)
        covered += law.low <= 0.5 <= law.high
    assert covered >= 51


def test_more_scatter_between_instances_widens_the_interval():
    variable, generator = np.geomspace(10, 1e4, 7), np.random.default_rng(0)
    widths = []
    for scatter in (0.02, 0.2):
        samples = variable * np.exp(scatter * generator.standard_normal((50, 7)))
        law = fit_law(variable, variable, names=NAMES, samples=samples)
        widths.append(law.high - law.low)
    assert widths[1] > 4 * widths[0]


@pytest.mark.parametrize(
    ("variable", "quantity", "message"),
    [
        ([10, 100], [1, 2], "three"),
        ([10, 10, 100], [1, 2, 3], "three"),
        ([10, 100, 1000], [1, 2], "three"),
        ([0.5, 10, 100], [1, 2, 3], "> 1"),
        ([10, 100, 1000], [1, 0, 3], "> 0"),
        ([10, 100, 1000], [1, math.inf, 3], "finite"),
    ],
)
def test_a_law_refuses_what_has_no_line(variable, quantity, message):
    with pytest.raises(ValueError, match=message):
        fit_law(variable, quantity, names=NAMES)


def test_powers_of_the_table(powers):
    row = powers[-1]
    assert (row.near_edge, row.warmup, round(row.predicted)) == (412, 37, 395)
    assert row.constant == pytest.approx(row.predicted, rel=0.02)
    sixth = power_steps(powers=[6], starts=[5.0])[0]
    assert sixth.constant == pytest.approx(sixth.predicted, rel=0.01)
    assert sixth.warmup == 50


def test_power_laws(powers):
    constant, warmup = power_laws(powers)
    assert constant.predicted == 2
    assert 1.9 < constant.slope < 2.15
    assert warmup.form == "logarithm"
    assert warmup.slope == pytest.approx(warmup.predicted, rel=0.1)
    assert power_laws(powers[:2]) == ()


def test_a_warmup_mistaken_in_nothing_is_the_warmup():
    bowl = CoshBowl(mu=1.0)
    gap = np.array([0.01, 1.0, 50.0])
    state = State(0, bowl, np.zeros((3, 2)), gap, np.zeros((3, 2)), gap)
    rule = MistakenWarmup(
        smoothness=bowl.smoothness, factor=np.array([1.0, 1.0, 2.0]), raised=np.array([0.0, 0.0, 40.0])
    )
    rates = rule(state)
    right = Warmup(bowl.smoothness)(state)
    assert rates[:2].tolist() == right[:2].tolist()
    assert rates[2] == 2 * bowl.smoothness.step(10.0)


def test_steps_are_in_proportion_to_constants_too_large_and_do_not_diverge_if_too_small():
    rows = {
        (row.what, row.amount): row
        for row in mistakes(gaps=[1e4], factors=[0.25, 0.5, 1, 2, 8], raised=[-10, -1, 0, 1]).rows
    }
    right = rows["step", 1.0].steps
    assert rows["f_star", 0.0].steps == right
    for factor in (0.25, 0.5, 2.0):
        assert rows["step", factor].steps == pytest.approx(right / factor, rel=0.06)
    lucky = rows["step", 8.0].steps
    assert lucky is None or lucky > 20 * right
    assert not any(row.diverged for row in rows.values())
    assert rows["f_star", -10.0].steps > 5 * right > rows["f_star", -1.0].steps > right
    assert rows["f_star", 1.0].steps <= right


def test_gaps_are_two_a_decade():
    assert gaps_to(10.0) == [10.0]
    assert gaps_to(12.0) == pytest.approx([10.0, 12.0])
    assert len(gaps_to(1e8)) == 15
    for wrong in (9.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="at least 10"):
            gaps_to(wrong)


def test_one_call_runs_all_and_gives_plain_values_the_same_each_time(monkeypatch):
    lines = []
    found = run_a_little(monkeypatch, lines.append)
    assert found.seed == 3
    assert [errors.noise for errors in found.errors] == ["none", "additive", "affine", "ABC"]
    assert {row.gap for row in found.steps.rows} == set(gaps_to(30.0))
    assert found.power
    assert found.power_laws
    assert found.population.rows
    assert found.mistakes.rows
    text = json.dumps(found.as_json(), allow_nan=False)
    assert json.loads(text)["errors"][0]["rows"][0]["family"] == "constant"
    assert len(lines) > 10
    assert all(isinstance(line, str) for line in lines)
    assert run_a_little(monkeypatch) == found


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"largest_gap": 5.0}, "largest_gap"), ({"longest": 10}, "longest"), ({"seeds": 0}, "seeds")],
)
def test_one_call_refuses_numbers_out_of_range(wrong, message):
    with pytest.raises(ValueError, match=message):
        run_speedup(**wrong)
