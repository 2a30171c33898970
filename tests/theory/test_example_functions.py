import math
from collections.abc import Callable
from functools import cache

import mpmath
import numpy as np
import pytest
import sympy
from example_function_cases import CASES, X, Y, Z, random_points
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from warmfree.theory.function import Function
from warmfree.theory.functions import (
    FUNCTIONS,
    CoshBowl,
    CurvedRiverValley,
    Exponential,
    ExponentialSum,
    Logistic,
    Power,
    RegularisedTwoLayer,
    RiverValley,
    Separable,
    TwoLayer,
    make_function,
)
from warmfree.theory.smoothness import Smoothness

Floats = NDArray[np.float64]
NAMES = list(CASES)
SEEDS = st.integers(0, 2**32 - 1)
EPS = 2.0**-52


@cache
def made(name: str) -> Function:
    return CASES[name].make()


@cache
def exact(name: str) -> Callable[..., list]:
    """Value, gradient and Hessian from the formula, for mpmath."""
    variables, formula = (X, Y, Z)[: made(name).dimension], CASES[name].formula
    gradient = [sympy.diff(formula, variable) for variable in variables]
    return sympy.lambdify(variables, [formula, gradient, sympy.hessian(formula, variables)], modules="mpmath")


@cache
def exact_infimum(name: str) -> mpmath.mpf:
    minimiser = made(name).minimiser
    if minimiser is None or isinstance(made(name), TwoLayer):  # whose minima are a curve
        return mpmath.mpf(0)
    with mpmath.workdps(60):
        place = mpmath.matrix([mpmath.mpf(float(each)) for each in minimiser])
        for _ in range(4 if minimiser.any() else 0):  # Newton's method from the minimiser that is claimed
            _, gradient, hessian = exact(name)(*place)
            place -= mpmath.lu_solve(mpmath.matrix(hessian), mpmath.matrix(gradient))
        return exact(name)(*place)[0]


def uncertainty(function: Function) -> float:
    """The size of the numbers that place the minimiser; 0 if it is 0 exactly, or there is none."""
    if function.minimiser is None or not function.minimiser.any():
        return 0.0
    return max(1.0, float(np.linalg.norm(function.minimiser)))


# Values and derivatives.


@pytest.mark.parametrize("name", NAMES)
def test_gap_gradient_and_hessian_are_those_of_the_formula(name: str) -> None:
    function, infimum = made(name), exact_infimum(name)
    points = np.concatenate([random_points(function, np.random.default_rng(0), 40), CASES[name].tight[::10]])
    points = points[(np.abs(points) < 100.0).all(axis=1)]
    gaps, gradients, hessians = function.gap(points), function.gradient(points), function.hessian(points)
    assert function.value(points).tolist() == (gaps + function.infimum).tolist()
    centre = uncertainty(function)
    for point, gap, gradient, hessian in zip(points, gaps, gradients, hessians, strict=True):
        with mpmath.workdps(60):
            value, slopes, second = exact(name)(*(mpmath.mpf(float(each)) for each in point))
            expected = float(value - infimum)
        slopes, second = np.array(slopes, np.float64), np.array(second.tolist(), np.float64)
        # As exact as the point and the minimiser can be told.
        moved = 8.0 * EPS * (float(np.linalg.norm(point)) + centre)
        steep, sharp = float(np.linalg.norm(slopes)), float(np.linalg.norm(second, 2))
        assert abs(gap - expected) <= 1e-12 * expected + moved * steep + moved**2 * sharp
        assert np.linalg.norm(gradient - slopes) <= 1e-12 * steep + moved * sharp
        assert np.linalg.norm(hessian - second) <= 1e-11 * sharp


@pytest.mark.parametrize("name", NAMES)
def test_infimum_is_the_infimum(name: str) -> None:
    function = made(name)
    assert function.infimum == pytest.approx(float(exact_infimum(name)), rel=1e-14)
    gaps = function.gap(random_points(function, np.random.default_rng(1), 5000))
    assert (gaps >= 0.0).all()
    if function.minimiser is not None:
        moved, sharp = 4.0 * EPS * uncertainty(function), float(function.curvature(function.minimiser))
        assert function.gap(function.minimiser) <= moved**2 * sharp
        assert np.linalg.norm(function.gradient(function.minimiser)) <= moved * sharp


