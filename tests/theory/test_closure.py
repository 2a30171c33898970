import math
from collections.abc import Callable

import mpmath
import numpy as np
import pytest
import sympy
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from warmfree.theory.closure import (
    added,
    composed,
    from_gradient_norm,
    from_l0_l1,
    from_lipschitz_gradient,
    lower_infimum,
    raise_infimum,
    scaled,
    separable,
    with_exponent,
)
from warmfree.theory.functions import CoshBowl, ExponentialSum, Power, Separable
from warmfree.theory.smoothness import Smoothness

Floats = NDArray[np.float64]
CONSTANT = Smoothness(exponent=1.0, floor=0.0, growth=1.0)
SEEDS = st.integers(0, 2**32 - 1)


def positive(low: float = 0.05, high: float = 20.0) -> st.SearchStrategy[float]:
    return st.floats(math.log(low), math.log(high)).map(math.exp)


class Line:
    """A function of one variable that attains its smoothness: gap, slope and curvature at x."""

    def __init__(self, kind: str, scale: float, shape: float, centre: float) -> None:
        self.kind, self.scale, self.shape, self.centre = kind, scale, shape, centre
        if kind == "cosh":
            self.smoothness = Smoothness(exponent=1.0, floor=2.0 * scale * shape**2, growth=shape**2)
        else:
            power = 2.0 + shape
            rho = shape / power
            unscaled = (power - 1.0) * power**rho
            self.smoothness = Smoothness(exponent=rho, floor=0.0, growth=scale ** (1.0 - rho) * unscaled)

    def gap(self, x: Floats) -> Floats:
        if self.kind == "cosh":
            return self.scale * (2.0 * np.sinh(0.5 * self.shape * (x - self.centre))) ** 2
        return self.scale * np.abs(x - self.centre) ** (2.0 + self.shape) / (2.0 + self.shape)

    def slope(self, x: Floats) -> Floats:
        if self.kind == "cosh":
            return 2.0 * self.scale * self.shape * np.sinh(self.shape * (x - self.centre))
        return self.scale * np.sign(x - self.centre) * np.abs(x - self.centre) ** (1.0 + self.shape)

    def curvature(self, x: Floats) -> Floats:
        if self.kind == "cosh":
            return 2.0 * self.scale * self.shape**2 * np.cosh(self.shape * (x - self.centre))
        return self.scale * (1.0 + self.shape) * np.abs(x - self.centre) ** self.shape


def lines(kinds: tuple[str, ...] = ("cosh", "power")) -> st.SearchStrategy[Line]:
    return st.builds(
        Line, st.sampled_from(kinds), positive(0.1, 10.0), st.floats(0.1, 4.0), st.floats(-2.0, 2.0)
    )


def around(centre: float, *, count: int = 500, far: float = 6.0) -> Floats:
    away = np.geomspace(1e-3, far, count)
    return np.concatenate([centre - away, [centre], centre + away])


def crossing(slope: Callable[[Floats], Floats], low: float, high: float) -> float:
    """Where an increasing function is 0."""
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if slope(np.array(middle)) > 0.0 else (middle, high)
    return 0.5 * (low + high)


@settings(deadline=None)
@given(lines())
def test_the_lines_attain_their_smoothness(line: Line) -> None:
    x = around(line.centre)
    curvature = line.curvature(x)
    np.testing.assert_allclose(line.smoothness.curvature(line.gap(x)), curvature, rtol=1e-9, atol=1e-300)


# From the gradient's norm.


