"""Tables, figures and one self-contained HTML page.

Three views of one computation: `verdict` in sentences, `summary_table` for the terminal, `write_report` as a
page. Each takes the parsed `results.json` of `warmfree compare`. Figures and page need matplotlib, the
terminal table needs rich: both come with `pip install 'warmfree[report]'`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from warmfree.report.analysis import analyze
from warmfree.report.page import save, write_page
from warmfree.report.summary import draw_table
from warmfree.report.verdict import conclude

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["summary_table", "verdict", "write_report"]


def write_report(results: dict[str, Any], out_dir: Path) -> Path:
    """Write `report.html` into a folder: one file with everything inside, which loads nothing.

    The same results give the same bytes. The file appears whole or not at all.

    Args:
        results: the parsed `results.json` of `warmfree compare`.
        out_dir: the folder; made when missing.

    Returns:
        The path of the page.

    Raises:
        ValueError: `results` is not of the expected format; the message names the place.
        ModuleNotFoundError: matplotlib is not installed.
        OSError: the folder cannot be written to.

    Example:
        >>> import json
        >>> page = write_report(json.loads(Path("results.json").read_text()), Path("out"))  # doctest: +SKIP
    """
    path = Path(out_dir) / "report.html"
    save(write_page(analyze(results)), path)
    return path


def summary_table(results: dict[str, Any]) -> Table:
    """Lay out one row a method for the terminal: best learning rate, loss, gap, robust range, diverged cells.

    Args:
        results: the parsed `results.json` of `warmfree compare`.

    Raises:
        ValueError: `results` is not of the expected format; the message names the place.
        ModuleNotFoundError: rich is not installed.

    Example:
        >>> import json, rich
        >>> rich.print(summary_table(json.loads(Path("results.json").read_text())))  # doctest: +SKIP
    """
    return draw_table(analyze(results))


def verdict(results: dict[str, Any]) -> list[str]:
    r"""Say in plain words what the comparison shows, and how far its seeds support it.

    Args:
        results: the parsed `results.json` of `warmfree compare`.

    Raises:
        ValueError: `results` is not of the expected format; the message names the place.

    Example:
        >>> import json
        >>> print(*verdict(json.loads(Path("results.json").read_text())), sep="\n")  # doctest: +SKIP
    """
    return conclude(analyze(results))
