"""A method's looks: the same colour, marker and line in every figure and legend.

Baselines are grey, warmup-free optimizers coloured. Colours exist twice, for a light and for a dark
background; the page picks one through a CSS variable, so that figures carry no colour of their own. The hues
are Okabe and Ito's, moved in lightness until each has a contrast of at least 3:1 to its background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from warmfree.report.results import Method

Dashes = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Look:
    """How one method is drawn. `marker` is a matplotlib code; empty `dashes` are a solid line."""

    light: str
    dark: str
    marker: str
    dashes: Dashes = ()


@dataclass(frozen=True, slots=True)
class Style:
    """A look with its place among the compared methods."""

    index: int
    look: Look
    is_baseline: bool

    @property
    def sentinel(self) -> str:
        """The colour to draw with in matplotlib; it stands for `variable` until the SVG is finished."""
        return sentinel(self.index)

    @property
    def variable(self) -> str:
        """The CSS variable that holds the method's colour."""
        return f"--series-{self.index}"

    @property
    def css_class(self) -> str:
        """The class of everything drawn for the method."""
        return f"series-{self.index}"


_KNOWN = {
    "adamw": Look("#4b5563", "#c3cad5", "o", (5, 2.2)),
    "adamwwarmup": Look("#4b5563", "#c3cad5", "s"),
    "radam": Look("#7d8592", "#8d96a5", "v", (1.2, 1.8)),
    "adamd": Look("#7d8592", "#8d96a5", "d", (6, 2, 1.2, 2)),
    "adamw2": Look("#0068a8", "#5ab4f0", "^"),
    "giadamw": Look("#c04a00", "#ff8f4f", "D"),
    "liona": Look("#a07000", "#f0c14b", "P"),
    "lionar": Look("#007a5a", "#35d0a2", "p"),
    "rotationaladamw": Look("#a8437f", "#ea8fc6", ">"),
}
_MORE_BASELINES = (
    Look("#5f6875", "#aab2bf", "<", (3, 1.5)),
    Look("#7d8592", "#8d96a5", "h", (8, 2)),
    Look("#4b5563", "#c3cad5", "8", (4, 1.5, 1.2, 1.5, 1.2, 1.5)),
)
_MORE_WARMUP_FREE = (
    Look("#6a51b8", "#b3a1ff", "<"),
    Look("#8a2f2f", "#ff9a9a", "h"),
    Look("#006f7f", "#5ed3e0", "8"),
    Look("#556b00", "#b9d454", "H"),
)


def sentinel(index: int) -> str:
    """A colour that nothing else draws with, for series number `index`."""
    return f"#fedc{index:02x}"


def assign(methods: Sequence[Method]) -> dict[str, Style]:
    """Give every method its look: a known one its own, others the next free one of their kind.

    Returns:
        The style by method name.
    """
    spare = {"baseline": list(_MORE_BASELINES), "warmup-free": list(_MORE_WARMUP_FREE)}
    styles = {}
    for index, method in enumerate(methods):
        look = _KNOWN.get("".join(filter(str.isalnum, method.name.lower())))
        if look is None:
            queue = spare[method.kind]
            look = queue.pop(0)
            queue.append(look)
        styles[method.name] = Style(index, look, is_baseline=method.kind == "baseline")
    return styles