def test_condition_integral_symbolically() -> None:
    """Psi in closed form at rho = 1, where it is the gap of the function with equality, and at rho = 1/2."""
    floor, growth, end, x = sympy.symbols("L0 L1 G x", positive=True)
    # With the denominator's equality f'' = L0 + L1 f': f = (L0 / L1^2)(exp(L1 x) - 1 - L1 x).
    loss = floor / growth**2 * (sympy.exp(growth * x) - 1 - growth * x)
    slope = sympy.diff(loss, x)
    assert sympy.simplify(sympy.diff(slope, x) - floor - growth * slope) == 0
    psi = end / growth - floor / growth**2 * sympy.log(1 + growth * end / floor)
    assert sympy.simplify(sympy.diff(psi, end) - end / (floor + growth * end)) == 0
    assert sympy.simplify(sympy.expand_log(psi.subs(end, slope) - loss, force=True)) == 0
    # rho = 1/2, alpha = 1/3: with s = sqrt(g), g dg / (L0 + L1 s) = 2 s^3 ds / (L0 + L1 s).
    half = sympy.integrate(sympy.apart(2 * x**3 / (floor + growth * x), x), x)
    found = half.subs(x, sympy.sqrt(end)) - half.subs(x, 0)
    values = {floor: sympy.Rational(3, 2), growth: sympy.Rational(2, 3), end: 5}
    expected = mpmath.quad(lambda at: at / (1.5 + 2 * mpmath.sqrt(at) / 3), [0, 1, 5])
    assert float(found.subs(values)) == pytest.approx(float(expected), rel=1e-12)


def condition_gap(rho: float, floor: float, growth: float, gradients: Floats) -> Floats:
    """Psi(G): the gap of the function of one variable whose curvature is L0 + L_rho G^rho everywhere."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    s, weights = 0.5 * (nodes + 1.0), 0.5 * weights
    u = s**6  # smooth at 0 for rho > 1/6, and fine for all
    terms = 6.0 * s**5 * u / (floor + growth * (gradients[:, None] * u) ** rho)
    return gradients**2 * (terms @ weights)


def test_condition_gap_against_quadrature() -> None:
    for rho in (0.1, 0.5, 1.0, 1.6, 1.95):
        gradients = np.array([1e-3, 0.5, 3.0, 50.0])
        found = condition_gap(rho, 0.7, 1.3, gradients)
        expected = [
            mpmath.quad(lambda g, rho=rho: g / (0.7 + 1.3 * g**rho), [0, end / 100, end / 10, end])
            for end in gradients
        ]
        np.testing.assert_allclose(found, np.array(expected, np.float64), rtol=1e-6)


@settings(deadline=None, max_examples=150)
@given(st.floats(0.05, 1.9), positive(), positive())
def test_gradient_norm_rule_holds_where_the_condition_is_attained(
    rho: float, floor: float, growth: float
) -> None:
    smoothness = from_gradient_norm(exponent=rho, floor=floor, growth=growth)
    assert smoothness.exponent == pytest.approx(rho / (2.0 - rho))
    gradients = (floor / growth) ** (1.0 / rho) * np.geomspace(1e-4, 1e4, 301) ** (1.0 / max(rho, 0.3))
    gaps = condition_gap(rho, floor, growth, gradients)
    assert smoothness.check(gaps, floor + growth * gradients**rho).holds


def test_gradient_norm_rule_has_the_only_exponent_that_is_tight_at_large_gaps() -> None:
    for rho in (0.5, 1.0, 1.5):
        smoothness = from_gradient_norm(exponent=rho, floor=1.0, growth=1.0)
        gradients = np.array([1e10, 1e12, 1e14])
        bound = smoothness.curvature(condition_gap(rho, 1.0, 1.0, gradients))
        ratio = (1.0 + gradients**rho) / bound
        # Constant in the limit: ((2 - rho) / 4)^alpha.
        assert ratio[-1] == pytest.approx(((2.0 - rho) / 4.0) ** smoothness.exponent, rel=1e-3)


def test_gradient_norm_rule_fails_for_gaps_from_above_the_infimum() -> None:
    x = np.linspace(0.0, 20.0, 2001)
    gaps, curvatures = np.expm1(x) - x, np.exp(x)  # L0 = L1 = 1
    smoothness = from_gradient_norm(exponent=1.0, floor=1.0, growth=1.0)
    assert smoothness.check(gaps, curvatures).holds
    late = gaps >= 5.0
    assert not smoothness.check(gaps[late] - 5.0, curvatures[late]).holds


def test_gradient_norm_rule_without_growth_or_exponent_is_constant() -> None:
    assert from_gradient_norm(exponent=0.0, floor=1.5, growth=2.0) == from_lipschitz_gradient(3.5)
    assert from_gradient_norm(exponent=1.2, floor=1.5, growth=0.0) == from_lipschitz_gradient(1.5)
    assert from_l0_l1(floor=1.5, growth=0.0) == from_lipschitz_gradient(1.5)
    bare = from_gradient_norm(exponent=1.0, floor=0.0, growth=2.0)
    assert bare == Smoothness(exponent=1.0, floor=0.0, growth=16.0)


@pytest.mark.parametrize("exponent", [-0.1, 2.0, 3.0, math.inf, math.nan])
def test_gradient_norm_rule_refuses_exponents(exponent: float) -> None:
    with pytest.raises(ValueError, match=r"exponent \(rho\) must be in \[0, 2\)"):
        from_gradient_norm(exponent=exponent, floor=1.0, growth=1.0)


def test_at_exponent_two_the_curvature_is_exponential_in_the_gap() -> None:
    """Why 2 is refused: with f'' = L0 + L2 f'^2 the curvature is L0 exp(2 L2 Delta), above every power."""
    g, floor, growth = sympy.symbols("g L0 L2", positive=True)
    gap = sympy.log(1 + growth * g**2 / floor) / (2 * growth)
    assert sympy.simplify(sympy.diff(gap, g) - g / (floor + growth * g**2)) == 0
    assert sympy.simplify(floor * sympy.exp(2 * growth * gap) - (floor + growth * g**2)) == 0


