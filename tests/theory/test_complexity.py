"""Numbers of steps against runs: what bounds them from above, what from below, and which schedules are left out."""

import math

import mpmath
import numpy as np
import pytest
import sympy
from descent_cases import SEEDS, Listed, line
from hypothesis import given, settings
from hypothesis import strategies as st

from warmfree.theory.complexity import non_increasing_lower_bound, steps_bound, warmup_upper_bound
from warmfree.theory.descent import descend, steps_to
from warmfree.theory.functions import CoshBowl, ExponentialSum, Power, make_function
from warmfree.theory.smoothness import Smoothness
from warmfree.theory.steps import Constant, InverseSqrt, InverseTime, StepDrop, Warmup

TABLE = (2.0, 4.0, 6.0, 7.0, 8.0)
WARMUP = (28, 38, 50, 56, 62)  # steps to 1e-6 with c = 1/2, in test_descent


def distance(function, start):
    return float(np.linalg.norm(np.asarray(start) - function.minimiser))


@settings(max_examples=40, deadline=None)
@given(mu=st.floats(0.02, 2.0), a=st.floats(0.1, 9.0), y=st.floats(0.0, 3.0), exponent=st.floats(-8.0, 0.0))
def test_the_warmup_comes_to_its_target_within_the_bound(mu, a, y, exponent):
    bowl = CoshBowl(mu=mu)
    start, target = np.array([a, y]), 10.0**exponent
    gap = float(bowl.gap(start))
    for safety in (0.1, 0.5, 0.75, 1.0, 1.3):
        known = {"safety": safety, "pl": mu, "distance": distance(bowl, start)}
        count = steps_to(bowl, start, Warmup(bowl.smoothness, safety=safety), target=target, limit=20_000)[0]
        both = steps_bound(bowl.smoothness, gap, target, **known)
        pl = steps_bound(bowl.smoothness, gap, target, pl=mu, safety=safety)
        convex = steps_bound(bowl.smoothness, gap, target, distance=known["distance"], safety=safety)
        assert both <= min(pl, convex)
        assert not math.isnan(count) or both > 20_000
        assert math.isnan(count) or count <= both


@pytest.mark.parametrize(
    "name", ["power4", "power6", "exponential-sum", "river-valley", "logistic-overlapping"]
)
def test_the_bound_holds_for_convex_functions_without_mu(name):
    function = make_function(name)
    starts = np.random.default_rng(1).normal(size=(20, function.dimension)) * 2.0
    target = 1e-2
    counts = steps_to(function, starts, Warmup(function.smoothness), target=target, limit=50_000)
    for start, count in zip(starts, counts, strict=True):
        bound = steps_bound(
            function.smoothness, float(function.gap(start)), target, distance=distance(function, start)
        )
        assert count <= bound


def test_the_bound_fails_for_a_distance_that_is_too_short_and_a_mu_that_is_too_large():
    bowl = CoshBowl(mu=0.001)
    start = np.array([0.0, 1.0])
    gap, target = float(bowl.gap(start)), 1e-6
    count = steps_to(bowl, start, Warmup(bowl.smoothness), target=target, limit=50_000)[0]
    assert count > steps_bound(bowl.smoothness, gap, target, pl=0.01)
    assert count > steps_bound(bowl.smoothness, gap, target, distance=0.03)
    assert count <= steps_bound(bowl.smoothness, gap, target, pl=0.001)


def test_the_bound_is_tight_to_the_factor_2_for_a_parabola_in_the_slow_direction():
    bowl = CoshBowl(mu=0.01)
    start = np.array([0.0, 1.0])
    count = steps_to(bowl, start, Warmup(bowl.smoothness), target=1e-9, limit=50_000)[0]
    bound = steps_bound(bowl.smoothness, float(bowl.gap(start)), 1e-9, pl=0.01)
    assert 2.0 <= bound / count < 2.02  # the gap falls by (1 - mu eta)^2, the bound says 1 - mu eta


