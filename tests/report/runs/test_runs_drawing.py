"""What pictures are made of: thinning that keeps extremes, axes, colours, PNG files, and the script's codes."""

import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from warmfree.report.runs.axis import Axis
from warmfree.report.runs.chart import Frame, draw_path
from warmfree.report.runs.colour import INFINITE, LEVELS, MISSING, NAN, colour_cells, find_scale, palette
from warmfree.report.runs.heatmap import group_of
from warmfree.report.runs.payload import decode_codes, encode_grid, write_json
from warmfree.report.runs.png import encode_png
from warmfree.report.runs.run import Grid, Quantity, Row
from warmfree.report.runs.thin import bin_grid, thin


def grid_of(values, measured=None):
    values = np.array(values, float)
    measured = np.ones(values.shape, bool) if measured is None else np.array(measured, bool)
    rows = tuple(Row(f"layer.{place}") for place in range(len(values)))
    return Grid(
        Quantity("q", "q"), rows, np.arange(values.shape[1]), np.where(measured, values, np.nan), measured
    )


def decode_png(png):
    """Palette indices and colours, read by the letter of the specification."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        kind, content = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        assert struct.unpack(">I", png[at + 8 + length : at + 12 + length]) == (zlib.crc32(kind + content),)
        chunks[kind.decode()] = content
        at += 12 + length
    assert list(chunks) == ["IHDR", "PLTE", "tRNS", "IDAT", "IEND"]
    width, height, *form = struct.unpack(">IIBBBBB", chunks["IHDR"])
    assert form == [8, 3, 0, 0, 0]
    lines = np.frombuffer(zlib.decompress(chunks["IDAT"]), np.uint8).reshape(height, width + 1)
    assert (lines[:, 0] == 0).all()
    colours = np.frombuffer(chunks["PLTE"], np.uint8).reshape(-1, 3)
    return lines[:, 1:], np.column_stack([colours, np.frombuffer(chunks["tRNS"], np.uint8)])


@given(
    arrays.arrays(
        np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20)), elements=st.integers(0, LEVELS + 2)
    )
)
def test_png_decodes_to_the_right_pixels(pixels):
    decoded, colours = decode_png(encode_png(pixels, palette()))
    assert np.array_equal(decoded, pixels)
    assert [tuple(colour) for colour in colours.tolist()] == palette()


def test_the_colour_map_is_even_in_lightness_and_apart_from_what_is_no_number():
    colours = np.array(palette()[:LEVELS], float)[:, :3] / 255
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    to_cones = np.array(
        [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
         [0.0883024619, 0.2817188376, 0.6299787005]]
    )  # fmt: skip
    to_lab = np.array(
        [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
         [0.0259040371, 0.7827717662, -0.8086757660]]
    )  # fmt: skip
    lab = np.cbrt(linear @ to_cones.T) @ to_lab.T
    steps = np.linalg.norm(
        lab[7:] - lab[:-7], axis=1
    )  # over seven levels: one is near the rounding of 8 bits
    assert (np.diff(lab[:, 0]) > 0).all(), "lightness alone orders the colours"
    assert steps.max() < 1.2 * steps.min(), "equal steps look equal"
    assert lab[0, 0] < 0.3
    assert lab[-1, 0] > 0.9
    assert len({*palette()}) == LEVELS + 3


def test_cells_get_the_colour_of_their_value():
    grid = grid_of(
        [[1.0, 10.0, 100.0], [np.nan, np.inf, -np.inf], [0.0, -3.0, 1.0]], [[1, 1, 1], [1, 1, 1], [1, 1, 0]]
    )
    binned = bin_grid(grid, 10)
    scale = find_scale([grid.values[grid.measured]], is_log=True)
    assert (scale.low, scale.high) == (pytest.approx(1), pytest.approx(100))
    assert (scale.smallest, scale.largest) == (-3, 100)
    assert colour_cells(binned, scale).tolist() == [
        [0, LEVELS // 2, LEVELS - 1], [NAN, INFINITE, INFINITE], [0, 0, MISSING],
    ]  # fmt: skip
    assert scale.value(0.5) == pytest.approx(10)


def test_nothing_finite_and_all_the_same_have_a_picture():
    broken = grid_of([[np.nan, np.inf]])
    assert find_scale([broken.values], is_log=True) is None
    assert colour_cells(bin_grid(broken, 4), None).tolist() == [[NAN, INFINITE]]
    same = grid_of([[2.0, 2.0]])
    scale = find_scale([same.values], is_log=False)
    assert colour_cells(bin_grid(same, 4), scale).tolist() == [[LEVELS // 2] * 2]


def test_one_spike_neither_hides_nor_flattens_the_rest():
    values = np.linspace(1, 2, 1000)
    values[500] = 1e9
    scale = find_scale([values], is_log=False)
    assert scale.high < 4
    assert scale.level(np.array([1e9]))[0] == 1
    assert scale.level(np.array([2.0]))[0] < 0.6, "the spike stands out"
    assert scale.largest == 1e9


@given(st.integers(1, 400), st.integers(2, 30), st.integers(0, 10**6))
def test_binning_keeps_the_smallest_and_largest(count, columns, seed):
    noise = np.random.default_rng(seed)
    grid = grid_of(noise.standard_normal((3, count)), noise.random((3, count)) < 0.8)
    binned = bin_grid(grid, columns)
    assert len(binned.first) <= 2 * columns
    assert binned.first[0] == 0
    assert binned.last[-1] == count - 1
    assert (binned.first[1:] > binned.last[:-1]).all()
    for column, (first, last) in enumerate(zip(binned.first, binned.last, strict=True)):
        for row in range(3):
            inside = grid.values[row, first : last + 1][grid.measured[row, first : last + 1]]
            assert binned.measured[row, column] == (len(inside) > 0)
            if len(inside):
                assert (binned.low[row, column], binned.high[row, column]) == (inside.min(), inside.max())


def test_binning_keeps_what_is_not_finite():
    values = np.ones((2, 100))
    values[0, 37], values[1, 50], values[1, 51] = np.nan, np.inf, 3.0
    binned = bin_grid(grid_of(values), 10)
    cells = colour_cells(binned, find_scale([values], is_log=False))
    assert np.argwhere(cells == NAN).tolist() == [[0, 3]]
    assert np.argwhere(cells == INFINITE).tolist() == [[1, 5]]
    assert binned.low[1, 5] == 1.0


def test_a_thinned_column_shows_its_most_extreme_value():
    values = np.full((1, 100), 5.0)
    values[0, 42], values[0, 77] = 0.0, 10.0
    cells = colour_cells(bin_grid(grid_of(values), 10), find_scale([np.array([0.0, 10.0])], is_log=False))
    assert cells[0, 4] == 0
    assert cells[0, 7] == LEVELS - 1
    assert cells[0, 0] == LEVELS // 2


@given(st.integers(1, 3000), st.integers(0, 10**6))
def test_thinning_keeps_ends_and_extremes(count, seed):
    values = np.random.default_rng(seed).standard_normal(count)
    axes = tuple(Axis.of_steps(count - 1, is_log=is_log) for is_log in (False, True))
    kept = thin(np.arange(count), values, axes, points=50)
    assert len(kept) <= 2 * (3 * 51 + 2)
    assert {0, count - 1, int(values.argmin()), int(values.argmax())} <= {*kept.tolist()}
    assert (np.diff(kept) > 0).all()


def test_thinning_keeps_where_a_curve_breaks():
    values = np.ones(5000)
    values[3001:3100] = np.nan
    kept = thin(np.arange(5000), values, (Axis.of_steps(4999, is_log=False),))
    assert {3000, 3001, 3099, 3100} <= {*kept.tolist()}


@given(
    arrays.arrays(np.float64, (3, 7), elements=st.one_of(
        st.floats(1e-12, 1e12), st.sampled_from([0.0, np.nan, np.inf, -np.inf]), st.floats(-1e6, -1e-6))),
    arrays.arrays(np.bool_, (3, 7)),
)  # fmt: skip
def test_the_script_s_codes_are_right_to_three_digits(values, measured):
    entry = encode_grid(bin_grid(grid_of(values, measured), 20), {})
    decoded = decode_codes(json.loads(write_json(entry)))[:, :, 0]
    expected = np.where(measured, values, np.nan)
    np.testing.assert_allclose(decoded, expected, rtol=1e-3)
    assert (np.sign(np.nan_to_num(decoded)) == np.sign(np.nan_to_num(expected))).all()


def test_thinned_grids_send_both_ends_of_every_column():
    values = np.arange(1.0, 101.0)[None]
    names: dict[str, int] = {"other": 0}
    entry = encode_grid(bin_grid(grid_of(values), 10), names)
    decoded = decode_codes(entry)
    assert entry["rows"] == [1]
    assert names == {"other": 0, "layer.0": 1}
    np.testing.assert_allclose(decoded[0, :, 0], values[0, ::10], rtol=1e-3)
    np.testing.assert_allclose(decoded[0, :, 1], values[0, 9::10], rtol=1e-3)


@given(st.sampled_from(["linear", "log"]), st.floats(1e-6, 1e6), st.floats(1.01, 1e6))
def test_ticks_are_few_inside_and_in_order(kind, low, factor):
    ticks = Axis(low, low * factor, kind).ticks()
    places = [at for at, _ in ticks]
    assert 1 <= len(ticks) <= 9
    assert all(-1e-6 <= at <= 1 + 1e-6 for at in places)
    assert places == sorted(places)


def test_step_axes_have_a_place_for_step_zero_and_whole_ticks():
    log = Axis.of_steps(5000, is_log=True)
    assert log.place(np.array([0.0, 5000.0])).tolist() == [0, 1]
    assert [label for _, label in log.ticks(whole=True)] == ["0", "10", "100", "1,000"]
    assert [label for _, label in Axis.of_steps(2, is_log=False).ticks(8, whole=True)] == ["0", "1", "2"]


def test_paths_break_at_what_is_not_finite():
    frame = Frame(Axis(0, 10), Axis(0, 10))
    assert (
        draw_path(np.arange(5), np.array([0.0, 10.0, np.nan, 5.0, np.inf]), frame)
        == "M0 1000L100 0M300 500h0"
    )
    assert draw_path(np.arange(2), np.array([np.nan, np.nan]), frame) == ""


def test_groups_are_blocks():
    assert [group_of(name) for name in ("blocks.3.mlp.up", "0.weight", "tokens", "a.b2.c", "layer1.0.conv")] == [
        "blocks.3", "0", "tokens", "a.b2.c", "layer1.0",
    ]  # fmt: skip
