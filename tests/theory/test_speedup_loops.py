"""The fast loops of the speed-up take the same steps as the shared driver; candidates are the shared schedules."""

import numpy as np
import pytest

from warmfree.theory.descent import descend, steps_to
from warmfree.theory.function import Function
from warmfree.theory.functions import CoshBowl
from warmfree.theory.noise import ABCNoise
from warmfree.theory.smoothness import Smoothness
from warmfree.theory.speedup.candidates import Candidates
from warmfree.theory.speedup.slopes import SMOOTHNESS, final_gaps, valley_gap
from warmfree.theory.speedup.valley import edge, hits, start_of
from warmfree.theory.steps import Constant, InverseSqrt, InverseTime, LinearWarmup, StepDrop, StepRule, Warmup

FAMILIES = [
    (Candidates.of("constant", 0.1), Constant(0.1)),
    (Candidates.of("1/sqrt(t)", 0.1, offset=7.0), InverseSqrt(0.1, offset=7.0)),
    (Candidates.of("1/t", 0.1, offset=7.0), InverseTime(0.1, offset=7.0)),
    (Candidates.of("step drop", 0.1, every=5, drop=0.3), StepDrop(0.1, every=5, drop=0.3)),
    (Candidates.of("linear warmup", 0.1, length=9), LinearWarmup(0.1, steps=9)),
]


class Sloped(Function):
    """The valley of `final_gaps` as a function of the shared kind."""

    def __init__(self, slope):
        self.slope, self.name, self.dimension, self.infimum = slope, "sloped", 2, 0.0
        self.smoothness = Smoothness(exponent=1.0, floor=2.0, growth=1.0)
        self.minimiser, self.is_convex, self.pl = np.zeros(2), True, None

    def gap(self, points):
        return valley_gap(points[..., 0], points[..., 1], np.float64(self.slope))

    def gradient(self, points):
        x, y = points[..., 0], points[..., 1]
        return np.stack([2 * np.sinh(x), self.slope * y / np.hypot(y, self.slope / 2)], axis=-1)

    def hessian(self, points):
        x, y = points[..., 0], points[..., 1]
        hessian = np.zeros((*points.shape, 2))
        hessian[..., 0, 0] = 2 * np.cosh(x)
        hessian[..., 1, 1] = self.slope**3 / 4 / np.hypot(y, self.slope / 2) ** 3
        return hessian


class Members(StepRule):
    """All candidates at once, for the shared driver."""

    name = "members"

    def __init__(self, candidates):
        self.candidates = candidates

    @property
    def runs(self):
        return len(self.candidates)

    def __call__(self, state):
        return self.candidates.rates(state.step)[state.runs]


@pytest.mark.parametrize(("candidate", "rule"), FAMILIES, ids=[rule.name for _, rule in FAMILIES])
def test_a_candidate_is_the_schedule_of_its_name(candidate, rule):
    for step in (0, 1, 4, 5, 8, 9, 10, 100):
        assert candidate.rates(step)[0] == pytest.approx(0.1 * rule.factor(step), rel=1e-14)


def test_a_geometric_warmup_rises_by_its_factor_to_the_peak():
    member = Candidates.of("geometric warmup", 0.8, length=4, growth=2.0)
    assert [float(member.rates(step)[0]) for step in range(6)] == pytest.approx(
        [0.1, 0.2, 0.4, 0.8, 0.8, 0.8]
    )


def test_joined_candidates_keep_their_families_and_rates():
    parts = [candidate for candidate, _ in FAMILIES]
    joined = Candidates.joined([*parts[:2], Candidates.joined(parts[2:])])
    assert [joined.names[family] for family in joined.family] == [rule.name for _, rule in FAMILIES]
    for step in (0, 6, 20):
        assert np.array_equal(joined.rates(step), [part.rates(step)[0] for part in parts])
    assert joined.parameters(3) == {"lr": 0.1, "every": 5.0, "drop": 0.3}
    assert not joined.is_constant
    assert parts[0].is_constant


def test_hits_counts_what_the_shared_driver_counts():
    generator = np.random.default_rng(0)
    start = 5.0
    lr = float(edge(start)) * generator.uniform(0.3, 1.2, 12)
    members = Candidates.joined(
        [
            Candidates.of("constant", lr),
            Candidates.of("1/sqrt(t)", lr, offset=generator.uniform(1, 300, 12)),
            Candidates.of("1/t", lr, offset=generator.uniform(10, 300, 12)),
            Candidates.of(
                "step drop", lr, every=generator.integers(5, 90, 12), drop=generator.uniform(0.3, 1, 12)
            ),
            Candidates.of("linear warmup", 4 * lr, length=generator.integers(5, 30, 12)),
            Candidates.of("geometric warmup", 6 * lr, length=generator.integers(2, 12, 12), growth=1.5),
        ]
    )
    counted = hits(members, start=start, height=0.7, curvature=0.8, target=1e-5, limit=700)[:, 0]
    shared = steps_to(CoshBowl(mu=0.8), [start, 0.7], Members(members), target=1e-5, limit=700)
    assert np.isfinite(shared).sum() > 30
    assert np.isnan(shared).sum() > 5
    assert np.array_equal(counted, shared, equal_nan=True)
    constants = hits(
        members.take(np.arange(12)), start=start, height=0.7, curvature=0.8, target=1e-5, limit=700
    )
    assert np.array_equal(constants[:, 0], shared[:12], equal_nan=True)