def test_the_number_is_the_documented_sum():
    """Two and a half halvings by hand: with c = 1/2, and with c = 1.4, of which a step descends by 2 - 1.4 (4/3)."""
    smoothness = Smoothness(exponent=1.0, floor=1.0, growth=1.0)
    for safety, share in ((0.5, 1.0), (1.4, 2.0 - 1.4 * 4.0 / 3.0)):
        pl, convex = 0.0, 0.0
        for gap, part in ((4.0, 2.0), (2.0, 2.0), (1.0, 1.25)):
            rate = share * safety / (3.0 * gap)
            pl += math.ceil(math.log(part) / -math.log(1.0 - 0.5 * rate))
            convex += math.ceil(2.0 * 9.0 * (part - 1.0) / (rate * gap))
        assert steps_bound(smoothness, 4.0, 0.8, pl=0.5, safety=safety) == pl
        assert steps_bound(smoothness, 4.0, 0.8, distance=3.0, safety=safety) == convex


RHO = {"below 1": 0.5, "1": 1.0, "above 1": 2.0}


@pytest.mark.parametrize("kind", RHO)
def test_for_large_gaps_the_bound_grows_as_documented(kind):
    """Convex: not at all, with the logarithm, with the power rho - 1. PL: with the power rho."""
    rho = RHO[kind]
    smoothness = Smoothness(exponent=rho, floor=1.0, growth=1.0)
    target, radius = 1e-3, 1e4
    first = (1.0 / 1.0) ** (1.0 / rho) / 3.0

    def convex(gap):
        return steps_bound(smoothness, gap, target, distance=radius)

    def expected(gap):
        if rho < 1.0:
            series = first ** (rho - 1.0) / (1.0 - 2.0 ** (rho - 1.0))
        elif rho == 1.0:
            series = math.log2(gap / first)
        else:
            series = gap ** (rho - 1.0) / (1.0 - 2.0 ** (1.0 - rho))
        return 4.0 * radius**2 * (2.0 / target + 3.0**rho * series)

    for gap in (1e8, 1e12):
        assert 0.4 < convex(gap) / expected(gap) < 1.01
    # What a thousandfold gap adds is the growth alone.
    added = (convex(1e12) - convex(1e9)) / (expected(1e12) - expected(1e9)) if rho >= 1.0 else None
    if rho < 1.0:
        assert convex(1e12) / convex(1e9) < 1.001
    else:
        assert added == pytest.approx(1.0, rel=1e-2)
    mu = 1e-4
    documented = (
        2.0 / mu * (math.log(first / target) + math.log(2.0) / (1.0 - 2.0**-rho) * 3.0**rho * 1e9**rho)
    )
    assert steps_bound(smoothness, 1e9, target, pl=mu) == pytest.approx(documented, rel=0.02)


def test_the_algebra_of_a_halving():
    """1/D grows by 1/D from D to D/2, and by eta/(2 R^2) a step; powers of the gap sum to a geometric series."""
    gap, rate, radius = sympy.symbols("D eta R", positive=True)
    count = (1 / (gap / 2) - 1 / gap) / (rate / (2 * radius**2))
    assert sympy.simplify(count - 2 * radius**2 / (rate * gap)) == 0
    x = sympy.symbols("x", positive=True)
    halved = sympy.exp(sympy.log(1 - x) * (sympy.log(2) / -sympy.log(1 - x)))
    assert sympy.simplify(halved - sympy.Rational(1, 2)) == 0
    for power in (mpmath.mpf(1) / 3, 1, 2.5):
        total = mpmath.nsum(lambda h, power=power: mpmath.mpf(2) ** (-power * h), [0, mpmath.inf])
        assert mpmath.almosteq(total, 1 / (1 - mpmath.mpf(2) ** -power), rel_eps=1e-12)


