"""The search drawn: every point where it belongs, in braille and in ASCII."""

import io
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from warmfree.lab.advise.curve import Curve, curve_of
from warmfree.lab.advise.figure import check_figure_file, write_figure
from warmfree.lab.advise.plot import LEAST_WIDTH, draw
from warmfree.schedule.critical import CriticalLR, Search, Trial


def search(losses: dict[float, float], *, before: float = 5.0, lr: float | None = 1e-2) -> Search:
    return Search(
        outcome="none" if lr is None else "found",
        lr=lr,
        low=None,
        high=None,
        initial_loss=before,
        slope=-1.0,
        trials=tuple(Trial(lr=lr, loss=loss) for lr, loss in losses.items()),
        forward_passes=len(losses) + 2,
    )


def critical(*searches: Search, target: float = 1e-3) -> CriticalLR:
    return CriticalLR(
        outcome=searches[0].outcome,
        lr=searches[0].lr,
        low=None,
        high=None,
        searches=searches,
        target=target,
        forward_passes=9,
        backward_passes=1,
        seconds=0.1,
    )


DIP = {1e-3: 4.6, 1e-4: 4.95, 3e-3: 4.2, 1e-2: 5.0, 3e-2: 6.0, 0.1: math.inf}


def drawn(curve: Curve, **options: object) -> list[str]:
    return draw(curve, **options).plain.splitlines()  # type: ignore[arg-type]


def test_points_of_one_search_are_losses_in_order_and_the_dip_fills_the_plot() -> None:
    curve = curve_of(critical(search(DIP)))
    assert curve is not None
    assert curve.lines == (tuple(sorted(DIP.items())),)
    assert (curve.before, curve.critical, curve.target) == (5.0, 1e-2, 1e-3)
    assert curve.label == "loss after the step"
    # Twice the depth of the dip above the loss before; what is higher is at the edge.
    assert curve.losses == pytest.approx((4.2 - 0.09, 6.0 + 0.09))
    assert curve.height(math.inf) == curve.height(math.nan) == curve.height(1e9) == 1.0
    assert 0.0 < curve.height(4.2) < curve.height(5.0) < curve.height(6.0) < 1.0
    assert curve.place(curve.lrs[0]) == 0.0
    assert curve.place(curve.lrs[1]) == pytest.approx(1.0)


def test_points_of_several_searches_are_relative() -> None:
    curve = curve_of(critical(search(DIP), search({1e-3: 8.0, 1e-2: 12.0}, before=10.0)))
    assert curve is not None
    assert curve.before == 1.0
    assert curve.lines[1] == ((1e-3, 0.8), (1e-2, 1.2))
    assert "over the loss before" in curve.label


def test_losses_that_are_not_positive_get_a_linear_axis() -> None:
    curve = curve_of(critical(search({1e-3: -2.0, 1e-2: 0.0, 0.1: 1.0}, before=0.0)))
    assert curve is not None
    assert not curve.is_log
    low, high = curve.losses
    assert curve.height((low + high) / 2) == pytest.approx(0.5)
    assert len(drawn(curve, width=60)) == 16


@pytest.mark.parametrize(
    "found",
    [
        critical(search({}, lr=None), target=1e-3),
        critical(search({1e-3: math.inf, 1e-2: math.nan})),
        critical(search(DIP, before=math.nan)),
    ],
)
def test_nothing_is_drawn_without_points(found: CriticalLR) -> None:
    assert curve_of(found) is None


@pytest.mark.parametrize("ascii_only", [False, True])
def test_marks_stand_where_their_learning_rates_are(ascii_only: bool) -> None:
    curve = curve_of(critical(search(DIP)))
    assert curve is not None
    lines = drawn(curve, width=73, height=10, ascii_only=ascii_only)
    wall, columns = lines[1].index("|" if ascii_only else "│"), 73 - 11
    floor = lines[11]
    for mark, lr in (("C", 1e-2), ("T", 1e-3)):
        column = wall + 1 + int(curve.place(lr) * columns)
        assert floor[column] == mark
        assert sum(line[column] in ":┊" for line in lines[1:11]) >= 7
    assert lines[1][wall + 1 + int(curve.place(0.1) * columns)] == "^"
    assert [line.strip()[:6] for line in lines].count("before") == 1
    assert lines[0] == "loss after the step, by learning rate"
    assert "C critical 0.01   T target 1e-3   ^ off the scale" in lines[-1]
    assert "1e-4" in lines[12]
    assert "".join(lines).isascii() is ascii_only


def test_both_marks_in_one_place() -> None:
    curve = curve_of(critical(search(DIP), target=1.001e-2))
    assert curve is not None
    lines = drawn(curve, width=60)
    assert "*" in lines[13]
    assert "* critical 0.01   * target 0.01" in lines[15]
    assert lines[16].strip() == "^ off the scale"


def test_without_a_critical_learning_rate() -> None:
    curve = curve_of(critical(search({1e-3: 4.6, 1e-2: 4.0}, lr=None)))
    assert curve is not None
    assert "no critical learning rate found   T target 1e-3" in drawn(curve, width=80)[-1]


@given(
    points=st.dictionaries(
        st.floats(min_value=1e-12, max_value=1e6),
        st.floats(min_value=-1e6, max_value=1e30) | st.just(math.inf),
        min_size=1,
        max_size=20,
    ),
    before=st.floats(min_value=-1e3, max_value=1e3),
    target=st.floats(min_value=1e-12, max_value=1e6),
    width=st.integers(min_value=LEAST_WIDTH, max_value=200),
    height=st.integers(min_value=4, max_value=30),
    ascii_only=st.booleans(),
)
def test_any_search_fits_into_any_terminal(
    points: dict[float, float], before: float, target: float, width: int, height: int, ascii_only: bool
) -> None:
    lr = next(iter(points))
    curve = curve_of(critical(search(points, before=before, lr=lr), target=target))
    if curve is None:
        return
    lines = drawn(curve, width=width, height=height, ascii_only=ascii_only)
    assert all(len(line) <= width for line in lines)
    assert len(lines) >= height + 4
    if ascii_only:
        assert "".join(lines).isascii()


def test_a_terminal_without_colours_or_unicode() -> None:
    curve = curve_of(critical(search(DIP)))
    assert curve is not None
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding="ascii", write_through=True), width=60)
    assert console.options.ascii_only
    console.print(draw(curve, width=60, ascii_only=True))
    assert b"\x1b" not in raw.getvalue()


def test_figures_are_written_and_always_the_same(tmp_path: Path) -> None:
    curve = curve_of(critical(search(DIP), search({1e-3: 4.0, 1e-2: 6.0})))
    assert curve is not None
    files = [tmp_path / "new" / name for name in ("a.svg", "b.svg", "c.png", "d.pdf")]
    for file in files:
        check_figure_file(file)
        write_figure(curve, "a model of <mine>", file)
    svg = files[0].read_text()
    assert svg == files[1].read_text()
    assert "critical 0.01" in svg
    assert "a model of &lt;mine&gt;" in svg
    assert files[2].read_bytes().startswith(b"\x89PNG")
    assert files[3].read_bytes().startswith(b"%PDF")


def test_figures_that_cannot_be_written_are_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.svg, \.png, \.pdf, got 'plot\.txt'"):
        check_figure_file(Path("plot.txt"))
    (tmp_path / "folder.svg").mkdir()
    with pytest.raises(ValueError, match="the plot's file is a folder"):
        check_figure_file(tmp_path / "folder.svg")