@pytest.mark.parametrize(
    ("function", "direction"),
    [
        (Exponential(rate=2.0), [-1.0]),
        (make_function("logistic"), [0.0, 1.0]),
        (CASES["exponential-sum, vanishing"].make(), [-2.0, 1.0]),
        (Separable(CoshBowl(), Exponential()), [0.0, 0.0, -1.0]),
    ],
    ids=lambda value: value.name if isinstance(value, Function) else "",
)
def test_infimum_at_infinity_is_approached(function: Function, direction: list[float]) -> None:
    assert function.minimiser is None
    assert function.gap(300.0 * np.array(direction)) < 1e-100


@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_the_norm_of_the_hessian(name: str) -> None:
    function = made(name)
    points = random_points(function, np.random.default_rng(2), 12).reshape(3, 4, -1)
    assert function.gap(points).shape == function.curvature(points).shape == (3, 4)
    assert function.gradient(points).shape == points.shape
    assert function.hessian(points).shape == (*points.shape, function.dimension)
    norms = np.linalg.norm(function.hessian(points), ord=2, axis=(-2, -1))
    np.testing.assert_allclose(function.curvature(points), norms, rtol=1e-12)
    assert float(function.gap(points[1, 2])) == pytest.approx(float(function.gap(points)[1, 2]), rel=1e-12)
    function.check(points)


def test_odd_powers() -> None:
    cube = Power(exponent=3.0)
    point = np.array([-2.0])
    assert cube.gap(point) == pytest.approx(8.0 / 3.0)
    assert (cube.gradient(point)[0], cube.hessian(point)[0, 0]) == (-4.0, 4.0)


# Constants.


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=10)
@given(seed=SEEDS)
def test_smoothness_holds(name: str, seed: int) -> None:
    function = made(name)
    points = random_points(function, np.random.default_rng(seed), 2000)
    found = function.smoothness.check(function.gap(points), function.curvature(points))
    assert found.holds, (points[found.where], found.worst)


@pytest.mark.parametrize("name", NAMES)
def test_smoothness_is_tight(name: str) -> None:
    function, case = made(name), CASES[name]
    found = function.smoothness.check(function.gap(case.tight), function.curvature(case.tight))
    assert found.holds
    assert found.worst >= case.fraction * (1.0 - 1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("constant", ["floor", "growth"])
def test_smaller_constants_fail(name: str, constant: str) -> None:
    factor = getattr(CASES[name], constant)
    held = made(name).smoothness
    if factor is None:
        assert constant == "growth" or held.floor == 0.0
        return
    constants = {"exponent": held.exponent, "floor": held.floor, "growth": held.growth}
    points = CASES[name].tight
    less = Smoothness(**{**constants, constant: factor * constants[constant]})
    assert not less.check(made(name).gap(points), made(name).curvature(points)).holds


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=5)
@given(seed=SEEDS)
def test_gradient_and_gap_grow_as_the_smoothness_says(name: str, seed: int) -> None:
    """Both bounds that follow from it: of the gradient, and of the gap within a distance."""
    function, random = made(name), np.random.default_rng(seed)
    points, others = random_points(function, random, 1000), random_points(function, random, 1000)
    gaps = function.gap(points)
    centre = uncertainty(function)
    # The rounding of a point is all that there is to see at a minimum that is not 0.
    moved = 8.0 * EPS * (np.linalg.norm(points, axis=1) + centre) * function.curvature(points)
    steep = np.linalg.norm(function.gradient(points), axis=1)
    assert (steep <= function.smoothness.gradient(gaps) * (1.0 + 1e-9) + moved).all()
    far = points + others * 10.0 ** random.uniform(-6.0, 0.0, (1000, 1))
    bounds = function.smoothness.gap_within(gaps, np.linalg.norm(far - points, axis=1))
    steep = np.linalg.norm(function.gradient(far), axis=1)
    rounding = 8.0 * EPS * (np.linalg.norm(far, axis=1) + centre) * steep
    assert (function.gap(far) <= bounds * (1.0 + 1e-9) + rounding).all()


