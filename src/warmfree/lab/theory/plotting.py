"""What theory's plots are drawn with: log axes with plain numbers, lines, bands, and clouds coloured by step."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from warmfree.lab.theory import looks
from warmfree.report.axes import LEVEL_DASHES, label_log_axis
from warmfree.report.style import Style
from warmfree.report.svg import INK
from warmfree.report.wording import number, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "band",
    "cloud",
    "curve",
    "dotted",
    "level",
    "linear_steps",
    "log_axis",
    "positive",
    "signed_log_axis",
]

Floats = NDArray[np.float64]
_MOST_DECADES = 8
_MOST_POINTS = 320
_MARKERS = 6
_SHORTEST_LOG = 1.5
_LONGEST_TICK = 5


def positive(*values: Floats | Iterable[float]) -> Floats:
    """Return what can stand on a log axis: all values that are finite and > 0."""
    found: Floats = np.concatenate([np.ravel(np.asarray(entry, np.float64)) for entry in values])
    kept: Floats = found[np.isfinite(found) & (found > 0.0)]
    return kept


def log_axis(axes: "Axes", which: Literal["x", "y"], values: Floats, *, name: str = "") -> None:
    """Put an axis on a log scale that holds all values, labelled in plain numbers."""
    low, high = (float(values.min()), float(values.max())) if values.size else (0.1, 10.0)
    low, high = (low / 1.15, high * 1.15) if high / low > _SHORTEST_LOG else (low / 2, high * 2)
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    every = math.ceil((last - first + 1) / _MOST_DECADES)
    at = [10.0**decade for decade in range(first, last + 1) if decade % every == 0] if every > 1 else []
    scale, limit = (axes.set_xscale, axes.set_xlim) if which == "x" else (axes.set_yscale, axes.set_ylim)
    axis = axes.xaxis if which == "x" else axes.yaxis
    scale("log")
    limit(low, high)
    label_log_axis(axis, low, high, _tick, at=at)
    if name:
        axis.set_label_text(name)


def signed_log_axis(axes: "Axes", values: Floats, *, name: str) -> None:
    """Put the horizontal axis on a scale that is logarithmic to both sides of 0, with a tick at every value."""
    ticks = np.unique(values)
    inner = float(np.abs(ticks[ticks != 0.0]).min(initial=np.inf)) if (ticks != 0.0).any() else 1.0
    axes.set_xscale("symlog", linthresh=inner, linscale=0.6)
    axes.set_xlim(1.4 * min(float(ticks[0]), -inner), 1.4 * max(float(ticks[-1]), inner))
    axes.set_xticks(ticks.tolist(), [_tick(float(value)) for value in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(name)


def _tick(value: float) -> str:
    """Write a number that fits beside an axis, on a phone too."""
    written = number(value)
    return written if len(written) <= _LONGEST_TICK else short(value)


def linear_steps(axes: "Axes", last: float, *, name: str = "step") -> None:
    """Put steps on a linear axis from 0 to ``last``."""
    axes.set_xlim(-0.01 * max(last, 1), 1.01 * max(last, 1))
    axes.locator_params(axis="x", nbins=6, integer=True)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel(name)


def curve(axes: "Axes", across: Floats, values: Floats, style: Style, *, marked: bool = True) -> None:
    """Draw a line; one of many points is thinned evenly, with its first, last, least and largest kept."""
    kept = _thin(values)
    across, values = across[kept], values[kept]
    spacing = max(len(across) // _MARKERS, 1)
    (line,) = axes.plot(
        across,
        values,
        color=style.sentinel,
        linewidth=1.6 if style.is_baseline else 2.0,
        marker=style.look.marker if marked else "",
        markersize=5,
        markeredgewidth=0,
        markevery=(style.index * 2 % spacing, spacing),
        solid_joinstyle="round",
        zorder=2.5 if style.is_baseline else 3,
    )
    if style.look.dashes:
        line.set_dashes(list(style.look.dashes))
    line.set_gid(f"series-{style.index}")


def band(axes: "Axes", across: Floats, low: Floats, high: Floats, style: Style) -> None:
    """Shade between two lines: an interval."""
    shade = axes.fill_between(across, low, high, color=style.sentinel, alpha=0.18, linewidth=0, zorder=2)
    shade.set_gid(f"series-{style.index}")


def cloud(axes: "Axes", across: Floats, values: Floats, places: Floats, *, most: int = 700) -> int:
    """Draw points coloured by their place in the run, 0 to 1, late ones above; return how many were drawn.

    More than ``most`` are thinned at random, the same ones every time, with the extremes kept.
    """
    inside = np.flatnonzero(np.isfinite(across) & np.isfinite(values))
    if len(inside) > most:
        extremes = [part.argmin() for part in (across[inside], values[inside])]
        extremes += [part.argmax() for part in (across[inside], values[inside])]
        drawn = np.random.default_rng(0).choice(len(inside), most, replace=False)
        inside = inside[np.unique(np.concatenate([drawn, extremes]))]
    bins = np.minimum((places[inside] * looks.RAMP).astype(int), looks.RAMP - 1)
    for index in range(looks.RAMP):
        chosen = inside[bins == index]
        if not len(chosen):
            continue
        style = looks.ramp((index + 0.5) / looks.RAMP)
        axes.plot(
            across[chosen],
            values[chosen],
            color=style.sentinel,
            linestyle="",
            marker="o",
            markersize=3.6,
            markeredgewidth=0,
            alpha=0.75,
            zorder=2 + index / looks.RAMP,
        )
    return len(inside)


def level(axes: "Axes", value: float, *, upright: bool = False, style: Style | None = None) -> None:
    """Draw a thin dotted line across; the legend says what it is."""
    draw = axes.axvline if upright else axes.axhline
    colour = INK if style is None else style.sentinel
    draw(value, color=colour, linewidth=1.2, dashes=LEVEL_DASHES, alpha=0.9, zorder=1.5)


def _thin(values: Floats) -> NDArray[np.int64]:
    if len(values) <= 2 * _MOST_POINTS:
        return np.arange(len(values))
    ends = np.unique(np.linspace(0, len(values), _MOST_POINTS // 2, endpoint=False).astype(np.int64))
    kept = [np.array([0, len(values) - 1])]
    for begin, end in zip(ends, np.append(ends[1:], len(values)), strict=True):
        part = values[begin:end]
        if np.isfinite(part).any():
            kept.append(begin + np.array([np.nanargmin(part), np.nanargmax(part)]))
        else:
            kept.append(np.array([begin]))
    return np.unique(np.concatenate(kept)).astype(np.int64)


def dotted(axes: "Axes", across: Floats, values: Floats) -> None:
    """Draw a thin dotted line through points: a bound, or a law to compare with."""
    axes.plot(across, values, color=INK, linewidth=1.2, dashes=LEVEL_DASHES, alpha=0.9, zorder=1.8)
