"""The search as a figure file."""

import math
from pathlib import Path

from warmfree.lab.advise.curve import Curve
from warmfree.report.axes import label_log_axis
from warmfree.report.wording import number, short

__all__ = ["ENDINGS", "check_figure_file", "write_figure"]

ENDINGS = (".svg", ".png", ".pdf")
_LOG_FROM = 3.0
_CRITICAL, _TARGET = "#007a5a", "#a8437f"


def check_figure_file(file: Path) -> None:
    """Refuse a file that could not be written after all the work.

    Raises:
        ValueError: its ending is not known, or it is a folder.
    """
    if file.suffix.lower() not in ENDINGS:
        raise ValueError(f"the plot's file must end in {', '.join(ENDINGS)}, got {str(file)!r}")
    if file.is_dir():
        raise ValueError(f"the plot's file is a folder: {file}")


def write_figure(curve: Curve, title: str, file: Path) -> None:
    """Draw the loss after a trial step over its learning rate, both on log axes.

    Args:
        curve: what to draw.
        title: above it.
        file: where to; its folder is made when missing.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    low, high = curve.losses
    # Text as text, in a font that every reader has; a fixed salt makes the ids, and so the file, the same every time.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "warmfree", "font.size": 10}):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.subplots()
        for line in curve.lines:
            lrs = [lr for lr, _ in line]
            losses = [min(loss, high) if math.isfinite(loss) else high for _, loss in line]
            axes.plot(lrs, losses, color="#0068a8", marker="o", markersize=4, linewidth=1.5)
            above = [lr for lr, loss in line if not loss < high]
            axes.plot(above, [high] * len(above), color="#0068a8", marker="^", linestyle="", clip_on=False)
        axes.axhline(curve.before, color="0.5", linestyle=":", linewidth=1, label="before the step")
        if curve.critical is not None:
            axes.axvline(curve.critical, color=_CRITICAL, label=f"critical {short(curve.critical)}")
        if curve.target > 0:
            axes.axvline(curve.target, color=_TARGET, linestyle="--", label=f"target {short(curve.target)}")
        axes.set(xscale="log", xlim=curve.lrs, ylim=(low, high), xlabel="learning rate", ylabel=curve.label)
        label_log_axis(axes.xaxis, *curve.lrs, short)
        if (
            curve.is_log and high > _LOG_FROM * low
        ):  # a shorter log axis is straight, and has no round numbers
            axes.set_yscale("log")
            label_log_axis(axes.yaxis, low, high, number)
        axes.set_title(title, fontsize=10, loc="left")
        axes.legend(fontsize=9, frameon=False)
        file.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"Date": None} if file.suffix.lower() == ".svg" else None
        figure.savefig(file, dpi=150, metadata=metadata)