@pytest.mark.parametrize("name", NAMES)
def test_convexity_and_pl_are_as_stated(name: str) -> None:
    function = made(name)
    points = random_points(function, np.random.default_rng(3), 20000)
    least = np.linalg.eigvalsh(function.hessian(points))[:, 0]
    if function.is_convex:
        assert (least >= -1e-12 * function.curvature(points)).all()
    else:
        assert (least < -1e-3).any()
    if function.pl is not None:
        squares = (function.gradient(points) ** 2).sum(axis=1)
        ratio = squares / function.gap(points)
        assert (ratio >= 2.0 * function.pl * (1.0 - 1e-9)).all()
        assert ratio.min() <= 2.0 * function.pl * 1.2


def test_pl_constant_of_the_bowl_is_exact() -> None:
    for mu in (0.01, 1.0, 2.0):
        bowl = CoshBowl(mu=mu)
        point = np.array([0.0, 3.0])
        assert (bowl.gradient(point) ** 2).sum() == pytest.approx(2.0 * bowl.pl * bowl.gap(point))


def test_no_pl_constant_where_none_is_stated() -> None:
    """Gradient over root of the gap comes to 0: towards a flat minimum, infinity, a far river, a saddle."""
    for name, point in (
        ("power4", [1e-6]),
        ("exponential", [-40.0]),
        ("logistic", [0.0, 40.0]),
        ("logistic-overlapping", [1e12, 1e12]),
        ("river-valley", [0.0, 1e12]),
        ("curved-river-valley", [math.sin(1e12), 1e12]),
        ("two-layer", [1e-6, 1e-6]),
        ("regularised-two-layer", [1e-6, 1e-6]),
    ):
        function, at = make_function(name), np.array(point)
        assert function.pl is None
        assert (function.gradient(at) ** 2).sum() < 1e-9 * function.gap(at)


# The two layers.


def test_two_layer_hessian_symbolically() -> None:
    u, t = sympy.symbols("u t", positive=True)
    v = sympy.Symbol("v", positive=True)
    hessian = sympy.hessian((u * v - t) ** 2 / 2, (u, v)).subs(v, u)
    residual = u**2 - t
    found = hessian.eigenvals()
    assert {sympy.expand(each) for each in found} == {
        sympy.expand(3 * residual + 2 * t),
        sympy.expand(-residual),
    }


def test_two_layer_has_no_constants_off_the_balanced_line() -> None:
    net = TwoLayer(target=1.0)
    points = np.array([[1e3, 1e-3], [1e6, 1e-6]])
    assert net.gap(points).max() <= 1e-30
    assert (net.curvature(points) >= [1e6, 1e12]).all()
    assert not net.smoothness.check(net.gap(points), net.curvature(points)).holds
    with pytest.raises(ValueError, match="do not hold at all of these points"):
        net.check(points)
    assert net.contains(np.array([[2.0, 2.0], [2.0, 2.1]])).tolist() == [True, False]
    with pytest.raises(ValueError, match="do not hold"):
        Separable(CoshBowl(), net).check(np.array([0.0, 0.0, 1.0, 2.0]))


@given(st.floats(0.1, 10.0), st.floats(-1e3, 1e3))
def test_descent_from_the_balanced_line_stays_on_it(target: float, start: float) -> None:
    net, point = TwoLayer(target=target), np.full(2, start)
    for _ in range(50):
        point = point - net.smoothness.step(net.gap(point)) * net.gradient(point)
        assert net.contains(point)


