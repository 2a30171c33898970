"""The page of a theory command: finding, figures, tables, lines to paste, and whose each statement is.

One file that loads nothing: its content security policy forbids every request.
"""

from collections.abc import Iterable
from importlib.resources import files

from warmfree.lab.theory import looks
from warmfree.lab.theory.finding import Drawing, Finding, Table, Tile
from warmfree.lab.theory.legend import write_legend
from warmfree.report.markup import prose, tag, text
from warmfree.report.svg import draw_panel
from warmfree.report.tables import write_facts

__all__ = ["write_page"]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_LONG = 24
_SHEET = """
td.words, thead th.words { text-align: left; }
td.long, thead th.long { white-space: normal; min-width: 9rem; }
.panel svg { overflow: visible; }
.ramp { width: 4.5rem; }
pre.paste { user-select: all; white-space: pre; overflow-x: auto; overflow-wrap: normal; }
.whose h3 { margin-top: 1.25rem; font-size: 1rem; }
"""


def write_page(finding: Finding, *, command: str) -> str:
    """Write the whole page.

    Args:
        finding: what it is about.
        command: what was typed.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    facts = tag("p", text(" · ".join(finding.facts)), class_="task")
    main = tag(
        "main",
        _write_finding(finding),
        *(_write_table(part) if isinstance(part, Table) else _write_drawing(part) for part in finding.parts),
        *_write_code(finding.code),
        *_write_whose(finding),
    )
    body = tag(
        "body", tag("header", tag("h1", text(finding.title)), facts), main, _write_footer(finding, command)
    )
    return f"<!doctype html>\n{tag('html', _write_head(finding.title), body, lang='en')}\n"


def _write_head(title: str) -> str:
    sheet = files("warmfree.report").joinpath("page.css").read_text(encoding="utf-8")
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", text(f"{title} · warmfree theory")),
        tag("style", f"\n{sheet}{_SHEET}{looks.rules()}\n"),
    )


def _section(ident: str, title: str, *content: str, class_: str = "") -> str:
    attributes = {"aria_labelledby": ident} | ({"class_": class_} if class_ else {})
    return tag("section", tag("h2", text(title), id=ident), *content, **attributes)


def _write_finding(finding: Finding) -> str:
    tiles = [tag("ul", *map(_write_tile, finding.tiles), class_="tiles")] if finding.tiles else []
    return _section("finding", "Finding", tag("div", *tiles, _points(finding.sentences), class_="verdict"))


def _write_tile(tile: Tile) -> str:
    return tag(
        "li",
        tag("span", text(tile.label), class_="label"),
        tag("span", text(tile.value), class_="value"),
        tag("span", text(tile.note), class_="note"),
    )


def _points(sentences: Iterable[str]) -> str:
    return tag("ul", *(tag("li", prose(sentence)) for sentence in sentences), class_="sentences")


def _write_drawing(drawing: Drawing) -> str:
    panels = [
        draw_panel(f"{drawing.ident}-{number}", plot.title, plot.description, plot.draw)
        for number, plot in enumerate(drawing.plots, start=1)
    ]
    written = (tag("div", tag("h3", text(panel.title)), panel.svg, class_="panel") for panel in panels)
    caption = [tag("figcaption", *(tag("p", prose(line)) for line in drawing.sentences))]
    legend = [write_legend(drawing.keys)] if drawing.keys else []
    figure = tag(
        "figure", *legend, tag("div", *written, class_="panels"), *(caption if drawing.sentences else [])
    )
    return _section(drawing.ident, drawing.title, figure)


def _write_table(table: Table) -> str:
    """A table in a box of its own that scrolls sideways, by keyboard too, when the page is narrow."""
    classes = [_alignment(table, column) for column in range(len(table.headers))]
    heads = (
        tag("th", text(header), scope="col", **extra)
        for header, extra in zip(table.headers, classes, strict=True)
    )
    rows = (
        tag(
            "tr",
            tag("th", text(first), scope="row"),
            *(tag("td", text(cell), **extra) for cell, extra in zip(rest, classes[1:], strict=True)),
        )
        for first, *rest in table.rows
    )
    written = tag(
        "table",
        tag("caption", tag("span", text(table.caption))),
        tag("thead", tag("tr", *heads)),
        tag("tbody", *rows),
    )
    box = tag("div", written, class_="scroll", tabindex="0", role="region", aria_label=table.caption)
    notes = [tag("p", prose(table.notes), class_="notes")] if table.notes else []
    return _section(table.ident, table.title, box, *notes)


def _alignment(table: Table, column: int) -> dict[str, str]:
    if table.headers[column] not in table.words:
        return {}
    longest = max((len(row[column]) for row in table.rows), default=0)
    return {"class_": "words long" if longest > _LONG else "words"}


def _write_code(code: Iterable[tuple[str, str]]) -> list[str]:
    parts = [
        tag("h3", text(heading)) + tag("pre", tag("code", text(lines)), class_="paste")
        for heading, lines in code
    ]
    return [_section("paste", "To paste", *parts)] if parts else []


def _write_whose(finding: Finding) -> list[str]:
    parts = [
        tag("h3", text(heading)) + _points(sentences)
        for heading, sentences in (("From the literature", finding.paper), ("Ours", finding.ours))
        if sentences
    ]
    return [_section("whose", "Whose is what", *parts, class_="whose")] if parts else []


def _write_footer(finding: Finding, command: str) -> str:
    return tag(
        "footer",
        tag("h2", "Where this comes from"),
        tag("pre", tag("code", text(command))),
        write_facts(finding.origin),
    )