def test_at_the_extremes_the_bound_is_a_number_or_inf():
    steep = Smoothness(exponent=20.0, floor=1.0, growth=1.0)
    assert steps_bound(steep, 1e100, 1e-6, pl=1.0) == math.inf
    assert steps_bound(steep, 1e-200, 1e-250, distance=1.0) > 1e200
    assert steps_bound(steep, 1.0, 2.0, pl=1.0) == 0.0
    flat = Smoothness(exponent=1.0, floor=0.0, growth=1.0)
    assert steps_bound(flat, 1e-300, 1e-301, distance=1e-3) >= 1.0
    assert steps_bound(Smoothness(exponent=1.0, floor=1.0, growth=0.0), 1.0, 0.1, pl=1.0, safety=1.4) >= 1.0


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({}, "give pl"),
        ({"pl": 3.0}, "pl must be at most the smoothness's floor"),
        ({"pl": 0.0}, "pl must be finite and > 0"),
        ({"distance": -1.0}, "distance must be finite and > 0"),
        ({"pl": 1.0, "safety": 1.5}, "safety must be below 1.5"),
        ({"pl": 1.0, "safety": 0.0}, "safety must be finite and > 0"),
        ({"pl": 1.0, "initial_gap": math.inf}, "initial_gap must be finite"),
        ({"pl": 1.0, "target": 0.0}, "target must be finite and > 0"),
    ],
)
def test_numbers_out_of_range_have_no_bound(known, message):
    cosh = CoshBowl(mu=1.0).smoothness
    gap, target = known.pop("initial_gap", 10.0), known.pop("target", 1e-3)
    with pytest.raises(ValueError, match=message):
        steps_bound(cosh, gap, target, **known)


# The cosh bowl.


def test_the_lower_bound_of_the_table():
    found = [round(non_increasing_lower_bound(a, 1.0, 1e-6), 1) for a in TABLE]
    assert found == [8.2, 41.4, 217.3, 510.7, 1219.1]


def test_the_upper_bound_is_above_the_runs_of_the_table_by_at_most_8():
    assert [warmup_upper_bound(a, 1.0, 1e-6) - count for a, count in zip(TABLE, WARMUP, strict=True)] == [
        6.0,
        8.0,
        8.0,
        8.0,
        8.0,
    ]
    assert [warmup_upper_bound(a, 1.0, 1e-6, safety=1.0) for a in TABLE] == [15.0, 21.0, 27.0, 30.0, 33.0]


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, mu=st.floats(0.05, 2.0), exponent=st.floats(-10.0, 1.0), c=st.floats(0.1, 1.0))
def test_the_warmup_is_never_slower_than_its_upper_bound(seed, mu, exponent, c):
    bowl, target = CoshBowl(mu=mu), 10.0**exponent
    heights = np.random.default_rng(seed).uniform(1e-3, 12.0, 50)
    bound = np.array([warmup_upper_bound(a, mu, target, safety=c) for a in heights])
    starts = np.stack([heights, np.ones(50)], axis=1)
    rule = Warmup(bowl.smoothness, safety=c)
    counts = steps_to(bowl, starts, rule, target=target, limit=int(bound.max()) + 1)
    assert (counts <= bound).all()
    rough = 3.0 * heights / c + max(0.0, math.log(1.0 / target)) / (mu * c)
    assert (bound <= rough + 4.0 + 2.0 / (mu * c)).all()


def fastest(starts, rates, mu, target):
    """The fewest steps of any run with learning rates from a table."""
    counts = steps_to(CoshBowl(mu=mu), starts, Listed(rates), target=target, limit=len(rates))
    return np.nanmin(counts, initial=math.inf)


@settings(max_examples=60, deadline=None)
@given(
    seed=SEEDS,
    a=st.floats(0.05, 5.0),
    mu=st.floats(0.05, 2.0),
    exponent=st.floats(-9.0, -0.5),
    drop=st.floats(1.0, 20.0),
)
def test_no_schedule_that_falls_slowly_is_faster_than_the_lower_bound(seed, a, mu, exponent, drop):
    """A thousand random schedules of which many throw x out first: they come back only within sigma."""
    generator = np.random.default_rng(seed)
    runs, steps, target = 1000, 80, 10.0**exponent
    first = (a / math.sinh(a)) * generator.uniform(0.5, 1.0 + math.log(2.0 * drop) / a, runs)
    falls = np.exp(generator.uniform(0.0, math.log(drop), (steps, runs)))
    falls[generator.integers(1, 6, runs) <= np.arange(steps)[:, None]] = 1.0  # fall at first, then stay
    falls[0] = 1.0
    rates = first / np.cumprod(falls, axis=0)
    assert fastest(np.tile([a, 1.0], (runs, 1)), rates, mu, target) >= non_increasing_lower_bound(
        a, mu, target, drop=drop
    )


