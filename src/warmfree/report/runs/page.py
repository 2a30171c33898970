"""The page of one or several runs: what happened first, then the loss, stability and every quantity.

One file that loads nothing: its content security policy forbids every request, and every script but its own.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from warmfree.report import wording
from warmfree.report.markup import prose, tag, text
from warmfree.report.runs.alerts import write_alerts, write_notices
from warmfree.report.runs.chart import Line, draw_swatch
from warmfree.report.runs.colour import gradient
from warmfree.report.runs.findings import read_loss
from warmfree.report.runs.looks import write_rules
from warmfree.report.runs.overview import write_overview, write_tiles
from warmfree.report.runs.payload import rounded, write_json
from warmfree.report.runs.quantities import PANEL, Written, choose_first, write_picker, write_quantities
from warmfree.report.runs.run import Run
from warmfree.report.runs.stability import SERIES, write_stability
from warmfree.report.runs.summary import run_summary
from warmfree.report.runs.timeline import write_timeline
from warmfree.report.tables import write_facts

_EARLY_SCRIPT = 'document.documentElement.classList.add("js")'


def write_page(runs: Sequence[Run]) -> str:
    """Write the whole page; `runs` have different names."""
    names: dict[str, int] = {}
    timeline, series = write_timeline(runs)
    stability, series[SERIES] = write_stability(runs)
    first = choose_first(runs)
    written = write_quantities(runs, names, first)
    series |= {entry.quantity.name: entry.lines for entry in written if entry.lines}
    alerts = (write_alerts(run, look, is_only=len(runs) == 1) for look, run in enumerate(runs))
    main = tag(
        "main",
        _section("what", "What happened", _write_summary(runs)),
        _section("loss", "Loss and alerts", timeline, *alerts, *map(write_notices, runs)),
        _section("stability", "Distance to the stability threshold", stability),
        _section("quantities", "Layer by layer", _write_explorer(written, first)),
    )
    title = runs[0].name if len(runs) == 1 else wording.count(len(runs), "run")
    header = tag("header", tag("h1", text(title)), tag("p", text(_facts(runs)), class_="task"))
    data = tag(
        "script", write_json(_payload(runs, written, names, series)), type="application/json", id="data"
    )
    script = files("warmfree.report.runs").joinpath("runs.js").read_text(encoding="utf-8")
    body = tag("body", header, main, _write_footer(runs), data, tag("script", script))
    document = tag("html", _write_head(title, script, len(runs)), body, lang="en")
    return f"<!doctype html>\n{document}\n"


def _write_head(title: str, script: str, count: int) -> str:
    report = files("warmfree.report")
    sheets = [report.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "runs/runs.css")]
    sheets += [write_rules(count), f":root{{--ramp:{gradient()}}}"]
    hashes = " ".join(map(_hash, (_EARLY_SCRIPT, script)))
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {hashes}"
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", text(f"{title} · warmfree report")),
        tag("style", "\n" + "\n".join(sheets) + "\n"),
        tag("script", _EARLY_SCRIPT),
    )


def _hash(script: str) -> str:
    """What a content security policy calls a script that it lets run."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode('ascii')}'"


def _section(ident: str, title: str, *content: str) -> str:
    return tag("section", tag("h2", text(title), id=ident), *content, aria_labelledby=ident)


def _facts(runs: Sequence[Run]) -> str:
    if len(runs) > 1:
        return ", ".join(run.name for run in runs)
    run = runs[0]
    facts = [run.model, run.optimizer]
    facts.append(wording.count(run.parameters, "parameter") if run.parameters is not None else None)
    facts.append(wording.count(len(run.steps), "step"))
    if run.ending and run.ending.overhead is not None:
        facts.append(f"monitoring took {wording.percent(run.ending.overhead)} of the time")
    return " · ".join(fact for fact in facts if fact)


def _write_summary(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        sentences = tag("ul", *(tag("li", prose(line)) for line in run_summary(runs[0])), class_="sentences")
        return tag("div", write_tiles(runs[0]), sentences, class_="verdict")
    parts = [write_overview(runs)]
    for look, run in enumerate(runs):
        heading = tag("h3", draw_swatch(look), " ", text(run.name))
        parts.append(
            heading + tag("ul", *(tag("li", prose(line)) for line in run_summary(run)), class_="sentences")
        )
    return tag("div", *parts, class_="per-run")


def _write_explorer(written: Sequence[Written], first: str | None) -> str:
    if not written:
        return tag("p", "No quantity was measured in this record.", class_="notes")
    help_ = tag(
        "p",
        "Rows are layers in the order of the model, columns measured steps; rings are alerts. ",
        tag(
            "span",
            "Point at a cell to read it, choose a row for its curve; Shift adds a row.",
            class_="with-script",
        ),
        class_="notes",
    )
    panel = "" if any(PANEL in entry.html for entry in written) else tag("div", PANEL, hidden="hidden")
    return help_ + write_picker(written, first) + "".join(entry.html for entry in written) + panel


def _payload(
    runs: Sequence[Run], written: Sequence[Written], names: dict[str, int], series: dict[str, list[Line]]
) -> dict[str, Any]:
    return {
        "runs": [run.name for run in runs],
        "names": list(names),
        "last": max(run.last_step for run in runs),
        "maps": {f"quantity-{place}": entry.data for place, entry in enumerate(written) if entry.data},
        "series": {
            name: [
                {
                    "name": line.name,
                    "look": line.look,
                    "steps": line.steps.tolist(),
                    "values": rounded(line.values),
                }
                for line in lines
            ]
            for name, lines in series.items()
        },
    }


def _write_footer(runs: Sequence[Run]) -> str:
    parts = []
    for run in runs:
        loss = read_loss(run)
        facts: dict[str, Any] = {
            "model": run.model,
            "optimizer": run.optimizer,
            "parameters": run.parameters,
            "steps": len(run.steps),
            "losses": loss.count if loss else 0,
            "started": _time(run.started),
            "resumed at steps": [f"{step:,}" for step in run.resumes] or None,
            "budget of the monitor": None if run.budget is None else wording.percent(run.budget),
        }
        if run.ending:
            seconds = run.ending.seconds
            facts["seconds"] = None if seconds is None else f"{seconds:,.1f}"
            for name, (count, spent) in run.ending.probes.items():
                facts[f"probe {name}"] = f"{wording.count(count, 'time')}, {spent:,.2f} s"
        parts.append(tag("h3", text(run.name)) + write_facts(facts))
    return tag("footer", tag("h2", "Where this comes from"), *parts)


def _time(started: float | None) -> str | None:
    if started is None or not 0 <= started < 2**38:
        return None
    return datetime.fromtimestamp(started, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
