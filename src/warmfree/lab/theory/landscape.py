"""A function and the paths down it: contours of the gap in two dimensions, a curve in one."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from warmfree.lab.theory import plotting
from warmfree.report.style import Style
from warmfree.report.svg import INK
from warmfree.report.wording import number
from warmfree.theory.function import Function

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_contours", "draw_curve"]

Floats = NDArray[np.float64]
Paths = Sequence[tuple[Floats, Style]]

_GRID = 161
_LEVELS = 14
_MOST_DECADES = 12
_MARGIN = 0.12
_MOST_DRAWN = 400


def draw_contours(axes: "Axes", function: Function, paths: Paths) -> None:
    """Draw lines of equal gap, evenly apart in its logarithm, and the paths of points (T + 1, 2) from step to step."""
    low, high = _frame(function, paths)
    across, up = (np.linspace(low[axis], high[axis], _GRID) for axis in (0, 1))
    with np.errstate(all="ignore"):
        gaps = function.gap(np.stack(np.meshgrid(across, up), axis=-1))
    levels = _levels(gaps, at_start=float(function.gap(paths[0][0][0])))
    drawn = axes.contour(across, up, gaps, levels=levels, colors=INK, linewidths=0.7, alpha=0.5)
    axes.clabel(drawn, levels=levels[::2], fmt=lambda value: number(value), fontsize=8.5, inline_spacing=2)
    for points, style in paths:
        _draw_path(axes, points[:, 0], points[:, 1], style)
    start = paths[0][0][0]
    axes.plot(
        *start, marker="o", markersize=7, color="none", markeredgecolor=INK, markeredgewidth=1.4, zorder=5
    )
    if function.minimiser is not None:
        axes.plot(*function.minimiser, marker="x", markersize=8, color=INK, markeredgewidth=1.6, zorder=5)
    axes.grid(visible=False)
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xlabel="first coordinate")


def draw_curve(axes: "Axes", function: Function, paths: Paths) -> None:
    """Draw the gap over the one coordinate on a log axis, and where the steps of points (T + 1, 1) landed."""
    low, high = _frame(function, paths)
    across = np.linspace(low[0], high[0], 801)
    with np.errstate(all="ignore"):
        gaps = function.gap(across[:, None])
        seen = plotting.positive(*(function.gap(points) for points, _ in paths))
    floor = max(seen.min(initial=math.inf), seen.max(initial=1.0) * 10.0**-_MOST_DECADES)
    plotting.log_axis(axes, "y", plotting.positive(gaps[gaps >= floor], [floor]))
    axes.plot(across, np.where(gaps > 0, gaps, np.nan), color=INK, linewidth=1, alpha=0.5, zorder=1.5)
    for points, style in paths:
        with np.errstate(all="ignore"):
            _draw_path(axes, points[:, 0], function.gap(points), style, joined=False)
    axes.set(xlim=(low[0], high[0]), xlabel="coordinate")


def _draw_path(axes: "Axes", across: Floats, up: Floats, style: Style, *, joined: bool = True) -> None:
    kept = np.unique(np.geomspace(1, len(across), min(len(across), _MOST_DRAWN)).round().astype(int) - 1)
    (line,) = axes.plot(
        across[kept],
        up[kept],
        color=style.sentinel,
        linewidth=1.1 if joined else 0,
        marker=style.look.marker,
        markersize=3.6,
        markeredgewidth=0,
        zorder=3,
    )
    line.set_gid(f"series-{style.index}")


def _frame(function: Function, paths: Paths) -> tuple[Floats, Floats]:
    """The corners of what is shown: all paths; of those that run away thrice the way to the minimum."""
    start = paths[0][0][0]
    others = [function.minimiser] if function.minimiser is not None else [paths[0][0][-1]]
    core = np.stack([start, *others])
    centre = core.mean(axis=0)
    reach = 3.0 * np.maximum(np.ptp(core, axis=0), 0.25 * np.ptp(core, axis=0).max() + 1e-12)
    points = np.concatenate([np.clip(path, centre - reach, centre + reach) for path, _ in paths] + [core])
    low, high = points.min(axis=0), points.max(axis=0)
    size = np.maximum(high - low, 0.05 * (high - low).max() + 1e-12)
    return low - _MARGIN * size, high + _MARGIN * size


def _levels(gaps: Floats, *, at_start: float) -> Floats:
    """Levels evenly apart in the logarithm, one of them through the start."""
    seen = gaps[np.isfinite(gaps) & (gaps > 0)]
    high = math.log10(float(seen.max()))
    low = max(math.log10(float(seen.min())), high - _MOST_DECADES)
    step = max((high - low) / _LEVELS, 0.05)
    step = next((nice for nice in (0.1, 0.2, 0.25, 0.5, 1.0, 2.0, 3.0) if nice >= step), step)
    middle = math.log10(at_start) if at_start > 0 else high
    first, last = math.ceil((low - middle) / step), math.floor((high - middle) / step)
    levels: Floats = 10.0 ** (middle + step * np.arange(first, last + 1.0))
    return levels
