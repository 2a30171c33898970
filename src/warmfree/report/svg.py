"""From a matplotlib figure to SVG that lives inside an HTML page.

Matplotlib writes stand-alone files: fixed colours, ids that clash when two of them share a page, a date,
namespaces. What comes out here takes its colours from the page (`currentColor` and CSS variables), has ids of
its own, is named and described for screen readers, scales to the width it is given, and is the same text
every time.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from warmfree.report.extras import require
from warmfree.report.markup import text
from warmfree.report.style import sentinel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 460, 310
INK, GRID = "#fedbfe", "#fedbfd"
_FONT_SIZE = 11.5
# Fractions of the width and height: fixed, so that the frames of neighbouring panels line up.
_MARGINS = {"left": 0.095, "right": 0.985, "bottom": 0.145, "top": 0.975}
_RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the layout does not depend on the machine
    "font.size": _FONT_SIZE,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 3.5,
    "ytick.major.size": 0,
    "svg.fonttype": "none",
}


@dataclass(frozen=True, slots=True)
class Panel:
    """One finished plot with the heading to print above it."""

    title: str
    svg: str


def draw_panel(ident: str, title: str, description: str, draw: Callable[[Axes], None]) -> Panel:
    """Draw one plot.

    Args:
        ident: unique on the page; every id inside the SVG starts with it.
        title: the heading, also the accessible name.
        description: what a screen reader says instead of the picture.
        draw: draws into the axes, in `INK`, `GRID` and the sentinels of `style` alone.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    matplotlib = require("matplotlib")
    figure_module = require("matplotlib.figure")
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's matplotlibrc does not change the page
        matplotlib.rcParams.update({**_RC, "svg.hashsalt": ident})
        figure = figure_module.Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72)
        figure.patch.set_visible(False)
        axes = figure.add_axes(
            (
                _MARGINS["left"],
                _MARGINS["bottom"],
                _MARGINS["right"] - _MARGINS["left"],
                _MARGINS["top"] - _MARGINS["bottom"],
            )
        )
        axes.patch.set_visible(False)
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg")
    return Panel(title, embed(buffer.getvalue(), ident=ident, title=title, description=description))


def embed(document: str, *, ident: str, title: str, description: str) -> str:
    """Turn a matplotlib SVG document into an element for an HTML page."""
    start = document.index("<svg")
    opening_end = document.index(">", start) + 1
    body = document[opening_end : document.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    body = body.replace("xlink:href", "href")
    body = _name_series(body)
    body = re.sub(r'\bid="', f'id="{ident}-', body)
    body = body.replace('href="#', f'href="#{ident}-').replace("url(#", f"url(#{ident}-")
    body = _recolour(body)
    body = re.sub(r"font: [^;\"]*?(\d+(?:\.\d+)?)px [^;\"]*", r"font-size: \1px", body)
    body = re.sub(r'\b(d|points)="([^"]*)"', _shorten_path, body)
    body = re.sub(r"\n\s*", "\n", body).strip()
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{ident}-title {ident}-desc">\n'
        f'<title id="{ident}-title">{text(title)}</title>\n'
        f'<desc id="{ident}-desc">{text(description)}</desc>\n{body}\n</svg>'
    )


def _name_series(body: str) -> str:
    """Make the ids `series-3` that figures give to what they draw into classes: a series has many parts."""
    return re.sub(r'\bid="(series-\d+)(?:_\d+)?"', r'class="series \1"', body)


def _recolour(body: str) -> str:
    body = body.replace(INK, "currentColor").replace(GRID, "var(--grid)")
    prefix = sentinel(0)[:-2]
    return re.sub(
        re.escape(prefix) + "([0-9a-f]{2})", lambda match: f"var(--series-{int(match[1], 16)})", body
    )


def _shorten_path(match: re.Match[str]) -> str:
    numbers = re.sub(
        r"-?\d+\.\d+", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), match[2]
    )
    return f'{match[1]}="{" ".join(numbers.split())}"'
