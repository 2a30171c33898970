"""The figures of the speed-up: steps against the initial gap, errors against the number of steps, wrong constants."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from warmfree.lab.theory import looks, plotting
from warmfree.lab.theory.finding import Drawing, Key, Plot
from warmfree.report.style import Style
from warmfree.report.wording import number
from warmfree.theory.speedup import ErrorRow, Errors, GapSteps, Mistakes, PopulationSteps, Speedup
from warmfree.theory.speedup.results import Kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_speedup"]

Floats = NDArray[np.float64]
Line = tuple[str, Style, Floats, Floats]

# A family keeps its looks through the page; others take what is left.
_PLACES = {
    "warmup, c = 0.5": 0,
    "warmup": 0,
    "best that never rises": 1,
    "constant": 1,
    "1/sqrt(t)": 2,
    "best adaptive": 3,
    "Polyak": 3,
    "warmup, c = 1": 4,
    "warmup, noisy gap": 4,
    "1/l": 5,
    "1/t": 6,
    "step drop": 8,
    "linear warmup": 7,
    "geometric warmup": 9,
    "Alimisis": 10,
    "backtracking": 11,
    "clipped": 12,
    "AdaGrad-norm": 13,
}
_KINDS: tuple[tuple[Kind, str], ...] = (
    ("non-increasing", "best that never rises"),
    ("adaptive", "best adaptive"),
)


def draw_speedup(found: Speedup) -> tuple[Drawing, ...]:
    """Draw what there is to draw."""
    drawings = [_draw_steps(found.steps), _draw_families(found.steps)]
    if found.population.rows:
        drawings.append(_draw_population(found.population))
    drawings += [_draw_errors(number_, errors) for number_, errors in enumerate(found.errors) if errors.rows]
    if found.mistakes.rows:
        drawings.append(_draw_mistakes(found.mistakes))
    return tuple(drawings)


def _style(family: str) -> Style:
    return looks.line(_PLACES.get(family, sum(map(ord, family)) % looks.LINES))


def _points(pairs: Sequence[tuple[float, float]]) -> tuple[Floats, Floats]:
    ordered = np.array(sorted(pairs), np.float64).reshape(-1, 2)
    return ordered[:, 0], ordered[:, 1]


def _by_family(steps: GapSteps, kinds: Sequence[Kind]) -> list[Line]:
    families = dict.fromkeys(row.family for row in steps.rows if row.kind in kinds)
    return [
        (
            family,
            _style(family),
            *_points([(row.gap, row.steps) for row in steps.rows if row.family == family and row.steps]),
        )
        for family in families
    ]


def _draw_steps(steps: GapSteps) -> Drawing:
    lines: list[Line] = [
        (name, _style(name), *_points([(row.gap, row.steps) for row in steps.best(kind) if row.steps]))
        for kind, name in _KINDS
    ]
    lines += [
        line
        for line in _by_family(steps, ("warmup",))
        if line[0] in ("warmup, c = 0.5", "linear warmup", "1/l")
    ]
    lines = [line for line in lines if len(line[2])]
    slow = {row.gap: row.steps for row in steps.best("non-increasing") if row.steps}
    ratios: list[Line] = []
    for name, style, across, up in lines:
        if name != "best that never rises":
            pairs = [(gap, slow[gap] / value) for gap, value in zip(across, up, strict=True) if gap in slow]
            if pairs:
                ratios.append((name, style, *_points(pairs)))
    plots = (
        _log_plot("Steps to the target (log axis)", "initial gap", lines, bounds=steps.bounds),
        _log_plot(
            "Times fewer steps than the best that never rises (log axis)", "initial gap", ratios, at=1.0
        ),
    )
    keys = (*_keys(lines), Key("lower bound of schedules below the edge; 1 on the right", mark="level"))
    sentences = (
        f"Gradient descent on 2 (cosh x - 1) + ({number(steps.curvature)}/2) y^2 to a gap of "
        f"{number(steps.target)}. Every family that has parameters is tuned for every initial gap by itself.",
        "A schedule that never rises has to begin below the edge of stability of the wall, and crawls along "
        "the floor; one that follows the gap has only the logarithm of the gap to pay for.",
    )
    return Drawing("steps", "Steps to the target against the initial gap", plots, keys, sentences)


def _draw_families(steps: GapSteps) -> Drawing:
    falling, rising = _by_family(steps, ("non-increasing",)), _by_family(steps, ("warmup", "adaptive"))
    plots = (
        _log_plot("Schedules that never rise: steps (log axis)", "initial gap", falling, bounds=steps.bounds),
        _log_plot("Warmups and adaptive rules: steps (log axis)", "initial gap", rising),
    )
    keys = (*_keys(falling), *_keys(rising), Key("lower bound of schedules below the edge", mark="level"))
    return Drawing("families", "Every family", plots, keys)


def _draw_population(population: PopulationSteps) -> Drawing:
    families = list(dict.fromkeys(row.family for row in population.rows))

    def plot(aim: str, title: str) -> Plot:
        bands = {
            family: sorted(
                (row.gap, row.steps, row.low, row.high)
                for row in population.rows
                if row.family == family and row.aim == aim and row.steps and row.low and row.high
            )
            for family in families
        }
        lines: list[Line] = [
            (family, _style(family), *_points([(gap, steps) for gap, steps, _, _ in rows]))
            for family, rows in bands.items()
            if rows
        ]
        return _log_plot(
            title,
            "nominal initial gap",
            lines,
            bands=[(_style(family), np.array(rows, np.float64)) for family, rows in bands.items() if rows],
        )

    lines: list[Line] = [(family, _style(family), np.zeros(0), np.zeros(0)) for family in families]
    return Drawing(
        "population",
        "One schedule for a population of functions",
        (
            plot("all", "Steps until all functions are at the target (log axis)"),
            plot("median", "Steps until half of them are (log axis)"),
        ),
        _keys(lines),
        (
            f"The schedule is chosen first, and has to bring {population.instances} functions to a gap of "
            f"{number(population.target)}: no landing by luck helps it. Bands are 95 % intervals over resampled "
            "populations, tuned anew for each.",
        ),
    )


def _draw_errors(place: int, errors: Errors) -> Drawing:
    families = dict.fromkeys(row.family for row in errors.rows)
    rows = {
        family: sorted((row for row in errors.rows if row.family == family), key=_steps_of)
        for family in families
    }
    lines: list[Line] = [
        (family, _style(family), *_points([(row.steps, row.error) for row in found]))
        for family, found in rows.items()
    ]
    bands = [
        (_style(family), np.array([(row.steps, row.error, row.low, row.high) for row in found], np.float64))
        for family, found in rows.items()
    ]
    across, ratios = _points(errors.ratios)
    ratio: list[Line] = [
        ("best that never rises over warmup", _style("best that never rises"), across, ratios)
    ]
    known = [law for law in errors.laws if "ratio" in law.quantity and law.predicted is not None]
    exponent, logs = (known[0].predicted, known[0].logs) if known else (None, 0.0)
    noise = "exact gradients" if errors.noise == "none" else f"{errors.noise} noise"
    plots = [_log_plot(f"Error after T steps, {noise} (log axis)", "T", lines, bands=bands)]
    if len(across):
        plots.append(
            _log_plot(
                "Error of the best that never rises over that of the warmup (log axis)",
                "T",
                ratio,
                slope=exponent,
                logs=logs,
            )
        )
    keys = list(_keys(lines))
    if exponent is not None:
        form = "T" if exponent == 1 else f"T^{exponent:g}"
        form += "" if not logs else " / ln(T)" if logs == 1 else f" / ln(T)^{logs:g}"
        keys.append(Key(f"on the right: {form}, the theory's slope", mark="level"))
    spread = (
        ""
        if errors.noise == "none"
        else (
            f" Means over {errors.seeds} seeds that were not tuned on; bands are 95 % intervals over resampled seeds."
        )
    )
    said = (
        "The initial gap of the wall grows in proportion to T. Every family is tuned for its worst slope of "
        f"the floor, which it then meets.{spread}",
    )
    title = "Error after T steps from a gap in proportion to T"
    return Drawing(f"errors-{place}", f"{title}: {noise}", tuple(plots), tuple(keys), said)


def _draw_mistakes(mistakes: Mistakes) -> Drawing:
    gaps = sorted({row.gap for row in mistakes.rows})

    def lines(what: str) -> list[Line]:
        found: list[Line] = []
        for place, gap in enumerate(gaps):
            rows = [row for row in mistakes.rows if (row.what, row.gap) == (what, gap)]
            if any(row.steps for row in rows):
                pairs = [(row.amount, math.nan if row.steps is None else float(row.steps)) for row in rows]
                found.append((f"gap {number(gap)}", looks.line(place), *_points(pairs)))
        return found

    moved = lines("f_star")

    def draw_moved(axes: "Axes") -> None:
        plotting.signed_log_axis(axes, np.concatenate([across for _, _, across, _ in moved]), name="moved by")
        plotting.log_axis(axes, "y", plotting.positive(*(up for _, _, _, up in moved)))
        for _, style, across, up in moved:
            plotting.curve(axes, across, up, style)

    plots = [
        _log_plot("Steps to the target, learning rate times a factor (log axes)", "factor", lines("step"))
    ]
    if moved:
        title = "Steps to the target, infimum moved (log axes)"
        plots.append(Plot(title, _describe("moved by", moved), draw_moved))
    keys = tuple(Key(f"initial gap {number(gap)}", looks.line(place)) for place, gap in enumerate(gaps))
    said = (
        f"Only what came to a gap of {number(mistakes.target)} within {mistakes.limit:,} steps is drawn. An "
        "infimum that is taken too low, left of 0, makes the gap seem larger and the steps smaller; one that "
        "is too high, right of 0, makes the gap seem smaller, or 0.",
    )
    return Drawing("mistakes", "How wrong the constants may be", tuple(plots), keys, said)


def _log_plot(
    title: str,
    axis: str,
    lines: Sequence[Line],
    *,
    bounds: Sequence[tuple[float, float]] = (),
    bands: Sequence[tuple[Style, Floats]] = (),
    at: float | None = None,
    slope: float | None = None,
    logs: float = 0.0,
) -> Plot:
    """A plot on two log axes.

    `bands` hold rows of place, value, low, high; `slope` draws a curve of that power over one of the logarithm.
    """

    def draw(axes: "Axes") -> None:
        limits = [np.array(bounds, np.float64).reshape(-1, 2)]
        across = plotting.positive(*(line[2] for line in lines), limits[0][:, 0])
        up = plotting.positive(
            *(line[3] for line in lines),
            limits[0][:, 1],
            *(rows[:, 2:].ravel() for _, rows in bands),
            [at] if at else [],
        )
        plotting.log_axis(axes, "x", across, name=axis)
        plotting.log_axis(axes, "y", up)
        if len(limits[0]):
            plotting.dotted(axes, limits[0][:, 0], limits[0][:, 1])
        if at is not None:
            plotting.level(axes, at)
        if slope is not None and lines and len(lines[0][2]) > 1:
            places, values = lines[0][2], lines[0][3]
            shape = places**slope / np.log(places) ** logs
            plotting.dotted(axes, places, shape * np.exp(np.mean(np.log(values) - np.log(shape))))
        for style, rows in bands:
            plotting.band(axes, rows[:, 0], rows[:, 2], rows[:, 3], style)
        for _, style, places, values in lines:
            plotting.curve(axes, places, values, style)

    return Plot(title, _describe(axis, lines), draw)


def _describe(axis: str, lines: Sequence[Line]) -> str:
    ends = []
    for name, _, places, values in lines:
        there = np.isfinite(values)
        if there.any():
            across, up = places[there], values[there]
            ends.append(
                f"{name} from {number(float(up[0]))} at {number(float(across[0]))} to {number(float(up[-1]))} at "
                f"{number(float(across[-1]))}"
            )
    return f"Over {axis}: {'; '.join(ends) or 'nothing came there'}."


def _keys(lines: Sequence[Line]) -> tuple[Key, ...]:
    return tuple(Key(name, style) for name, style, _, _ in lines)


def _steps_of(row: ErrorRow) -> int:
    return row.steps
