"""The colours of theory's figures: lines that can be told apart, and a ramp from the first step to the last.

As everywhere in reports a colour exists twice, for a light and for a dark page, and stands in the figures as a CSS
variable. Each has a contrast of at least 3:1 to its background.
"""

from warmfree.report.legend import write_rules
from warmfree.report.style import Look, Style

__all__ = ["LINES", "RAMP", "line", "ramp", "rules"]

LINES = 14
RAMP = 10
_FIRST_OF_RAMP = 32
_LINES = (
    Look("#007a5a", "#35d0a2", "o"),
    Look("#0068a8", "#5ab4f0", "^"),
    Look("#4b5563", "#c3cad5", "s", (5.0, 2.2)),
    Look("#c04a00", "#ff8f4f", "D"),
    Look("#a8437f", "#ea8fc6", ">"),
    Look("#6a51b8", "#b3a1ff", "<"),
    Look("#8a6500", "#f0c14b", "P", (8.0, 2.0)),
    Look("#006f7f", "#5ed3e0", "8", (6.0, 2.0, 1.2, 2.0)),
    Look("#8a2f2f", "#ff9a9a", "h", (3.0, 1.5)),
    Look("#556b00", "#b9d454", "H", (1.2, 1.8)),
    Look("#0068a8", "#5ab4f0", "p", (1.2, 1.8)),
    Look("#c04a00", "#ff8f4f", "v", (6.0, 2.0)),
    Look("#007a5a", "#35d0a2", "d", (3.0, 1.5)),
    Look("#6a51b8", "#b3a1ff", "*", (8.0, 2.0, 1.2, 2.0)),
)
# Early to late: orange, magenta, indigo; on a dark page the same hues, lighter.
_LIGHT = ((0xC8, 0x70, 0x00), (0xB5, 0x34, 0x6F), (0x2B, 0x2A, 0x7A))
_DARK = ((0xFF, 0xD1, 0x66), (0xF2, 0x71, 0x9C), (0x8F, 0x7B, 0xFF))


def line(index: int) -> Style:
    """Return the looks of line number ``index``; after `LINES` of them they come again."""
    return Style(index % LINES, _LINES[index % LINES], is_baseline=bool(_LINES[index % LINES].dashes))


def ramp(place: float) -> Style:
    """Return the looks of a point at a fraction of the run, 0 the first step and 1 the last."""
    index = min(int(place * RAMP), RAMP - 1)
    middle = (index + 0.5) / RAMP
    look = Look(_between(_LIGHT, middle), _between(_DARK, middle), "o")
    return Style(_FIRST_OF_RAMP + index, look, is_baseline=False)


def rules() -> str:
    """Write the CSS of all looks."""
    styles = [line(index) for index in range(LINES)] + [ramp((index + 0.5) / RAMP) for index in range(RAMP)]
    return write_rules({style.variable: style for style in styles})


def _between(colours: tuple[tuple[int, int, int], ...], place: float) -> str:
    segment = min(int(place * (len(colours) - 1)), len(colours) - 2)
    rest = place * (len(colours) - 1) - segment
    pairs = zip(colours[segment], colours[segment + 1], strict=True)
    return "#" + "".join(f"{round(low + rest * (high - low)):02x}" for low, high in pairs)
