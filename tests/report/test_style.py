"""Looks: fixed by name, told apart without colour, readable on both backgrounds."""

import re
from importlib.resources import files
from itertools import combinations

import pytest
from synthetic_results import RECIPES, make_results

from warmfree.report.results import Method, parse
from warmfree.report.style import assign

METHODS = parse(make_results()).methods
UNKNOWN = tuple(
    Method(f"new-{kind}-{i}", f"New {i}", kind, 0.0, "", (1e-3,))
    for kind in ("baseline", "warmup-free")
    for i in range(3)
)


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def css_colours(name):
    """The values of a CSS variable in the style sheet: light, then dark."""
    sheet = files("warmfree.report").joinpath("page.css").read_text(encoding="utf-8")
    light, dark = re.findall(rf"--{name}: (#[0-9a-f]{{6}});", sheet)
    return light, dark


def test_a_method_looks_the_same_whatever_it_is_compared_with():
    together = assign(METHODS)
    for method in METHODS:
        assert assign([method])[method.name].look == together[method.name].look


def test_looks_differ_without_colour():
    looks = [style.look for style in assign(METHODS + UNKNOWN).values()]
    for one, other in combinations(looks, 2):
        assert (one.marker, one.dashes) != (other.marker, other.dashes)


def test_baselines_are_grey_and_warmup_free_optimizers_are_not():
    for style in assign(METHODS + UNKNOWN).values():
        for colour in (style.look.light, style.look.dark):
            channels = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
            assert (max(channels) - min(channels) < 40) == style.is_baseline, (colour, style)


@pytest.mark.parametrize("background", ["paper", "card"])
def test_series_stand_out_from_both_backgrounds(background):
    light, dark = css_colours(background)
    for style in assign(METHODS + UNKNOWN).values():
        assert contrast(style.look.light, light) >= 3, style
        assert contrast(style.look.dark, dark) >= 3, style


@pytest.mark.parametrize("foreground", ["ink", "soft"])
@pytest.mark.parametrize("background", ["paper", "card", "best"])
def test_text_is_readable(foreground, background):
    for front, back in zip(css_colours(foreground), css_colours(background), strict=True):
        assert contrast(front, back) >= 4.5, (front, back)


def test_more_unknown_methods_than_looks_still_get_one():
    many = [Method(f"m{i}", "", "warmup-free", 0.0, "", (1e-3,)) for i in range(20)]
    assert len(assign(many)) == 20
    assert len(RECIPES) == len(assign(METHODS))
