"""What the figures' axes have in common: ticks people can read, lines that keep a method's looks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from warmfree.report import wording
from warmfree.report.curves import Track
from warmfree.report.extras import require
from warmfree.report.style import Style
from warmfree.report.svg import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

_MOST_TICKS = 9
_LEAST_DISTANCE = 0.09
_NUM_MARKERS = 6
_FRAMED_UNTIL = 0.8
LEVEL_DASHES = (1.5, 2.5)


def label_log_axis(
    axis: Axis, low: float, high: float, write: Callable[[float], str], *, at: Sequence[float] = ()
) -> None:
    """Label a log axis in plain numbers: `at` these if they fit, else at few round ones."""
    ticker = require("matplotlib.ticker")
    axis.set_major_locator(ticker.FixedLocator(_choose_ticks(low, high, sorted(set(at)))))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: write(value)))
    axis.set_minor_locator(ticker.NullLocator())


def _choose_ticks(low: float, high: float, wanted: Sequence[float]) -> list[float]:
    apart = (high / low) ** _LEAST_DISTANCE
    if wanted and all(after >= apart * before for before, after in pairwise(wanted)):
        return list(wanted)
    ticks: list[float] = []
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 3, 4, 5, 6, 8), (1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        ticks = [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]
        if len(ticks) <= _MOST_TICKS:
            break
    return ticks


def use_log_steps(axes: Axes, last: float) -> None:
    """Put steps on a log axis from 1 to `last`."""
    axes.set_xscale("log")
    axes.set_xlim(0.9, max(last, 2) * 1.08)
    label_log_axis(axes.xaxis, 1, max(last, 2), lambda value: f"{value:,.0f}")
    axes.set_xlabel("step (log)")


def use_linear_steps(axes: Axes, last: float) -> None:
    """Put steps on a linear axis from 0 to `last`."""
    axes.set_xlim(0, max(last, 2) * 1.01)
    axes.locator_params(axis="x", nbins=7)
    axes.set_xlabel("step")


def use_log_values(axes: Axes, tracks: Sequence[Track]) -> None:
    """Put a positive quantity on a log axis that holds all of `tracks` but for their last fifth.

    A cooldown ends at zero: its last steps would take half of a log axis for themselves.
    """
    values = [
        value
        for track in tracks
        for step, value in zip(track.step, track.value, strict=True)
        if step <= max(_FRAMED_UNTIL * track.step[-1], track.step[0])
    ]
    low, high = min(values), max(values)
    low, high = (low / 1.2, high * 1.2) if high / low > 1.5 else (low / 2, high * 2)
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    label_log_axis(axes.yaxis, low, high, wording.short)


def draw_track(axes: Axes, track: Track, style: Style) -> None:
    """Draw a line over steps with a few markers, staggered so that those of two methods do not coincide."""
    spacing = max(len(track.step) // _NUM_MARKERS, 1)
    (line,) = axes.plot(
        track.step,
        track.value,
        color=style.sentinel,
        linewidth=1.5 if style.is_baseline else 2.0,
        marker=style.look.marker,
        markersize=4.5 if style.is_baseline else 5.5,
        markeredgewidth=0,
        markevery=(style.index * 2 % spacing, spacing),
        solid_joinstyle="round",
        zorder=2.5 if style.is_baseline else 3,
    )
    if style.look.dashes:
        line.set_dashes(list(style.look.dashes))
    line.set_gid(style.css_class)


def mark_level(axes: Axes, level: float) -> None:
    """Draw a thin dotted horizontal line; the legend says what it is."""
    axes.axhline(level, color=INK, linewidth=1, dashes=LEVEL_DASHES, alpha=0.75, zorder=1.5)
