"""The figures of a fit: the cloud under its envelope, curvature and loss over steps, and the learning rates."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from warmfree.lab.theory import looks, plotting
from warmfree.lab.theory.finding import Drawing, Key, Plot
from warmfree.lab.theory.implied import Comparison
from warmfree.lab.theory.measured import Measured
from warmfree.report.wording import number
from warmfree.theory.fit import SmoothnessFit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_cloud", "draw_rates"]

Floats = NDArray[np.float64]

_POINTS, _ENVELOPE, _USED, _IMPLIED, _LOSS = (looks.line(place) for place in (4, 1, 2, 0, 3))
_MOST_POINTS = 700


def draw_cloud(fit: SmoothnessFit, measured: Measured) -> Drawing:
    """Draw curvature against the gap, coloured by step, under the envelope: the paper's picture."""
    places = (fit.steps - fit.steps[0]) / max(int(fit.steps[-1] - fit.steps[0]), 1)
    smooth = fit.smoothness

    def draw(axes: "Axes") -> None:
        across = np.geomspace(fit.gaps.min(), fit.gaps.max(), 200)
        envelope = smooth.curvature(across)
        plotting.log_axis(axes, "x", plotting.positive(fit.gaps), name="loss minus infimum")
        plotting.log_axis(axes, "y", plotting.positive(fit.curvatures, envelope))
        plotting.cloud(axes, fit.gaps, fit.curvatures, places, most=_MOST_POINTS)
        plotting.curve(axes, across, envelope, _ENVELOPE, marked=False)
        if fit.model == "sum":
            plotting.level(axes, smooth.floor)

    def draw_steps(axes: "Axes") -> None:
        at, envelope = fit.steps.astype(np.float64), smooth.curvature(fit.gaps)
        plotting.log_axis(axes, "y", plotting.positive(fit.curvatures, envelope))
        plotting.curve(axes, at, fit.curvatures, _POINTS, marked=False)
        plotting.curve(axes, at, envelope, _ENVELOPE, marked=False)
        plotting.linear_steps(axes, float(at[-1]))

    law = {
        "sum": f"K0 + K_rho gap^rho with rho = {number(smooth.exponent)}",
        "power": f"K_rho gap^rho with rho = {number(smooth.exponent)}, without a floor",
        "floor": "the floor alone, K0",
    }[fit.model]
    keys = [
        Key(f"steps {fit.steps[0]:,} to {fit.steps[-1]:,}", mark="ramp"),
        Key(f"envelope: {law}", _ENVELOPE, "plain"),
        Key("over steps", _POINTS, "plain"),
    ]
    if fit.model == "sum":
        keys.append(Key(f"floor, K0 = {number(smooth.floor)}", mark="level"))
    thinned = (
        f" Of {len(fit.gaps):,} points {_MOST_POINTS} are drawn." if len(fit.gaps) > _MOST_POINTS else ""
    )
    title = measured.title.capitalize()
    over_steps = (
        f"From {number(float(fit.curvatures[0]))} to {number(float(fit.curvatures[-1]))}, at most "
        f"{number(float(fit.curvatures.max()))}"
    )
    ends = (
        f"Curvature from {number(float(fit.curvatures[0]))} at a gap of {number(float(fit.gaps[0]))}, at the "
        f"first point, to {number(float(fit.curvatures[-1]))} at {number(float(fit.gaps[-1]))}, at the last; "
        f"the envelope goes from {number(float(smooth.curvature(fit.gaps.max())))} at the largest gap to "
        f"{number(float(smooth.curvature(fit.gaps.min())))} at the smallest."
    )
    return Drawing(
        "cloud",
        "Curvature against the loss",
        (
            Plot(f"{title} over the gap (log axes)", ends, draw),
            Plot(f"{title} over steps (log axis)", f"{over_steps}; above it the envelope.", draw_steps),
        ),
        tuple(keys),
        (
            "Each point is one measurement, coloured by its step. If the theory describes the run, points fall "
            "along the envelope from the upper right, where it starts, to the floor at the lower left.",
            f"The loss is that of {measured.loss_of}; the infimum is taken to be {number(fit.f_star)}. The "
            f"envelope is a fit of the {100.0 * fit.quantile:g} % quantile, with weights that are even over the "
            f"logarithm of the gap.{thinned}",
        ),
    )


def draw_rates(fit: SmoothnessFit, measured: Measured, implied: Comparison) -> Drawing:
    """Draw the loss, and the learning rate that the envelope implies on it beside the one that was used."""
    used_steps, used = measured.lr_steps.astype(np.float64), measured.lrs
    at, fractions, own = implied.steps.astype(np.float64), implied.found.fractions, implied.own_rates
    last = float(max(at[-1], used_steps[-1] if len(used_steps) else 0))
    highest = float(used.max()) if len(used) else 0.0
    gaps = _positive_or_nan(measured.loss_curve - fit.f_star)

    def loss(axes: "Axes") -> None:
        plotting.log_axis(axes, "y", plotting.positive(gaps, fit.gaps))
        plotting.curve(axes, measured.loss_steps.astype(np.float64), gaps, _LOSS, marked=False)
        plotting.curve(axes, fit.steps.astype(np.float64), fit.gaps, _POINTS, marked=False)
        plotting.linear_steps(axes, last)

    def shares(axes: "Axes") -> None:
        if highest:
            plotting.curve(axes, used_steps, used / highest, _USED, marked=False)
        plotting.curve(axes, at, fractions, _IMPLIED)
        axes.set_ylim(0.0, 1.05)
        plotting.linear_steps(axes, last)

    def absolute(axes: "Axes") -> None:
        plotting.log_axis(axes, "y", plotting.positive(own, used))
        if len(used):
            plotting.curve(axes, used_steps, _positive_or_nan(used), _USED, marked=False)
        plotting.curve(axes, at, own, _IMPLIED)
        plotting.linear_steps(axes, last)

    was = f"; used: from {number(float(used[0]))} up to {number(highest)}" if len(used) else ""
    plots = [
        Plot(
            "Loss minus infimum (log axis)",
            f"The loss of the points from {number(float(fit.losses[0]))} to {number(float(fit.losses[-1]))}, "
            "and that of training.",
            loss,
        ),
        Plot(
            "Learning rate, fraction of the peak",
            f"Implied: {number(implied.found.start)} at the first step{was}.",
            shares,
        ),
    ]
    units = (
        "The curvature is not as the optimizer's steps see it: only the shape of the implied learning rate, "
        "not its size, can be compared with the one that was used."
    )
    if measured.is_preconditioned and len(own):
        span = f"Implied: from {number(float(own[0]))} to {number(float(own.max()))}{was}."
        plots.append(Plot("Learning rate in the curvature's own units (log axis)", span, absolute))
        units = (
            "In its own units the curvature is 1 / learning rate, as the optimizer's steps see it; momentum "
            "and the choice of c move the implied learning rate as a whole."
        )
    keys = [
        Key("loss of the points", _POINTS, "plain"),
        Key("training loss", _LOSS, "plain"),
        Key(f"learning rate that the envelope implies, c = {number(implied.rule.safety)}", _IMPLIED),
    ]
    if len(used):
        keys.append(Key("learning rate that was used", _USED, "plain"))
    return Drawing(
        "rates",
        "The loss, and the learning rate that it implies",
        tuple(plots),
        tuple(keys),
        (
            "The implied learning rate follows the smallest loss so far, as `LossDriven` does on these "
            "training losses; a decay late in a run has other reasons, and is not implied.",
            units,
        ),
    )


def _positive_or_nan(values: Floats) -> Floats:
    return np.where(values > 0.0, values, np.nan)