def test_hits_of_instances_are_those_of_each_alone():
    members = Candidates.of("1/t", [0.05, 0.08], offset=500.0)
    start, height, mu, target = [4.0, 4.4, 3.0], [0.5, 2.0, 1.0], [0.3, 2.0, 1.0], [1e-5, 1e-6, 1e-4]
    together = hits(members, start=start, height=height, curvature=mu, target=target, limit=2000)
    alone = [
        hits(members, start=a, height=y0, curvature=m, target=eps, limit=2000)[:, 0]
        for a, y0, m, eps in zip(start, height, mu, target, strict=True)
    ]
    assert np.array_equal(together, np.stack(alone, axis=1))


def test_first_only_finds_the_fewest_steps_of_each_family():
    members = Candidates.joined(
        [
            Candidates.of("constant", np.linspace(0.05, 0.14, 9)),
            Candidates.of("1/t", [0.08, 0.1], offset=200.0),
        ]
    )
    kwargs = {"start": 4.0, "height": 1.0, "curvature": 1.0, "target": 1e-6, "limit": 1000}
    every, first = hits(members, **kwargs)[:, 0], hits(members, **kwargs, first_only=True)[:, 0]
    for family in (0, 1):
        mine = members.family == family
        assert np.nanmin(first[mine]) == np.nanmin(every[mine])
    assert np.isnan(first).any()


def test_the_edge_is_where_the_first_step_leads_farther_away():
    a = float(start_of(1e3))
    assert 2 * (np.cosh(a) - 1) == pytest.approx(1e3)
    for factor, grows in ((0.999, False), (1.001, True)):
        assert bool(abs(a - factor * edge(a) * 2 * np.sinh(a)) > a) is grows


@pytest.mark.parametrize("slope", [1e-3, 0.3, 4.0])
def test_sloped_valleys_are_as_smooth_as_they_are_said_to_be(slope):
    points = np.random.default_rng(0).uniform(-5, 5, (500, 2))
    points[:50, 1] = 0.0
    function = Sloped(slope)
    membership = SMOOTHNESS.check(function.gap(points), function.curvature(points))
    assert membership.holds
    assert membership.worst > 0.95
    step = 1e-5 * np.array([[1.0, 0.0], [0.0, 1.0]])
    numeric = [(function.gap(points + e) - function.gap(points - e)) / 2e-5 for e in step]
    assert np.allclose(np.stack(numeric, -1), function.gradient(points), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rule", [Constant(0.02), Warmup(SMOOTHNESS)], ids=["constant", "warmup"])
def test_final_gaps_are_those_of_the_shared_driver(rule):
    slopes = np.array([0.01, 0.2, 3.0])

    def rates(step, gap, draws):
        return np.full_like(gap, 0.02) if isinstance(rule, Constant) else SMOOTHNESS.step(gap)

    found = final_gaps(
        rates, count=1, start=4.0, height=1.0, slopes=slopes, steps=60, noise=None, runs=5, seed=0
    )
    assert found.shape == (1, 3, 1)
    shared = [descend(Sloped(slope), [4.0, 1.0], rule, steps=60).gaps[-1, 0] for slope in slopes]
    assert found.ravel() == pytest.approx(shared, rel=1e-9)


@pytest.mark.parametrize(
    "noise", [ABCNoise(constant=0.3), ABCNoise(gap=0.2, gradient=0.5, constant=0.1)], ids=["additive", "ABC"]
)
def test_a_noisy_step_has_the_outcomes_of_the_shared_noise(noise):
    function, point, lr = Sloped(0.4), np.array([2.0, 1.0]), 0.05
    found = final_gaps(
        lambda step, gap, draws: np.full_like(gap, lr),
        count=1,
        start=2.0,
        height=1.0,
        slopes=np.array([0.4]),
        steps=1,
        noise=noise,
        runs=100,
        seed=3,
    ).ravel()
    outcomes = noise.outcomes(function.gradient(point), function.gap(point))
    expected = np.sort(function.gap(point - lr * outcomes))
    assert np.unique(found.round(12)) == pytest.approx(expected)
    shares = [np.isclose(found, gap).mean() for gap in expected]
    assert min(shares) > 0.1
