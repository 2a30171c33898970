"""Curves at the best learning rate: averaging, thinning, and the factor read as a warmup."""

import math

import pytest
from synthetic_results import RECIPES, make_exact, make_results

from warmfree.report import curves
from warmfree.report.analysis import analyze


def lionar(curve, *more_seeds):
    """LionAR at one learning rate, with the given curves by seed."""
    results = make_exact({"lionar": {0.1: [2.0] * (1 + len(more_seeds))}})
    for cell, measured in zip(results["cells"], (curve, *more_seeds), strict=True):
        steps = len(measured["step"])
        blank = dict.fromkeys(("loss", "lr", "update_rms", "angle", "factor"), [None] * steps)
        cell["curve"] = blank | measured
    return analyze(results).methods[0]


def test_average_over_seeds_step_by_step_ignores_what_was_not_measured():
    summary = lionar(
        {"step": [1, 2, 3], "loss": [4.0, None, 2.0]},
        {"step": [1, 2, 4], "loss": [5.0, 3.0, 1.0]},
    )
    track = curves.track(summary, curves.loss)
    assert track is not None
    assert track.step == (1, 2, 3, 4)
    assert track.value == (4.5, 3.0, 2.0, 1.0)


def test_steps_counted_from_zero_are_shifted_for_the_log_axis():
    track = curves.track(lionar({"step": [0, 1], "loss": [4.0, 3.0]}), curves.loss)
    assert track is not None
    assert track.step == (1, 2)


def test_nothing_measured_is_no_track():
    assert curves.track(lionar({"step": [1, 2]}), curves.factor) is None


@pytest.mark.parametrize("name", ["update_rms", "angle"])
def test_zero_sizes_are_left_out_of_log_axes(name):
    track = curves.track(lionar({"step": [1, 2], name: [0.0, 0.5]}), getattr(curves, name))
    assert track is not None
    assert (track.step, track.value) == ((2,), (0.5,))


def test_effective_schedule_is_factor_times_lr_over_peak():
    summary = lionar({"step": [1, 2, 3], "lr": [0.1, 0.2, 0.05], "factor": [0.5, 0.8, 1.0]})
    track = curves.track(summary, curves.effective_schedule)
    assert track is not None
    assert track.value == pytest.approx((0.25, 0.8, 0.25))


@pytest.mark.parametrize("log_steps", [True, False])
def test_thinning_keeps_the_mean_of_a_line_and_bounds_the_number_of_points(log_steps):
    steps = tuple(float(step) for step in range(1, 10_001))
    track = curves.Track(
        analyze(make_results(RECIPES[:1])).methods[0].method, steps, tuple(3 * s for s in steps)
    )
    thinned = curves.thin(track, log_steps=log_steps)
    assert 40 < len(thinned.step) <= 4 * curves.WINDOWS_PER_DECADE + 1
    assert thinned.value == pytest.approx([3 * step for step in thinned.step])
    if log_steps:
        assert thinned.step[:3] == (1, 2, 3), "the first steps stay single"


@pytest.mark.parametrize(
    ("values", "smallest", "settled"),
    [
        ([0.1, 0.5, 0.95, 1.0], (0.1, 1), 3),
        ([1.0, 0.3, 0.95, 1.0], (0.3, 2), 3),
        ([0.1, 0.95, 0.8, 0.85], (0.1, 1), None),
        ([1.0, 1.0, 1.0, 1.0], (1.0, 1), 1),
    ],
)
def test_implied_warmup(values, smallest, settled):
    track = curves.track(lionar({"step": [1, 2, 3, 4], "factor": values}), curves.factor)
    assert track is not None
    warmup = curves.implied_warmup(track)
    assert (warmup.smallest, warmup.smallest_step) == smallest
    assert warmup.settled_step == settled


def test_explicit_warmup_ends_at_its_peak():
    analysis = analyze(make_results(RECIPES[:2], seeds=(0,)))
    explicit = curves.explicit_warmup(analysis)
    assert explicit is not None
    assert explicit.method.name == "adamw-warmup"
    assert max(explicit.value) == 1
    rise = curves.until_peak(explicit)
    assert rise.step[-1] == 60, "20 % of 300 steps"
    assert all(after > before for before, after in zip(rise.value, rise.value[1:], strict=False))


def test_explicit_warmup_is_taken_from_the_longest_run():
    explicit = curves.explicit_warmup(analyze(make_exact({"adamw-warmup": {1e-3: [None], 2e-3: [2.0]}})))
    assert explicit is not None
    assert len(explicit.step) == 300


def test_explicit_warmup_survives_a_baseline_that_only_diverged():
    results = make_exact({"adamw-warmup": {1e-3: [None]}})
    explicit = curves.explicit_warmup(analyze(results))
    assert explicit is not None
    assert len(explicit.step) == 40
    assert curves.explicit_warmup(analyze(make_exact({"adamw": {1e-3: [2.0]}}))) is None
    assert math.isclose(explicit.value[0], 1 / 40)
