"""Every measured quantity: a heat map over layers, or a curve when it is one number for the whole model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from warmfree.report import wording
from warmfree.report.markup import prose, tag, text
from warmfree.report.runs.axis import Axis
from warmfree.report.runs.chart import Frame, Line, write_chart, write_legend
from warmfree.report.runs.colour import Scale, find_scale
from warmfree.report.runs.extremes import write_extremes
from warmfree.report.runs.findings import whole_model
from warmfree.report.runs.heatmap import describe_columns, write_map
from warmfree.report.runs.payload import encode_grid
from warmfree.report.runs.run import Grid, Quantity, Row, Run
from warmfree.report.runs.thin import bin_grid, thin

# How many cells of two numbers the heat maps of a page may have together: about 6 bytes each, 2.3 MB.
CELLS = 370_000
_FEWEST, _MOST = 24, 240
# Where the script draws curves of chosen rows: beside the map that is shown.
PANEL = tag("div", class_="curves", id="curves", aria_label="Curves of the chosen rows", role="region")
_KINDS = ("Parameters", "Modules", "Attention heads", "Whole model")


@dataclass(frozen=True, slots=True)
class Written:
    """One quantity on the page. `data` and `lines` are what the script needs to know of it."""

    quantity: Quantity
    kind: str
    html: str
    data: dict[str, Any] | None
    lines: list[Line]


def write_quantities(runs: Sequence[Run], names: dict[str, int], first: str | None) -> list[Written]:
    """Write every quantity of all `runs`.

    Args:
        runs: the runs.
        names: the number of every row name on the page; filled here.
        first: the quantity to show open; None for the first one.
    """
    quantities = {name: grid.quantity for run in runs for name, grid in run.grids.items()}
    num_rows = sum(len(grid.rows) for run in runs for grid in run.grids.values() if not grid.is_global)
    columns = min(max(CELLS // max(num_rows, 1), _FEWEST), _MOST)
    opened = first if first in quantities else next(iter(quantities), None)
    return [
        _write(place, quantity, runs, columns, names, is_open=quantity.name == opened)
        for place, quantity in enumerate(quantities.values())
    ]


def choose_first(runs: Sequence[Run]) -> str | None:
    """The quantity to look at first: that of the first alert, or the first one with rows."""
    alerts = (alert.quantity for run in runs for alert in run.alerts)
    rows = (name for run in runs for name, grid in run.grids.items() if not grid.is_global)
    known = {name for run in runs for name in run.grids}
    return next((name for name in (*alerts, *rows) if name in known), None)


def write_picker(written: Sequence[Written], first: str | None) -> str:
    """Write the choice of a quantity, which the script makes work."""
    groups = []
    for kind in _KINDS:
        options = [
            tag(
                "option",
                text(entry.quantity.title),
                value=f"quantity-{place}",
                **({"selected": "selected"} if entry.quantity.name == first else {}),
            )
            for place, entry in enumerate(written)
            if entry.kind == kind
        ]
        if options:
            groups.append(tag("optgroup", *options, label=kind))
    select = tag("select", *groups, id="pick", autocomplete="off")
    return tag("p", tag("label", "Quantity ", for_="pick"), select, class_="picker")


def _write(
    place: int, quantity: Quantity, runs: Sequence[Run], columns: int, names: dict[str, int], *, is_open: bool
) -> Written:
    found = [
        (look, run, run.grids[quantity.name]) for look, run in enumerate(runs) if quantity.name in run.grids
    ]
    kind = _kind(found[0][1], found[0][2])
    if all(grid.is_global for _, _, grid in found):
        content, lines = _write_curve(place, quantity, found, len(runs))
        data = None
    else:
        maps, data = _write_maps(quantity, found, columns, names, len(runs))
        content, lines = tag("div", maps, PANEL if is_open else "", class_="pair"), []
    unit = f", {quantity.unit}" if quantity.unit else ""
    size = wording.count(max(len(grid.rows) for _, _, grid in found), "row") if data else "whole model"
    summary = tag("summary", text(quantity.title), tag("span", text(f"{unit} · {size}"), class_="aside"))
    meaning = tag("p", prose(quantity.meaning), class_="meaning") if quantity.meaning else ""
    table = write_extremes([(run, grid) for _, run, grid in found], with_runs=len(runs) > 1)
    attributes = {"open": "open", "class_": "quantity picked"} if is_open else {"class_": "quantity"}
    html = tag("details", summary, meaning, content, table, **attributes, id=f"quantity-{place}")
    return Written(quantity, kind, html, data, lines)


def _write_maps(
    quantity: Quantity,
    found: Sequence[tuple[int, Run, Grid]],
    columns: int,
    names: dict[str, int],
    num_runs: int,
) -> tuple[str, dict[str, Any]]:
    values = [grid.values[grid.measured] for _, _, grid in found]
    scale = find_scale(values, is_log=quantity.is_log)
    binned = [(look, run, bin_grid(grid, columns)) for look, run, grid in found]
    maps = []
    for look, run, part in binned:
        alerts = [alert for alert in run.alerts if alert.quantity == quantity.name]
        maps.append(write_map(part, scale, alerts, run=run.name, look=look, named=num_runs > 1))
    readout = tag("p", class_="readout", aria_live="polite")
    notes = tag("p", text(describe_columns(binned[0][2])), class_="notes")
    data: dict[str, Any] = {
        "title": quantity.title,
        "unit": quantity.unit,
        "log": quantity.is_log,
        "runs": {str(look): encode_grid(part, names) for look, _, part in binned},
        "thresholds": _thresholds(quantity, found, names),
    }
    data["start"] = names[_choose_row(quantity, found).label]
    return tag("div", *maps, readout, _legend(scale, values), notes, class_="maps"), data


def _write_curve(
    place: int, quantity: Quantity, found: Sequence[tuple[int, Run, Grid]], num_runs: int
) -> tuple[str, list[Line]]:
    last = max(run.last_step for _, run, _ in found)
    x = Axis.of_steps(last, is_log=False)
    lines = []
    for look, run, grid in found:
        curve = whole_model(grid)
        assert curve is not None
        kept = thin(*curve, (x,))
        lines.append(Line(run.name, look, curve[0][kept], curve[1][kept]))
    every = np.concatenate([line.values for line in lines])
    frame = Frame(x, Axis.around(every, is_log=quantity.is_log and bool((every > 0).any())))
    label = f"{quantity.title} over steps; the table below has its extremes."
    chart = write_chart(f"curve-{place}", label, frame, lines, series=quantity.name)
    legend = write_legend((line.look, line.name) for line in lines) if num_runs > 1 else ""
    return legend + chart, lines


def _legend(scale: Scale | None, values: Sequence[np.ndarray[Any, np.dtype[np.float64]]]) -> str:
    every = np.concatenate(list(values))
    special = []
    if np.isnan(every).any():
        special.append(tag("span", tag("i", class_="key nan"), "NaN"))
    if np.isinf(every).any():
        special.append(tag("span", tag("i", class_="key infinite"), "infinite"))
    special.append(tag("span", tag("i", class_="key missing"), "not measured"))
    if scale is None:
        return tag("div", tag("span", "No value is finite."), *special, class_="scale")
    if scale.low == scale.high:
        bar = tag("span", text(f"Every finite value is {wording.number(scale.low)}."))
        return tag("div", bar, *special, class_="scale")
    ends = (tag("span", text(wording.number(scale.value(level)))) for level in (0.0, 0.5, 1.0))
    bar = tag("div", tag("div", class_="ramp"), tag("div", *ends, class_="ends"), class_="bar")
    kind = "logarithmic" if scale.is_log else "linear"
    return tag("div", bar, tag("span", kind), *special, tag("span", text(_beyond(scale))), class_="scale")


def _beyond(scale: Scale) -> str:
    parts = []
    if scale.smallest < scale.low:
        zero = " (zero and below have the lowest colour)" if scale.is_log and scale.smallest <= 0 else ""
        parts.append(f"smallest value {wording.number(scale.smallest)}{zero}")
    if scale.largest > scale.high * (1 + 1e-9):
        parts.append(f"largest value {wording.number(scale.largest)}")
    return f"Beyond the map: {wording.listing(parts)}." if parts else ""


def _choose_row(quantity: Quantity, found: Sequence[tuple[int, Run, Grid]]) -> Row:
    """The row whose curve is shown at first: that of the first alert, or the one with the largest value."""
    for _, run, grid in found:
        for alert in run.alerts:
            if alert.quantity == quantity.name and alert.row in grid.rows:
                return alert.row
    grid = found[0][2]
    peaks = np.where(np.isfinite(grid.values), grid.values, -np.inf).max(axis=1)
    return grid.rows[int(peaks.argmax())]


def _thresholds(
    quantity: Quantity, found: Sequence[tuple[int, Run, Grid]], names: Mapping[str, int]
) -> list[list[float]]:
    """Row name and threshold of every alert on a quantity, first alert first."""
    entries: dict[int, float] = {}
    for _, run, _ in found:
        for alert in run.alerts:
            if alert.quantity == quantity.name and alert.row.label in names and alert.threshold is not None:
                entries.setdefault(names[alert.row.label], alert.threshold)
    return [[row, threshold] for row, threshold in entries.items()]


def _kind(run: Run, grid: Grid) -> str:
    if grid.is_global:
        return _KINDS[3]
    if any(row.head is not None for row in grid.rows):
        return _KINDS[2]
    return _KINDS[0] if any(row.layer in run.parameter_names for row in grid.rows) else _KINDS[1]