@settings(deadline=None, max_examples=150)
@given(positive(), positive(), st.floats(1.01, 50.0))
def test_l0_l1_rule_holds_and_has_the_least_floor(floor: float, growth: float, slope: float) -> None:
    smoothness = from_l0_l1(floor=floor, growth=growth, slope=slope)
    x = np.concatenate([np.geomspace(1e-6, 100.0, 400), [math.log1p(1.0 / (slope - 1.0))]])
    gaps = floor / growth**2 * (np.expm1(x) - x)
    curvatures = floor * np.exp(x)
    found = smoothness.check(gaps, curvatures)
    assert found.holds
    assert found.worst == pytest.approx(1.0, abs=1e-7)
    less = Smoothness(exponent=1.0, floor=0.99 * smoothness.floor, growth=smoothness.growth)
    assert not less.check(gaps, curvatures).holds


def test_l0_l1_rule_symbolically() -> None:
    x, a = sympy.symbols("x a", positive=True)
    excess = 1 + x - a * (x - sympy.log(1 + x))
    (best,) = sympy.solve(sympy.diff(excess, x), x)
    assert sympy.simplify(best - 1 / (a - 1)) == 0
    assert sympy.simplify(sympy.diff(excess, x, 2) + a / (1 + x) ** 2) == 0
    value = excess.subs(x, best) - a * sympy.log(a / (a - 1))
    assert float(value.subs(a, sympy.Rational(7, 3))) == pytest.approx(0.0, abs=1e-14)


def test_l0_l1_rule_improves_on_the_general_one() -> None:
    sharp = from_l0_l1(floor=1.0, growth=1.0)
    general = from_gradient_norm(exponent=1.0, floor=1.0, growth=1.0)
    assert sharp.floor < general.floor
    assert sharp.growth < general.growth


@pytest.mark.parametrize("slope", [1.0, 0.5, math.inf, math.nan])
def test_l0_l1_rule_refuses_slopes(slope: float) -> None:
    with pytest.raises(ValueError, match="slope"):
        from_l0_l1(floor=1.0, growth=1.0, slope=slope)


# Scaling and composition.


