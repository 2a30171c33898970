"""The search for the critical learning rate, drawn in a terminal: in braille, or in ASCII where there is none."""

import math
from itertools import pairwise

from rich.text import Text

from warmfree.lab.advise.curve import Curve
from warmfree.report.wording import number, short

__all__ = ["LEAST_WIDTH", "draw"]

LEAST_WIDTH = 44
MOST_WIDTH = 100
_MARGIN = 9  # characters for the labels of losses
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a braille character, by row and column
_STYLES = {"C": "bold green", "T": "bold magenta", "line": "cyan", "before": "dim"}


def draw(curve: Curve, *, width: int, height: int = 12, ascii_only: bool = False) -> Text:
    """Draw loss over learning rate, both on log axes, with marks at the critical and the target learning rate.

    Args:
        curve: what to draw.
        width: characters to fill, at least `LEAST_WIDTH`; more than 100 are left empty.
        height: rows of the plot itself, >= 4.
        ascii_only: for terminals that know no other characters.
    """
    columns = min(width, MOST_WIDTH) - _MARGIN - 2
    canvas = _AsciiCanvas(columns, height) if ascii_only else _BrailleCanvas(columns, height)
    for line in curve.lines:
        canvas.connect([(curve.place(lr), curve.height(loss)) for lr, loss in line])
    cells = [
        [(character, "line") if character != " " else (" ", "") for character in row] for row in canvas.rows()
    ]
    for cell, (character, _) in enumerate(level := cells[_row(curve.height(curve.before), height)]):
        if character == " ":
            level[cell] = ("-" if ascii_only else "┄", "before")
    marks = [("T", curve.target)] + ([("C", curve.critical)] if curve.critical is not None else [])
    places = {mark: min(int(curve.place(lr) * columns), columns - 1) for mark, lr in marks if lr > 0}
    for mark, column in places.items():
        for cell_row in cells:
            if cell_row[column][1] != "line":
                cell_row[column] = (":" if ascii_only else "┊", mark)
    for line in curve.lines:
        for lr, loss in line:
            if not loss < curve.losses[1]:
                cells[0][min(int(curve.place(lr) * columns), columns - 1)] = ("^", "line")
    return _framed(curve, cells, places, ascii_only=ascii_only)


def _framed(
    curve: Curve, cells: list[list[tuple[str, str]]], places: dict[str, int], *, ascii_only: bool
) -> Text:
    """Put axes around the cells, and the marks' meaning below."""
    wall, floor, corner, tick = ("|", "-", "+", "+") if ascii_only else ("│", "─", "└", "┴")
    height, columns = len(cells), len(cells[0])
    labels = {0: number(curve.losses[1]), height - 1: number(curve.losses[0])}
    labels[_row(curve.height(curve.before), height)] = "before"
    text = Text(f"{curve.label}, by learning rate\n", no_wrap=True, overflow="crop")
    for index, row in enumerate(cells):
        text.append(f"{_plain(labels.get(index, ''), ascii_only):>{_MARGIN}}{wall}")
        for character, style in row:
            text.append(character, _STYLES.get(style))
        text.append("\n")
    base, names = [floor] * columns, [" "] * columns
    for lr in _decades(*curve.lrs):
        column = min(int(curve.place(lr) * columns), columns - 1)
        name = short(lr)
        start = min(max(column - len(name) // 2, 0), columns - len(name))
        base[column] = tick
        if all(character == " " for character in names[max(start - 1, 0) : start + len(name) + 1]):
            names[start : start + len(name)] = name
    text.append(f"{'':>{_MARGIN}}{corner}")
    for column, character in enumerate(base):
        mark = "".join(sorted(name for name, place in places.items() if place == column))
        text.append(*(("*" if len(mark) > 1 else mark, _STYLES[mark[0]]) if mark else (character,)))
    text.append(f"\n{'':>{_MARGIN}} {''.join(names).rstrip()}\n")
    text.append(_legend(curve, both=len(set(places.values())) < len(places), width=_MARGIN + 1 + columns))
    return text


def _legend(curve: Curve, *, both: bool, width: int) -> Text:
    items = [("no critical learning rate found", _STYLES["before"])]
    if curve.critical is not None:
        items = [(f"{'*' if both else 'C'} critical {short(curve.critical)}", _STYLES["C"])]
    if curve.target > 0:
        items.append((f"{'*' if both else 'T'} target {short(curve.target)}", _STYLES["T"]))
    if any(not loss < curve.losses[1] for line in curve.lines for _, loss in line):
        items.append(("^ off the scale", _STYLES["line"]))
    text, indent = Text(), " " * (_MARGIN + 1)
    left = 0
    for words, style in items:
        if left < len(words) + 3:
            text.append(indent if not text else f"\n{indent}")
            left = width - len(indent)
        text.append(f"{words}   ", style)
        left -= len(words) + 3
    return text


def _plain(label: str, ascii_only: bool) -> str:
    return label.replace("−", "-").replace("∞", "inf") if ascii_only else label


def _row(height: float, rows: int) -> int:
    return rows - 1 - min(int(height * rows), rows - 1)


def _decades(low: float, high: float) -> list[float]:
    """Return the round learning rates between two, a decade apart, or in the finest of 1, 2, 5 if those are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5)):
        ticks = [step * 10.0**power for power in powers for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 3:
            break
    return ticks


class _BrailleCanvas:
    """A grid of characters with two by four dots each."""

    across, down = 2, 4

    def __init__(self, columns: int, rows: int) -> None:
        self._dots = [[0] * columns for _ in range(rows)]
        self._width, self._height = columns * self.across, rows * self.down

    def connect(self, points: list[tuple[float, float]]) -> None:
        """Draw lines between points in the unit square."""
        placed = [(x * (self._width - 1), (1 - y) * (self._height - 1)) for x, y in points]
        for x, y in placed:
            self._set(round(x), round(y))
        for (x, y), (to_x, to_y) in pairwise(placed):
            count = math.ceil(max(abs(to_x - x), abs(to_y - y), 1.0))
            for index in range(count + 1):
                part = index / count
                self._set(round(x + part * (to_x - x)), round(y + part * (to_y - y)))

    def _set(self, x: int, y: int) -> None:
        self._dots[y // self.down][x // self.across] |= self._bit(x % self.across, y % self.down)

    def _bit(self, x: int, y: int) -> int:
        return _DOTS[y][x]

    def rows(self) -> list[list[str]]:
        """Return the characters, a space where nothing is drawn."""
        return [[self._character(dots) if dots else " " for dots in row] for row in self._dots]

    def _character(self, dots: int) -> str:
        return chr(0x2800 + dots)


class _AsciiCanvas(_BrailleCanvas):
    """A grid of characters with a single dot each."""

    across, down = 1, 1

    def _bit(self, x: int, y: int) -> int:  # noqa: ARG002 (there is one)
        return 1

    def _character(self, dots: int) -> str:  # noqa: ARG002 (there is one)
        return "*"
