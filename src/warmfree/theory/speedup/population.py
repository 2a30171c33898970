"""Steps to a target when the schedule is chosen first, and the functions, all of a population, come second.

One function alone can be landed on by luck: with the right two numbers a step ends on its minimum. A population with
other starts, other curvatures and other targets leaves no luck; what is left is the law.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from warmfree.theory.adaptive import Polyak
from warmfree.theory.complexity import non_increasing_lower_bound
from warmfree.theory.descent import steps_to
from warmfree.theory.functions import CoshBowl
from warmfree.theory.speedup.candidates import NON_INCREASING, Candidates
from warmfree.theory.speedup.law import fit_law
from warmfree.theory.speedup.results import Kind, Law, PopulationRow, PopulationSteps
from warmfree.theory.speedup.rules import gap_rules
from warmfree.theory.speedup.tuning import near, non_increasing, tune, warmups
from warmfree.theory.speedup.valley import edge, gaps_to, hits, start_of
from warmfree.theory.steps import StepRule

__all__ = ["Instances", "population_steps"]

Floats = NDArray[np.float64]
Aim = Literal["all", "median"]

_AIMS: tuple[Aim, Aim] = ("all", "median")
_RESAMPLES = 200
_FIT_FROM = 100.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Instances:
    """Functions, starts and targets drawn at random around a nominal initial gap.

    Attributes:
        start: (m,), a, uniform within 2 % of the nominal one.
        height: (m,), y0, log-uniform in [1/2, 2].
        curvature: (m,), mu, log-uniform in [1/4, 2].
        target: (m,), log-uniform within a factor of 3 of the nominal one.
    """

    start: Floats
    height: Floats
    curvature: Floats
    target: Floats

    @classmethod
    def drawn(cls, count: int, *, gap: float, target: float, seed: int) -> "Instances":
        """Draw instances; the same seed gives the same ones at every gap, but for their start.

        Args:
            count: m.
            gap: nominal initial gap of the wall.
            target: nominal eps.
            seed: of the draws.
        """
        draws = np.random.default_rng(seed).random((4, count))
        return cls(
            start=float(start_of(gap)) * (0.98 + 0.04 * draws[0]),
            height=0.5 * 4.0 ** draws[1],
            curvature=0.25 * 8.0 ** draws[2],
            target=target * 9.0 ** (draws[3] - 0.5),
        )

    def bounds(self) -> Floats:
        """Return the lower bound of each instance at the edge of the one with the farthest start."""
        scaled = zip(self.curvature.tolist(), (self.target / self.height**2).tolist(), strict=True)
        farthest = float(self.start.max())
        return np.array([non_increasing_lower_bound(farthest, mu, eps) for mu, eps in scaled])


def population_steps(
    *,
    gaps: Sequence[float] | None = None,
    largest: float = 1e3,
    instances: int = 16,
    target: float = 1e-6,
    rounds: int = 1,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> PopulationSteps:
    """Count the steps that schedules need for all of a population, and for its median, each tuned for that.

    Args:
        gaps: nominal initial gaps, each > 1; None takes two a decade from 10 to `largest`.
        largest: of those.
        instances: m, at least 2.
        target: nominal eps.
        rounds: of tuning after the first grid.
        seed: of the instances and of the bootstrap.
        progress: called with a line before each gap.

    Returns:
        The rows' intervals are over resampled populations, the schedules tuned anew for each.

    Example:
        >>> found = population_steps(gaps=[30.0, 100.0], instances=4, rounds=0)
        >>> [(row.gap, row.family) for row in found.rows if row.aim == "all"][:3]
        [(30.0, 'constant'), (30.0, '1/sqrt(t)'), (30.0, '1/t')]

    Reference: ours.
    """
    if gaps is None:
        gaps = gaps_to(largest)
    rows: list[PopulationRow] = []
    samples: dict[tuple[Aim, str], dict[float, Floats]] = {}
    for gap in gaps:
        if progress is not None:
            progress(f"steps for {instances} functions from gaps near {gap:.3g}")
        drawn = Instances.drawn(instances, gap=float(gap), target=target, seed=seed)
        for row, resampled in _at(drawn, gap=float(gap), rounds=rounds, seed=seed):
            rows.append(row)
            samples.setdefault((row.aim, row.family), {})[row.gap] = resampled
    return PopulationSteps(
        target=target, instances=instances, rows=tuple(rows), laws=_laws(rows, samples, seed=seed)
    )


def _at(drawn: Instances, *, gap: float, rounds: int, seed: int) -> list[tuple[PopulationRow, Floats]]:
    """Return the rows at one gap, each with its bootstrap samples."""
    horizon = float(max(drawn.bounds().max(), 4.0))
    limit = int(1.5 * horizon) + 200
    count = drawn.start.size
    which = np.random.default_rng((seed, 1)).integers(0, count, (_RESAMPLES, count))
    found = []
    slow, fast = float(edge(drawn.start.max())), float(edge(drawn.start.min()))
    rates = np.unique(np.concatenate([near(slow), np.geomspace(slow, 1.1 * fast, 8)]))
    grids = (
        non_increasing(rates, horizon=horizon, constants=near(slow, count=60, above=30)),
        warmups(slow, peaks=np.geomspace(0.05, 0.9, 8)),
    )
    for aim in _AIMS:
        for grid in grids:
            matrices: list[tuple[Candidates, Floats]] = []

            def evaluate(
                candidates: Candidates,
                aim: Aim = aim,
                matrices: list[tuple[Candidates, Floats]] = matrices,
            ) -> Floats:
                steps = hits(
                    candidates,
                    start=drawn.start,
                    height=drawn.height,
                    curvature=drawn.curvature,
                    target=drawn.target,
                    limit=limit,
                )
                steps = np.nan_to_num(steps, nan=math.inf)
                matrices.append((candidates, steps))
                return _aimed(steps, aim)

            for name, tuned in tune(evaluate, grid, rounds=rounds).items():
                tried = np.concatenate([s[c.family == c.names.index(name)] for c, s in matrices])
                resampled = np.array([_aimed(tried[:, draw], aim).min() for draw in which])
                kind: Kind = "non-increasing" if name in NON_INCREASING else "warmup"
                parameters = tuned.member.parameters(0)
                found.append(
                    _row(
                        name, kind, gap, aim, tuned.value, resampled, parameters=parameters, tried=tuned.tried
                    )
                )
        for name, kind, steps in _followed(drawn, limit=limit):
            resampled = np.array([_aimed(steps[None, draw], aim)[0] for draw in which])
            value = float(_aimed(steps[None], aim)[0])
            found.append(_row(name, kind, gap, aim, value, resampled, parameters={}, tried=1))
    return found


def _followed(drawn: Instances, *, limit: int) -> list[tuple[str, Kind, Floats]]:
    """Return the steps of the rules that have nothing to tune, for each instance."""
    steps: dict[str, list[float]] = {}
    for a, y0, mu, eps in zip(drawn.start, drawn.height, drawn.curvature, drawn.target, strict=True):
        bowl = CoshBowl(mu=float(mu))
        rules: dict[str, StepRule] = {**gap_rules(bowl), "Polyak": Polyak()}
        for name, rule in rules.items():
            taken = steps_to(bowl, [a, y0], rule, target=float(eps), limit=max(limit, 5000))
            steps.setdefault(name, []).append(float(taken[0]))
    return [
        (name, "adaptive" if name == "Polyak" else "warmup", np.nan_to_num(taken, nan=math.inf))
        for name, taken in steps.items()
    ]


def _aimed(steps: Floats, aim: Aim) -> Floats:
    """Return the steps of the slowest or of the median instance, (n, m) to (n,)."""
    if aim == "all":
        return np.asarray(steps.max(axis=1))
    ordered = np.sort(steps, axis=1)
    return ordered[
        :, (steps.shape[1] - 1) // 2
    ]  # the lower median: one that was measured, and finite if it can be


def _row(
    family: str,
    kind: Kind,
    gap: float,
    aim: Aim,
    steps: float,
    resampled: Floats,
    *,
    parameters: dict[str, float],
    tried: int,
) -> tuple[PopulationRow, Floats]:
    low, high = np.quantile(resampled, (0.025, 0.975), method="inverted_cdf")
    row = PopulationRow(
        family=family,
        kind=kind,
        gap=gap,
        aim=aim,
        steps=_or_none(steps),
        low=_or_none(float(low)),
        high=_or_none(float(high)),
        parameters=parameters,
        tried=tried,
    )
    return row, resampled


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _laws(
    rows: Sequence[PopulationRow], samples: dict[tuple[Aim, str], dict[float, Floats]], *, seed: int
) -> tuple[Law, ...]:
    """Return the exponents from gaps of 100 on."""
    gaps = sorted({row.gap for row in rows if row.gap >= _FIT_FROM})
    if len(gaps) < 3:
        return ()
    laws = []
    for aim in _AIMS:
        by_family = {name: by_gap for (of, name), by_gap in samples.items() if of == aim}
        values = {(row.family, row.gap): row.steps for row in rows if row.aim == aim}

        def add(
            quantity: str,
            names: Sequence[str],
            *,
            predicted: float | None = None,
            logs: float = 0,
            logarithm: bool = False,
            by_family: dict[str, dict[float, Floats]] = by_family,
            values: dict[tuple[str, float], float | None] = values,
            aim: Aim = aim,
        ) -> None:
            best = [min(values[name, gap] or math.inf for name in names) for gap in gaps]
            drawn = np.array([np.min([by_family[name][gap] for name in names], axis=0) for gap in gaps]).T
            drawn = drawn[np.isfinite(drawn).all(axis=1)]
            if np.isfinite(best).all() and len(drawn):
                laws.append(
                    fit_law(
                        gaps,
                        best,
                        names=(f"steps, {quantity}, {aim}", "initial gap"),
                        form="logarithm" if logarithm else "power",
                        logs=logs,
                        predicted=predicted,
                        samples=drawn,
                        seed=seed,
                    )
                )

        add("best that never rises", NON_INCREASING, predicted=1.0, logs=1)
        add("best that never rises", NON_INCREASING)
        add("linear warmup", ["linear warmup"], predicted=0.5, logs=0.5)
        add("linear warmup", ["linear warmup"])
        add("warmup, c = 0.5", ["warmup, c = 0.5"], predicted=6.0, logarithm=True)
        add("warmup, c = 1", ["warmup, c = 1"], predicted=3.0, logarithm=True)
    return tuple(laws)