@settings(deadline=None)
@given(lines(), positive(1e-3, 1e3))
def test_scaled_holds_with_equality(line: Line, factor: float) -> None:
    x = around(line.centre)
    smoothness = scaled(line.smoothness, factor)
    found = smoothness.check(factor * line.gap(x), factor * line.curvature(x))
    assert found.holds
    assert found.worst == pytest.approx(1.0, abs=1e-9)


def test_scaled_is_not_a_factor_of_both_constants() -> None:
    line = Line("power", 1.0, 2.0, 0.0)
    x = around(0.0)
    wrong = Smoothness(exponent=0.5, floor=0.0, growth=0.25 * line.smoothness.growth)
    assert not wrong.check(0.25 * line.gap(x), 0.25 * line.curvature(x)).holds


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.sampled_from(["cosh", "power", "star"]), st.integers(0, 2))
def test_composed_holds(seed: int, kind: str, more: int) -> None:
    random = np.random.default_rng(seed)
    function = {
        "cosh": CoshBowl(mu=0.3),
        "power": Power(exponent=float(random.uniform(2.1, 8.0)), dimension=3),
        "star": ExponentialSum([[1.0, 0.0], [-1.0, 1.0], [0.0, -2.0]]),
    }[kind]
    matrix = random.normal(size=(function.dimension, function.dimension + more))
    shift = random.normal(size=function.dimension)
    inside = random.normal(size=(500, matrix.shape[1])) * np.exp(random.uniform(-4.0, 1.0, (500, 1)))
    points = inside @ matrix.T + shift
    hessians = matrix.T @ function.hessian(points) @ matrix
    curvatures = np.abs(np.linalg.eigvalsh(hessians)).max(axis=-1)
    smoothness = composed(function.smoothness, float(np.linalg.norm(matrix, 2)))
    assert smoothness.check(function.gap(points), curvatures).holds


def test_composed_is_tight() -> None:
    line = Line("cosh", 1.0, 1.0, 0.0)
    x = around(0.0)
    found = composed(line.smoothness, 3.0).check(line.gap(3.0 * x), 9.0 * line.curvature(3.0 * x))
    assert found.worst == pytest.approx(1.0, abs=1e-12)
    less = composed(line.smoothness, 2.98)
    assert not less.check(line.gap(3.0 * x), 9.0 * line.curvature(3.0 * x)).holds


def test_composed_fails_from_the_new_infimum_if_the_map_is_not_onto() -> None:
    function = ExponentialSum([[1.0, 0.0], [0.0, 1.0]])
    assert function.infimum == 0.0
    matrix = np.array([[1.0], [-1.0]])
    points = np.linspace(-5.0, 5.0, 101)[:, None] @ matrix.T
    curvatures = (matrix.T @ function.hessian(points) @ matrix)[:, 0, 0]
    gaps = function.gap(points)
    smoothness = composed(function.smoothness, math.sqrt(2.0))
    assert smoothness.check(gaps, curvatures).holds
    new = gaps.min()
    assert new == pytest.approx(2.0)
    assert smoothness.check(gaps - new, curvatures).worst == math.inf
    mended = raise_infimum(smoothness, new)
    assert mended.check(gaps - new, curvatures).holds


# Exponents.


@settings(deadline=None)
@given(st.floats(0.05, 5.0), st.floats(1.0, 8.0), positive(), positive(), positive(1e-3, 1e3))
def test_with_exponent_is_above_and_touches_at_the_pivot(
    exponent: float, times: float, floor: float, growth: float, pivot: float
) -> None:
    smoothness = Smoothness(exponent=exponent, floor=floor, growth=growth)
    other = with_exponent(smoothness, exponent * times, pivot=pivot)
    assert other.exponent == exponent * times
    gaps = pivot * np.concatenate([[0.0], np.geomspace(1e-6, 1e6, 241)])
    found = other.check(gaps, smoothness.curvature(gaps))
    assert found.holds
    assert float(other.curvature(pivot)) == pytest.approx(float(smoothness.curvature(pivot)), rel=1e-9)
    if times > 1.2:
        less = Smoothness(exponent=other.exponent, floor=0.99 * other.floor, growth=0.99 * other.growth)
        assert not less.check(gaps, smoothness.curvature(gaps)).holds