def test_regularised_two_layer_symbolically() -> None:
    """The two completed squares, the bound of the curvature, and its equality."""
    u, v = sympy.symbols("u v", real=True)
    t, decay = sympy.symbols("t lambda", positive=True)
    loss = (u * v - t) ** 2 / 2 + decay / 2 * (u**2 + v**2)
    above = (u * v - t + decay) ** 2 / 2 + decay / 2 * (u - v) ** 2
    assert sympy.expand(loss - (decay * t - decay**2 / 2) - above) == 0  # at 0 at u v = t - decay, u = v
    below = ((u * v) ** 2 + (decay - t) * (u**2 + v**2) + t * (u - v) ** 2) / 2
    assert sympy.expand(loss - t**2 / 2 - below) == 0  # >= 0 for t <= decay, 0 at 0
    residual = u * v - t
    hessian = sympy.hessian(loss, (u, v))
    square = sympy.Matrix([v, u]) * sympy.Matrix([[v, u]])
    rest = residual * sympy.Matrix([[0, 1], [1, 0]])
    assert sympy.expand(hessian - square - rest - decay * sympy.eye(2)) == sympy.zeros(2)
    # so that the norm is at most decay + u^2 + v^2 + |r|, and that at most the bound:
    for sign in (1, -1):
        slack = sympy.Rational(5, 4) * decay + 2 / decay * loss - (decay + u**2 + v**2 + sign * residual)
        assert sympy.simplify(slack - (residual - sign * decay / 2) ** 2 / decay) == 0
    weight = sympy.sqrt(t + decay / 2)
    norm = (hessian * sympy.Matrix([1, 1])).subs({u: weight, v: weight})
    bound = (sympy.Rational(5, 4) * decay + 2 / decay * loss).subs({u: weight, v: weight})
    assert sympy.simplify(norm[0] - bound) == 0
    assert sympy.simplify(norm[1] - bound) == 0


@settings(deadline=None, max_examples=60)
@given(st.floats(0.01, 10.0), st.floats(0.01, 10.0), SEEDS)
def test_regularised_two_layer_for_all_targets_and_decays(target: float, decay: float, seed: int) -> None:
    net = RegularisedTwoLayer(target=target, decay=decay)
    points = random_points(net, np.random.default_rng(seed), 500)
    assert net.smoothness.check(net.gap(points), net.curvature(points)).holds
    values = 0.5 * (points.prod(axis=1) - target) ** 2 + 0.5 * decay * (points**2).sum(axis=1)
    np.testing.assert_allclose(net.value(points), values, rtol=1e-12)
    equal = np.full((1, 2), math.sqrt(target + 0.5 * decay))
    assert net.smoothness.check(net.gap(equal), net.curvature(equal)).worst == pytest.approx(1.0, abs=1e-12)


# The valleys.


def test_curved_valley_constant_symbolically() -> None:
    """The cubic, and the eigenvalue at its root."""
    b, q, value = sympy.symbols("b q lambda", positive=True)
    trace, determinant = 1 + b**2 * (1 - q**2) + b * q, b * q
    turn, p = sympy.symbols("turn p", real=True)
    matrix = sympy.Matrix([[1, -p], [-p, p**2 + turn]])
    assert sympy.expand(matrix.trace() - (1 + p**2 + turn)) == 0
    assert sympy.expand(matrix.det() - turn) == 0
    characteristic = value**2 - trace * value + determinant
    (stationary,) = sympy.solve(sympy.diff(characteristic, q), value)
    assert sympy.simplify(stationary - 1 / (1 - 2 * b * q)) == 0
    cubic = 2 * b**2 * q**3 - b * q**2 + 2 * (b**2 + 1) * q - b
    assert sympy.simplify(characteristic.subs(value, stationary) * (1 - 2 * b * q) ** 2 - b * cubic) == 0
    assert sympy.discriminant(sympy.diff(cubic, q), q).subs(b, 3) < 0  # 4 b^2 - 48 b^2 (b^2 + 1)


