"""Legends of theory's figures in HTML: lines, clouds of points, levels, and the ramp over a run."""

from collections.abc import Sequence

from warmfree.lab.theory import looks
from warmfree.lab.theory.finding import Key
from warmfree.report.axes import LEVEL_DASHES
from warmfree.report.legend import draw_swatch
from warmfree.report.markup import tag, text

__all__ = ["write_legend"]


def write_legend(keys: Sequence[Key]) -> str:
    """List what a figure shows, each entry with a swatch."""
    items = []
    for key in keys:
        attributes = {"class_": f"key-{key.style.index}"} if key.style else {}
        items.append(tag("li", _swatch(key), text(key.label), **attributes))
    return tag("ul", *items, class_="legend")


def _swatch(key: Key) -> str:
    if key.mark == "ramp":
        dots = (
            tag("circle", cx=f"{7 + 14 * index}", cy="7", r="5", fill=f"var({_colour(index)})")
            for index in range(looks.RAMP)
        )
        return tag("svg", *dots, class_="swatch ramp", viewBox="0 0 140 14", aria_hidden="true")
    if key.mark == "line" and key.style is not None:
        return draw_swatch(key.style)
    if key.mark == "plain" and key.style is not None:
        dashes = {"stroke_dasharray": " ".join(f"{1.6 * dash:g}" for dash in key.style.look.dashes)}
        line = {"d": "M0 7H36", "stroke": f"var({key.style.variable})", "stroke_width": "2", "fill": "none"}
        path = tag("path", **line, **(dashes if key.style.look.dashes else {}))
        return tag("svg", path, class_="swatch", viewBox="0 0 36 14", aria_hidden="true")
    dashed = " ".join(f"{1.3 * dash:g}" for dash in LEVEL_DASHES)
    path = tag("path", d="M0 7H36", stroke="currentColor", stroke_width="1.3", stroke_dasharray=dashed)
    return tag("svg", path, class_="swatch", viewBox="0 0 36 14", aria_hidden="true")


def _colour(index: int) -> str:
    return looks.ramp((index + 0.5) / looks.RAMP).variable
