"""Where a quantity was largest and smallest: the numbers of a heat map that are worth reading."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from warmfree.report import wording
from warmfree.report.markup import tag, text
from warmfree.report.runs.run import Grid, Run

_SHOWN = 4
_HEADERS = ("First", "Last", "Smallest", "at step", "Largest", "at step", "Not finite")


def write_extremes(grids: Sequence[tuple[Run, Grid]], *, with_runs: bool) -> str:
    """Write a table of the rows with the largest and the smallest values of one quantity."""
    quantity = grids[0][1].quantity
    is_cut = any(len(grid.rows) > 2 * _SHOWN for _, grid in grids)
    caption = f"{quantity.title}: " + (
        f"the {_SHOWN} rows with the largest and the {_SHOWN} with the smallest values"
        if is_cut
        else "every row"
    )
    heads = [tag("th", text(head), scope="col") for head in ("Row", *_HEADERS)]
    if with_runs:
        heads.insert(1, tag("th", "Run", scope="col", class_="words"))
    rows = [
        _write_row(grid, place, run.name if with_runs else None)
        for run, grid in grids
        for place in _choose(grid)
    ]
    table = tag(
        "table",
        tag("caption", tag("span", text(caption))),
        tag("thead", tag("tr", *heads)),
        tag("tbody", *rows),
    )
    return tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=caption)


def _choose(grid: Grid) -> list[int]:
    finite = np.isfinite(grid.values) & grid.measured
    largest = np.where(finite, grid.values, -np.inf).max(axis=1)
    smallest = np.where(finite, grid.values, np.inf).min(axis=1)
    # Rows with nothing finite come first of all: they are what to look at.
    top = np.argsort(np.where(finite.any(axis=1), -largest, -np.inf), kind="stable")
    if len(top) <= 2 * _SHOWN:
        return [int(place) for place in top]
    bottom = np.argsort(np.where(finite.any(axis=1), smallest, np.inf), kind="stable")
    chosen = top[:_SHOWN].tolist()
    chosen += [place for place in bottom.tolist() if place not in chosen][:_SHOWN][::-1]
    return [int(place) for place in chosen]


def _write_row(grid: Grid, place: int, run: str | None) -> str:
    known = grid.measured[place]
    steps, values = grid.steps[known], grid.values[place][known]
    finite = np.isfinite(values)
    cells = [wording.number(values[0]), wording.number(values[-1])]
    if finite.any():
        low = int(np.where(finite, values, np.inf).argmin())
        high = int(np.where(finite, values, -np.inf).argmax())
        for at in (low, high):
            cells += [wording.number(values[at]), f"{int(steps[at]):,}"]
    else:
        cells += ["–"] * 4
    cells.append(f"{int((~finite).sum()):,}")
    named = tag("td", text(run), class_="words") if run is not None else ""
    row = tag("th", text(grid.rows[place].label), scope="row")
    return tag("tr", row, named, *(tag("td", text(cell)) for cell in cells))