def test_schedules_that_throw_x_out_and_come_back_keep_to_the_bound_for_their_drop():
    """First steps up to 1.6 times too long, then a fall by what it takes, to learning rates that stay."""
    a, mu, target = 2.0, 0.05, 0.02
    wide = a / math.sinh(a)
    steps = 60
    first = wide * np.linspace(1.05, 1.6, 50)
    second = wide * np.linspace(0.05, 1.0, 50)
    rates = np.concatenate([first.repeat(50)[None], np.tile(second, 50)[None].repeat(steps, axis=0)])
    rates = np.minimum.accumulate(rates, axis=0)
    counts = steps_to(CoshBowl(mu=mu), [[a, 1.0]] * rates.shape[1], Listed(rates), target=target, limit=steps)
    reached = np.isfinite(counts)
    assert reached.any()
    drops = rates[0] / rates[1]
    for count, drop in zip(counts[reached], drops[reached], strict=True):
        assert count >= non_increasing_lower_bound(a, mu, target, drop=drop)


@pytest.mark.parametrize("a", TABLE[1:])
def test_families_of_schedules_keep_to_the_lower_bound_for_their_drop(a):
    scales = np.geomspace(0.1, 3.0, 300) * a / math.sinh(a)
    families = {1.0: Constant(scales), 2.0: StepDrop(scales, every=20, drop=0.5)}
    families |= {
        1.0 + 1.0 / 30.0: InverseTime(scales, offset=30.0),
        math.sqrt(2.0): InverseSqrt(scales, offset=1.0),
    }
    for drop, rule in families.items():
        counts = steps_to(CoshBowl(mu=1.0), [a, 1.0], rule, target=1e-3, limit=2000)
        fewest = np.nanmin(np.append(counts, math.inf))
        assert fewest >= non_increasing_lower_bound(a, 1.0, 1e-3, drop=drop)


def test_a_learning_rate_that_grows_is_faster_than_the_lower_bound():
    bowl = CoshBowl(mu=1.0)
    count = steps_to(bowl, [6.0, 1.0], Warmup(bowl.smoothness), target=1e-6, limit=100)[0]
    assert count < 0.3 * non_increasing_lower_bound(6.0, 1.0, 1e-6)


@pytest.mark.parametrize(("a", "first", "target"), [(2.0, 0.9, 0.01), (6.0, 1.0, 1e-6)])
def test_a_large_drop_after_throwing_x_out_is_faster_than_the_lower_bound_without_it(a, first, target):
    """The second step lands x on 0: a fall by 18, or more than 1e80."""
    out = a - 2.0 * first * math.sinh(a)
    rates = np.array([[first], [out / (2.0 * math.sinh(out))]])
    assert abs(out) > a
    path = descend(CoshBowl(mu=1.0), [a, 1.0], Listed(rates), steps=2)
    assert path.gaps[2, 0] <= target
    assert non_increasing_lower_bound(a, 1.0, target) > 2.0
    assert non_increasing_lower_bound(a, 1.0, target, drop=rates[0, 0] / rates[1, 0]) <= 2.0


