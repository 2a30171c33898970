r"""Steps to a target against the initial gap, each family of rules tuned for each start.

.. math:: f(x, y) = 2 (\cosh x - 1) + \tfrac{\mu}{2} y^2, \qquad \text{from } (a, y_0)

A schedule that never rises has to begin at :math:`a / \sinh a` or below, or |x| grows; y then needs
:math:`T \approx (\sinh a / a) \ln(\mu y_0^2 / 2\epsilon) / (2\mu)` steps: in proportion to the initial gap, up to its
logarithm. A step that follows the gap needs a number proportional to a, the logarithm of the initial gap.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from warmfree.theory.complexity import non_increasing_lower_bound
from warmfree.theory.functions import CoshBowl
from warmfree.theory.speedup.candidates import NON_INCREASING, Candidates
from warmfree.theory.speedup.law import Form, fit_law
from warmfree.theory.speedup.results import GapSteps, Kind, Law, StepsRow
from warmfree.theory.speedup.rules import rule_rows
from warmfree.theory.speedup.tuning import Tuned, near, non_increasing, tune, warmups
from warmfree.theory.speedup.valley import edge, gaps_to, hits, start_of

__all__ = ["gap_laws", "steps_by_gap"]

Floats = NDArray[np.float64]

_FIT_FROM = 100.0  # below, a / sinh a is no longer small against 1 / mu


def steps_by_gap(
    *,
    gaps: Sequence[float] | None = None,
    largest: float = 1e6,
    target: float = 1e-6,
    curvature: float = 1.0,
    height: float = 1.0,
    all_families_to: float = 1e6,
    adaptive_to: float = 1e4,
    rounds: int = 2,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> GapSteps:
    r"""Count the steps to a target gap, with every family tuned for every initial gap.

    Gradient descent on `CoshBowl`. The families: constant, :math:`1/\sqrt t`, 1/t, step drop; linear and geometric
    warmups of a fixed length; the warmup step with c = 1/2 and 1, :math:`1/\ell(\Delta)`, Alimisis' step; Polyak's
    step, backtracking, clipping and AdaGrad-norm.

    Args:
        gaps: initial gaps of the wall, each > 1; None takes two a decade from 10 to `largest`.
        largest: of those.
        target: eps, > 0, below all gaps.
        curvature: mu, in (0, 2].
        height: y0, > 0.
        all_families_to: beyond this gap only constant schedules stand for those that never rise: they win by then.
        adaptive_to: beyond this gap AdaGrad-norm, which needs as many steps as those, is left out.
        rounds: of tuning after the first grid.
        seed: of the bootstrap.
        progress: called with a line before each gap.

    Example:
        >>> found = steps_by_gap(gaps=[6.0, 53.0, 402.0])
        >>> [(row.family, row.steps) for row in found.best("non-increasing")]
        [('constant', 9), ('constant', 42), ('constant', 218)]

    Reference: papers as in `warmfree.theory.steps`; the function, the families and their tuning are ours.
    """
    if gaps is None:
        gaps = gaps_to(largest)
    rows: list[StepsRow] = []
    bounds = []
    for gap in gaps:
        if progress is not None:
            progress(f"steps from a gap of {gap:.3g}")
        start = float(start_of(gap))
        bound = non_increasing_lower_bound(start, curvature, target / height**2)  # y in units of y0
        bounds.append((float(gap), bound))
        limit = 3 * math.ceil(bound) + 1000

        def evaluate(candidates: Candidates, start: float = start, limit: int = limit) -> Floats:
            return hits(
                candidates,
                start=start,
                height=height,
                curvature=curvature,
                target=target,
                limit=limit,
                first_only=True,
            )[:, 0]

        first = float(edge(start))
        constants = near(first, count=80, closest=1e-9, above=40)
        if gap <= all_families_to:
            found = tune(
                evaluate,
                non_increasing(near(first), horizon=max(bound, 4.0), constants=constants),
                rounds=rounds,
            )
        else:
            found = tune(evaluate, [Candidates.of("constant", constants)], rounds=0)
        found |= tune(evaluate, warmups(first, peaks=np.geomspace(0.02, 1.0, 12)), rounds=rounds)
        rows += [_row(tuned, gap=float(gap), start=start, limit=limit) for tuned in found.values()]
        bowl = CoshBowl(mu=curvature)
        rows += rule_rows(
            bowl,
            gap=float(gap),
            start=start,
            height=height,
            target=target,
            limit=limit,
            with_adagrad=gap <= adaptive_to,
        )
    return GapSteps(
        target=target,
        curvature=curvature,
        rows=tuple(rows),
        bounds=tuple(bounds),
        laws=gap_laws(rows, seed=seed),
    )


def gap_laws(rows: Sequence[StepsRow], *, seed: int = 0) -> tuple[Law, ...]:
    """Fit how the steps grow with the initial gap, from 100 on; none where there are fewer than three gaps.

    Args:
        rows: of `steps_by_gap`.
        seed: of the bootstrap, over the points: each start is one function, and nothing is random.
    """
    by_family: dict[str, dict[float, int]] = {}
    for row in rows:
        if row.steps is not None and row.gap >= _FIT_FROM:
            by_family.setdefault(row.family, {})[row.gap] = row.steps
    falling = [by_family[name] for name in NON_INCREASING if name in by_family]
    best = {gap: min(steps[gap] for steps in falling if gap in steps) for steps in falling for gap in steps}
    linear = by_family.get("linear warmup", {})
    fits: list[tuple[str, dict[float, int], Form, float, float | None]] = [
        ("best that never rises", best, "power", 1, 1.0),
        ("best that never rises", best, "power", 0, None),
        ("AdaGrad-norm", by_family.get("AdaGrad-norm", {}), "power", 1, 1.0),
        ("linear warmup", linear, "power", 0.5, 0.5),
        ("linear warmup", linear, "power", 0, None),
        ("warmup, c = 0.5", by_family.get("warmup, c = 0.5", {}), "logarithm", 0, 6.0),
        ("warmup, c = 1", by_family.get("warmup, c = 1", {}), "logarithm", 0, 3.0),
        ("1/l", by_family.get("1/l", {}), "logarithm", 0, 1.0),
    ]
    return tuple(
        fit_law(
            list(steps),
            list(steps.values()),
            names=(f"steps, {name}", "initial gap"),
            form=form,
            logs=logs,
            predicted=predicted,
            seed=seed,
        )
        for name, steps, form, logs, predicted in fits
        if len(steps) >= 3
    )


def _row(tuned: Tuned, *, gap: float, start: float, limit: int) -> StepsRow:
    kind: Kind = "non-increasing" if tuned.family in NON_INCREASING else "warmup"
    return StepsRow(
        family=tuned.family,
        kind=kind,
        gap=gap,
        start=start,
        steps=int(tuned.value) if math.isfinite(tuned.value) else None,
        parameters=tuned.member.parameters(0),
        tried=tuned.tried,
        limit=limit,
    )
