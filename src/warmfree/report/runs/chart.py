"""Line charts as a little SVG and a little HTML, drawn by hand.

The lines are SVG that stretches to any width; ticks and marks are HTML placed in percent, so that text keeps its
size on a phone and marks can be focused and followed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from warmfree.report.markup import tag, text
from warmfree.report.runs.axis import Axis
from warmfree.report.runs.run import Floats, Ints

SIZE = 1000
# Curves of up to so many points show them.
DOTS = 40


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """A curve. `look` is the number of its colour, `name` what the legend and the readout call it."""

    name: str
    look: int
    steps: Ints
    values: Floats


@dataclass(frozen=True, slots=True)
class Frame:
    """The axes of a chart."""

    x: Axis
    y: Axis


def write_chart(
    ident: str,
    label: str,
    frame: Frame,
    lines: Sequence[Line],
    *,
    series: str,
    level: float | None = None,
    marks: Sequence[tuple[int, int]] = (),
    above: str = "",
    below: str = "",
    class_: str = "",
) -> str:
    """Draw lines over steps.

    Args:
        ident: unique on the page.
        label: what a screen reader says instead of the picture.
        frame: the axes.
        lines: what to draw, the last on top.
        series: the name under which the page's script finds the numbers.
        level: where to rule a line across, such as a threshold.
        marks: a run's number and the step at which to rule a line down for it.
        above: finished rows of the same width over the plot, for marks.
        below: the same under it, for bands.
        class_: more classes of the whole chart.
    """
    grid = "".join(f"M0 {_y(at)}H{SIZE}" for at, _ in frame.y.ticks())
    drawn = [_stroke(grid, "grid"), *(_broken(line, frame) for line in lines)]
    drawn += [_stroke(draw_path(line.steps, line.values, frame), f"line run-{line.look}") for line in lines]
    drawn += [
        _stroke(_dots(line, frame), f"dots run-{line.look}") for line in lines if len(line.steps) <= DOTS
    ]
    if level is not None:
        at = float(frame.y.place(np.array([level]))[0])
        drawn.append(_stroke(f"M0 {_y(at)}H{SIZE}", "level"))
    for look, step in marks:
        across = _number(SIZE * float(frame.x.place(np.array([step], np.float64))[0]))
        drawn.append(
            tag("path", class_="moved", style=f"--colour:var(--run-{look})", d=f"M{across} 0V{SIZE}")
        )
    plot = tag("div", write_svg(label, drawn), class_="plot", tabindex="-1")
    readout = tag("p", class_="readout", aria_live="polite")
    rows = [above, _tick_column(frame.y), plot, below, write_steps(frame.x), readout]
    attributes = {
        "data_series": series,
        "data_low": repr(frame.x.low),
        "data_high": repr(frame.x.high),
        "data_kind": frame.x.kind,
    }
    return tag("div", *rows, class_=f"chart {class_}".strip(), id=ident, **attributes)


def write_svg(label: str, drawn: Iterable[str]) -> str:
    """Put paths in coordinates from 0 to `SIZE` into a picture that stretches to its box."""
    attributes = {"viewBox": f"0 0 {SIZE} {SIZE}", "preserveAspectRatio": "none", "role": "img"}
    return tag("svg", *drawn, **attributes, aria_label=label)


def draw_path(steps: Ints, values: Floats, frame: Frame) -> str:
    """Write the path of a curve, broken where a value is not finite or has no place on the axis."""
    with np.errstate(invalid="ignore"):
        across, up = (
            frame.x.place(steps.astype(np.float64)),
            frame.y.place(np.where(np.isfinite(values), values, np.nan)),
        )
    shown = np.isfinite(across) & np.isfinite(up)
    points = [
        f"{_number(SIZE * x)} {_y(y)}" if is_shown else ""
        for x, y, is_shown in zip(across.tolist(), np.clip(up, 0, 1).tolist(), shown.tolist(), strict=True)
    ]
    edges = np.flatnonzero(np.diff(np.concatenate([[0], shown.astype(np.int8), [0]])))
    # A lonely point gets a line of no length, which round ends make a dot.
    return "".join(
        f"M{points[begin]}h0" if end == begin + 1 else f"M{points[begin]}L{' '.join(points[begin + 1 : end])}"
        for begin, end in edges.reshape(-1, 2).tolist()
    )


def write_steps(x: Axis) -> str:
    """Write the row of steps under a chart."""
    ticks = x.ticks(8, whole=True)
    return tag("div", *(_tick(label, f"left:{_percent(at)}") for at, label in ticks), class_="steps")


def write_legend(runs: Iterable[tuple[int, str]]) -> str:
    """Write which colour belongs to which run, given the number and the name of each."""
    entries = (tag("li", draw_swatch(look), text(name)) for look, name in runs)
    return tag("ul", *entries, class_="legend")


def draw_swatch(look: int) -> str:
    """A short piece of a run's line."""
    path = _stroke("M2 7H34", f"line run-{look}")
    return f'<svg class="swatch" viewBox="0 0 36 14" aria-hidden="true">{path}</svg>'


def percent_of(axis: Axis, value: float) -> str:
    """Where `value` stands on an axis, as CSS."""
    return _percent(float(axis.place(np.array([value], np.float64))[0]))


def _dots(line: Line, frame: Frame) -> str:
    known = np.isfinite(line.values)
    across = frame.x.place(line.steps[known].astype(np.float64)).tolist()
    up = frame.y.place(line.values[known]).tolist()
    return "".join(f"M{_number(SIZE * x)} {_y(y)}h0" for x, y in zip(across, up, strict=True))


def _tick_column(y: Axis) -> str:
    return tag("div", *(_tick(label, f"bottom:{_percent(at)}") for at, label in y.ticks()), class_="values")


def _tick(label: str, style: str) -> str:
    return tag("span", text(label), style=style)


def _broken(line: Line, frame: Frame) -> str:
    """A shade over the stretches where a curve is not finite."""
    broken = ~np.isfinite(line.values)
    if not broken.any():
        return ""
    x = frame.x.place(line.steps.astype(np.float64))
    edges = np.flatnonzero(np.diff(np.concatenate([[0], broken.astype(np.int8), [0]])))
    parts = []
    for begin, end in edges.reshape(-1, 2).tolist():
        left, right = SIZE * float(x[begin]), SIZE * float(x[min(end, len(x) - 1)])
        parts.append(f"M{_number(left)} 0H{_number(max(right, left + 3))}V{SIZE}H{_number(left)}Z")
    return tag("path", class_=f"broken run-{line.look}", d="".join(parts))


def _stroke(path: str, class_: str) -> str:
    return tag("path", class_=class_, d=path)


def _y(at: float) -> str:
    return _number(SIZE * (1 - at))


def _number(value: float) -> str:
    return f"{value + 0.0:.1f}".removesuffix(".0")


def _percent(at: float) -> str:
    return f"{100 * at:.2f}".rstrip("0").rstrip(".") + "%"
