"""Both sides of every bound in 90 digits, gaps from 1e-250 to 1e200, rho from 0.05 to 21; the algebra of the proofs."""

from collections.abc import Callable
from dataclasses import dataclass

import mpmath
import numpy as np
import pytest
import sympy
from descent_cases import Barrier, Fraction, line
from mpmath import mpf

from warmfree.theory import bounds
from warmfree.theory.descent import descend
from warmfree.theory.function import Function
from warmfree.theory.functions import CoshBowl, Power

TINY = mpf(10) ** -75


@pytest.fixture(autouse=True)
def _ninety_digits():
    with mpmath.workdps(90):
        yield


@dataclass(frozen=True)
class Exact:
    """A function in exact arithmetic: gap, gradient and curvature at a list of numbers, and rho, K0 and K_rho."""

    function: Function
    gap: Callable
    gradient: Callable
    curvature: Callable
    constants: tuple
    minimiser: tuple | None

    def limit(self, gap):
        rho, floor, growth = self.constants
        return floor + growth * gap**rho

    def integral(self, gap):
        rho, floor, growth = self.constants
        return floor * gap + growth * gap ** (1 + rho) / (1 + rho)

    def within(self, gap, distance):
        """The gap that may be reached within a distance; closed forms, for rho = 1 or no floor."""
        rho, floor, growth = self.constants
        if rho == 1:
            angle = distance * mpmath.sqrt(growth) / 2
            start = mpmath.sqrt(gap)
            shift = mpmath.sqrt(2 * floor / growth + gap)
            return (start * mpmath.cosh(angle) + shift * mpmath.sinh(angle)) ** 2
        assert floor == 0
        left = 1 - rho
        power = gap ** (left / 2) + left * mpmath.sqrt(growth / (2 * (1 + rho))) * distance
        return power ** (2 / left) if power > 0 else mpmath.inf


def norm(vector):
    return mpmath.sqrt(sum(entry**2 for entry in vector))


def cosh_bowl(mu):
    exact = mpf(mu)
    return Exact(
        CoshBowl(mu=mu),
        lambda w: 4 * mpmath.sinh(w[0] / 2) ** 2 + exact / 2 * w[1] ** 2,
        lambda w: [2 * mpmath.sinh(w[0]), exact * w[1]],
        lambda w: max(2 * mpmath.cosh(w[0]), exact),
        (mpf(1), mpf(2), mpf(1)),
        (mpf(0), mpf(0)),
    )


def one_line():
    return Exact(
        line(),
        lambda w: 4 * mpmath.sinh(w[0] / 2) ** 2,
        lambda w: [2 * mpmath.sinh(w[0])],
        lambda w: 2 * mpmath.cosh(w[0]),
        (mpf(1), mpf(2), mpf(1)),
        (mpf(0),),
    )


def power(exponent):
    p = mpf(exponent)
    return Exact(
        Power(exponent=exponent),
        lambda w: abs(w[0]) ** p / p,
        lambda w: [mpmath.sign(w[0]) * abs(w[0]) ** (p - 1)],
        lambda w: (p - 1) * abs(w[0]) ** (p - 2),
        ((p - 2) / p, mpf(0), (p - 1) * p ** ((p - 2) / p)),
        (mpf(0),),
    )


def barrier(exponent):
    k = mpf(exponent)
    return Exact(
        Barrier(exponent),
        lambda w: w[0] ** -k,
        lambda w: [-k * w[0] ** (-k - 1)],
        lambda w: k * (k + 1) * w[0] ** (-k - 2),
        (1 + 2 / k, mpf(0), k * (k + 1)),
        None,
    )


def walk(exact, start, multiples):
    """Descend in exact arithmetic; return points, gaps, gradients and learning rates."""
    points, rates = [[mpf(entry) for entry in start]], []
    for multiple in multiples:
        rates.append(mpf(multiple) / exact.limit(exact.gap(points[-1])))
        slope = exact.gradient(points[-1])
        points.append([x - rates[-1] * g for x, g in zip(points[-1], slope, strict=True)])
    return points, [exact.gap(w) for w in points], [norm(exact.gradient(w)) for w in points], rates