@pytest.mark.parametrize("bend", [0.0, 1e-3, 0.2, 0.5, 1.0, 3.0, 40.0])
def test_curved_valley_constant_is_the_largest_eigenvalue(bend: float) -> None:
    valley = CurvedRiverValley(bend=bend, slope=0.1)
    y = np.linspace(0.0, np.pi, 200001)
    trace, determinant = 1.0 + (bend * np.cos(y)) ** 2 + bend * np.sin(y), bend * np.sin(y)
    largest = (0.5 * (trace + np.sqrt(trace**2 - 4.0 * determinant))).max()
    assert valley.smoothness.growth == pytest.approx(largest, rel=1e-9)
    assert valley.smoothness.growth >= largest * (1.0 - 1e-12)
    assert valley.smoothness.growth <= 1.0 + bend + bend**2  # what the triangle inequality gives
    assert valley.is_convex == (bend == 0.0)
    random = np.random.default_rng(0)
    y, away = (
        random.uniform(-8.0, 8.0, 20000),
        random.normal(size=20000) * 10.0 ** random.uniform(-3, 1, 20000),
    )
    points = np.stack([bend * np.sin(y) + away, y], axis=1)
    found = valley.smoothness.check(valley.gap(points), valley.curvature(points))
    assert found.holds
    assert found.worst >= 0.999


def test_straight_valley_is_the_curved_one_without_bend() -> None:
    straight, curved = RiverValley(slope=0.3), CurvedRiverValley(bend=0.0, slope=0.3)
    points = random_points(straight, np.random.default_rng(0), 100)
    np.testing.assert_allclose(curved.gap(points), straight.gap(points), rtol=1e-14)
    np.testing.assert_allclose(curved.gradient(points), straight.gradient(points), rtol=1e-14)


# Sums of losses of linear forms.


def _fan(vectors: Floats) -> float:
    """The largest angle between neighbours in the plane: above pi exactly if a half-plane holds all inside."""
    angles = np.sort(np.arctan2(vectors[:, 1], vectors[:, 0]))
    return float(np.diff(np.append(angles, angles[0] + 2.0 * np.pi)).max())


@settings(deadline=None, max_examples=200)
@given(SEEDS, st.integers(2, 7))
def test_whether_the_infimum_is_attained_in_the_plane(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(count, 2)) * 10.0 ** random.uniform(-1.0, 1.0, (count, 1))
    weights = 10.0 ** random.uniform(-3.0, 3.0, count)
    angle = _fan(vectors)
    if abs(angle - np.pi) < 1e-3:
        return
    total = ExponentialSum(vectors, weights)
    signs = random.choice([-1, 1], count)
    logistic = Logistic(signs[:, None] * vectors, signs)
    assert (total.minimiser is None) == (angle > np.pi)
    assert logistic.is_separable == (angle > np.pi)  # all y a on one side, as all a
    for function in (total, logistic):
        points = random_points(function, random, 300)
        gaps, curvatures = function.gap(points), function.curvature(points)
        finite = np.isfinite(curvatures)
        assert function.smoothness.check(gaps[finite], curvatures[finite]).holds
        if function.minimiser is not None:
            around = function.minimiser + 1e-3 * random.normal(size=(300, 2))
            assert (function.value(around) >= function.infimum).all()
    flat = logistic.constant_smoothness
    assert flat.check(np.zeros(300), logistic.curvature(points)).holds


def test_infimum_of_exponentials_is_that_of_the_dual() -> None:
    """f* = prod (c_i / p_i)^p_i over the p with sum p_i a_i = 0 (geometric programming)."""
    vectors, weights = np.array([[1.0, 0.0], [-2.0, 1.0], [0.5, -1.0]]), np.array([3.0, 0.1, 1.0])
    chances = np.linalg.svd(vectors.T)[2][-1]
    chances /= chances.sum()
    assert (chances > 0.0).all()
    expected = float(np.prod((weights / chances) ** chances))
    assert ExponentialSum(vectors, weights).infimum == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ExponentialSum([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]),
        lambda: Logistic([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [1, -1, 1]),
    ],
)
def test_a_positive_infimum_at_infinity_is_refused(make: Callable[[], Function]) -> None:
    with pytest.raises(ValueError, match="positive and not attained"):
        make()


