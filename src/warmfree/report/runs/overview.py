"""The numbers that a reader should see first: tiles for one run, a table for several."""

from __future__ import annotations

from collections.abc import Sequence

from warmfree.report import wording
from warmfree.report.markup import tag, text
from warmfree.report.runs.chart import draw_swatch
from warmfree.report.runs.findings import LossFindings, read_first_alert, read_loss, read_stability
from warmfree.report.runs.run import Run
from warmfree.report.runs.summary import name_alert, say_loss

_HEADERS = (
    "Run",
    "Model",
    "Optimizer",
    "Parameters",
    "Steps",
    "Loss, first",
    "last",
    "best",
    "Alerts",
    "First",
    "Moved",
)
_WORDS = frozenset({"Model", "Optimizer"})
_OUTCOMES = {"down": "Loss", "flat": "Loss, which did not fall", "high": "Loss, which rose and stayed high"}


def write_tiles(run: Run) -> str:
    """Write the headline numbers of a run; an empty string when it has none."""
    loss = read_loss(run)
    tiles = [_loss_tile(loss), _alert_tile(run, loss), _stability_tile(run)]
    shown = [entry for entry in tiles if entry]
    return tag("ul", *shown, class_="tiles") if shown else ""


def write_overview(runs: Sequence[Run]) -> str:
    """Write one row a run."""
    heads = (tag("th", text(header), scope="col", **_alignment(header)) for header in _HEADERS)
    table = tag(
        "table",
        tag("caption", tag("span", "The runs, and the step of the first alert and of the loss's first move")),
        tag("thead", tag("tr", *heads)),
        tag("tbody", *(_row(run, look) for look, run in enumerate(runs))),
    )
    return tag("div", table, class_="scroll", tabindex="0", role="region", aria_label="The runs")


def _row(run: Run, look: int) -> str:
    loss = read_loss(run)
    cells = [
        run.model or "–",
        run.optimizer or "–",
        "–" if run.parameters is None else f"{run.parameters:,}",
        f"{len(run.steps):,}",
        *((say_loss(loss.first), say_loss(loss.last)) if loss else ("–", "–")),
        say_loss(loss.best) if loss and loss.best is not None else "–",
        f"{len(run.alerts):,}",
        f"{run.alerts[0].step:,}" if run.alerts else "–",
        f"{loss.moved:,}" if loss and loss.moved is not None else "–",
    ]
    data = (
        tag("td", text(cell), **_alignment(header)) for header, cell in zip(_HEADERS[1:], cells, strict=True)
    )
    return tag("tr", tag("th", draw_swatch(look), text(run.name), scope="row"), *data)


def _loss_tile(loss: LossFindings | None) -> str:
    if loss is None:
        return ""
    label = _OUTCOMES.get(loss.outcome, "Loss, which diverged")
    number = f"{say_loss(loss.first)} → {say_loss(loss.last)}" if loss.count > 1 else say_loss(loss.first)
    note = (
        f"best {say_loss(loss.best)} at step {loss.best_step:,}" if loss.best is not None else "never finite"
    )
    return _tile(label, number, note)


def _alert_tile(run: Run, loss: LossFindings | None) -> str:
    warning = read_first_alert(run, loss)
    if warning is None and not len(run.steps) and not run.grids:
        return ""
    if warning is None:
        return _tile("Alerts", "none", "no rule of the monitor was broken")
    titles = {name: grid.quantity.title for name, grid in run.grids.items()}
    place = name_alert(warning.alert, titles)
    if warning.lead is None:
        after = "the loss did not move"
    elif warning.lead == 0:
        after = "as the loss moved"
    else:
        when = "before" if warning.lead > 0 else "after"
        after = f"{wording.count(abs(warning.lead), 'step')} {when} the loss moved"
    label = f"First of {wording.count(len(run.alerts), 'alert')}" if len(run.alerts) > 1 else "The only alert"
    return _tile(label, f"step {warning.alert.step:,}", f"{place}; {after}")


def _stability_tile(run: Run) -> str:
    found = read_stability(run)
    if found is None:
        return ""
    measured = wording.count(found.count, "measurement")
    note = f"above it in {found.above:,} of {measured}" if found.above else f"never above it in {measured}"
    label = "Highest sharpness, as a multiple of the stability threshold"
    return _tile(label, f"×{wording.number(found.highest)}", f"at step {found.highest_step:,}; {note}")


def _tile(label: str, number: str, note: str) -> str:
    return tag(
        "li",
        tag("span", text(label), class_="label"),
        tag("span", text(number), class_="value"),
        tag("span", text(note), class_="note"),
    )


def _alignment(header: str) -> dict[str, str]:
    return {"class_": "words"} if header in _WORDS else {}
