"""What the figures, their legends and the headline numbers show."""

import re

import pytest
from parsed_page import Page
from synthetic_results import make_exact

from warmfree.report import write_report


def test_figures_take_their_colours_from_the_page(full_html, full_page):
    drawn = [attributes for attributes in full_page.svgs if attributes.get("role") == "img"]
    assert len(drawn) == 8
    body = full_html[full_html.index("<body") :]
    # Matplotlib's default black and white for figures would be invisible on one of the two backgrounds.
    assert set(re.findall(r"#[0-9a-f]{6}\b", body)) <= {"#000000"}
    assert all(f"var(--series-{index})" in body for index in range(9))
    assert "currentColor" in body
    assert "\n:root{--series-0:" in full_html
    assert "@media (prefers-color-scheme:dark){:root{--series-0:" in full_html


def test_every_figure_is_named_and_described(full_html):
    figures = re.findall(r'<svg viewBox[^>]*role="img".*?</svg>', full_html, flags=re.DOTALL)
    assert len(figures) == 8
    for figure in figures:
        assert re.search(r"<title [^>]+>[^<]{10,}</title>", figure)
        assert re.search(r"<desc [^>]+>[^<]{40,}</desc>", figure)


def test_crosses_mark_diverged_learning_rates(tmp_path):
    def crosses(losses):
        html = write_report(make_exact({"adamw": losses}), tmp_path).read_text(encoding="utf-8")
        return html[: html.index("Loss curves")].count(">diverged</text>")

    assert crosses({1e-3: [2.0], 2e-3: [None]}) == 1
    assert crosses({1e-3: [2.0], 2e-3: [2.1]}) == 0


def test_learning_rates_tried_are_the_ticks_where_they_fit(tmp_path):
    def labels(*lrs):
        html = write_report(make_exact({"adamw": {lr: [2.0] for lr in lrs}}), tmp_path).read_text(
            encoding="utf-8"
        )
        panel = html[html.index('id="loss-baseline-title"') : html.index("learning rate (log)</text>")]
        return [label for label in re.findall(r">([^<>]+)</text>", panel) if "e-" in label]

    assert labels(7e-4, 1.4e-3, 2.8e-3) == ["7e-4", "1.4e-3", "2.8e-3"]
    assert labels(1e-6, 7e-4, 7.1e-4) == ["1e-6", "3e-6", "1e-5", "3e-5", "1e-4", "3e-4", "1e-3"]


def test_single_seeds_are_drawn_only_beside_a_mean_of_several(tmp_path):
    def marks(losses):
        html = write_report(make_exact({"adamw": {1e-3: losses}}), tmp_path).read_text(encoding="utf-8")
        panel = html[html.index('id="loss-baseline-title"') : html.index("Loss curves")]
        return panel.count('class="series series-0"')

    assert marks([2.0]) == 1
    assert marks([2.0, 2.1]) == 2


def test_level_of_adamw_with_warmup_is_drawn_and_named(tmp_path):
    def level(name):
        html = write_report(make_exact({name: {1e-3: [2.0], 2e-3: [2.1]}}), tmp_path).read_text(
            encoding="utf-8"
        )
        panel = html[html.index('id="loss-baseline-title"') : html.index("Loss curves")]
        return ("stroke-opacity: 0.75" in panel, "the best of AdamW" in html)

    assert level("adamw-warmup") == (True, True)
    assert level("adamw") == (False, False)


def test_hovering_a_legend_entry_can_single_out_what_is_drawn(full_html):
    for index in range(9):
        assert f"figure:has(.key-{index}:hover) .series:not(.series-{index})" in full_html
        assert f'class="key-{index}"' in full_html
        assert full_html.count(f'class="series series-{index}"') >= 6


def tile_values(results, tmp_path):
    html = write_report(results, tmp_path).read_text(encoding="utf-8")
    return [value.replace("\u00a0", " ") for value in re.findall(r'class="value">([^<]+)<', html)]


def test_tiles_give_the_headline_numbers(tmp_path):
    grid = {
        "adamw": {1e-3: [2.2], 2e-3: [9.0]},
        "adamw-warmup": {1e-3: [9.0], 2e-3: [2.0], 4e-3: [9.0]},
        "lionar": {3e-2: [9.0], 1e-1: [1.9], 3e-1: [9.0]},
    }
    assert tile_values(make_exact(grid), tmp_path) == ["+10.0 %", "−5.0 %"]


@pytest.mark.parametrize(
    ("adamw", "tiles"),
    [
        ([9.0, 2.0, 9.0, 9.0], ["×2"]),
        ([9.0, 2.0, 2.0, 9.0], []),
        ([2.0, 9.0, 9.0, 9.0], []),
    ],
    ids=["wider", "a tie", "the other range is cut off by the grid"],
)
def test_most_forgiving_method_is_named_only_when_certain(adamw, tiles, tmp_path):
    lrs = (1e-3, 2e-3, 4e-3, 8e-3)
    grid = {
        name: dict(zip(lrs, ([loss] for loss in losses), strict=True))
        for name, losses in {"adamw": adamw, "lionar": [9.0, 2.0, 2.0, 9.0]}.items()
    }
    assert tile_values(make_exact(grid), tmp_path) == tiles


def test_off_scale_cells_are_admitted(tmp_path):
    def text(worst):
        results = make_exact({"adamw": {1e-3: [2.0], 2e-3: [2.1], 4e-3: [worst]}})
        return Page(write_report(results, tmp_path).read_text(encoding="utf-8")).text

    assert "1 cell is off the scale, above a loss of 2.1" in text(50.0)
    assert "off the scale" not in text(2.2)


def test_implied_warmup_is_read_out(full_page):
    # 1 - 0.94 exp(-step / 35) >= 0.9 from step 35 ln 9.4 = 78.4 on.
    assert (
        "AdamW²: smallest factor 0.086, at step 1; at least 0.9 from step 79 on (26 % of the run)."
        in full_page.text
    )
    assert "GI-AdamW: smallest factor" not in full_page.text
    assert "AdamW, 20 % warmup goes from 0.0167 at step 1 to 1 at step 60" in full_page.text, "up to its peak"
    assert "AdamW, 20 % warmup goes from 0.0167 at step 1 to 0.00667 at step 300" in full_page.text, "whole"