@pytest.mark.parametrize("exponent", [0.9, 0.0, -1.0, math.inf, math.nan])
def test_with_exponent_refuses_smaller_ones(exponent: float) -> None:
    with pytest.raises(ValueError, match="exponent must be finite and at least 1"):
        with_exponent(CONSTANT, exponent)


def test_without_growth_every_exponent_is_implied_and_none_is_imposed() -> None:
    flat, root = from_lipschitz_gradient(3.0), Smoothness(exponent=0.5, floor=1.0, growth=6.0)
    assert with_exponent(flat, 0.5) == Smoothness(exponent=0.5, floor=3.0, growth=0.0)
    assert with_exponent(flat, 3.0, pivot=1e-200) == Smoothness(exponent=3.0, floor=3.0, growth=0.0)
    assert separable(flat, root) == Smoothness(exponent=0.5, floor=3.0, growth=6.0)
    assert added(flat, root) == added(root, flat) == Smoothness(exponent=0.5, floor=4.0, growth=6.0)
    assert separable(flat, flat) == flat
    with pytest.raises(ValueError, match="pivot"):
        with_exponent(flat, 0.5, pivot=0.0)
    with pytest.raises(ValueError, match="exponent"):
        with_exponent(flat, 0.0)


def test_a_smaller_exponent_would_fail() -> None:
    gaps = np.geomspace(1e-6, 1e12, 100)
    quarter = Smoothness(exponent=0.5, floor=1e3, growth=1e3)
    assert not quarter.check(gaps, CONSTANT.curvature(gaps)).holds


# Sums.


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.lists(lines(), min_size=1, max_size=4))
def test_separable_holds(seed: int, parts: list[Line]) -> None:
    random = np.random.default_rng(seed)
    x = random.normal(size=(len(parts), 500)) * np.exp(random.uniform(-6.0, 1.0, (len(parts), 500)))
    gaps = sum(part.gap(at + part.centre) for part, at in zip(parts, x, strict=True))
    curvatures = np.max([part.curvature(at + part.centre) for part, at in zip(parts, x, strict=True)], axis=0)
    assert separable(*(part.smoothness for part in parts)).check(gaps, curvatures).holds


def test_separable_is_tight_and_needs_the_largest_of_each() -> None:
    sharp, steep = Line("cosh", 4.0, 1.0, 0.0), Line("cosh", 0.5, 2.0, 0.0)
    smoothness = separable(sharp.smoothness, steep.smoothness)
    assert (smoothness.floor, smoothness.growth) == (8.0, 4.0)
    x = np.linspace(0.0, 6.0, 100)
    gaps = np.concatenate([sharp.gap(x), steep.gap(x)])  # the other at its minimum
    curvatures = np.concatenate([np.maximum(sharp.curvature(x), 4.0), np.maximum(steep.curvature(x), 8.0)])
    assert smoothness.check(gaps, curvatures).worst == pytest.approx(1.0, abs=1e-12)
    for floor, growth in ((7.92, 4.0), (8.0, 3.96)):
        less = Smoothness(exponent=1.0, floor=floor, growth=growth)
        assert not less.check(gaps, curvatures).holds


def test_separable_fails_for_shared_variables() -> None:
    line = Line("cosh", 1.0, 1.0, 0.0)
    x = around(0.0)
    smoothness = separable(line.smoothness, line.smoothness)
    assert not smoothness.check(2.0 * line.gap(x), 2.0 * line.curvature(x)).holds


def test_separable_refuses_nothing() -> None:
    with pytest.raises(ValueError, match="at least one"):
        separable()


