"""Steps to a target against the initial gap: the published table, the exponents, and that tuned means tuned."""

import math

import numpy as np
import pytest

from warmfree.theory.complexity import non_increasing_lower_bound
from warmfree.theory.speedup import population_steps, steps_by_gap
from warmfree.theory.speedup.candidates import NON_INCREASING, Candidates
from warmfree.theory.speedup.population import Instances
from warmfree.theory.speedup.tuning import around, near, tune
from warmfree.theory.speedup.valley import edge, hits

STARTS = (2.0, 4.0, 6.0, 7.0, 8.0)
TABLE = {
    "warmup, c = 0.5": (28, 38, 50, 56, 62),
    "warmup, c = 1": (12, 18, 24, 27, 30),
    "constant": (9, 42, 218, 511, 1220),
}


@pytest.fixture(scope="module")
def table():
    return steps_by_gap(gaps=[2 * (math.cosh(a) - 1) for a in STARTS], adaptive_to=1000.0)


@pytest.fixture(scope="module")
def decades():
    return steps_by_gap(gaps=np.geomspace(100, 1e5, 7).tolist(), all_families_to=1.0, adaptive_to=1.0)


@pytest.fixture(scope="module")
def population():
    return population_steps(gaps=[100.0, 250.0, 600.0], instances=8, rounds=1)


def law_of(found, quantity, logs):
    return next(law for law in found.laws if law.quantity == quantity and law.logs == logs)


@pytest.mark.parametrize("family", TABLE)
def test_the_table(table, family):
    assert tuple(row.steps for row in table.rows if row.family == family) == TABLE[family]


def test_no_tuned_schedule_that_never_rises_beats_a_constant_or_the_bound(table):
    for gap, bound in table.bounds:
        steps = {row.family: row.steps for row in table.rows if row.gap == gap}
        assert min(steps[family] for family in NON_INCREASING) == steps["constant"] == math.ceil(bound)
        assert steps["AdaGrad-norm"] is None or steps["AdaGrad-norm"] >= bound if gap < 1000 else True
        assert all(row.tried > 100 for row in table.rows if row.gap == gap and row.kind == "non-increasing")


def test_best_picks_the_fewest_steps_of_a_kind(table):
    assert [row.steps for row in table.best("non-increasing")] == list(TABLE["constant"])
    assert all(row.kind == "warmup" for row in table.best("warmup"))


def test_steps_grow_like_the_gap_over_its_logarithm_without_rising_and_like_the_logarithm_with_warmup(
    decades,
):
    falling = law_of(decades, "steps, best that never rises", 1)
    assert 0.99 < falling.slope < 1.01
    assert falling.low <= falling.slope <= falling.high
    assert 0.8 < law_of(decades, "steps, best that never rises", 0).slope < 0.95  # the logarithm is there
    assert 5.5 < law_of(decades, "steps, warmup, c = 0.5", 0).slope < 6.2
    assert 2.7 < law_of(decades, "steps, warmup, c = 1", 0).slope < 3.2
    assert 0.9 < law_of(decades, "steps, 1/l", 0).slope < 1.3


def test_a_linear_warmup_of_tuned_length_needs_the_square_root(decades):
    assert 0.42 < law_of(decades, "steps, linear warmup", 0.5).slope < 0.55
    for row in (row for row in decades.rows if row.family == "linear warmup" and row.gap > 1e4):
        # its first steps are at the edge and y needs a certain sum: T^2 / 2 times the rate of the rise
        needed = math.log(1.0 / math.sqrt(2e-6))
        assert row.steps == pytest.approx(math.sqrt(2 * needed / edge(row.start)), rel=0.1)


def test_beyond_a_gap_constants_alone_stand_for_those_that_never_rise(decades):
    assert {row.family for row in decades.rows if row.kind == "non-increasing"} == {"constant"}
    assert "AdaGrad-norm" not in {row.family for row in decades.rows}


