"""The figures and the table of a descent."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from warmfree.lab.theory import looks, plotting
from warmfree.lab.theory.finding import Drawing, Key, Plot, Table
from warmfree.lab.theory.landscape import draw_contours, draw_curve
from warmfree.lab.theory.rules import Chosen, Descent
from warmfree.report.wording import number, short
from warmfree.theory.path import Path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Runs", "landscape", "over_steps", "place", "rules_table", "steps_to"]

Floats = NDArray[np.float64]
Runs = Sequence[tuple[Chosen, Path]]

_DEPTH = 1e-15  # of the first gap: rounding has the word below
_EDGE = 2.0


def place(point: Floats) -> str:
    """Write a point.

    Example:
        >>> place(np.array([6.0, 0.5]))
        '(6, 0.5)'
    """
    return f"({', '.join(f'{value:g}' for value in point)})"


def steps_to(path: Path, gap: float) -> str:
    """Write how many steps a path took to a gap."""
    steps = path.steps_to(gap)[0]
    return "not reached" if np.isnan(steps) else f"{steps:,.0f}"


def landscape(descent: Descent, runs: Runs) -> Drawing:
    """Draw the paths on the function, where two dimensions do, and how sharp it is where they go."""
    function = descent.function
    paths = [(path.points[:, 0], looks.line(index)) for index, (_, path) in enumerate(runs)]
    ends = "; ".join(f"{chosen.label} ends at {place(path.points[-1, 0].round(6))}" for chosen, path in runs)
    begin = place(descent.start)
    plots, sentences = [], []
    if function.dimension == 2:
        plots.append(
            Plot(
                "Second coordinate over the first, with lines of equal gap",
                f"Contours of the {function.name} with paths from {begin}; {ends}.",
                lambda axes: draw_contours(axes, function, paths),
            )
        )
        cross = ", the cross the minimum" if function.minimiser is not None else ""
        sentences.append(
            f"Lines join points of equal gap, evenly apart in its logarithm; the ring is the start{cross}. Long "
            "paths are thinned to 400 points, and those that run away leave the frame."
        )
    elif function.dimension == 1:
        plots.append(
            Plot(
                "Gap over the coordinate (log axis)",
                f"The gap of the {function.name} with the points of paths from {begin}; {ends}.",
                lambda axes: draw_curve(axes, function, paths),
            )
        )
        sentences.append("Marks are where the steps landed; long paths are thinned to 400 points.")
    plots.append(_stability(descent, runs))
    sentences.append(
        "Learning rate times curvature, the spectral norm of the Hessian, is how close a step is to the edge: "
        "beyond 2, the dotted line, steps along the sharpest direction grow instead of shrink."
    )
    keys = (*_keys(runs), Key("edge of stability, 2", mark="level"))
    return Drawing("landscape", "The way down", tuple(plots), keys, tuple(sentences))


def over_steps(descent: Descent, runs: Runs) -> Drawing:
    """Draw gap and learning rate over steps."""
    first_gap = float(descent.function.gap(descent.start))

    def gaps(axes: "Axes") -> None:
        seen = plotting.positive(*(path.gaps for _, path in runs))
        lowest = max(float(seen.min()), _DEPTH * first_gap)
        plotting.log_axis(axes, "y", np.clip(seen, lowest, 1e6 * first_gap))
        for index, (_, path) in enumerate(runs):
            plotting.curve(
                axes, np.arange(descent.steps + 1.0), _drawable(path.gaps[:, 0]), looks.line(index)
            )
        plotting.linear_steps(axes, descent.steps)

    def rates(axes: "Axes") -> None:
        plotting.log_axis(axes, "y", plotting.positive(*(path.learning_rates for _, path in runs)))
        for index, (_, path) in enumerate(runs):
            values = _drawable(path.learning_rates[:, 0])
            plotting.curve(axes, np.arange(float(descent.steps)), values, looks.line(index))
        plotting.linear_steps(axes, descent.steps)

    ends = "; ".join(f"{chosen.label} to {number(float(path.gaps[-1, 0]))}" for chosen, path in runs)
    peaks = "; ".join(
        f"{chosen.label} up to {number(float(path.learning_rates.max()))}" for chosen, path in runs
    )
    return Drawing(
        "over-steps",
        "Gap and learning rate",
        (
            Plot("Gap to the infimum (log axis)", f"Gap over steps: {ends}.", gaps),
            Plot("Learning rate (log axis)", f"Learning rate over steps: {peaks}.", rates),
        ),
        _keys(runs),
        (
            f"Gaps below {number(_DEPTH)} of the first are not drawn. A line ends where its run diverged, or "
            "where the gap or the learning rate is 0 in floating point.",
        ),
    )


def rules_table(runs: Runs, *, target: float) -> Table:
    """Lay out what each rule came to, and where its learning rate is from."""
    rows = []
    for chosen, path in runs:
        rates = plotting.positive(path.learning_rates[:, 0])
        span = (short(float(rates[0])), short(float(rates.max()))) if rates.size else ("-", "-")
        rows.append(
            (
                chosen.label,
                *span,
                steps_to(path, target),
                number(float(path.gaps[:, 0].min())),
                "diverged" if path.diverged[0] else number(float(path.gaps[-1, 0])),
                chosen.how,
            )
        )
    return Table(
        "rules",
        "Step rules",
        "What each step rule came to",
        (
            "rule",
            "first lr",
            "largest lr",
            "steps to 1/1000",
            "lowest gap",
            "gap at the end",
            "learning rate from",
        ),
        tuple(rows),
        words=frozenset({"learning rate from"}),
        page_only=frozenset({"lowest gap", "learning rate from"}),
    )


def _stability(descent: Descent, runs: Runs) -> Plot:
    products = [path.learning_rates[:, 0] * path.curvatures[:-1, 0] for _, path in runs]

    def draw(axes: "Axes") -> None:
        plotting.log_axis(axes, "y", np.clip(plotting.positive(*products, [_EDGE]), 1e-6, 1e6))
        plotting.level(axes, _EDGE)
        for index, values in enumerate(products):
            plotting.curve(axes, np.arange(float(descent.steps)), _drawable(values), looks.line(index))
        plotting.linear_steps(axes, descent.steps)

    most = "; ".join(
        f"{chosen.label} at most {number(float(values.max()))}"
        for (chosen, _), values in zip(runs, products, strict=True)
    )
    return Plot("Learning rate times curvature (log axis)", f"Over steps: {most}. Dotted at 2.", draw)


def _keys(runs: Runs) -> tuple[Key, ...]:
    return tuple(Key(chosen.label, looks.line(index)) for index, (chosen, _) in enumerate(runs))


def _drawable(values: Floats) -> Floats:
    return np.where(values > 0.0, values, np.nan)
