"""Steps to a target of the rules that look at the gap or the gradient, tuned where they have something to tune."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from warmfree.theory.adaptive import AdaGradNorm, Backtracking, Clipped, Polyak
from warmfree.theory.descent import steps_to
from warmfree.theory.functions import CoshBowl
from warmfree.theory.speedup.results import Kind, StepsRow
from warmfree.theory.steps import Reciprocal, StepRule, Warmup, alimisis

__all__ = ["gap_rules", "rule_rows"]

Floats = NDArray[np.float64]

_AROUND = np.array([0.8, 0.9, 0.95, 0.98, 1.0, 1.02, 1.05, 1.1, 1.25])


def gap_rules(bowl: CoshBowl) -> dict[str, StepRule]:
    """Return the rules that follow the gap with the constants of the function's smoothness, by the family's name."""
    smoothness = bowl.smoothness
    return {
        "warmup, c = 0.5": Warmup(smoothness),
        "warmup, c = 1": Warmup(smoothness, safety=1.0),
        "1/l": Reciprocal(smoothness),
        "Alimisis": alimisis(h0=smoothness.floor, h1=smoothness.growth),
    }


def rule_rows(
    bowl: CoshBowl,
    *,
    gap: float,
    start: float,
    height: float,
    target: float,
    limit: int,
    with_adagrad: bool = True,
) -> list[StepsRow]:
    """Count the steps of each rule on one function from one start.

    Args:
        bowl: the function.
        gap: for the rows.
        start: a.
        height: y0.
        target: eps.
        limit: the most steps.
        with_adagrad: AdaGrad-norm never rises, and needs about as many steps as a constant learning rate.
    """

    def count(rule: StepRule, most: int = limit) -> Floats:
        return steps_to(bowl, [start, height], rule, target=target, limit=most)

    def row(family: str, kind: Kind, steps: float, parameters: dict[str, float], tried: int) -> StepsRow:
        return StepsRow(
            family=family,
            kind=kind,
            gap=gap,
            start=start,
            steps=int(steps) if math.isfinite(steps) else None,
            parameters=parameters,
            tried=tried,
            limit=limit,
        )

    rows = [row(name, "warmup", float(count(rule)[0]), {}, 1) for name, rule in gap_rules(bowl).items()]
    rows.append(row("Polyak", "adaptive", float(count(Polyak())[0]), {}, 1))
    slope = 2.0 * math.sinh(start)
    tuned = [
        _Tunable(
            "backtracking", "shrink", _backtracking, np.geomspace(0.3, 3.0, 21), (0.3, 0.5, 0.7, 0.9), 1000
        ),
        _Tunable(
            "clipped",
            "threshold",
            _clipped,
            np.geomspace(0.1, 1.2, 21),
            tuple(np.geomspace(0.05, 2.0, 17).tolist()),
            1000,
        ),
    ]
    if with_adagrad:  # its first step is at most lr long, whatever the slope
        rates = start * np.geomspace(0.3, 6.0, 31)
        tuned.append(_Tunable("AdaGrad-norm", "initial", _adagrad, rates, (slope, 1e-8 * slope), limit))
    for rule in tuned:
        steps, lr, other, tried = _tune(rule, count)
        rows.append(row(rule.family, "adaptive", steps, {"lr": lr, rule.second: other}, tried))
    return rows


class _Tunable(NamedTuple):
    """A family of rules with a learning rate and one more number, and what is tried first, for how many steps."""

    family: str
    second: str
    make: Callable[[Floats, float], StepRule]
    rates: Floats
    others: tuple[float, ...]
    limit: int


def _tune(rule: _Tunable, count: Callable[[StepRule, int], Floats]) -> tuple[float, float, float, int]:
    """Return the fewest steps, the two parameters that give them, and how many pairs were tried."""
    best, tried = (math.inf, float(rule.rates[0]), rule.others[0]), 0
    rates, others = rule.rates, rule.others
    for _ in range(2):
        for other in others:
            most = int(min(best[0], rule.limit))  # no run goes on once it cannot win
            found = np.nan_to_num(count(rule.make(rates, other), most), nan=math.inf)
            tried += rates.size
            which = int(found.argmin())
            if found[which] < best[0]:
                best = (float(found[which]), float(rates[which]), float(other))
        rates, others = best[1] * _AROUND, tuple((best[2] * _AROUND[[0, 4, 8]]).tolist())
    return *best, tried


def _backtracking(rates: Floats, shrink: float) -> StepRule:
    return Backtracking(rates, shrink=min(shrink, 0.99))


def _clipped(rates: Floats, threshold: float) -> StepRule:
    return Clipped(rates, threshold=threshold)


def _adagrad(rates: Floats, initial: float) -> StepRule:
    return AdaGradNorm(rates, initial=initial)
