"""What the theory's bounds say of a path, beside what the path did."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from warmfree.lab.theory.finding import Table
from warmfree.lab.theory.rules import Chosen
from warmfree.report.wording import count, number
from warmfree.theory.bounds import check_bounds
from warmfree.theory.evaluation import Evaluation
from warmfree.theory.path import Path

__all__ = ["bounds_data", "bounds_table", "worst_ratio"]

_IN_TERMINAL = 3


def worst_ratio(found: Evaluation) -> float | None:
    """Return the largest left side over right side where the assumptions hold, 1 where only rounding exceeds it.

    None where the assumptions never hold.
    """
    counted = found.assumed & np.isfinite(found.right)
    if not counted.any():
        return None
    left, right = found.left[counted], found.right[counted]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = np.where(left <= 0.0, 0.0, np.where(right > 0.0, left / right, np.inf))
    return float(np.where(found.violated[counted], ratio, np.minimum(ratio, 1.0)).max())


def bounds_table(runs: Sequence[tuple[Chosen, Path]]) -> Table:
    """Lay out one row a bound: its statement, whose it is, and for each rule how close the path came to it.

    Args:
        runs: the step rules with their paths.
    """
    found = [check_bounds(path) for _, path in runs]
    rows = tuple(
        (bound.bound.name, bound.bound.statement, bound.bound.source, *(_cell(each[place]) for each in found))
        for place, bound in enumerate(found[0])
    )
    brief = tuple((*row[:3], *(_brief(each[place]) for each in found)) for place, row in enumerate(rows))
    labels = tuple(chosen.label for chosen, _ in runs)
    return Table(
        "bounds",
        "Bounds",
        "The bounds of the theory, and the worst ratio of left to right side along each path",
        ("bound", "statement", "whose", *labels),
        rows,
        words=frozenset({"statement", "whose", *labels}),
        page_only=frozenset({"statement", "whose", *labels[_IN_TERMINAL:]}),
        brief=brief,
        notes="A ratio of 1 is a bound that is attained, one far below 1 a bound that is far away. It is taken "
        "where all assumptions hold; where one of them holds nowhere it is named. Excess within rounding "
        "counts as 1. Primes are the values after a step, l is the curvature's bound at a gap.",
    )


def bounds_data(path: Path) -> list[dict[str, Any]]:
    """Return the same as JSON."""
    return [
        {
            "name": found.bound.name,
            "statement": found.bound.statement,
            "whose": found.bound.source,
            "assumptions": found.bound.assumptions,
            "checked": found.checked,
            "holds": found.holds if found.checked or not found.holds else None,
            "worst_ratio": worst_ratio(found),
            "missing": found.missing,
        }
        for found in check_bounds(path)
    ]


def _cell(found: Evaluation) -> str:
    ratio = worst_ratio(found)
    if ratio is None:
        return f"not checked: {'; '.join(found.missing) or 'its assumptions never hold together'}"
    verdict = "" if found.holds else "VIOLATED: "
    return f"{verdict}{number(ratio)} ({count(found.checked, 'place')})"


def _brief(found: Evaluation) -> str:
    ratio = worst_ratio(found)
    return "-" if ratio is None else f"{'' if found.holds else 'VIOLATED: '}{number(ratio)}"
