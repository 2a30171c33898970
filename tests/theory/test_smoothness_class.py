import math
from itertools import product

import mpmath
import numpy as np
import pytest
import sympy
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from warmfree.theory.smoothness import Smoothness

COSH = Smoothness(exponent=1.0, floor=2.0, growth=1.0)
GAPS = np.concatenate([[0.0], np.geomspace(1e-12, 1e12, 49)])


def positive(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(math.log(low), math.log(high)).map(math.exp)


def smoothnesses(low: float = 0.05, high: float = 6.0) -> st.SearchStrategy[Smoothness]:
    return st.builds(
        Smoothness, exponent=positive(low, high), floor=positive(1e-6, 1e6), growth=positive(1e-6, 1e6)
    )


def distance_between(smoothness: Smoothness, start: float, end: float) -> mpmath.mpf:
    """The integral of 1 / sqrt(2 Lambda) in ln sqrt(gap), by quadrature with 30 digits; `end` may be inf."""
    with mpmath.workdps(30):
        rho, floor, growth = (
            mpmath.mpf(value) for value in (smoothness.exponent, smoothness.floor, smoothness.growth)
        )

        def slope(x: mpmath.mpf) -> mpmath.mpf:
            return mpmath.exp(x) / mpmath.sqrt((floor + growth * mpmath.exp(2 * rho * x) / (1 + rho)) / 2)

        low, high = mpmath.log(start) / 2, mpmath.log(end) / 2 if end < math.inf else mpmath.inf
        if high == mpmath.inf:
            return mpmath.quad(slope, [low, low + 2, low + 8, low + 32, low + 128, mpmath.inf])
        return mpmath.quad(slope, mpmath.linspace(low, high, max(4, int((high - low) / 2)) + 1))


@pytest.mark.parametrize(
    ("name", "value", "symbol"),
    [
        *(("exponent", value, "rho") for value in (0.0, -1.0, math.inf, math.nan)),
        *(("floor", value, "K0") for value in (-1e-9, math.inf, math.nan)),
        *(("growth", value, "K_rho") for value in (-1e-9, math.inf, math.nan)),
    ],
)
def test_refuses_constants_out_of_range(name: str, value: float, symbol: str) -> None:
    constants = {"exponent": 1.0, "floor": 1.0, "growth": 1.0, name: value}
    with pytest.raises(ValueError, match=rf"{name} \({symbol}\)"):
        Smoothness(**constants)


def test_refuses_no_curvature_at_all() -> None:
    with pytest.raises(ValueError, match="both 0"):
        Smoothness(exponent=1.0, floor=0.0, growth=0.0)


@pytest.mark.parametrize("gap", [-1e-30, math.nan, [1.0, -1.0]])
def test_refuses_negative_gaps(gap: float) -> None:
    for method in (COSH.curvature, COSH.gradient, COSH.step, lambda gap: COSH.gap_within(gap, 1.0)):
        with pytest.raises(ValueError, match="gap must be >= 0"):
            method(gap)


@pytest.mark.parametrize("distance", [-1e-30, math.nan])
def test_refuses_negative_distances(distance: float) -> None:
    with pytest.raises(ValueError, match="distance must be >= 0"):
        COSH.gap_within(1.0, distance)


@pytest.mark.parametrize("safety", [0.0, -1.0, math.inf, math.nan])
def test_refuses_safeties_out_of_range(safety: float) -> None:
    with pytest.raises(ValueError, match="safety"):
        COSH.step(1.0, safety=safety)


@pytest.mark.parametrize(("floor", "growth"), [(2.0, 3.0), (0.0, 3.0), (2.0, 0.0)])
def test_keeps_shapes_and_goes_to_infinity_quietly(floor: float, growth: float) -> None:
    smoothness = Smoothness(exponent=1.5, floor=floor, growth=growth)
    gaps = np.array([[0.0, 1e-300, 1.0], [1e300, 1.7e308, math.inf]])
    for values in (smoothness.curvature(gaps), smoothness.gradient(gaps), smoothness.gap_within(gaps, 1.0)):
        assert values.shape == gaps.shape
        assert values.dtype == np.float64
        assert not np.isnan(values).any()
    assert smoothness.gradient(gaps)[1, 2] == math.inf
    assert smoothness.curvature(math.inf) == (math.inf if growth else floor)


def test_gradient_bound_is_the_integral_of_the_curvature_bound() -> None:
    gap, rho, floor, growth = sympy.symbols("Delta rho K_0 K", positive=True)
    inside = sympy.Symbol("phi", positive=True)
    integral = sympy.integrate(floor + growth * inside**rho, (inside, 0, gap))
    for values in product((0.25, 1.0, 3.0), (0.0, 2.0), (0.5, 7.0), (1e-3, 1.0, 40.0)):
        expected = sympy.sqrt(2 * integral).subs(
            dict(zip((rho, floor, growth, gap), map(sympy.Float, values), strict=True))
        )
        smoothness = Smoothness(exponent=values[0], floor=values[1], growth=values[2])
        assert float(smoothness.gradient(values[3])) == pytest.approx(float(expected), rel=1e-13)


def test_cosh_attains_the_gradient_bound_symbolically() -> None:
    x = sympy.Symbol("x", real=True)
    loss = 2 * (sympy.cosh(x) - 1)
    assert sympy.simplify(sympy.diff(loss, x, 2) - (2 + loss)) == 0
    squared_bound = 2 * (2 * loss + loss**2 / 2)
    assert sympy.simplify((squared_bound - sympy.diff(loss, x) ** 2).rewrite(sympy.exp)) == 0


@given(smoothnesses(), positive(0.01, 10.0))
def test_step_is_that_of_its_rule_and_obeys_the_descent_lemma(smoothness: Smoothness, safety: float) -> None:
    steps, rule = smoothness.step(GAPS, safety=safety), smoothness.rule(safety=safety)
    np.testing.assert_allclose(steps, [rule(float(gap)) for gap in GAPS], rtol=1e-12)
    bound = smoothness.curvature(GAPS)
    assert (smoothness.step(GAPS) * bound <= 1.0 + 1e-12).all()
    # With c = 1 the part of the promised descent that is left is 2 (1 - eta l / 2) >= 1 - 3^-rho.
    left = 2.0 - smoothness.step(GAPS, safety=1.0) * bound
    assert (left >= 1.0 - 3.0**-smoothness.exponent - 1e-9).all()
    least = 2.0 - smoothness.step(rule.peak_gap, safety=1.0) * smoothness.curvature(rule.peak_gap)
    assert float(least) == pytest.approx(1.0 - 3.0**-smoothness.exponent, rel=1e-6)


def test_step_without_bound_is_infinite() -> None:
    assert Smoothness(exponent=1.0, floor=0.0, growth=1.0).step(0.0) == math.inf
    assert Smoothness(exponent=1.0, floor=2.0, growth=0.0).step([0.0, 1e300, math.inf]).tolist() == [0.25] * 3


# How far the gap can grow.


@settings(deadline=None, max_examples=80)
@given(smoothnesses(), positive(1e-12, 1e8), positive(1e-3, 10.0))
def test_gap_within_is_never_below_and_hardly_above(
    smoothness: Smoothness, gap: float, stretch: float
) -> None:
    assume(smoothness.exponent != 1.0)
    distance = stretch * math.sqrt(gap) / float(smoothness.gradient(gap)) * math.sqrt(gap)
    bound = float(smoothness.gap_within(gap, distance))
    assume(bound < math.inf)
    needed = distance_between(smoothness, gap, bound)
    assert needed >= distance
    rounding = 3e-12 * bound / float(smoothness.gradient(bound))
    assert needed <= distance * (1.0 + 3e-6) + rounding


@settings(deadline=None, max_examples=12)
@given(smoothnesses(1.05, 6.0), positive(1e-6, 1e6))
def test_gap_within_is_infinite_from_where_the_integral_ends(smoothness: Smoothness, gap: float) -> None:
    end = float(distance_between(smoothness, gap, math.inf))
    assert smoothness.gap_within(gap, end * (1.0 + 1e-9)) == math.inf
    assert smoothness.gap_within(gap, end * 0.9) < math.inf
    assert smoothness.gap_within(gap, math.inf) == math.inf


@settings(deadline=None)
@given(st.floats(-12.0, 12.0), positive(1e-6, 20.0), positive(1e-3, 1e3), positive(1e-3, 1e3))
def test_gap_within_is_the_gap_itself_on_a_cosh(
    x: float, distance: float, height: float, rate: float
) -> None:
    smoothness = Smoothness(exponent=1.0, floor=2.0 * height * rate**2, growth=rate**2)

    def gap(at: float) -> float:
        return height * (2.0 * math.sinh(0.5 * at)) ** 2

    bound = float(smoothness.gap_within(gap(abs(x)), distance / rate))
    assert bound == pytest.approx(gap(abs(x) + distance), rel=1e-10)
    assert bound >= gap(abs(x) + distance) * (1.0 - 1e-14)


@settings(deadline=None)
@given(st.floats(2.01, 40.0), st.floats(0.0, 100.0), positive(1e-6, 1e2))
def test_gap_within_is_the_gap_itself_on_a_power(power: float, x: float, distance: float) -> None:
    rho = (power - 2.0) / power
    smoothness = Smoothness(exponent=rho, floor=0.0, growth=(power - 1.0) * power**rho)
    gap, far = x**power / power, (x + distance) ** power / power
    assume(x == 0.0 or gap > 1e-300)  # a gap that underflowed to 0 is that of another x
    bound = float(smoothness.gap_within(gap, distance))
    assert bound == pytest.approx(far, rel=1e-8)  # powers of up to 40
    assert bound >= far * (1.0 - 1e-12)


def test_gap_within_of_a_parabola_and_an_exponential() -> None:
    parabola = Smoothness(exponent=3.0, floor=4.0, growth=0.0)
    assert parabola.gap_within([0.0, 2.0], [3.0, 3.0]).tolist() == pytest.approx([18.0, 32.0], rel=1e-10)
    exponential = Smoothness(exponent=1.0, floor=0.0, growth=4.0)
    assert float(exponential.gap_within(1.5, 3.0)) == pytest.approx(1.5 * math.exp(6.0), rel=1e-10)


def test_nothing_grows_from_zero_without_floor_unless_the_exponent_is_below_one() -> None:
    for rho in (1.0, 1.5, 4.0):
        assert Smoothness(exponent=rho, floor=0.0, growth=1.0).gap_within(0.0, 1e6) == 0.0
    assert Smoothness(exponent=0.5, floor=0.0, growth=6.0).gap_within(0.0, 2.0) == pytest.approx(
        4.0, rel=1e-10
    )


@settings(deadline=None, max_examples=50)
@given(smoothnesses(1e-3, 100.0), positive(1e-6, 10.0))
def test_gap_within_grows_with_gap_and_distance(smoothness: Smoothness, stretch: float) -> None:
    distances = stretch * np.linspace(0.0, 2.0, 41)[:, None]
    bounds = smoothness.gap_within(GAPS, distances)
    assert (bounds[0] == GAPS).all()
    assert not np.isnan(bounds).any()
    with np.errstate(invalid="ignore"):
        assert not (np.diff(bounds, axis=0) < -1e-12 * bounds[:-1]).any()
        assert not (np.diff(bounds, axis=1) < -1e-12 * bounds[:, :-1]).any()


@pytest.mark.parametrize("rho", [0.3, 1.0, 2.5])
def test_gap_within_scales_with_the_units(rho: float) -> None:
    gaps, distances = np.meshgrid([1e-6, 0.3, 20.0], [1e-3, 0.1, 0.5])
    reference = Smoothness(exponent=rho, floor=1.3, growth=0.7).gap_within(gaps, distances)
    assert np.isfinite(reference).any()
    for loss, weight in product((1e-60, 1e40), (1e-30, 1e20)):
        other = Smoothness(
            exponent=rho, floor=1.3 * loss / weight**2, growth=0.7 * loss ** (1.0 - rho) / weight**2
        )
        found = other.gap_within(gaps * loss, distances * weight)
        np.testing.assert_allclose(found / loss, reference, rtol=2e-5)


def test_gap_within_is_continuous_where_its_forms_meet() -> None:
    gaps, distances = np.meshgrid([0.0, 1e-6, 1.0, 50.0], [0.01, 1.0, 3.0])
    for change in (-1e-9, 1e-9):
        near = Smoothness(exponent=1.0 + change, floor=2.0, growth=1.0).gap_within(gaps, distances)
        np.testing.assert_allclose(near, COSH.gap_within(gaps, distances), rtol=3e-5)
    for rho in (0.5, 0.9, 2.0):
        bare = Smoothness(exponent=rho, floor=0.0, growth=1.0).gap_within(gaps[:, 1:], distances[:, 1:])
        floored = Smoothness(exponent=rho, floor=1e-30, growth=1.0).gap_within(gaps[:, 1:], distances[:, 1:])
        np.testing.assert_allclose(floored, bare, rtol=3e-5)
        flat = Smoothness(exponent=rho, floor=2.0, growth=0.0).gap_within(gaps, distances)
        grown = Smoothness(exponent=rho, floor=2.0, growth=1e-30).gap_within(gaps, distances)
        np.testing.assert_allclose(grown, flat, rtol=3e-5)


@pytest.mark.parametrize("rho", [1e-3, 0.01, 30.0, 300.0])
def test_gap_within_survives_extreme_numbers(rho: float) -> None:
    for floor, growth in product((0.0, 5e-324, 1e-200, 1.0, 1e200), repeat=2):
        if floor == growth == 0.0:
            continue
        smoothness = Smoothness(exponent=rho, floor=floor, growth=growth)
        gaps = np.array([0.0, 5e-324, 1e-200, 1.0, 1e200, 1.7e308, math.inf])
        for distance in (0.0, 5e-324, 1e-150, 1.0, 1e150, math.inf):
            bound = smoothness.gap_within(gaps, distance)
            assert not np.isnan(bound).any()
            assert (bound >= gaps).all()


# Samples.


def _samples() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x = np.linspace(0.0, 5.0, 50)
    return 2.0 * (np.cosh(x) - 1.0), 2.0 * np.cosh(x)


def test_check_finds_equality() -> None:
    found = COSH.check(*_samples())
    assert (found.holds, found.violations) == (True, 0)
    assert found.worst == pytest.approx(1.0, abs=1e-12)


def test_check_finds_violations_and_the_worst_of_them() -> None:
    gaps, curvatures = _samples()
    curvatures[17] *= 1.5
    found = COSH.check(gaps, curvatures)
    assert (found.holds, found.violations, found.where) == (False, 1, 17)
    assert found.worst == pytest.approx(1.5)
    shrunk = Smoothness(exponent=1.0, floor=2.0, growth=0.99).check(*_samples())
    assert (shrunk.holds, shrunk.violations) == (False, 49)


def test_check_of_curvature_where_the_bound_is_zero() -> None:
    bare = Smoothness(exponent=1.0, floor=0.0, growth=1.0)
    assert bare.check([0.0, 1.0], [0.0, 0.5]).holds
    found = bare.check([0.0, 1.0], [1e-300, 0.5])
    assert (found.holds, found.worst) == (False, math.inf)


@pytest.mark.parametrize(
    ("gaps", "curvatures", "message"),
    [
        ([], [], "at least one"),
        ([1.0, 2.0], [1.0], "as many"),
        ([1.0], [math.nan], "finite"),
        ([1.0], [math.inf], "finite"),
        ([-1.0], [1.0], "gap must be >= 0"),
    ],
)
def test_check_refuses(gaps: list[float], curvatures: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        COSH.check(gaps, curvatures)
