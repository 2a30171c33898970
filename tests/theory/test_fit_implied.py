import math

import numpy as np
import pytest
import torch
from fit_cases import Floats, synthetic_run
from hypothesis import given, settings
from hypothesis import strategies as st

from warmfree.schedule.loss_driven import LossDriven
from warmfree.theory.fit import Implied, SmoothnessFit, fit_smoothness, implied

EVEN = np.geomspace(10.0, 0.1, 40)
FITS = {
    "sum": fit_smoothness(EVEN, 2.0 + EVEN, resamples=20),
    "power": fit_smoothness(EVEN, EVEN**0.5, resamples=20),
    "floor": fit_smoothness(EVEN, 4.0 + 0.0 * EVEN, resamples=20),
    "shifted": fit_smoothness(1.0 + EVEN, 2.0 + EVEN**2, f_star=1.0, resamples=20),
}


def scheduled(
    fit: SmoothnessFit,
    losses: Floats,
    *,
    peak: float,
    given_peak: float | None,
    smoothing: float,
    monotone: bool,
) -> list[float]:
    """The learning rates of a training loop that follows the rule, before every optimizer step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=peak)
    scheduler = LossDriven(
        optimizer,
        fit.rule(peak=given_peak),
        initial_loss=float(losses[0]),
        f_star=fit.f_star,
        smoothing=smoothing,
        monotone=monotone,
    )
    seen = []
    for loss in losses:
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step(float(loss))
    return seen


def test_the_fits_are_what_they_are_called() -> None:
    assert [fit.model for fit in FITS.values()] == ["sum", "power", "floor", "sum"]


@settings(max_examples=40)
@given(
    st.sampled_from(sorted(FITS)),
    st.lists(st.one_of(st.floats(-1.0, 30.0), st.just(math.nan), st.just(math.inf)), max_size=25),
    st.floats(0.0, 0.99),
    st.booleans(),
    st.sampled_from([None, 0.3]),
)
def test_the_learning_rates_are_those_of_the_scheduler(
    name: str, tail: list[float], smoothing: float, monotone: bool, peak: float | None
) -> None:
    fit, losses = FITS[name], np.array([9.0, *tail])
    found = implied(fit, losses, peak=peak, smoothing=smoothing, monotone=monotone)
    if math.isinf(found.peak):
        assert (name, peak) == ("power", None)
        return
    rates = scheduled(fit, losses, peak=found.peak, given_peak=peak, smoothing=smoothing, monotone=monotone)
    assert (found.fractions * found.peak).tolist() == pytest.approx(rates, rel=1e-14, abs=0.0)


def test_without_a_peak_the_learning_rates_are_fractions_of_the_largest() -> None:
    found = implied(FITS["power"], EVEN, smoothing=0.0)
    rates = scheduled(FITS["power"], EVEN, peak=1e9, given_peak=None, smoothing=0.0, monotone=True)
    assert found.peak == math.inf
    assert found.fractions == pytest.approx(np.array(rates) / max(rates), rel=1e-12)
    assert found.reached == 1.0
    assert "no peak" in found.sentence


def test_the_rule_in_the_units_of_the_fit_is_that_of_its_smoothness() -> None:
    for fit in FITS.values():
        rule = fit.rule(safety=0.25)
        for gap in (0.01, 1.0, 20.0):
            assert rule(gap) == pytest.approx(float(fit.smoothness.step(gap, safety=0.25)), rel=1e-12)


@given(st.floats(1e-6, 1e3), st.floats(0.1, 2.0), st.floats(0.01, 50.0))
def test_a_peak_scales_the_rule_and_leaves_its_shape(peak: float, safety: float, gap: float) -> None:
    for name in ("sum", "floor", "shifted"):
        own, scaled = FITS[name].rule(safety=safety), FITS[name].rule(peak=peak, safety=safety)
        assert scaled.peak == pytest.approx(peak, rel=1e-12)
        assert scaled(gap) / peak == pytest.approx(own(gap) / own.peak, rel=1e-9)
        assert scaled.peak_gap == pytest.approx(own.peak_gap, rel=1e-9)


def test_a_power_with_a_peak_has_it_at_the_smallest_gap_that_was_measured() -> None:
    fit = FITS["power"]
    rule = fit.rule(peak=0.2)
    assert fit.rule().peak == math.inf
    assert rule(0.1) == rule(0.0) == pytest.approx(0.2, rel=1e-9)
    assert rule(0.2) == pytest.approx(0.2 / 2**0.5, rel=1e-4)
    assert rule(10.0) == pytest.approx(0.02, rel=1e-4)


@pytest.mark.parametrize("peak", [0.0, -1.0, math.inf, math.nan])
def test_a_peak_is_a_learning_rate(peak: float) -> None:
    with pytest.raises(ValueError, match="peak must be finite and > 0"):
        FITS["sum"].rule(peak=peak)
    with pytest.raises(ValueError, match="peak must be finite and > 0"):
        FITS["sum"].reciprocal_rule(peak=peak)


@pytest.mark.parametrize("name", ["sum", "floor", "shifted"])
def test_the_reciprocal_rule_is_the_envelope_turned_over(name: str) -> None:
    fit = FITS[name]
    own, scaled = fit.reciprocal_rule(), fit.reciprocal_rule(peak=0.2)
    assert scaled.peak == pytest.approx(0.2, rel=1e-12)
    for gap in (0.0, 0.1, 1.0, 10.0):
        assert own(gap) * float(fit.smoothness.curvature(gap)) == pytest.approx(1.0, rel=1e-12)
        assert scaled(gap) / 0.2 == pytest.approx(own(gap) / own.peak, rel=1e-9)
        assert scaled(gap) >= fit.rule(peak=0.2)(gap) * 0.5 - 1e-12  # a sum is at most twice the larger part


def test_the_reciprocal_rule_of_a_power_has_the_peak_at_the_smallest_gap() -> None:
    rule = FITS["power"].reciprocal_rule(peak=0.2)
    assert rule(0.1) == pytest.approx(0.2, rel=1e-9)
    assert rule(10.0) == pytest.approx(0.02, rel=1e-4)


def test_the_warmup_ends_where_the_rule_has_nearly_its_largest_learning_rate() -> None:
    """2 + D is at its peak at D = 2/3, and at 95 % of it at 2/3 / 0.95; the scheduler is one step behind the loss."""
    found = implied(FITS["sum"], EVEN, smoothing=0.0)
    near = 2.0 / 3.0 / 0.95
    assert found.warmup_steps == int((near >= EVEN).argmax()) + 1
    assert found.start == pytest.approx(2.0 / 30.0, rel=1e-5)
    assert found.reached == 1.0
    assert found.peak == pytest.approx(0.25, rel=1e-5)
    assert f"starts at 6.67 % of the peak and warms up for {found.warmup_steps} of 40 steps" in found.sentence
    smoothed = implied(FITS["sum"], EVEN, smoothing=0.9)
    assert smoothed.warmup_steps > found.warmup_steps


def test_a_floor_alone_implies_no_warmup() -> None:
    found = implied(FITS["floor"], EVEN)
    assert found.warmup_steps == 0
    assert found.start == found.reached == 1.0
    assert found.sentence.startswith("No warmup is implied")


def test_a_loss_that_does_not_fall_far_enough_is_said() -> None:
    found = implied(FITS["sum"], np.linspace(10.0, 4.0, 30), smoothing=0.0)
    assert found.reached == pytest.approx(2.0 / 3.0 / 4.2, rel=0.02)
    assert "does not fall far enough" in found.sentence
    assert found.warmup_steps > 0


def test_a_longer_fall_is_a_longer_warmup() -> None:
    lengths = [
        implied(FITS["sum"], np.geomspace(10.0, 0.1, steps), smoothing=0.5).warmup_steps
        for steps in (50, 100, 200)
    ]
    assert lengths == sorted(lengths)
    assert lengths[2] == pytest.approx(4 * lengths[0], rel=0.1)


def test_a_little_noise_moves_the_warmup_little() -> None:
    losses, curvatures = synthetic_run(lambda gap: 2.0 + gap, points=150, noise=0.05)
    found: Implied = implied(fit_smoothness(losses, curvatures, resamples=20), losses, smoothing=0.5)
    exact = implied(FITS["sum"], losses, smoothing=0.5)
    assert found.warmup_steps == pytest.approx(exact.warmup_steps, abs=15)
    assert found.start == pytest.approx(exact.start, rel=0.5)


@pytest.mark.parametrize(
    ("losses", "arguments", "said"),
    [
        ([], {}, "losses must have shape .steps,. with at least one step, got .0,."),
        ([[1.0]], {}, "losses must have shape"),
        ([0.0, 1.0], {}, "the first loss must be finite and above the fit's f_star=0, got 0"),
        ([math.nan, 1.0], {}, "the first loss must be finite"),
        ([1.0], {"smoothing": 1.0}, "smoothing must be in .0, 1., got 1.0"),
        ([1.0], {"peak": 0.0}, "peak must be finite and > 0"),
        ([1.0], {"safety": 0.0}, "safety"),
    ],
)
def test_what_is_no_run_is_refused(losses: list, arguments: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        implied(FITS["sum"], losses, **arguments)
