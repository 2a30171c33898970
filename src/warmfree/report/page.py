"""The page: verdict first, then the table, the figures, every cell, and where it all came from.

One file that loads nothing: its content security policy forbids every request.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from warmfree.report import wording
from warmfree.report.analysis import Analysis
from warmfree.report.dynamics import draw_implied_warmup, draw_loss_curves, draw_update_sizes
from warmfree.report.extras import require
from warmfree.report.figure import Figure, Styles
from warmfree.report.legend import write_legend, write_rules
from warmfree.report.losses import draw_loss_by_learning_rate
from warmfree.report.markup import prose, tag, text
from warmfree.report.style import assign
from warmfree.report.tables import write_cells, write_facts, write_summary
from warmfree.report.tiles import write_tiles
from warmfree.report.verdict import conclude

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_TITLE = "What does removing warmup cost?"


def write_page(analysis: Analysis) -> str:
    """Write the whole page.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    require("matplotlib")
    styles = assign(analysis.comparison.methods)
    drawn = (
        draw_loss_by_learning_rate(analysis, styles),
        draw_loss_curves(analysis, styles),
        draw_update_sizes(analysis, styles),
        draw_implied_warmup(analysis, styles),
    )
    figures = [_write_figure(figure, styles) for figure in drawn if figure]
    main = tag(
        "main", _write_verdict(analysis), _write_summary(analysis, styles), *figures, _write_details(analysis)
    )
    body = tag("body", _write_header(analysis), main, _write_footer(analysis))
    document = tag("html", _write_head(styles), body, lang="en")
    return f"<!doctype html>\n{document}\n"


def save(page: str, path: Path) -> None:
    """Put `page` at `path` all at once: a reader sees the old file or the new one, never a part.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        Path(draft).chmod(0o644)
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def _write_head(styles: Styles) -> str:
    sheet = files("warmfree.report").joinpath("page.css").read_text(encoding="utf-8")
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", text(f"{_TITLE} · warmfree compare")),
        tag("style", f"\n{sheet}{write_rules(styles)}\n"),
    )


def _write_header(analysis: Analysis) -> str:
    task = analysis.comparison.task
    facts = _name_task(task)
    if isinstance(task.get("parameters"), int):
        facts.append(wording.count(task["parameters"], "parameter"))
    if isinstance(task.get("steps"), int):
        facts.append(wording.count(task["steps"], "step"))
    facts += [
        wording.count(len(analysis.methods), "method"),
        wording.count(len(analysis.seeds), "seed"),
        wording.count(sum(summary.num_cells for summary in analysis.methods), "run"),
    ]
    return tag("header", tag("h1", text(_TITLE)), tag("p", text(" · ".join(facts)), class_="task"))


def _name_task(task: Mapping[str, Any]) -> list[str]:
    corpus = task.get("corpus")
    corpus_name = corpus.get("name") if isinstance(corpus, Mapping) else corpus
    names = [name for name in (task.get("name"), corpus_name) if isinstance(name, str)]
    return [" on ".join(names)] if names else []


def _write_verdict(analysis: Analysis) -> str:
    sentences = (tag("li", prose(sentence)) for sentence in conclude(analysis))
    return tag(
        "section",
        tag("h2", "Verdict", id="verdict"),
        tag("div", write_tiles(analysis), tag("ul", *sentences, class_="sentences"), class_="verdict"),
        aria_labelledby="verdict",
    )


def _write_summary(analysis: Analysis, styles: Styles) -> str:
    return tag(
        "section",
        tag("h2", "Summary", id="summary"),
        write_summary(analysis, styles),
        aria_labelledby="summary",
    )


def _write_figure(figure: Figure, styles: Styles) -> str:
    panels = (tag("div", tag("h3", text(panel.title)), panel.svg, class_="panel") for panel in figure.panels)
    sentences = (tag("p", prose(sentence)) for sentence in figure.sentences)
    remarks = (tag("li", text(remark)) for remark in figure.remarks)
    caption = tag("figcaption", *sentences, *([tag("ul", *remarks)] if figure.remarks else []))
    heading = tag("h2", text(figure.title), id=f"figure-{figure.ident}")
    content = tag("figure", write_legend(figure, styles), tag("div", *panels, class_="panels"), caption)
    return tag("section", heading, content, aria_labelledby=f"figure-{figure.ident}")


def _write_details(analysis: Analysis) -> str:
    methods = {summary.method.label: summary.method.description for summary in analysis.methods}
    return tag(
        "section",
        tag("h2", "In full", id="full"),
        tag("details", tag("summary", "What each method is"), write_facts(methods)),
        tag("details", tag("summary", "Every cell"), write_cells(analysis)),
        aria_labelledby="full",
    )


def _write_footer(analysis: Analysis) -> str:
    comparison = analysis.comparison
    origin = {
        "created": comparison.created,
        "seeds": list(map(str, analysis.seeds)),
        "spread": "standard deviation over seeds" if len(analysis.seeds) > 1 else "unknown: one seed",
        "versions": ", ".join(f"{name} {version}" for name, version in comparison.versions.items()),
        "machine": ", ".join(f"{name} {value}" for name, value in comparison.machine.items()),
        **comparison.task,
    }
    return tag(
        "footer",
        tag("h2", "Where this comes from"),
        tag("pre", tag("code", text(comparison.command))),
        write_facts(origin),
    )