@settings(deadline=None, max_examples=120)
@given(lines(), lines())
def test_added_holds_with_the_offset_of_the_infima(first: Line, second: Line) -> None:
    low, high = sorted((first.centre, second.centre))
    assume(high == low or high - low > 1e-3)  # or the infimum is lost in rounding
    place = crossing(lambda x: first.slope(x) + second.slope(x), low, high)
    infimum = float(first.gap(np.array(place)) + second.gap(np.array(place)))
    x = around(place, far=4.0)
    gaps = np.maximum(first.gap(x) + second.gap(x) - infimum, 0.0)
    smoothness = added(first.smoothness, second.smoothness, offset=infimum)
    assert smoothness.check(gaps, first.curvature(x) + second.curvature(x)).holds


@settings(deadline=None, max_examples=40)
@given(st.floats(0.5, 4.0), positive(0.5, 5.0), positive(0.1, 10.0))
def test_added_holds_for_exponents_above_one(power: float, width: float, scale: float) -> None:
    """x^-q on x > 0 and s (c - x)^-q on x < c: rho = 1 + 2 / q."""
    rho = 1.0 + 2.0 / power
    left = Smoothness(exponent=rho, floor=0.0, growth=power * (power + 1.0))
    right = scaled(left, scale)
    x = width * np.linspace(0.0, 1.0, 2003)[1:-1]

    def loss(at: Floats) -> Floats:
        return at**-power + scale * (width - at) ** -power

    curvatures = power * (power + 1.0) * (x ** (-power - 2.0) + scale * (width - x) ** (-power - 2.0))
    place = width / (1.0 + scale ** (1.0 / (power + 1.0)))
    infimum = float(loss(np.array(place)))
    smoothness = added(left, right, offset=infimum)
    assert smoothness.check(np.maximum(loss(x) - infimum, 0.0), curvatures).holds
    forgetful = added(left, right)
    assert not forgetful.check(np.maximum(loss(x) - infimum, 0.0), curvatures).holds


def test_added_is_tight() -> None:
    quartic = Line("power", 1.0, 2.0, 0.0)
    x = around(0.0)
    smoothness = added(quartic.smoothness, quartic.smoothness)
    found = smoothness.check(2.0 * quartic.gap(x), 2.0 * quartic.curvature(x))
    assert found.holds
    assert found.worst == pytest.approx(1.0, abs=1e-12)
    bowl = Line("cosh", 1.0, 1.0, 0.0)
    found = added(bowl.smoothness, bowl.smoothness).check(2.0 * bowl.gap(x), 2.0 * bowl.curvature(x))
    assert found.holds
    assert found.worst == pytest.approx(1.0, abs=1e-12)
    exponentials = added(CONSTANT, CONSTANT, offset=2.0)
    found = exponentials.check((2.0 * np.sinh(0.5 * x)) ** 2, 2.0 * np.cosh(x))
    assert found.holds
    assert found.worst == pytest.approx(1.0, abs=1e-12)


def test_added_fails_without_the_offset() -> None:
    first, second = Line("cosh", 1.0, 1.0, -3.0), Line("cosh", 1.0, 1.0, 3.0)
    x = around(0.0)
    infimum = float(first.gap(np.array(0.0)) + second.gap(np.array(0.0)))
    gaps = np.maximum(first.gap(x) + second.gap(x) - infimum, 0.0)
    curvatures = first.curvature(x) + second.curvature(x)
    assert added(first.smoothness, second.smoothness, offset=infimum).check(gaps, curvatures).holds
    assert not added(first.smoothness, second.smoothness).check(gaps, curvatures).holds
    assert not added(first.smoothness, second.smoothness, offset=0.9 * infimum).check(gaps, curvatures).holds


def test_added_of_exponents_near_one_does_not_overflow() -> None:
    near = Smoothness(exponent=1.0 - 1e-12, floor=0.0, growth=1e10)
    assert added(near, near).growth == pytest.approx(1e10)
    assert added(near, from_lipschitz_gradient(2.0)).floor == pytest.approx(2.0, abs=0.1)


