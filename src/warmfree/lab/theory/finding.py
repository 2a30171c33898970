"""What a theory command found: one object that the terminal, the page and the JSON are made from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from warmfree.report.style import Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Drawing", "Finding", "Key", "Plot", "Table", "Tile"]

Mark = Literal["line", "plain", "level", "ramp"]


@dataclass(frozen=True, slots=True)
class Key:
    """An entry of a legend: a line with its marker, a plain one, a dotted level, or the ramp over the run."""

    label: str
    style: Style | None = None
    mark: Mark = "line"


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot before it is drawn; `title` says what is on the vertical axis, `description` what one would see."""

    title: str
    description: str
    draw: Callable[["Axes"], None]


@dataclass(frozen=True, slots=True)
class Drawing:
    """Plots under one heading, with the legend above and the sentences below."""

    ident: str
    title: str
    plots: tuple[Plot, ...]
    keys: tuple[Key, ...] = ()
    sentences: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """A table for page and terminal.

    `words` are the columns of text, beside the first, which is text anyway; `page_only` those that a terminal has no
    room for, and `brief` its rows where it takes shorter ones, of the same columns.
    """

    ident: str
    title: str
    caption: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: frozenset[str] = frozenset()
    page_only: frozenset[str] = frozenset()
    notes: str = ""
    brief: tuple[tuple[str, ...], ...] = ()
    in_terminal: bool = True


@dataclass(frozen=True, slots=True)
class Tile:
    """A number that a reader should see first, with what it is and how sure it is."""

    label: str
    value: str
    note: str


@dataclass(frozen=True, slots=True)
class Finding:
    """A finished piece of work.

    Attributes:
        title: a question or a statement, for the head of the page.
        facts: what was looked at, in a few words each.
        sentences: the finding.
        tiles: its headline numbers.
        parts: figures and tables in the order of the page.
        code: headings with lines to paste.
        paper: what is taken from the literature.
        ours: what is derived or measured here.
        origin: where it comes from: settings, versions.
        data: everything in it as JSON.
    """

    title: str
    facts: tuple[str, ...]
    sentences: tuple[str, ...]
    tiles: tuple[Tile, ...] = ()
    parts: tuple[Drawing | Table, ...] = ()
    code: tuple[tuple[str, str], ...] = ()
    paper: tuple[str, ...] = ()
    ours: tuple[str, ...] = ()
    origin: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
