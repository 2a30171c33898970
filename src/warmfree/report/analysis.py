"""The numbers of a comparison, computed once for the table, the page and the verdict.

Definitions, the same everywhere:

- A learning rate's loss is the **mean over seeds** of the final validation loss. A learning rate at which any
  seed diverged counts as diverged: its loss is infinite, however good the other seeds were.
- A method's **best learning rate** is the one with the smallest loss (the smaller one of equals).
- The **spread** is the sample standard deviation over seeds (n - 1); with one seed there is none.
- The **robust range** is the unbroken run of tested learning rates around the best one whose loss is within 5
  % of the method's own best. It is open at an end where it reaches the end of the grid.
- A difference of two methods is **resolved** if it exceeds the root of the sum of their squared spreads.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from warmfree.report.results import Cell, Comparison, Method, parse

TOLERANCE = 0.05
WITHOUT_WARMUP = "adamw"
WITH_WARMUP = "adamw-warmup"


@dataclass(frozen=True, slots=True)
class Point:
    """A method at one learning rate, over all seeds that ran."""

    lr: float
    cells: tuple[Cell, ...]

    @property
    def losses(self) -> tuple[float, ...]:
        """Final validation losses of the seeds that finished."""
        return tuple(cell.loss for cell in self.cells if cell.finished and cell.loss is not None)

    @property
    def num_diverged(self) -> int:
        """How many seeds diverged."""
        return sum(not cell.finished for cell in self.cells)

    @property
    def mean(self) -> float:
        """Mean over seeds; infinite when any seed diverged."""
        return math.inf if self.num_diverged else statistics.fmean(self.losses)

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None with fewer than two."""
        return statistics.stdev(self.losses) if len(self.losses) > 1 else None


@dataclass(frozen=True, slots=True)
class RobustRange:
    """The learning rates around the best one that lose at most 5 % to it."""

    low: float
    high: float
    open_below: bool
    open_above: bool

    @property
    def width(self) -> float:
        """Its width as a factor, `high / low`."""
        return self.high / self.low

    @property
    def is_bound(self) -> bool:
        """Whether the grid ended before the range did, so that the width is a lower bound."""
        return self.open_below or self.open_above


@dataclass(frozen=True, slots=True)
class Summary:
    """What one method reached. `best`, `gap` and `robust` are None when no learning rate finished."""

    method: Method
    points: tuple[Point, ...]
    best: Point | None
    gap: float | None
    robust: RobustRange | None
    edge: Literal["lowest", "highest", "only"] | None

    @property
    def num_cells(self) -> int:
        """How many cells have a result."""
        return sum(len(point.cells) for point in self.points)

    @property
    def num_diverged(self) -> int:
        """How many cells diverged."""
        return sum(point.num_diverged for point in self.points)


@dataclass(frozen=True, slots=True)
class Contrast:
    """How much higher one method's best loss is than another's, as a fraction of the other's."""

    of: Summary
    against: Summary
    relative: float
    spread: float | None

    @property
    def resolved(self) -> bool | None:
        """Whether the difference exceeds the spread over seeds; None when the spread is unknown."""
        return None if self.spread is None else abs(self.relative) > self.spread


@dataclass(frozen=True, slots=True)
class Analysis:
    """Every number that the report states."""

    comparison: Comparison
    methods: tuple[Summary, ...]
    seeds: tuple[int, ...]
    num_missing: int
    best: Summary | None
    best_warmup_free: Summary | None
    removal: Contrast | None
    warmup_free: Contrast | None

    def find(self, name: str) -> Summary | None:
        """The method of that name, or None when it was not compared."""
        return next((summary for summary in self.methods if summary.method.name == name), None)

    @property
    def ranked(self) -> tuple[Summary, ...]:
        """The methods, best first; those without a best learning rate last, in their own order."""
        return tuple(sorted(self.methods, key=_best_loss))


def analyze(results: Mapping[str, Any]) -> Analysis:
    """Compute every number of the report.

    Args:
        results: the parsed `results.json` of `warmfree compare`.

    Raises:
        ValueError: `results` is not such a file; see `warmfree.report.results.parse`.
    """
    comparison = parse(results)
    seeds = tuple(sorted({cell.seed for cell in comparison.cells}))
    summaries = [_summarize(method, comparison.cells) for method in comparison.methods]
    best = min(summaries, key=_best_loss)
    floor = best.best.mean if best.best else None
    methods = tuple(_with_gap(summary, floor) for summary in summaries)
    by_name = {summary.method.name: summary for summary in methods}
    free = min(
        (summary for summary in methods if summary.method.kind == "warmup-free" and summary.best),
        key=_best_loss,
        default=None,
    )
    planned = {
        (method.name, lr, seed)
        for method in comparison.methods
        for lr in method.lrs
        for seed in seeds or (0,)
    }
    return Analysis(
        comparison=comparison,
        methods=methods,
        seeds=seeds,
        num_missing=len(planned - {(cell.method, cell.lr, cell.seed) for cell in comparison.cells}),
        best=by_name[best.method.name] if best.best else None,
        best_warmup_free=free,
        removal=contrast(by_name.get(WITHOUT_WARMUP), by_name.get(WITH_WARMUP)),
        warmup_free=contrast(free, by_name.get(WITH_WARMUP)),
    )


def contrast(of: Summary | None, against: Summary | None) -> Contrast | None:
    """Compare two methods, each at its own best learning rate; None when either has none."""
    if of is None or against is None or of.best is None or against.best is None:
        return None
    reference = against.best.mean
    spreads = (of.best.spread, against.best.spread)
    combined = None
    if spreads[0] is not None and spreads[1] is not None:
        combined = math.hypot(spreads[0], spreads[1]) / reference
    return Contrast(of, against, relative=of.best.mean / reference - 1, spread=combined)


def _best_loss(summary: Summary) -> float:
    return summary.best.mean if summary.best else math.inf


def _summarize(method: Method, cells: Sequence[Cell]) -> Summary:
    by_lr: dict[float, list[Cell]] = {}
    for cell in cells:
        if cell.method == method.name:
            by_lr.setdefault(cell.lr, []).append(cell)
    points = tuple(Point(lr, tuple(sorted(by_lr[lr], key=lambda cell: cell.seed))) for lr in sorted(by_lr))
    finished = [index for index, point in enumerate(points) if math.isfinite(point.mean)]
    if not finished:
        return Summary(method, points, best=None, gap=None, robust=None, edge=None)
    best = min(finished, key=lambda index: points[index].mean)
    return Summary(
        method,
        points,
        best=points[best],
        gap=None,
        robust=_robust_range(points, best),
        edge=_edge(best, len(points)),
    )


def _robust_range(points: Sequence[Point], best: int) -> RobustRange:
    limit = (1 + TOLERANCE) * points[best].mean
    low = high = best
    while low > 0 and points[low - 1].mean <= limit:
        low -= 1
    while high < len(points) - 1 and points[high + 1].mean <= limit:
        high += 1
    return RobustRange(
        points[low].lr, points[high].lr, open_below=low == 0, open_above=high == len(points) - 1
    )


def _edge(best: int, num_points: int) -> Literal["lowest", "highest", "only"] | None:
    if num_points == 1:
        return "only"
    if best == 0:
        return "lowest"
    return "highest" if best == num_points - 1 else None


def _with_gap(summary: Summary, floor: float | None) -> Summary:
    gap = summary.best.mean / floor - 1 if summary.best and floor else None
    return Summary(summary.method, summary.points, summary.best, gap, summary.robust, summary.edge)
