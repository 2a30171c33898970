"""Legends in HTML: they wrap on a phone, can be selected, and single out a series under the pointer."""

from __future__ import annotations

from warmfree.report.axes import LEVEL_DASHES
from warmfree.report.extras import require
from warmfree.report.figure import Figure, Styles
from warmfree.report.markup import tag, text
from warmfree.report.style import Style


def draw_swatch(style: Style) -> str:
    """A piece of the method's line with its marker, from the same marker outlines that the figures use."""
    colour = f"var({style.variable})"
    dashes = {"stroke_dasharray": " ".join(f"{1.6 * dash:g}" for dash in style.look.dashes)}
    line = tag(
        "path",
        d="M0 7H36",
        stroke=colour,
        stroke_width="2",
        fill="none",
        **(dashes if style.look.dashes else {}),
    )
    marker = tag("path", d=_outline(style.look.marker), fill=colour)
    return tag("svg", line, marker, class_="swatch", viewBox="0 0 36 14", aria_hidden="true")


def write_legend(figure: Figure, styles: Styles) -> str:
    """List the methods of a figure with their swatches, and its dotted level."""
    items = [
        tag(
            "li",
            draw_swatch(styles[method.name]),
            text(method.label),
            class_=f"key-{styles[method.name].index}",
        )
        for method in figure.methods
    ]
    if figure.level:
        items.append(tag("li", _draw_level(), text(figure.level)))
    return tag("ul", *items, class_="legend")


def write_rules(styles: Styles) -> str:
    """Write the rules that depend on the methods: colours by theme, fading the others on hover."""
    looks = list(styles.values())
    light = "".join(f"{style.variable}:{style.look.light};" for style in looks)
    dark = "".join(f"{style.variable}:{style.look.dark};" for style in looks)
    fade = "\n".join(
        f"figure:has(.key-{style.index}:hover) .series:not(.{style.css_class}){{opacity:.12}}"
        for style in looks
    )
    return f":root{{{light}}}\n@media (prefers-color-scheme:dark){{:root{{{dark}}}}}\n{fade}"


def _draw_level() -> str:
    dashes = " ".join(f"{1.3 * dash:g}" for dash in LEVEL_DASHES)
    line = tag("path", d="M0 7H36", stroke="currentColor", stroke_width="1.3", stroke_dasharray=dashes)
    return tag("svg", line, class_="swatch", viewBox="0 0 36 14", aria_hidden="true")


def _outline(marker: str) -> str:
    style = require("matplotlib.markers").MarkerStyle(marker)
    outline = style.get_path().transformed(style.get_transform()).to_polygons()[0]
    points = " ".join(f"{18 + 9 * x:.1f} {7 - 9 * y:.1f}" for x, y in outline)
    return f"M{points}Z"
