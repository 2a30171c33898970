"""What theory's figures are drawn with: looks that can be told apart, axes that people can read, points that stay."""

import re
from itertools import combinations

import numpy as np
import pytest

from warmfree.lab.theory import looks, plotting
from warmfree.report.svg import draw_panel

STYLES = [looks.line(index) for index in range(looks.LINES)]
RAMP = [looks.ramp((index + 0.5) / looks.RAMP) for index in range(looks.RAMP)]


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_every_colour_stands_out_from_both_backgrounds() -> None:
    for style in STYLES + RAMP:
        assert contrast(style.look.light, "#ffffff") >= 3
        assert contrast(style.look.dark, "#191d23") >= 3


def test_lines_differ_without_colour_and_have_variables_of_their_own() -> None:
    for one, other in combinations(STYLES, 2):
        assert (one.look.marker, one.look.dashes) != (other.look.marker, other.look.dashes)
    assert len({style.variable for style in STYLES + RAMP}) == looks.LINES + looks.RAMP
    rules = looks.rules()
    assert all(f"{style.variable}:{style.look.light};" in rules for style in STYLES + RAMP)
    assert all(f"{style.variable}:{style.look.dark};" in rules for style in STYLES + RAMP)


def test_the_ramp_covers_the_run_from_end_to_end() -> None:
    assert looks.ramp(0.0) == RAMP[0]
    assert looks.ramp(1.0) == RAMP[-1]
    luminance = [contrast(style.look.light, "#ffffff") for style in RAMP]
    assert luminance == sorted(luminance), "late points are darker on a light page"


def labels(draw: object) -> list[str]:
    svg = draw_panel("x", "title", "description", draw).svg  # type: ignore[arg-type]
    return [found.replace("\u2212", "-") for found in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]


@pytest.mark.parametrize(
    ("values", "some"),
    [
        ([1.0, 1e15], ["100", "1e6"]),
        ([2.0, 2.1], ["1", "2", "4"]),
        ([3.0], ["2", "3", "5"]),
        ([1e-40, 1e3], ["1e-30"]),
        ([10.0, 300_000.0], ["1,000", "1e5"]),
        ([], ["1"]),
    ],
)
def test_log_axes_have_a_few_short_labels(values: list[float], some: list[str]) -> None:
    found = labels(lambda axes: (plotting.log_axis(axes, "y", np.array(values)), axes.set_xticks([])))
    assert set(some) <= set(found)
    assert 2 <= len(found) <= 9
    assert all(len(label) <= 6 for label in found)


def test_a_signed_log_axis_names_every_value() -> None:
    moved = np.array([-10.0, -0.1, 0.0, 0.1, 10.0])
    found = labels(lambda axes: (plotting.signed_log_axis(axes, moved, name="by"), axes.set_yticks([])))
    assert found == ["-10", "-0.1", "0", "0.1", "10", "by"]


def drawn(draw: object) -> str:
    svg: str = draw_panel("x", "title", "description", draw).svg  # type: ignore[arg-type]
    return svg


def test_long_lines_are_thinned_and_keep_spikes_ends_and_gaps() -> None:
    values = np.ones(100_000)
    values[[777, 50_000]] = 9.0, 0.1
    values[70_000:80_000] = np.nan
    kept = plotting._thin(values)
    assert len(kept) < 1000
    assert {0, 777, 50_000, 99_999} <= set(kept.tolist())
    assert np.isnan(values[kept]).any()
    assert plotting._thin(values[:600]).tolist() == list(range(600))


def test_clouds_are_thinned_to_the_same_points_every_time_with_the_extremes() -> None:
    across = np.random.default_rng(1).uniform(1.0, 2.0, 5000)
    up = across.copy()
    across[17], up[23] = 9.0, 0.01
    across[5], up[6] = np.nan, np.inf
    places = np.linspace(0.0, 1.0, 5000)
    counts = []
    first, second = (
        drawn(lambda axes: counts.append(plotting.cloud(axes, across, up, places, most=200)))
        for _ in range(2)
    )
    assert first == second
    assert 200 <= counts[0] <= 204
    assert first.count("<use ") >= counts[0]
    assert all(f"var({style.variable})" in first for style in RAMP)