# Other infima.


@settings(deadline=None, max_examples=60)
@given(lines(), positive(1e-3, 1e3))
def test_infima_below_keep_the_constants(line: Line, by: float) -> None:
    x = around(line.centre)
    smoothness = lower_infimum(line.smoothness, by)
    assert smoothness == line.smoothness
    assert smoothness.check(line.gap(x) + by, line.curvature(x)).holds


@settings(deadline=None, max_examples=60)
@given(st.floats(0.1, 5.0), positive(), positive(), positive(1e-3, 1e3))
def test_infima_above_need_a_larger_floor(exponent: float, floor: float, growth: float, by: float) -> None:
    """Any function that attains the smoothness for gaps from below its infimum."""
    smoothness = Smoothness(exponent=exponent, floor=floor, growth=growth)
    gaps = by * np.concatenate([[0.0], np.geomspace(1e-5, 1e5, 201)])
    curvatures = smoothness.curvature(gaps + by)
    assert raise_infimum(smoothness, by).check(gaps, curvatures).holds
    assert not smoothness.check(gaps, curvatures).holds
    assert raise_infimum(smoothness, 0.0) == smoothness


def test_infima_above_symbolically_at_exponent_one() -> None:
    """2 cosh x is (1, 0, 1) from 0, and (1, 2, 1), not (1, 0, 1), from its infimum."""
    assert raise_infimum(CONSTANT, 2.0) == CoshBowl().smoothness
    x = np.linspace(-3.0, 3.0, 61)
    assert not CONSTANT.check(2.0 * np.cosh(x) - 2.0, 2.0 * np.cosh(x)).holds


@pytest.mark.parametrize("value", [-1e-9, math.inf, math.nan])
def test_refuses_offsets(value: float) -> None:
    for call in (
        lambda: lower_infimum(CONSTANT, value),
        lambda: raise_infimum(CONSTANT, value),
        lambda: added(CONSTANT, CONSTANT, offset=value),
    ):
        with pytest.raises(ValueError, match="must be finite and >= 0"):
            call()


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_refuses_factors(value: float) -> None:
    half = Smoothness(exponent=0.5, floor=1.0, growth=1.0)
    for call in (
        lambda: from_lipschitz_gradient(value),
        lambda: scaled(CONSTANT, value),
        lambda: composed(CONSTANT, value),
        lambda: with_exponent(CONSTANT, 2.0, pivot=value),
        lambda: separable(CONSTANT, half, pivot=value),
    ):
        with pytest.raises(ValueError, match="must be finite and > 0"):
            call()


@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan])
def test_gradient_norm_rules_refuse_constants(value: float) -> None:
    for rule in (lambda **constants: from_gradient_norm(exponent=1.0, **constants), from_l0_l1):
        with pytest.raises(ValueError, match="floor"):
            rule(floor=value, growth=1.0)
        with pytest.raises(ValueError, match="growth"):
            rule(floor=1.0, growth=value)
        with pytest.raises(ValueError, match="both 0"):
            rule(floor=0.0, growth=0.0)


def test_constants_that_overflow_are_refused() -> None:
    steep = Smoothness(exponent=3.0, floor=0.0, growth=1.0)
    for call in (
        lambda: scaled(steep, 1e-200),
        lambda: raise_infimum(steep, 1e200),
        lambda: composed(steep, 1e200),
        lambda: with_exponent(CONSTANT, 3.0, pivot=1e-200),
        lambda: from_gradient_norm(exponent=1.9, floor=1.0, growth=1e100),
    ):
        with pytest.raises(ValueError, match="must be finite"):
            call()


def test_separable_functions_use_the_rule() -> None:
    parts = CoshBowl(), Power(exponent=4.0)
    assert Separable(*parts).smoothness == separable(*(part.smoothness for part in parts))