def sides(exact, points, gaps, slopes, rates):
    """Left and right hand sides by bound and step, as the statements of the bounds have them."""
    found = {bound.name: [] for bound in bounds.BOUNDS}
    start, total, product, least = gaps[0], mpf(0), mpf(1), mpmath.inf
    minimiser, mu = exact.minimiser, exact.function.pl
    away = [norm([x - m for x, m in zip(w, minimiser, strict=True)]) for w in points] if minimiser else []
    for w, gap, slope in zip(points, gaps, slopes, strict=True):
        found["smoothness"].append((exact.curvature(w), exact.limit(gap)))
        found["gradient"].append((slope, mpmath.sqrt(2 * exact.integral(gap))))
    for step, rate in enumerate(rates):
        gap, after, slope = gaps[step], gaps[step + 1], slopes[step]
        total, least = total + rate, min(least, slope)
        fall, limit = rate * slope**2, exact.limit(gap)
        bent = exact.limit(exact.within(gap, rate * slope)) * fall * rate / 2
        found["descent"].append((after, gap - fall * (1 - rate * limit / 2)))
        found["half descent"].append((after, gap - fall / 2))
        found["least gradient"].append((least, mpmath.sqrt(2 * (start - after) / total)))
        found["any direction"].append((after, gap - fall + bent))
        if minimiser:
            found["distance"].append((away[step + 1], away[step]))
            found["convex rate"].append((after, away[0] ** 2 / (2 * total)))
            reciprocal = 1 / (1 / start + total / (2 * away[0] ** 2))
            found["convex rate from the first gap"].append((after, reciprocal))
        if mu:
            product *= 1 - mpf(mu) * rate
            found["Polyak-Lojasiewicz rate"].append((after, start * product))
    return {name: pairs for name, pairs in found.items() if pairs}


CASES = {
    "cosh bowl": (
        lambda: cosh_bowl(1.0),
        [[461.0, 1.0], [1e-125, 1e-125], [461.0, 1e100], [1e-130, 3.0], [3.0, 1e-100]],
    ),
    "flat cosh bowl": (lambda: cosh_bowl(1e-3), [[460.0, 1.0], [1e-120, 1e-120], [0.5, 1e4]]),
    "line": (one_line, [[461.5], [1e-125], [2.0]]),
    "power 2.1": (lambda: power(2.1), [[1e95], [1e-119], [3.0]]),
    "power 4": (lambda: power(4.0), [[1e50], [1e-62], [3.0]]),
    "power 40": (lambda: power(40.0), [[1e5], [1e-6], [0.9]]),
    "barrier, rho = 21": (lambda: barrier(0.1), [[1e-5], [1e30], [1.0]]),
    "barrier, rho = 2": (lambda: barrier(2.0), [[1e-100], [1e120], [1.0]]),
}
MULTIPLES = [
    [1.0] * 10,
    [1e-9, 1e-3, 0.3, 0.99, 0.5, 0.1, 1.0, 0.7, 1e-6, 1.0],
    [0.999999] * 10,
]


@pytest.mark.parametrize("case", CASES)
def test_bounds_hold_exactly_at_the_extremes(case):
    """No tolerance but 1e-75 for the bounds that are equalities."""
    make, starts = CASES[case]
    exact = make()
    for start in starts:
        for multiples in MULTIPLES:
            for name, pairs in sides(exact, *walk(exact, start, multiples)).items():
                for step, (left, right) in enumerate(pairs):
                    assert left <= right * (1 + TINY), (name, step, start)


@pytest.mark.parametrize("case", CASES)
def test_twice_the_learning_rate_of_the_reciprocal_still_descends(case):
    """Up to 2/l: descent and distance."""
    make, starts = CASES[case]
    exact = make()
    for start in starts:
        found = sides(exact, *walk(exact, start, [2.0, 1.7, 2.0, 1.2, 2.0]))
        for name in ("descent", "distance", "any direction"):
            assert all(left <= right * (1 + TINY) for left, right in found.get(name, []))


@pytest.mark.parametrize("case", CASES)
def test_constants_a_billionth_too_small_fail_where_the_smoothness_is_attained(case):
    make, starts = CASES[case]
    exact = make()
    less = mpf(1) - mpf(10) ** -9
    failed = 0
    for start in starts:
        for left, right in sides(exact, *walk(exact, start, [1.0] * 3))["smoothness"]:
            failed += left > right * less
    assert failed


