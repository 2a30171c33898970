"""The main figure: final validation loss against learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from warmfree.report import axes as plot
from warmfree.report import wording
from warmfree.report.analysis import WITH_WARMUP, Analysis, Summary
from warmfree.report.figure import Figure, Styles
from warmfree.report.style import Style
from warmfree.report.svg import GRID, INK, Panel, draw_panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Losses above this multiple of the smallest are off the scale: they would flatten everything that matters.
_TALLEST = 1.9
_CROSS_ROW = 0.045


@dataclass(frozen=True, slots=True)
class _Frame:
    """The limits that both panels share. `band` is the loss at which the rows of crosses begin."""

    low: float
    band: float
    high: float

    @classmethod
    def around(cls, losses: list[float], num_rows: int) -> _Frame:
        best = min(losses, default=1.0)
        worst = max((loss for loss in losses if loss <= _TALLEST * best), default=2.0)
        margin = max(0.05 * (worst - best), 0.01 * best)
        low, band = best - margin, worst + margin
        share = _CROSS_ROW * (num_rows + 0.5) if num_rows else 0.0
        return cls(low, band, low + (band - low) / (1 - share))


def draw_loss_by_learning_rate(analysis: Analysis, styles: Styles) -> Figure | None:
    """Final validation loss against learning rate, baselines and warmup-free optimizers side by side."""
    shown = [summary for summary in analysis.methods if summary.points]
    losses = [loss for summary in shown for point in summary.points for loss in point.losses]
    if not shown:
        return None
    groups = [
        (kind, title, [summary for summary in shown if summary.method.kind == kind])
        for kind, title in (("baseline", "Baselines"), ("warmup-free", "Warmup-free optimizers"))
    ]
    rows = max(sum(bool(summary.num_diverged) for summary in group) for _, _, group in groups)
    frame = _Frame.around(losses, rows)
    reference = analysis.find(WITH_WARMUP)
    panels = tuple(
        _draw_group(f"loss-{kind}", f"{title}: final validation loss", group, analysis, styles, frame)
        for kind, title, group in groups
        if group
    )
    return Figure(
        ident="loss",
        title="Final validation loss against learning rate",
        methods=tuple(summary.method for summary in shown),
        panels=panels,
        sentences=_sentences(frame, losses, num_panels=len(panels)),
        level=f"the best of {reference.method.label}" if reference and reference.best else None,
    )


def _sentences(frame: _Frame, losses: list[float], *, num_panels: int) -> tuple[str, ...]:
    sentences = [
        "Lower is better, and wider is more forgiving: a flat bottom means that the learning rate need not be "
        "hit exactly.",
        "Lines join means over seeds, small points are single seeds, a cross at the top means that at least one "
        "seed diverged at that learning rate (the line breaks there).",
    ]
    if num_panels > 1:
        sentences.append(
            "Both panels share the loss axis; the learning rates differ, as the optimizers' scales do."
        )
    beyond = sum(loss > frame.band for loss in losses)
    if beyond:
        cells = f"{wording.count(beyond, 'cell')} {'is' if beyond == 1 else 'are'}"
        sentences.append(f"{cells} off the scale, above a loss of {wording.loss(frame.band)}.")
    return tuple(sentences)


def _draw_group(
    ident: str, title: str, group: list[Summary], analysis: Analysis, styles: Styles, frame: _Frame
) -> Panel:
    def draw(axes: Axes) -> None:
        row = 0
        for summary in group:
            _draw_summary(axes, summary, styles[summary.method.name], frame)
            if summary.num_diverged:
                _draw_crosses(axes, summary, styles[summary.method.name], row)
                row += 1
        if frame.high > frame.band:
            _draw_band(axes, frame, is_used=row > 0)
        reference = analysis.find(WITH_WARMUP)
        if reference and reference.best:
            plot.mark_level(axes, reference.best.mean)
        _frame_axes(axes, group, frame)

    return draw_panel(ident, title, _describe(group), draw)


def _draw_summary(axes: Axes, summary: Summary, style: Style, frame: _Frame) -> None:
    finite = [point.mean if math.isfinite(point.mean) else math.nan for point in summary.points]
    below = [mean if mean <= frame.band else math.nan for mean in finite]
    (line,) = axes.plot(
        [point.lr for point in summary.points],
        # Off-scale means leave the frame through the band, so the line is cut rather than drawn across it.
        below,
        color=style.sentinel,
        linewidth=1.6 if style.is_baseline else 2.0,
        marker=style.look.marker,
        markersize=6.5 if style.is_baseline else 7.5,
        markeredgewidth=0,
        zorder=3,
    )
    if style.look.dashes:
        line.set_dashes(list(style.look.dashes))
    line.set_gid(style.css_class)
    seeds = [
        (point.lr, loss)
        for point in summary.points
        if len(point.cells) > 1
        for loss in point.losses
        if loss <= frame.band
    ]
    if seeds:
        (points,) = axes.plot(*zip(*seeds, strict=True), ".", color=style.sentinel, markersize=4, alpha=0.65)
        points.set_gid(style.css_class)


def _draw_crosses(axes: Axes, summary: Summary, style: Style, row: int) -> None:
    lrs = [point.lr for point in summary.points if point.num_diverged]
    height = 1 - _CROSS_ROW * (row + 0.5)
    (crosses,) = axes.plot(
        lrs,
        [height] * len(lrs),
        "x",
        transform=axes.get_xaxis_transform(),
        color=style.sentinel,
        markersize=6,
        markeredgewidth=1.8,
        clip_on=False,
    )
    crosses.set_gid(style.css_class)


def _draw_band(axes: Axes, frame: _Frame, *, is_used: bool) -> None:
    axes.axhspan(frame.band, frame.high, color=GRID, alpha=0.45, linewidth=0, zorder=0.5)
    if is_used:
        axes.text(
            0.012,
            0.985,
            "diverged",
            transform=axes.transAxes,
            ha="left",
            va="top",
            fontsize=9.5,
            color=INK,
            alpha=0.8,
        )


def _frame_axes(axes: Axes, group: list[Summary], frame: _Frame) -> None:
    lrs = [point.lr for summary in group for point in summary.points]
    low, high = min(lrs), max(lrs)
    room = max((high / low) ** 0.06, 1.25)
    axes.set_xscale("log")
    axes.set_xlim(low / room, high * room)
    plot.label_log_axis(axes.xaxis, low / room, high * room, wording.short, at=lrs)
    axes.set_ylim(frame.low, frame.high)
    axes.set_yticks([tick for tick in axes.get_yticks() if frame.low <= tick <= frame.band])
    axes.set_xlabel("learning rate (log)")


def _describe(group: list[Summary]) -> str:
    parts = []
    for summary in group:
        tried = wording.count(len(summary.points), "learning rate")
        diverged = (
            f", {summary.num_diverged} of {summary.num_cells} cells diverged" if summary.num_diverged else ""
        )
        best = "none finished with every seed"
        if summary.best:
            best = f"best {wording.loss(summary.best.mean)} at {wording.short(summary.best.lr)}"
        parts.append(f"{summary.method.label}: {tried}, {best}{diverged}")
    return f"Final validation loss against learning rate. {'; '.join(parts)}."