@pytest.mark.parametrize("family", ["constant", "1/sqrt(t)", "1/t"])
def test_perturbing_a_tuned_schedule_does_not_help(table, family):
    for row in (row for row in table.rows if row.family == family):
        factors = np.concatenate([1 - np.geomspace(1e-6, 0.5, 200), 1 + np.geomspace(1e-6, 0.5, 200)])
        offset = row.parameters.get("offset", math.inf)
        perturbed = Candidates.of(family, row.parameters["lr"] * factors, offset=offset)
        steps = hits(
            perturbed,
            start=row.start,
            height=1.0,
            curvature=1.0,
            target=1e-6,
            limit=row.steps,
            first_only=True,
        )
        # steps are whole numbers: a finer grid may find one fewer where the optimum is between two
        assert not np.nanmin(steps, initial=row.steps) < row.steps - 1


def test_tuning_refines_what_the_first_grid_found():
    def distance(candidates):
        return np.abs(np.log(candidates.lr / 0.0437)) + np.abs(np.log(candidates.offset / 31.0))

    grid = Candidates.of("1/t", np.geomspace(0.01, 1, 4)[:, None], offset=[10.0, 100.0])
    coarse, fine = (tune(distance, [grid], rounds=rounds)["1/t"] for rounds in (0, 3))
    assert fine.value < 0.4 * coarse.value
    assert fine.tried > coarse.tried == 8
    lost = tune(lambda candidates: np.full(len(candidates), math.nan), [grid], rounds=1)["1/t"]
    assert lost.value == math.inf
    assert lost.member.lr[0] == 0.01  # of equally bad ones the smallest


def test_around_never_makes_a_decaying_schedule_constant():
    first = Candidates.of("step drop", [0.1, 0.2], every=[10, 90], drop=[0.5, 0.98])
    tried = around(first.take(np.array([1])), within=first)
    assert tried.every.max() == 90
    assert tried.drop.max() == 0.98
    rates = near(0.1)
    assert (rates < 0.1).sum() >= 10
    assert (rates > 0.1).sum() >= 5
    assert np.abs(rates / 0.1 - 1).min() == 0


def test_population_exponents(population):
    for aim in ("all", "median"):
        falling = law_of(population, f"steps, best that never rises, {aim}", 1)
        assert 0.95 < falling.slope < 1.08
        assert falling.low <= falling.slope <= falling.high
        warm = law_of(population, f"steps, warmup, c = 0.5, {aim}", 0)
        assert 4.5 < warm.slope < 7


def test_population_is_harder_for_all_than_for_the_median_and_obeys_the_bound(population):
    by = {(row.family, row.gap, row.aim): row for row in population.rows}
    for (family, gap, aim), row in by.items():
        if row.steps is not None:
            assert row.low <= row.steps or aim == "all"
            assert by[family, gap, "median"].steps <= by[family, gap, "all"].steps
    drawn = Instances.drawn(8, gap=600.0, target=1e-6, seed=0)
    slowest = max(
        non_increasing_lower_bound(drawn.start.max(), mu, eps / y0**2)
        for mu, eps, y0 in zip(drawn.curvature, drawn.target, drawn.height, strict=True)
    )
    assert drawn.bounds().max() == slowest
    assert by["constant", 600.0, "all"].steps >= slowest
    assert by["constant", 600.0, "all"].steps > 3 * by["warmup, c = 0.5", 600.0, "all"].steps


def test_instances_scatter_as_said_and_are_the_same_for_the_same_seed():
    one, same = (Instances.drawn(500, gap=1e3, target=1e-6, seed=1) for _ in range(2))
    assert np.array_equal(one.start, same.start)
    middle = 2 * np.arcsinh(np.sqrt(1e3) / 2)
    for values, low, high in (
        (one.start / middle, 0.98, 1.02),
        (one.height, 0.5, 2.0),
        (one.curvature, 0.25, 2.0),
        (one.target, 1e-6 / 3, 3e-6),
    ):
        assert low <= values.min() < low * 1.1
        assert high / 1.1 < values.max() <= high


def test_the_same_seed_gives_the_same_population(population):
    again = population_steps(gaps=[100.0], instances=8, rounds=1)
    assert again.rows == tuple(row for row in population.rows if row.gap == 100.0)