def test_variables_that_no_vector_sees_are_allowed() -> None:
    flat = ExponentialSum([[1.0, 1.0, 0.0], [-1.0, -1.0, 0.0]])
    assert flat.minimiser == pytest.approx(np.zeros(3))
    assert flat.gap(np.array([5.0, -5.0, 1e6])) == pytest.approx(0.0, abs=1e-20)
    assert flat.smoothness == Smoothness(exponent=1.0, floor=flat.infimum * 2.0, growth=2.0)


def test_logistic_constant_smoothness_is_tight_and_the_better_one_for_overlapping_classes() -> None:
    for name in ("logistic", "logistic-overlapping"):
        loss = make_function(name)
        assert isinstance(loss, Logistic)
        zero = np.zeros((1, 2))
        flat = loss.constant_smoothness
        assert flat.growth == 0.0
        assert flat.check(loss.gap(zero), loss.curvature(zero)).worst == pytest.approx(1.0, abs=1e-12)
    overlapping = make_function("logistic-overlapping")
    assert isinstance(overlapping, Logistic)
    assert overlapping.constant_smoothness.floor < overlapping.smoothness.floor
    separable = make_function("logistic")
    far = np.array([[0.0, 30.0]])
    assert separable.smoothness.curvature(separable.gap(far)) < 1e-11


def test_logistic_near_its_minimum_does_not_cancel() -> None:
    loss = Logistic([[1.0], [1.0], [1.0]], [1, 1, -1])
    place = math.log(2.0)
    curvature = 2.0 / 9.0
    for away in (1e-2, 1e-4, 1e-6):
        with mpmath.workdps(50):
            at = mpmath.mpf(float(loss.minimiser[0])) + mpmath.mpf(away)
            at = mpmath.mpf(float(at))

            def value(w: mpmath.mpf) -> mpmath.mpf:
                return (2 * mpmath.log(1 + mpmath.exp(-w)) + mpmath.log(1 + mpmath.exp(w))) / 3

            expected = float(value(at) - value(mpmath.log(2)))
        assert float(loss.gap(np.array([float(at)]))) == pytest.approx(expected, rel=1e-15 / away + 1e-12)
        assert expected == pytest.approx(0.5 * curvature * away**2, rel=away)
    assert loss.minimiser[0] == pytest.approx(place, rel=1e-15)


# Extremes.


