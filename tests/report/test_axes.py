"""Axes: ticks that fit, and frames that a cooldown does not stretch."""

import pytest
from matplotlib.figure import Figure
from synthetic_results import make_results

from warmfree.report.analysis import analyze
from warmfree.report.axes import draw_track, label_log_axis, use_log_values
from warmfree.report.curves import Track
from warmfree.report.style import assign
from warmfree.report.wording import short

METHOD = analyze(make_results()).methods[0].method


def make_axes():
    return Figure().add_subplot()


def ticks(low, high, **options):
    axis = make_axes().xaxis
    label_log_axis(axis, low, high, short, **options)
    return list(axis.get_major_locator()())


def test_ticks_are_round_fit_in_and_are_enough():
    assert ticks(1, 300) == pytest.approx([1, 2, 5, 10, 20, 50, 100, 200])
    assert ticks(0.2, 0.5) == pytest.approx([0.2, 0.3, 0.4, 0.5])
    assert ticks(1e-6, 1) == pytest.approx([10.0**n for n in range(-6, 1)])


def test_wanted_ticks_are_taken_unless_they_would_collide():
    assert ticks(5e-4, 5e-3, at=[4e-3, 7e-4, 7e-4]) == [7e-4, 4e-3]
    assert 7.1e-4 not in ticks(1e-6, 1, at=[7e-4, 7.1e-4])


def test_frame_leaves_out_the_end_of_a_cooldown_but_nothing_earlier():
    steps = tuple(float(step) for step in range(1, 101))
    values = tuple(1e-9 if step > 80 else 1.0 if step > 1 else 0.01 for step in steps)
    axes = make_axes()
    use_log_values(axes, [Track(METHOD, steps, values)])
    assert axes.get_ylim() == pytest.approx((0.01 / 1.2, 1.2))


def test_a_constant_and_a_single_step_still_have_a_frame():
    axes = make_axes()
    use_log_values(axes, [Track(METHOD, (1.0,), (0.5,))])
    assert axes.get_ylim() == (0.25, 1.0)


def test_line_keeps_the_looks_of_its_method_and_a_few_markers():
    axes = make_axes()
    style = assign([METHOD])[METHOD.name]
    steps = tuple(float(step) for step in range(1, 51))
    draw_track(axes, Track(METHOD, steps, steps), style)
    (line,) = axes.lines
    assert line.get_marker() == style.look.marker
    assert line.get_color() == style.sentinel
    assert line.is_dashed()
    start, spacing = line.get_markevery()
    assert 3 <= len(range(start, 50, spacing)) <= 8
