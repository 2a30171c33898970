"""How far the run was from the stability threshold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from warmfree.report import wording
from warmfree.report.markup import prose, tag
from warmfree.report.runs.axis import Axis
from warmfree.report.runs.chart import Frame, Line, write_chart, write_legend
from warmfree.report.runs.findings import INSTABILITY, read_stability, whole_model
from warmfree.report.runs.run import Run
from warmfree.report.runs.thin import thin

SERIES = "stability"
_READING = (
    "Drawn is the largest curvature that the optimizer sees, divided by the threshold above which its steps "
    "overshoot: below the line at 1 steps are stable along the sharpest direction, above it they grow."
)
_CAVEATS = (
    "Early steps may be unstable well below 1: Adam's bias correction amplifies the first updates, so that at the "
    "first step the limit is about half of the threshold drawn (20 instead of 38 over the learning rate at a momentum "
    "of 0.9). A value below 1 in the first tens of steps is no proof of stability.",
    "The threshold is that of full-batch training. With mini-batches the true limit is lower, and the curvature "
    "of one batch is itself uncertain. Staying near 1 for long is normal; what matters is a jump well above it.",
)


def write_stability(runs: Sequence[Run]) -> tuple[str, list[Line]]:
    """Draw the distance to the threshold of all `runs`; say so when it was not measured."""
    x = Axis.of_steps(max(run.last_step for run in runs), is_log=False)
    lines = []
    for look, run in enumerate(runs):
        curve = whole_model(run.grids.get(INSTABILITY))
        if curve is not None and len(curve[0]):
            kept = thin(*curve, (x,))
            lines.append(Line(run.name, look, curve[0][kept], curve[1][kept]))
    if not lines:
        return tag(
            "p", "The distance to the stability threshold was not measured in this record.", class_="notes"
        ), []
    values = np.concatenate([line.values for line in lines])
    frame = Frame(x, Axis.around(values, is_log=True, at_least=(0.5, 2.0)))
    legend = write_legend((line.look, line.name) for line in lines) if len(runs) > 1 else ""
    chart = write_chart("stability-chart", _describe(runs), frame, lines, series=SERIES, level=1.0)
    caption = tag("figcaption", *(tag("p", prose(sentence)) for sentence in (_READING, *_CAVEATS)))
    return tag("figure", legend, chart, caption), lines


def _describe(runs: Sequence[Run]) -> str:
    parts = []
    for run in runs:
        found = read_stability(run)
        if found is not None:
            above = f"above 1 in {found.above:,} of {wording.count(found.count, 'measurement')}"
            parts.append(
                f"{run.name}: at most {wording.number(found.highest)} at step {found.highest_step:,}, {above}"
            )
    return f"Sharpness divided by the stability threshold, over steps. {'; '.join(parts)}."