@pytest.mark.parametrize(
    ("name", "point"),
    [
        ("cosh", [300.0, 1.0]),
        ("cosh", [1e-150, 0.0]),
        ("cosh", [0.0, 1e-150]),
        ("cosh", [1e-150, 1e150]),
        ("power4", [1e-75]),
        ("power4", [1e70]),
        ("exponential", [-300.0]),
        ("exponential", [300.0]),
        ("exponential-sum", [300.0, 0.0]),
        ("exponential-sum, vanishing", [-300.0, 1.0]),
        ("logistic", [0.0, 300.0]),
        ("logistic", [0.0, -300.0]),
        ("logistic-overlapping", [300.0, -300.0]),
        ("two-layer", [1e70, 1e70]),
        ("two-layer", [1e-150, 1e-150]),
        ("regularised-two-layer", [1e70, -1e-150]),
        ("regularised-two-layer, strongly", [1e-150, 1e-150]),
        ("regularised-two-layer, strongly", [1e-150, -1e-150]),
        ("river-valley", [300.0, 1e150]),
        ("river-valley", [1e-150, 1e-150]),
        ("curved-river-valley", [300.0, 3.0]),
        ("curved-river-valley", [1e-150, 1e-170]),
    ],
)
def test_extremes(name: str, point: list[float]) -> None:
    with mpmath.workdps(500):
        value, gradient, hessian = exact(name)(*map(mpmath.mpf, point))
        expected = float(value - exact_infimum(name)), np.array(gradient, np.float64)
        sharp = float(mpmath.svd_r(mpmath.matrix(hessian.tolist()), compute_uv=False)[0])
    function, at = made(name), np.array(point)
    assert float(function.gap(at)) == pytest.approx(expected[0], rel=1e-12)
    steep = float(np.abs(expected[1]).max())
    np.testing.assert_allclose(function.gradient(at), expected[1], rtol=1e-12, atol=1e-15 * steep)
    assert float(function.curvature(at)) == pytest.approx(sharp, rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_overflow_is_infinite_and_quiet(name: str) -> None:
    function = made(name)
    sign = 1.0 if name != "exponential, falling" else -1.0
    points = sign * np.full((2, function.dimension), 1e200)
    assert not np.isnan(function.gap(points)).any()
    assert not np.isnan(function.curvature(points)).any()
    function.gradient(points)
    function.hessian(points)


# Bad input.


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_refuses_numbers_out_of_range(value: float) -> None:
    for call in (
        lambda: CoshBowl(mu=value),
        lambda: Power(exponent=value),
        lambda: TwoLayer(target=value),
        lambda: RegularisedTwoLayer(target=value),
        lambda: RegularisedTwoLayer(decay=value),
        lambda: RiverValley(height=value),
        lambda: RiverValley(sharpness=value),
        lambda: RiverValley(slope=value),
        lambda: CurvedRiverValley(slope=value),
        lambda: CurvedRiverValley(bend=-1.0 if value == 0.0 else value),
    ):
        with pytest.raises(ValueError, match=r"must be (in|finite and >)"):
            call()
    with pytest.raises(ValueError, match="rate must be finite and not 0"):
        Exponential(rate=0.0 if value == -1.0 else value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CoshBowl(mu=2.001), r"mu must be in \(0, 2\]"),
        (lambda: Power(exponent=2.0), "exponent .* > 2"),
        (lambda: Power(dimension=0), "dimension"),
        (lambda: RiverValley(height=0.1, slope=0.3), "slope"),
        (lambda: RiverValley(sharpness=1e200), "must be finite"),
        (lambda: Exponential(rate=1e200), "must be finite"),
        (lambda: CurvedRiverValley(slope=2.5), "slope"),
        (lambda: Separable(), "at least one"),
        (lambda: ExponentialSum([1.0, 2.0]), r"vectors must have shape \(n, d\)"),
        (lambda: ExponentialSum(np.zeros((0, 2))), "vectors must have shape"),
        (lambda: ExponentialSum([[math.nan]]), "vectors must be finite"),
        (lambda: ExponentialSum([[0.0, 0.0]]), "all 0"),
        (lambda: ExponentialSum([[1.0]], [0.0]), "weights"),
        (lambda: ExponentialSum([[1.0]], [-1.0]), "weights"),
        (lambda: ExponentialSum([[1.0]], [math.inf]), "weights"),
        (lambda: ExponentialSum([[1.0]], [1.0, 1.0]), "weights must be 1 finite"),
        (lambda: Logistic([[1.0, math.inf]], [1]), "features must be finite"),
        (lambda: Logistic([1.0], [1]), "features must have shape"),
        (lambda: Logistic([[0.0]], [1]), "all 0"),
        (lambda: Logistic([[1.0]], [0]), "labels must be 1 numbers, each 1 or -1"),
        (lambda: Logistic([[1.0]], [1, -1]), "labels"),
    ],
)
def test_refuses(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.zeros(3), r"shape \(\.\.\., 2\), got \(3,\)"),
        (np.zeros((2, 1)), "shape"),
        (np.array(0.0), "shape"),
        (np.array([math.nan, 0.0]), "finite"),
        (np.array([math.inf, 0.0]), "finite"),
    ],
)
def test_check_refuses_points(points: Floats, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CoshBowl().check(points)


def test_registry() -> None:
    assert set(FUNCTIONS) == {
        "cosh",
        "power4",
        "power6",
        "exponential",
        "exponential-sum",
        "logistic",
        "logistic-overlapping",
        "two-layer",
        "regularised-two-layer",
        "river-valley",
        "curved-river-valley",
    }
    assert set(FUNCTIONS) <= set(CASES)
    names = {make_function(name).name for name in FUNCTIONS}
    assert len(names) == len(FUNCTIONS)
    with pytest.raises(ValueError, match="no example function is called 'bowl'; there are cosh, power4"):
        make_function("bowl")
