import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from warmfree.schedule.smoothness import (
    GapRule,
    InverseGapRule,
    PeakedRule,
    ReciprocalRule,
    SmoothnessRule,
    peak_fraction,
)

GAPS = [1e-6, 1e-3, 0.1, 0.5, 1.0, 2.0, 5.0, 30.0, 1e4]


def positive(low: float = 1e-4, high: float = 1e4) -> st.SearchStrategy[float]:
    return st.floats(math.log(low), math.log(high)).map(math.exp)


@st.composite
def peaked_rules(draw: st.DrawFn) -> tuple[PeakedRule, float, float]:
    """A rule, the start and the initial gap that it was made of."""
    peak, gap = draw(positive()), draw(positive(1e-2, 1e2))
    start = peak / (1.0 + draw(positive(1e-2, 1e4)))
    peak_gap = draw(st.floats(0.0, 0.95)) * gap
    rule = PeakedRule.from_start(peak=peak, start=start, initial_gap=gap, peak_gap=peak_gap)
    return rule, start, gap


def rules() -> st.SearchStrategy[GapRule]:
    return st.one_of(
        st.builds(
            SmoothnessRule,
            exponent=positive(0.1, 5.0),
            floor=positive(),
            growth=positive(),
            safety=positive(0.1, 2),
        ),
        st.builds(InverseGapRule, peak=positive(), slope=positive()),
        st.builds(
            ReciprocalRule,
            exponent=positive(0.1, 5.0),
            floor=positive(),
            growth=positive(),
            safety=positive(0.1, 2),
        ),
        peaked_rules().map(lambda made: made[0]),
    )


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("floor", "growth", "safety"), [(2.0, 1.0, 0.5), (1e3, 0.2, 1.0), (0.3, 40.0, 0.5)])
def test_smoothness_rule_is_the_minimum_of_both_bounds(
    exponent: float, floor: float, growth: float, safety: float
) -> None:
    rule = SmoothnessRule(exponent=exponent, floor=floor, growth=growth, safety=safety)
    for gap in GAPS:
        expected = safety * min(1 / floor, gap**-exponent / (3**exponent * growth))
        assert rule(gap) == pytest.approx(expected, rel=1e-12)
    assert rule(0.0) == rule.peak == safety / floor
    assert floor == pytest.approx(3**exponent * growth * rule.peak_gap**exponent)


@given(positive(0.1, 5.0), positive(), positive(), positive(1e-3, 1e3))
def test_smoothness_rule_obeys_the_smoothness_along_its_step(
    exponent: float, floor: float, growth: float, gap: float
) -> None:
    rule = SmoothnessRule(exponent=exponent, floor=floor, growth=growth)
    within = floor + growth * (3 * gap) ** exponent  # the largest curvature up to three times the gap
    assert rule(gap) * within <= 1.0 + 1e-12


def test_smoothness_rule_without_floor_or_growth() -> None:
    unbounded = SmoothnessRule(exponent=1.0, floor=0.0, growth=2.0)
    assert (unbounded.peak, unbounded.peak_gap, unbounded(0.0)) == (math.inf, 0.0, math.inf)
    assert unbounded(1e-320) > 1e300
    assert SmoothnessRule(exponent=3.0, floor=0.0, growth=1.0)(1e-200) == math.inf
    assert SmoothnessRule(exponent=3.0, floor=1.0, growth=1.0)(1e200) == 0.0
    constant = SmoothnessRule(exponent=1.0, floor=4.0, growth=0.0)
    assert [constant(gap) for gap in (0.0, 1.0, math.inf)] == [0.125] * 3


@pytest.mark.parametrize(("power", "steps"), [(4, 37), (6, 65)])
def test_smoothness_rule_minimises_a_power_in_logarithmic_time(power: int, steps: int) -> None:
    # |x|^p / p has |f''| = (p - 1) * (p f)^((p-2)/p): no floor.
    exponent = (power - 2) / power
    rule = SmoothnessRule(exponent=exponent, floor=0.0, growth=(power - 1) * power**exponent)
    x, count = 10.0, 0
    while (loss := x**power / power) > 1e-3:
        x -= rule(loss) * x ** (power - 1)
        count += 1
    assert count == steps


def test_reciprocal_rule_is_the_reciprocal_of_the_smoothness() -> None:
    rule = ReciprocalRule(exponent=1.5, floor=3.0, growth=0.7, safety=0.9)
    for gap in GAPS:
        assert rule(gap) == pytest.approx(0.9 / (3.0 + 0.7 * gap**1.5), rel=1e-12)
    assert rule(0.0) == rule.peak == 0.3
    line = ReciprocalRule(exponent=1.0, floor=3.0, growth=0.7)
    assert line(5.0) == pytest.approx(InverseGapRule(peak=1 / 3, slope=0.7 / 3)(5.0), rel=1e-12)
    power = ReciprocalRule(exponent=2.0, floor=0.0, growth=4.0)
    assert (power.peak, power(0.0), power(0.5), power(1e300)) == (math.inf, math.inf, 1.0, 0.0)
    assert ReciprocalRule(exponent=1.0, floor=4.0, growth=0.0)(math.inf) == 0.25


