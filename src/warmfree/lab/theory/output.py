"""From a finding to the terminal, the page and JSON; nothing is written before everything is computed."""

import io
import json
import math
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from warmfree.lab.theory.finding import Finding, Table
from warmfree.lab.theory.page import write_page
from warmfree.report.page import save

__all__ = ["choose_page", "publish", "show"]

_LEAST_WIDTH = 20


def choose_page(out: Path | None, default: Path) -> Path:
    """Return where the page goes, and refuse what could not be written after all the work.

    Args:
        out: what was asked for: a file that ends in .html, or a folder that exists; None takes the default.
        default: the page's file where none is asked for; its name is used in a folder.

    Raises:
        ValueError: the folder does not exist, or the file does not end in .html.
    """
    if out is None:
        return default
    if out.is_dir():
        return out / default.name
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(
            f"--out must be a file that ends in .html, or a folder that exists, got {str(out)!r}; "
            "make the folder first, or add .html"
        )
    if not out.parent.is_dir():
        raise ValueError(
            f"there is no folder {out.parent} for the page {out.name}: make it, or give another --out"
        )
    return out


def publish(finding: Finding, page: Path, *, command: str, as_json: bool) -> None:
    """Write the page, all at once, and say what was found and where the page is.

    Args:
        finding: what was found.
        page: the page's file, in a folder that exists.
        command: what was typed.
        as_json: print the finding as JSON, and nothing else, on standard output.
    """
    written = write_page(finding, command=command)
    data = json.dumps(plain(finding.data), indent=2, allow_nan=False) if as_json else ""
    save(written, page)
    if as_json:
        print(data)
        Console(stderr=True, highlight=False).print(Text(f"page: {page}"), soft_wrap=True)
        return
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without Unicode shows what it can
    console = Console(highlight=False)
    show(finding, console)
    console.print(Text(f"page: {page}"), soft_wrap=True)


def show(finding: Finding, console: Console) -> None:
    """Print a finding for people: sentences, tables, and the lines to paste."""
    console.print(Text(finding.title, "bold"))
    console.print(Text(" · ".join(finding.facts), "dim"))
    console.print()
    for sentence in finding.sentences:
        for index, line in enumerate(textwrap.wrap(sentence, max(console.width - 2, _LEAST_WIDTH))):
            console.print(Text(f"{'- ' if index == 0 else '  '}{line}"))
    for part in finding.parts:
        if isinstance(part, Table) and part.in_terminal:
            console.print()
            console.print(_table(part))
    for heading, lines in finding.code:
        console.print()
        console.print(Text(heading, "bold"))
        for line in lines.splitlines():
            console.print(Text(f"    {line}"), soft_wrap=True)  # to be pasted
    console.print()


def plain(value: Any) -> Any:
    """Return what JSON has forms for: numpy numbers as numbers, what is not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def _table(table: Table) -> RichTable:
    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, title=table.caption, title_justify="left")
    drawn.title_style = "bold"
    shown = [index for index, header in enumerate(table.headers) if header not in table.page_only]
    for index in shown:
        is_text = index == 0 or table.headers[index] in table.words
        drawn.add_column(table.headers[index], justify="left" if is_text else "right", overflow="fold")
    for row in table.brief or table.rows:
        drawn.add_row(*(Text(row[index]) for index in shown))
    return drawn
