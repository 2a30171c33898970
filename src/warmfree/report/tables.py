"""The page's tables: the summary, and every cell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from warmfree.report import wording
from warmfree.report.analysis import Analysis
from warmfree.report.figure import Styles
from warmfree.report.legend import draw_swatch
from warmfree.report.markup import tag, text
from warmfree.report.results import Cell
from warmfree.report.summary import HEADERS, NONE, Row, notes, summarize

_CELL_HEADERS = (
    "method",
    "lr",
    "seed",
    "outcome",
    "validation loss",
    "seconds",
    "skipped steps",
    "why it was given up",
)
_WORDS = frozenset({"method", "outcome", "why it was given up"})


def write_summary(analysis: Analysis, styles: Styles) -> str:
    """Write the summary table with its notes."""
    show_extent = len(analysis.seeds) > 1
    headers = [*HEADERS[:3], *(["over seeds"] if show_extent else []), *HEADERS[3:]]
    rows = [_summary_row(row, analysis, styles, show_extent=show_extent) for row in summarize(analysis)]
    table = _table("Every method at its own best learning rate, best first", headers, rows)
    return table + tag("p", text(" ".join(notes(analysis))), class_="notes")


def write_cells(analysis: Analysis) -> str:
    """Write every cell, grouped by method in the order given."""
    labels = {summary.method.name: summary.method.label for summary in analysis.methods}
    cells = [cell for summary in analysis.methods for point in summary.points for cell in point.cells]
    rows = [_cell_row(cell, labels[cell.method]) for cell in cells]
    return _table("Every training run of the comparison", _CELL_HEADERS, rows)


def write_facts(facts: Mapping[str, Any]) -> str:
    """Write a mapping, nested ones flattened, as a list of terms."""
    entries = (tag("dt", text(key)) + tag("dd", text(value)) for key, value in _flatten(facts))
    return tag("dl", *entries)


def _flatten(facts: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in facts.items():
        name = f"{prefix}{str(key).replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{name}: ")
        elif isinstance(value, list | tuple):
            yield name, ", ".join(map(str, value))
        elif isinstance(value, int) and not isinstance(value, bool):
            yield name, f"{value:,}"
        else:
            yield name, NONE if value is None else str(value)


def _summary_row(row: Row, analysis: Analysis, styles: Styles, *, show_extent: bool) -> str:
    method = row.summary.method
    swatch = draw_swatch(styles[method.name])
    label, lr, loss, gap, robust, diverged = row.texts
    values = [lr, loss, *([row.extent] if show_extent else []), gap, robust, diverged]
    head = tag("th", swatch, text(label), scope="row")
    attributes = {"class_": "best"} if row.summary is analysis.best else {}
    return tag("tr", head, *(tag("td", text(value)) for value in values), **attributes)


def _cell_row(cell: Cell, label: str) -> str:
    why = NONE
    if cell.divergence:
        at = f" at step {cell.divergence.step:,}" if cell.divergence.step is not None else ""
        place = f" in {cell.divergence.where}" if cell.divergence.where else ""
        why = f"{cell.divergence.reason}{at}{place}"
    columns = zip(
        _CELL_HEADERS[1:],
        (
            wording.short(cell.lr),
            str(cell.seed),
            "finished" if cell.finished else "diverged",
            NONE if cell.loss is None else wording.loss(cell.loss),
            f"{cell.seconds:.1f}",
            str(cell.skipped_steps),
            why,
        ),
        strict=True,
    )
    data = (tag("td", text(value), **_alignment(header)) for header, value in columns)
    attributes = {} if cell.finished else {"class_": "diverged"}
    return tag("tr", tag("th", text(label), scope="row"), *data, **attributes)


def _table(caption: str, headers: Sequence[str], rows: Iterable[str]) -> str:
    """A table in a box of its own that scrolls sideways, by keyboard too, when the page is narrow."""
    heads = (tag("th", text(header), scope="col", **_alignment(header)) for header in headers)
    table = tag(
        "table",
        tag("caption", tag("span", text(caption))),
        tag("thead", tag("tr", *heads)),
        tag("tbody", *rows),
    )
    return tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=caption)


def _alignment(header: str) -> dict[str, str]:
    return {"class_": "words"} if header in _WORDS else {}