@pytest.mark.parametrize(
    "change", [{"exponent": 0.0}, {"floor": -1.0}, {"growth": math.nan}, {"safety": 0.0}]
)
@pytest.mark.parametrize("rule", [ReciprocalRule, SmoothnessRule])
def test_rules_of_a_smoothness_refuse_what_is_none(rule: type[GapRule], change: dict[str, float]) -> None:
    fields = {"exponent": 1.0, "floor": 1.0, "growth": 1.0} | change
    with pytest.raises(ValueError, match=next(iter(change))):
        rule(**fields)
    with pytest.raises(ValueError, match="both 0"):
        rule(exponent=1.0, floor=0.0, growth=0.0)


def test_inverse_gap_rule_is_the_step_of_h0_h1_smoothness() -> None:
    floor, growth = 3.0, 0.7
    rule = InverseGapRule(peak=1 / (10 * floor), slope=2 * growth / floor)
    for gap in GAPS:
        assert rule(gap) == pytest.approx(1 / (10 * floor + 20 * growth * gap), rel=1e-12)
    assert InverseGapRule(peak=0.1, slope=0.0)(1e9) == 0.1


@given(positive(), positive(1e-2, 1e4), positive(1e-2, 1e2))
def test_inverse_gap_rule_starts_where_it_was_told(peak: float, ratio: float, gap: float) -> None:
    assume(peak / (1 + ratio) < peak)
    rule = InverseGapRule.from_start(peak=peak, start=peak / (1 + ratio), initial_gap=gap)
    assert rule(gap) == pytest.approx(peak / (1 + ratio), rel=1e-12)
    assert rule(0.0) == peak


@given(peaked_rules())
def test_peaked_rule_meets_the_three_conditions(made: tuple[PeakedRule, float, float]) -> None:
    rule, start, gap = made
    assert rule(rule.peak_gap) == rule.peak
    assert rule(gap) == pytest.approx(start, rel=1e-9)
    if rule.peak_gap > 1e-3 * gap:  # inside: the same on both sides of it to first order, and lower
        below, above = (1 / rule(rule.peak_gap * factor) - 1 / rule.peak for factor in (1 - 1e-3, 1 + 1e-3))
        assert below == pytest.approx(above, rel=5e-3)
        assert above > 0.0


@given(peaked_rules(), positive(1e-6, 1e6))
def test_peaked_rule_is_the_ratio_of_polynomials_with_a_positive_denominator(
    made: tuple[PeakedRule, float, float], gap: float
) -> None:
    rule, _, _ = made
    constant, linear, quadratic = map(np.longdouble, rule.coefficients)
    # K1 may be negative; in exact arithmetic the denominator is still gap / peak + K2 * (gap - peak_gap)^2 > 0.
    terms = (constant, linear * np.longdouble(gap), quadratic * np.longdouble(gap) ** 2)
    rounding = 1e-15 * float(sum(abs(term) for term in terms))
    assert rule(gap) > 0.0
    assert gap / rule(gap) == pytest.approx(float(sum(terms)), rel=1e-9, abs=rounding)


@given(st.floats(0.0, 1e3), positive(), st.floats(1e-3, 1e3))
def test_peaked_rule_from_coefficients(constant: float, quadratic: float, above: float) -> None:
    linear = -2 * math.sqrt(constant * quadratic) + above
    rule = PeakedRule.from_coefficients(constant=constant, linear=linear, quadratic=quadratic)
    for gap in (0.1, 1.0, 10.0):
        denominator = constant + linear * gap + quadratic * gap**2
        assert rule(gap) == pytest.approx(gap / denominator, rel=1e-6)
    assert rule.coefficients == pytest.approx((constant, linear, quadratic), rel=1e-6, abs=1e-6)


def test_peaked_rule_with_its_peak_at_zero_is_the_inverse_gap_rule() -> None:
    peaked = PeakedRule.from_start(peak=0.1, start=1e-3, initial_gap=5.0, peak_gap=0.0)
    inverse = InverseGapRule.from_start(peak=0.1, start=1e-3, initial_gap=5.0)
    assert [peaked(gap) for gap in [0.0, *GAPS]] == pytest.approx([inverse(gap) for gap in [0.0, *GAPS]])


def test_peaked_rule_falls_below_its_peak_and_its_warmup_does_not() -> None:
    rule = PeakedRule.from_start(peak=1.0, start=0.01, initial_gap=8.0, peak_gap=2.0)
    assert [rule(gap) < 0.5 for gap in (0.0, 0.5, 2.0, 6.0)] == [True, True, False, True]
    assert [rule.warmup(gap) for gap in (0.0, 0.5, 2.0, 6.0)] == [1.0, 1.0, 1.0, rule(6.0)]
    assert rule(math.inf) == 0.0


