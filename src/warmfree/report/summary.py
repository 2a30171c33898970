"""The summary table: one row a method, the same text in the terminal and on the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from warmfree.report import wording
from warmfree.report.analysis import TOLERANCE, Analysis, RobustRange, Summary
from warmfree.report.extras import require

if TYPE_CHECKING:
    from rich.table import Table

EDGE_MARK = "†"
EDGE_NOTE = f"{EDGE_MARK} at the edge of the grid: the loss is an upper bound"
NONE = "–"
HEADERS = ("method", "best lr", "validation loss", "gap", f"lr within {100 * TOLERANCE:.0f} %", "diverged")


@dataclass(frozen=True, slots=True)
class Row:
    """A method's numbers as text, in the order of `HEADERS`, with the smallest and largest loss beside."""

    summary: Summary
    label: str
    lr: str
    loss: str
    gap: str
    robust: str
    diverged: str
    extent: str

    @property
    def texts(self) -> tuple[str, ...]:
        """The cells in the order of `HEADERS`."""
        return (self.label, self.lr, self.loss, self.gap, self.robust, self.diverged)


def summarize(analysis: Analysis) -> list[Row]:
    """Write every method's numbers as text, best method first."""
    return [_row(summary) for summary in analysis.ranked]


def notes(analysis: Analysis) -> list[str]:
    """Explain the columns and the marks that `summarize` used."""
    lines = ["Loss in nats per byte at the method's own best learning rate; gap to the best method."]
    if any(summary.best and summary.best.spread is not None for summary in analysis.methods):
        lines.append("± is the standard deviation over seeds.")
    if any(
        summary.robust and summary.robust.is_bound and summary.robust.width > 1
        for summary in analysis.methods
    ):
        lines.append("≥ where the grid ended before the range did.")
    if any(summary.edge for summary in analysis.methods):
        lines.append(f"{EDGE_NOTE}.")
    return lines


def draw_table(analysis: Analysis) -> Table:
    """Lay the summary out for the terminal.

    Raises:
        ModuleNotFoundError: rich is not installed.
    """
    require("rich.table")
    from rich.table import Table
    from rich.text import Text

    box = require("rich.box").SIMPLE_HEAD
    table = Table(
        title="Final validation loss",
        box=box,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
        caption=" ".join(notes(analysis)),
    )
    for header in HEADERS:
        table.add_column(
            header, justify="left" if header == "method" else "right", no_wrap=header != "method"
        )
    for row in summarize(analysis):
        is_best = analysis.best is not None and row.summary is analysis.best
        style = "bold" if is_best else ("dim" if row.summary.best is None else "")
        # Text, not str: a label with [brackets] is no markup.
        table.add_row(*(Text(text) for text in row.texts), style=style)
    return table


def _row(summary: Summary) -> Row:
    diverged = f"{summary.num_diverged} of {summary.num_cells}"
    best = summary.best
    if best is None or summary.robust is None or summary.gap is None:
        return Row(summary, summary.method.label, NONE, NONE, NONE, NONE, diverged, NONE)
    spread = f" ± {wording.loss(best.spread)}" if best.spread is not None else ""
    return Row(
        summary,
        label=summary.method.label,
        lr=f"{wording.short(best.lr)}{f' {EDGE_MARK}' if summary.edge else ''}",
        loss=f"{wording.loss(best.mean)}{spread}",
        gap="best" if summary.gap == 0 else wording.signed_percent(summary.gap),
        robust=_range(summary.robust),
        diverged=diverged,
        extent=f"{wording.loss(min(best.losses))} … {wording.loss(max(best.losses))}",
    )


def _range(robust: RobustRange) -> str:
    low, high = wording.short(robust.low), wording.short(robust.high)
    if robust.low == robust.high:
        return f"{low} only"
    width = f"{'≥' if robust.is_bound else ''}×{wording.factor(robust.width)}"
    return f"{low} … {high}, {width}"
