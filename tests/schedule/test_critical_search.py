"""The search on a line, apart from networks: where it ends, and in how many trials."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmfree.schedule.critical.search import find_critical


def search(
    loss, slope, *, initial=3.0, start=1.0, precision=0.05, tolerance=0.1, max_lr=math.inf, max_trials=18
):
    """Search, and make sure that every trial is one call."""
    tried = []

    def loss_at(lr):
        tried.append(lr)
        return loss(lr)

    found = find_critical(
        loss_at,
        lambda: slope,
        initial_loss=initial,
        start=start,
        precision=precision,
        tolerance=tolerance,
        noise=1e-9 * initial,
        max_lr=max_lr,
        max_trials=max_trials,
    )
    assert [trial.lr for trial in found.trials] == tried
    assert found.forward_passes == len(tried) <= max_trials
    assert [trial.loss for trial in found.trials] == [loss(lr) for lr in tried]
    return found


# The crossing of each is at 1, its slope at 0 is the second of the pair.
CURVES = {
    "quadratic": (lambda x: x**2 - x, -1.0),
    "power 1.3": (lambda x: x**1.3 - x, -1.0),
    "power 5": (lambda x: x**5 - x, -1.0),
    "exponential": (lambda x: math.expm1(min(x, 700.0)) - math.expm1(1.0) * x, 1 - math.expm1(1.0)),
    "cliff": (lambda x: -x if x < 1 else math.inf, -1.0),
    "kink": (lambda x: -x + 20 * max(0.0, x - 0.95), -1.0),
    "valley": (lambda x: math.expm1(-10 * x) + (1 - math.exp(-10)) * x**2, -10.0),
    "narrow valley": (lambda x: math.expm1(-100 * x) + x**2, -100.0),
    "flat after a while": (lambda x: -x if x < 0.01 else 0.01 * math.log(x) / math.log(100), -1.0),
}


@pytest.mark.parametrize("tolerance", [0.1, 0.01])
@pytest.mark.parametrize("name", CURVES)
def test_the_crossing_is_found_from_far_below_and_far_above(name, tolerance):
    change, slope = CURVES[name]
    counts = []
    for away in (1e-4, 1e-2, 0.3, 0.9, 1.1, 4.0, 100.0, 1e4):
        found = search(lambda lr: 3 + change(lr), slope, start=away, tolerance=tolerance)
        assert found.outcome == "found"
        assert found.low <= found.lr <= found.high <= 1.05 * found.low
        assert found.low <= 1 <= found.high
        by_lr = {trial.lr: trial.loss for trial in found.trials}
        assert by_lr[found.low] <= 3 < by_lr[found.high]
        assert by_lr[found.high] <= 3 * (1 + tolerance) + 1e-6 or found.high <= found.low * (1 + 0.05 / 4)
        counts.append(found.forward_passes)
    assert sum(counts) / len(counts) <= 12
    if name in ("quadratic", "power 1.3"):
        assert max(counts) <= 7


@settings(deadline=None)
@given(
    st.floats(-8, 8),  # where the crossing is
    st.floats(-3, 3),  # where the search starts, from there
    st.floats(0.2, 8),  # the power of the curvature
    st.floats(1e-3, 1e3),  # of the initial loss
    st.sampled_from([0.3, 0.05, 0.01]),
)
def test_scales_of_loss_and_learning_rate_do_not_matter(where, away, power, size, precision):
    crossing = 10.0**where
    found = search(
        lambda lr: (
            size * (1 + 0.1 * ((lr / crossing) ** (1 + power) - lr / crossing))
            if lr < 1e12 * crossing
            else math.inf
        ),
        -0.1 * size / crossing,
        initial=size,
        start=crossing * 10.0**away,
        precision=precision,
        tolerance=1.0,
    )
    assert found.outcome == "found"
    assert found.lr == pytest.approx(crossing, rel=precision)
    assert found.high <= found.low * (1 + precision) or found.forward_passes == 18


def test_a_loss_that_never_rises_has_none():
    found = search(lambda lr: 3 - lr, -1.0)
    assert (found.outcome, found.lr, found.high) == ("none", None, None)
    assert found.low == found.trials[-1].lr >= 1e8
    found = search(lambda lr: 3 - math.tanh(lr), -1.0)
    assert found.outcome == "none"


def test_the_largest_learning_rate_is_respected_and_tried():
    for start in (0.1, 1.0, 50.0):
        found = search(lambda lr: 3 - lr, -1.0, start=start, max_lr=7.0)
        assert (found.outcome, found.low) == ("none", 7.0)
        assert all(trial.lr <= 7.0 for trial in found.trials)
    found = search(lambda lr: 3 - lr + lr**2, -1.0, start=5.0, max_lr=0.5)
    assert (found.outcome, found.low) == ("none", 0.5)
    found = search(lambda lr: 3 - lr + lr**2, -1.0, start=0.01, max_lr=1.2)
    assert found.outcome == "found"


def test_a_step_uphill_is_told_from_one_that_is_too_long():
    found = search(lambda lr: 3 + lr, 1.0)
    assert (found.outcome, found.lr, found.low) == ("uphill", None, None)
    assert found.high == found.trials[-1].lr <= 1e-3
    assert found.forward_passes <= 6
    found = search(lambda lr: 3 + 1e-12 * lr, 1e-12)  # a rise that rounding hides
    assert found.outcome == "uphill"
    found = search(lambda lr: 3 - lr + 1e7 * lr**2, -1.0)
    assert found.outcome == "found"


def test_steps_that_rounding_takes_away_teach_nothing():
    slopes = iter([math.nan, math.nan, -1.0])
    found = find_critical(
        lambda lr: 3.0 if lr < 1e-3 else 3 - lr + lr**2,
        lambda: next(slopes),
        initial_loss=3.0,
        start=1e-5,
        precision=0.05,
        tolerance=0.1,
        noise=1e-9,
        max_lr=math.inf,
        max_trials=18,
    )
    assert found.outcome == "found"
    assert found.slope == -1.0
    assert found.lr == pytest.approx(1.0, rel=1e-6)


def test_a_trial_at_the_crossing_itself_is_the_answer():
    found = search(lambda lr: 3 - lr + lr**2 + 1e-12, -1.0, start=1.0)  # above by less than the noise
    assert found.low == 1.0
    assert found.lr == pytest.approx(1.0, rel=1e-9)


def test_what_is_known_when_the_trials_run_out_is_returned():
    found = search(lambda lr: 3 - lr + lr**2, -1.0, start=0.1, max_trials=1)
    assert (found.outcome, found.low) == ("none", 0.1)
    found = search(lambda lr: 3 - lr + lr**2, -1.0, start=10.0, max_trials=1)
    assert (found.outcome, found.high) == ("uphill", 10.0)
    found = search(lambda lr: -lr + 3 if lr < 1 else math.inf, -1.0, start=0.1, max_trials=4)
    assert found.outcome == "found"
    assert found.low < 1 <= found.high
    assert found.low <= found.lr <= found.high
