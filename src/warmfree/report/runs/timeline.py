"""The loss over the run, with alerts as marks above it and the learning rate as a band below."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from warmfree.report import wording
from warmfree.report.markup import prose, tag, text
from warmfree.report.runs.alerts import draw_shape
from warmfree.report.runs.axis import Axis
from warmfree.report.runs.chart import (
    Frame,
    Line,
    draw_path,
    percent_of,
    write_chart,
    write_legend,
    write_svg,
)
from warmfree.report.runs.findings import FLOOR, NOISE, RISE, WINDOW, read_loss
from warmfree.report.runs.run import Alert, Floats, Ints, Run
from warmfree.report.runs.summary import name_alert
from warmfree.report.runs.thin import thin

# From this ratio of the largest to the smallest loss on, a linear axis would hide the smaller half of the story.
_LOG_FROM = 25.0
_MARKS = 26
_CAPTION = (
    f"Dotted: where the loss first moved, if it did. It moved where its median over {WINDOW} steps exceeds its "
    f"smallest value so far by {100 * RISE:.0f} % of the drop up to there, by {100 * FLOOR:.0f} % of that value and "
    f"by {NOISE:.0f} times the noise of single losses, all three, or where a loss is not finite."
)


def write_timeline(runs: Sequence[Run]) -> tuple[str, dict[str, list[Line]]]:
    """Draw the timeline of all `runs`, twice: over linear and logarithmic steps.

    Returns:
        The section's content, and the lines by the name of their series.
    """
    last = max(run.last_step for run in runs)
    axes = tuple(Axis.of_steps(last, is_log=is_log) for is_log in (False, True))
    losses = [_thinned(run.name, look, *run.loss_curve, axes) for look, run in enumerate(runs)]
    losses = [line for line in losses if len(line.steps)]
    lrs = [_thinned(run.name, look, *run.lr_curve, axes) for look, run in enumerate(runs)]
    lrs = [line for line in lrs if len(line.steps)]
    if not losses and not lrs and not any(run.alerts for run in runs):
        return tag("p", "No loss and no learning rate was recorded.", class_="notes"), {}
    charts = [_write_one(runs, losses, lrs, axis) for axis in axes]
    legend = write_legend(enumerate(run.name for run in runs)) if len(runs) > 1 else ""
    content = tag("div", _switch(), *charts, class_="timeline")
    caption = tag("figcaption", tag("p", prose(_CAPTION)), *_remarks(losses))
    return tag("figure", legend, content, caption), {"loss": losses, "lr": lrs}


def _write_one(runs: Sequence[Run], losses: list[Line], lrs: list[Line], x: Axis) -> str:
    values = np.concatenate([line.values for line in losses]) if losses else np.zeros(0)
    finite = values[np.isfinite(values)]
    is_log = len(finite) > 0 and finite.min() > 0 and finite.max() > _LOG_FROM * finite.min()
    name = "log" if x.kind == "steps" else "linear"
    return write_chart(
        f"loss-{name}",
        _describe(losses),
        Frame(x, Axis.around(values, is_log=bool(is_log))),
        losses,
        series="loss",
        marks=[
            (look, found.moved)
            for look, run in enumerate(runs)
            if (found := read_loss(run)) is not None and found.moved is not None
        ],
        above="".join(_lane(run, look, x, len(runs)) for look, run in enumerate(runs) if run.alerts),
        below=_band(lrs, x),
        class_=f"tall over-{name}",
    )


def _switch() -> str:
    """Radio buttons that work without a script: the chart that is not chosen is hidden by the style sheet."""
    linear = tag(
        "input", type="radio", name="x", id="x-linear", value="linear", checked="checked", autocomplete="off"
    )
    log = tag("input", type="radio", name="x", id="x-log", value="log", autocomplete="off")
    labels = tag("label", "linear", for_="x-linear"), tag("label", "logarithmic", for_="x-log")
    return tag(
        "div",
        tag("span", "Steps: "),
        linear,
        labels[0],
        log,
        labels[1],
        class_="switch",
        role="group",
        aria_label="Axis of steps",
    )


def _thinned(name: str, look: int, steps: Ints, values: Floats, axes: tuple[Axis, ...]) -> Line:
    kept = thin(steps, values, axes)
    return Line(name, look, steps[kept], values[kept])


def _lane(run: Run, look: int, x: Axis, num_runs: int) -> str:
    """The alerts of one run in a row; what would lie on one another becomes one mark with a count."""
    groups: dict[tuple[int, bool], list[Alert]] = {}
    for alert in run.alerts:
        slot = int(float(x.place(np.array([alert.step], np.float64))[0]) * _MARKS)
        groups.setdefault((slot, alert.is_critical), []).append(alert)
    titles = {name: grid.quantity.title for name, grid in run.grids.items()}
    marks = [
        _mark(group, look, x, titles) for group in sorted(groups.values(), key=lambda group: group[0].step)
    ]
    label = tag(
        "div",
        tag("bdi", text(run.name)),
        class_="lane-label",
        style=f"color:var(--run-{look})",
        title=run.name,
    )
    if num_runs == 1:
        label = tag("div", "alerts", class_="lane-label")
    return label + tag("div", *marks, class_="lane")


def _mark(group: list[Alert], look: int, x: Axis, titles: dict[str, str]) -> str:
    first = group[0]
    at = float(x.place(np.array([first.step], np.float64))[0])
    lines = [f"Step {alert.step:,}: {alert.message} ({name_alert(alert, titles)})" for alert in group[:4]]
    if len(group) > 4:
        lines.append(f"and {wording.count(len(group) - 4, 'more alert')}")
    kind = "critical" if first.is_critical else "warning"
    tip = tag("span", *(tag("span", text(line)) for line in lines), class_="tip", role="tooltip")
    count = tag("b", str(len(group))) if len(group) > 1 else ""
    side = "left" if at < 0.5 else "right"
    return tag(
        "a",
        draw_shape(is_critical=first.is_critical),
        count,
        tip,
        class_=f"mark {kind} tip-{side}",
        href=f"#alerts-{look}",
        style=f"left:{percent_of(x, first.step)}",
        aria_label=f"{kind}: {' '.join(lines)}",
    )


def _band(lrs: list[Line], x: Axis) -> str:
    if not lrs:
        return ""
    peak = max(float(line.values.max()) for line in lrs)
    frame = Frame(x, Axis(0.0, 1.08 * peak if peak > 0 else 1.0))
    drawn = [
        tag("path", class_=f"line run-{line.look}", d=draw_path(line.steps, line.values, frame))
        for line in lrs
    ]
    label = f"Learning rate over steps, at most {wording.number(peak)}"
    top = tag("span", text(wording.short(peak)) if peak > 0 else "0")
    return tag("div", top, tag("span", "lr"), class_="band-label") + tag(
        "div", write_svg(label, drawn), class_="band"
    )


def _describe(losses: list[Line]) -> str:
    parts = (
        f"{line.name} goes from {wording.number(line.values[0])} at step {line.steps[0]:,} "
        f"to {wording.number(line.values[-1])} at step {line.steps[-1]:,}"
        for line in losses
    )
    return f"Loss over steps. {'; '.join(parts)}." if losses else "No loss was recorded."


def _remarks(losses: list[Line]) -> list[str]:
    if any(not np.isfinite(line.values).all() for line in losses):
        return [tag("p", "Shaded: the loss is not finite.")]
    return [] if losses else [tag("p", "No loss was recorded.")]
