"""Heat maps: one quantity over layers and measured steps, as a picture of one pixel a cell."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from warmfree.report import wording
from warmfree.report.markup import tag, text
from warmfree.report.runs.colour import Scale, colour_cells, palette
from warmfree.report.runs.png import data_uri, encode_png
from warmfree.report.runs.run import Alert, Row
from warmfree.report.runs.thin import Binned

_HEIGHT, _LOWEST, _TALLEST = 460.0, 3.0, 22.0
_LABEL = 15.0
_TICKS = 5
_HITS = 60


def write_map(
    binned: Binned, scale: Scale | None, alerts: Sequence[Alert], *, run: str, look: int, named: bool
) -> str:
    """Draw one run's heat map of one quantity.

    Args:
        binned: what to draw.
        scale: what the colours mean; None when no value is finite.
        alerts: the alerts on this quantity, to be ringed.
        run: the run's name.
        look: its number on the page.
        named: whether to write the name above the map.
    """
    quantity, rows = binned.grid.quantity, binned.grid.rows
    row_height = min(max(_HEIGHT / len(rows), _LOWEST), _TALLEST)
    height = f"height:{row_height * len(rows):.0f}px"
    picture = tag(
        "img",
        src=data_uri(encode_png(colour_cells(binned, scale), palette())),
        alt=_describe(binned, run),
        width=str(len(binned.first)),
        height=str(len(rows)),
    )
    labels = tag("div", *_names(rows, row_height), class_="names", style=height, aria_hidden="true")
    cells = tag("div", picture, *_hits(binned, alerts), class_="cells", style=height)
    body = tag("div", labels, cells, _steps(binned), class_="map-body")
    heading = tag("h3", text(run)) if named else ""
    return tag("div", heading, body, class_="map", data_quantity=quantity.name, data_run=str(look))


def describe_columns(binned: Binned) -> str:
    """Say what a column is."""
    count = len(binned.grid.steps)
    if binned.is_whole:
        return (
            f"Columns are the {count:,} steps at which it was measured."
            if count > 1
            else "It was measured once."
        )
    return (
        f"It was measured at {count:,} steps, drawn in {len(binned.first)} columns: a column has the colour of its "
        "most extreme value, NaN and infinities first."
    )


def group_of(name: str) -> str:
    """The block that a layer belongs to: its name up to the first number.

    Example:
        >>> group_of("transformer.h.11.attn.c_attn.weight"), group_of("lm_head.weight")
        ('transformer.h.11', 'lm_head.weight')
    """
    match = re.match(r"(?:[^.]*\.)*?\d+(?=\.|$)", name)
    return match[0] if match else name


def _names(rows: Sequence[Row], row_height: float) -> list[str]:
    """Every row's name where there is room, else the name of each block at its first row."""
    groups = [group_of(row.layer) or row.label for row in rows]
    if row_height >= _LABEL:
        chosen = list(enumerate(_shortened(rows, groups)))
    else:
        starts = [place for place in range(len(rows)) if place == 0 or groups[place] != groups[place - 1]]
        chosen, sizes = [], Counter(groups)
        # Blocks before single layers, where there is no room for both.
        for place in sorted(starts, key=lambda place: (sizes[groups[place]] == 1, place)):
            if all(abs(place - other) * row_height >= _LABEL for other, _ in chosen):
                chosen.append((place, groups[place]))
    middle = row_height / 2 if row_height >= _LABEL else min(_LABEL, 2 * row_height) / 2
    spans = []
    for place, name in chosen:
        top = f"top:{place * row_height + middle:.1f}px"
        spans.append(tag("span", tag("bdi", text(name)), style=top))
    return spans


def _shortened(rows: Sequence[Row], groups: Sequence[str]) -> list[str]:
    """Name heads by their block, which fits a narrow screen, where every block has one layer with heads."""
    short = [Row(group, row.head).label for group, row in zip(groups, rows, strict=True)]
    is_enough = all(row.head is not None for row in rows) and len(set(short)) == len(short)
    return short if is_enough else [row.label for row in rows]


def _steps(binned: Binned) -> str:
    count = len(binned.first)
    columns = (
        sorted({round(place * (count - 1) / (_TICKS - 1)) for place in range(_TICKS)}) if count > 1 else [0]
    )
    ticks = (
        tag("span", f"{int(binned.first[column]):,}", style=f"left:{100 * (column + 0.5) / count:.2f}%")
        for column in columns
    )
    return tag("div", *ticks, class_="steps")


def _hits(binned: Binned, alerts: Sequence[Alert]) -> list[str]:
    """A ring around the cell of every alert."""
    places = {row: place for place, row in enumerate(binned.grid.rows)}
    columns, rows = len(binned.first), len(places)
    found: dict[tuple[int, int], Alert] = {}
    for alert in alerts:
        if alert.row in places:
            column = max(int(np.searchsorted(binned.first, alert.step, side="right")) - 1, 0)
            found.setdefault((places[alert.row], column), alert)
    rings = []
    for (row, column), alert in list(found.items())[:_HITS]:
        style = f"left:{100 * (column + 0.5) / columns:.2f}%;top:{100 * (row + 0.5) / rows:.2f}%"
        rings.append(tag("i", class_=f"hit {'critical' if alert.is_critical else 'warning'}", style=style))
    return rings


def _describe(binned: Binned, run: str) -> str:
    rows, steps = len(binned.grid.rows), binned.grid.steps
    return (
        f"Heat map of {binned.grid.quantity.title} in {run}: {wording.count(rows, 'row')}, steps {int(steps[0]):,} to "
        f"{int(steps[-1]):,}. The table below names the most extreme rows."
    )