def test_where_one_step_may_bring_y_to_0_only_1_is_claimed():
    """mu a / sinh a >= 1, for mu above 1 and small a: the learning rate 1/mu does it and throws x no further out."""
    a, mu = 1.0, 2.0
    assert mu * a / math.sinh(a) > 1.0
    assert non_increasing_lower_bound(a, mu, 1e-6) == 1.0
    path = descend(CoshBowl(mu=mu), [a, 1.0], Constant(1.0 / mu), steps=1)
    assert path.points[1, 0, 1] == 0.0
    assert abs(path.points[1, 0, 0]) < a
    for small in (1e-4, 0.1, 1.0, 10.0):
        assert 1.0 * small / math.sinh(small) < 1.0  # never for mu = 1
    root = mpmath.findroot(lambda x: mpmath.sinh(x) - 2 * x, 2.0)
    assert round(float(root), 2) == 2.18


def test_targets_at_or_above_the_wall_claim_no_more_than_1():
    a, mu = 0.1, 0.1
    wall = 2.0 * (math.cosh(a) - 1.0)
    assert non_increasing_lower_bound(a, mu, 1.01 * wall) == 1.0
    assert non_increasing_lower_bound(a, mu, 0.99 * wall) > 5.0
    assert non_increasing_lower_bound(a, mu, 1.0) == 0.0
    assert warmup_upper_bound(a, mu, 1.0) == 0.0


@given(a=st.floats(0.01, 600.0), drop=st.floats(1.0, 1e6))
def test_the_lower_bound_falls_with_the_drop_and_solves_its_equation(a, drop):
    """sigma against 40 digits: sinh((2 sigma - 1) a) = (2 sigma - 1) q sinh a."""
    mu, target = 0.01, 1e-9 * min(1.0, a * a)
    bound = non_increasing_lower_bound(a, mu, target, drop=drop)
    assert bound <= non_increasing_lower_bound(a, mu, target) * (1.0 + 1e-9)
    with mpmath.workdps(40):
        start, q = mpmath.mpf(a), mpmath.mpf(drop)

        def excess(sigma):
            stretch = 2 * sigma - 1
            return mpmath.log(mpmath.sinh(stretch * start) / (stretch * mpmath.sinh(start))) - mpmath.log(q)

        low, high = mpmath.mpf(1), 1 + mpmath.log(2 * q) / start + 3 / mpmath.sqrt(start) * mpmath.log(2 * q)
        while excess(high) < 0:
            high *= 2
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if excess(middle) < 0 else (low, middle)
        contraction = mu * high * start / mpmath.sinh(start)
        if contraction < 1:
            expected = mpmath.log(mpmath.mpf(mu) / 2 / target) / (-2 * mpmath.log1p(-contraction))
            assert bound == pytest.approx(max(1.0, float(expected)), rel=1e-6)
        else:
            assert bound == 1.0


@pytest.mark.parametrize("bound", [non_increasing_lower_bound, warmup_upper_bound])
@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0.0, 1.0, 1e-6), "a must be finite and > 0"),
        ((math.inf, 1.0, 1e-6), "a must be finite and > 0"),
        ((2.0, 3.0, 1e-6), r"mu must be in \(0, 2\]"),
        ((2.0, 1.0, 0.0), "target must be finite and > 0"),
    ],
)
def test_numbers_out_of_range_have_no_bound_on_the_bowl(bound, numbers, message):
    with pytest.raises(ValueError, match=message):
        bound(*numbers)


def test_drops_and_safeties_out_of_range_are_refused():
    with pytest.raises(ValueError, match="drop must be finite and at least 1"):
        non_increasing_lower_bound(2.0, 1.0, 1e-6, drop=0.5)
    with pytest.raises(ValueError, match=r"safety must be in \(0, 1\]"):
        warmup_upper_bound(2.0, 1.0, 1e-6, safety=1.1)


def test_no_mu_is_larger_than_the_curvature_at_the_minimum():
    """Why a larger one is refused: 2 mu D <= ||grad||^2 <= 2 Lambda(D), and Lambda(D)/D comes to K0."""
    function = line()
    near = np.array([[1e-6]])
    ratio = float((function.gradient(near) ** 2).sum() / (2.0 * function.gap(near)[0]))
    assert ratio == pytest.approx(function.smoothness.floor, rel=1e-9)
    assert isinstance(function, ExponentialSum)
    assert Power(exponent=4.0).smoothness.floor == 0.0
