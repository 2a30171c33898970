"""The alerts of a run in full: every one with its place, its number, and when it cleared."""

from __future__ import annotations

from warmfree.report import wording
from warmfree.report.markup import tag, text
from warmfree.report.runs.run import Alert, Run

_MOST = 200
_HEADERS = ("Step", "Severity", "Layer", "Quantity", "Value", "Threshold", "Cleared at", "What it says")
_WORDS = frozenset({"Severity", "Layer", "Quantity", "What it says"})


def write_alerts(run: Run, look: int, *, is_only: bool) -> str:
    """Write the table of a run's alerts, or that there was none.

    Args:
        run: the run.
        look: its number on the page, for links to the table.
        is_only: whether it is the page's only run, which then need not be named.
    """
    of_run = "" if is_only else f" of {run.name}"
    if not run.alerts:
        return tag("p", text(f"No alert{of_run} was raised."), class_="notes", id=f"alerts-{look}")
    titles = {name: grid.quantity.title for name, grid in run.grids.items()}
    # With too many to list the critical ones stay.
    shown = sorted(
        sorted(run.alerts, key=lambda alert: not alert.is_critical)[:_MOST], key=lambda alert: alert.step
    )
    left_out = len(run.alerts) - len(shown)
    caption = f"{wording.count(len(run.alerts), 'alert')}{of_run}" + (
        f"; {wording.count(left_out, 'warning')} left out here" if left_out else ""
    )
    heads = (tag("th", text(header), scope="col", **_alignment(header)) for header in _HEADERS)
    table = tag(
        "table",
        tag("caption", tag("span", text(caption))),
        tag("thead", tag("tr", *heads)),
        tag("tbody", *(_row(alert, titles) for alert in shown)),
    )
    return tag(
        "div",
        table,
        class_="scroll alerts",
        tabindex="0",
        role="region",
        aria_label=caption,
        id=f"alerts-{look}",
    )


def draw_shape(*, is_critical: bool) -> str:
    """The mark of an alert: a filled diamond when critical, a hollow triangle for a warning."""
    path = "M8 1 15 8 8 15 1 8Z" if is_critical else "M8 2.5 14.5 13.5H1.5Z"
    kind = "critical" if is_critical else "warning"
    return f'<svg class="shape {kind}" viewBox="0 0 16 16" aria-hidden="true"><path d="{path}"/></svg>'


def write_notices(run: Run) -> str:
    """Write what the monitor said about itself; an empty string when it said nothing."""
    if not run.notices:
        return ""
    shown = run.notices[:50]
    entries = [
        tag(
            "li",
            text(f"Step {notice.step:,}: {notice.message}" if notice.step is not None else notice.message),
        )
        for notice in shown
    ]
    if len(run.notices) > len(shown):
        entries.append(tag("li", text(f"and {wording.count(len(run.notices) - len(shown), 'more notice')}")))
    return tag(
        "div",
        tag("h3", text(f"Notices of the monitor: {run.name}")),
        tag("ul", *entries, class_="sentences"),
        class_="notices",
    )


def _row(alert: Alert, titles: dict[str, str]) -> str:
    quantity = titles.get(alert.quantity) or alert.quantity.replace("_", " ")
    severity = draw_shape(is_critical=alert.is_critical) + ("critical" if alert.is_critical else "warning")
    cells = (
        severity,
        text(alert.row.label),
        text(quantity),
        _number(alert.value),
        _number(alert.threshold),
        "–" if alert.cleared is None else f"{alert.cleared:,}",
        text(alert.message),
    )
    data = (tag("td", cell, **_alignment(header)) for header, cell in zip(_HEADERS[1:], cells, strict=True))
    return tag("tr", tag("th", f"{alert.step:,}", scope="row"), *data)


def _number(value: float | None) -> str:
    return "–" if value is None else text(wording.number(value))


def _alignment(header: str) -> dict[str, str]:
    return {"class_": "words"} if header in _WORDS else {}