@pytest.mark.parametrize("case", CASES)
def test_sides_in_float64_are_those_of_exact_arithmetic(case):
    """From the points of the float64 path, wherever the bound is telling."""
    make, starts = CASES[case]
    exact = make()
    compared = 0
    for start in starts:
        with np.errstate(all="ignore"):
            path = descend(exact.function, start, Fraction(np.array([0.7])), steps=6)
        if path.diverged.any() or (path.learning_rates == 0.0).any():
            continue
        points = [[mpf(entry) for entry in w[0]] for w in path.points]
        gaps, slopes = [exact.gap(w) for w in points], [norm(exact.gradient(w)) for w in points]
        expected = sides(exact, points, gaps, slopes, [mpf(rate[0]) for rate in path.learning_rates])
        for bound in bounds.BOUNDS:
            evaluation = bound.evaluate(path)
            assert evaluation.holds, (bound.name, start)
            for step in np.flatnonzero(evaluation.telling[:, 0]):
                left, right = expected[bound.name][step]
                error = float(evaluation.rounding[step, 0]) + 1e-10 * float(abs(right))
                assert float(abs(mpf(evaluation.left[step, 0]) - left)) <= error, (bound.name, start, step)
                assert float(abs(mpf(evaluation.right[step, 0]) - right)) <= error, (bound.name, start, step)
                compared += 1
    assert compared >= 30


D, G, S, L, R, eta, s, theta, q = sympy.symbols("D G S L R eta s theta q", positive=True)


def test_descent_is_the_parabola_above_the_segment():
    parabola = D - G * s + L * s**2 / 2
    assert sympy.expand(parabola.subs(s, eta * G) - (D - eta * (1 - eta * L / 2) * G**2)) == 0
    assert sympy.solve(sympy.Eq(parabola, D), s) == [2 * G / L]  # not before there does it return
    assert sympy.simplify((D - eta * (1 - eta * L / 2) * G**2).subs(eta, 1 / L) - (D - G**2 / (2 * L))) == 0


def test_the_potential_falls():
    """S D + r^2/2, with <grad, w - w*> = D at the least and D' = D - eta G^2/2 at the most."""
    after = (S + eta) * (D - eta * G**2 / 2) + (R**2 - 2 * eta * D + eta**2 * G**2) / 2
    assert sympy.simplify(after - (S * D + R**2 / 2) + S * eta * G**2 / 2) == 0


def test_the_distance_does_not_grow_up_to_2_over_the_smoothness():
    """With <grad, w - w*> >= D + G^2/(2l) and G^2 = 2 l D theta, theta <= 1: falls until eta l = 1 + 1/theta >= 2."""
    slope = 2 * L * D * theta
    change = -2 * eta * (D + slope / (2 * L)) + eta**2 * slope
    assert sympy.simplify(change.subs(eta, q / L) - 2 * q * D / L * (theta * q - theta - 1)) == 0
    assert (theta * q - theta - 1).subs({q: 2, theta: 1}) == 0


def test_the_reciprocal_of_the_gap_grows():
    """With G >= D/R: 1/(D - a D^2) >= 1/D + a for a = eta/(2 R^2)."""
    a = sympy.symbols("a", positive=True)
    growth = sympy.simplify(1 / (D - a * D**2) - 1 / D - a)
    assert sympy.simplify(growth - a**2 * D / (1 - a * D)) == 0
    fall = sympy.simplify((eta * G**2 / 2).subs(G, D / R) - eta * D**2 / (2 * R**2))
    assert fall == 0


def test_the_gradient_bound_is_what_the_flow_keeps():
    """d(G^2/2)/ds >= -l(D) G and dD/ds = -G: G^2/2 less the integral of l does not fall."""
    x, rho, floor, growth = sympy.symbols("x rho K0 K", positive=True)
    gap = sympy.Function("D")(x)
    integral = floor * gap + growth * gap ** (1 + rho) / (1 + rho)
    slope = sympy.symbols("G")
    lost = sympy.diff(integral, x).subs(sympy.Derivative(gap, x), -slope)
    assert sympy.simplify(-slope * (floor + growth * gap**rho) - lost) == 0