@given(rules(), st.lists(positive(1e-6, 1e6), min_size=2, max_size=20))
def test_warmup_never_falls_as_the_gap_closes_nor_leaves_the_peak(rule: GapRule, gaps: list[float]) -> None:
    rates = [rule.warmup(gap) for gap in sorted(gaps, reverse=True)]
    peak = rule.warmup(0.0)
    assert all(before <= after * (1 + 1e-12) for before, after in pairwise(rates))
    assert all(0.0 <= rate <= peak * (1 + 1e-12) for rate in rates)


def distance_over_the_gap(fraction: float, *, ratio: float, target: str) -> float:
    """The squared distance, branch by branch, from the rule's own class and at other points than the library's."""
    rule = PeakedRule.from_start(peak=1.0, start=1 / ratio, initial_gap=1.0, peak_gap=fraction)
    total = 0.0
    for low, high, rising in ((0.0, fraction, True), (fraction, 1.0, False)):
        points = np.linspace(low, high, 801)
        along = (points - low) / (high - low)
        if rising:
            wanted = np.sin(np.pi * along / 2) ** 2
        elif target == "linear":
            wanted = 1 + (1 / ratio - 1) * along
        else:
            wanted = 1 + (1 / ratio - 1) * np.sin(np.pi * along / 2) ** 2
        squares = (np.array([rule(point) for point in points]) - wanted) ** 2
        total += (high - low) * float(np.mean((squares[1:] + squares[:-1]) / 2))
    return total


@pytest.mark.parametrize("target", ["linear", "cosine"])
@pytest.mark.parametrize("ratio", [10.0, 100.0])
def test_peak_fraction_is_the_nearest_to_the_usual_warmup(ratio: float, target: str) -> None:
    found = peak_fraction(ratio, target=target)
    fractions = [*np.linspace(0.03, 0.97, 32), found - 0.02, found + 0.02]
    best = min(distance_over_the_gap(float(p), ratio=ratio, target=target) for p in fractions)
    assert distance_over_the_gap(found, ratio=ratio, target=target) <= best * (1 + 1e-4)


def test_the_peak_gap_not_given_is_the_fraction_of_the_initial_one() -> None:
    rule = PeakedRule.from_start(peak=1e-3, start=1e-5, initial_gap=7.8)
    assert rule.peak_gap == 7.8 * peak_fraction(1e-3 / 1e-5)
    assert rule.peak_gap / 7.8 == pytest.approx(0.288)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SmoothnessRule(exponent=0.0, floor=1.0, growth=1.0), "exponent must be finite and > 0"),
        (
            lambda: SmoothnessRule(exponent=1.0, floor=-1.0, growth=1.0),
            "floor must be finite and >= 0, got -1",
        ),
        (lambda: SmoothnessRule(exponent=1.0, floor=1.0, growth=math.nan), "growth must be finite and >= 0"),
        (lambda: SmoothnessRule(exponent=1.0, floor=0.0, growth=0.0), "floor and growth are both 0"),
        (lambda: SmoothnessRule(exponent=1.0, floor=1.0, growth=1.0, safety=0.0), "safety must be"),
        (lambda: SmoothnessRule(exponent=1.0, floor=1.0, growth=1.0)(-0.1), "gap must be >= 0 .* got -0.1"),
        (lambda: InverseGapRule(peak=1.0, slope=1.0)(math.nan), "gap must be >= 0"),
        (lambda: InverseGapRule(peak=0.0, slope=1.0), "peak must be finite and > 0"),
        (lambda: InverseGapRule(peak=1.0, slope=-1.0), "slope must be finite and >= 0"),
        (
            lambda: InverseGapRule.from_start(peak=1.0, start=2.0, initial_gap=1.0),
            r"start must be in \(0, peak\) = \(0, 1\), got 2.0",
        ),
        (lambda: InverseGapRule.from_start(peak=1.0, start=0.1, initial_gap=0.0), "f_star has to be below"),
        (
            lambda: PeakedRule.from_coefficients(constant=1.0, linear=-2.0, quadratic=1.0),
            r"linear must be above .* = -2, got -2.0: the denominator would not be positive at the gap 1",
        ),
        (
            lambda: PeakedRule.from_coefficients(constant=0.0, linear=0.0, quadratic=1.0),
            "linear must be above",
        ),
        (
            lambda: PeakedRule.from_coefficients(constant=1.0, linear=0.0, quadratic=0.0),
            "quadratic must be finite and > 0",
        ),
        (lambda: PeakedRule(peak=1.0, peak_gap=-1.0, quadratic=1.0), "peak_gap must be finite and >= 0"),
        (
            lambda: PeakedRule.from_start(peak=1.0, start=0.1, initial_gap=2.0, peak_gap=2.0),
            r"peak_gap must be in \[0, initial_gap\) = \[0, 2\), got 2.0",
        ),
        (lambda: peak_fraction(1.0), "ratio must be > 1"),
        (lambda: peak_fraction(10.0, target="square"), "target must be 'linear' or 'cosine'"),  # type: ignore[arg-type]
    ],
)
def test_bad_arguments(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
