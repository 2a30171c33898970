r"""Steps on :math:`|x|^p / p`: no curvature at the minimum, so that a constant step pays for the start forever."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from warmfree.theory.descent import steps_to
from warmfree.theory.functions import Power
from warmfree.theory.speedup.law import fit_law
from warmfree.theory.speedup.results import Law, PowerRow
from warmfree.theory.steps import Constant, Warmup

__all__ = ["power_laws", "power_steps"]

Floats = NDArray[np.float64]

_FRACTIONS = np.array(
    [0.4, 0.49, 0.5, 0.51, 0.6, 0.7, 0.8, 0.85, 0.9, 0.92, 0.94, 0.96, 0.97, 0.98, 0.99, 0.995]
)
_MOVED = np.linspace(0.75, 1.0, 12)


def power_steps(
    *,
    powers: Sequence[int] = (4, 6),
    starts: Sequence[float] = (2.5, 3.5, 5.0, 7.0, 10.0),
    target: float = 1e-3,
    progress: Callable[[str], None] | None = None,
) -> tuple[PowerRow, ...]:
    r"""Count the steps of the best constant learning rate and of the warmup.

    A constant learning rate has to be below :math:`2 x_0^{-(p-2)}`, or |x| grows; then it needs about
    :math:`(x_0/x_\epsilon)^{p-2} / (2(p-2))` steps. At half of that edge the first step lands on the minimum, and above
    the half others land near it by luck. The luck is left out as an adversary would: the learning rate comes first,
    then the start moves by up to a quarter towards 0, and the slowest of twelve counts.

    Args:
        powers: p, each > 2.
        starts: x0, each above :math:`x_\epsilon = (p \epsilon)^{1/p}`; three or more for the laws.
        target: eps, > 0.
        progress: called with a line before each power and start.

    Example:
        >>> row = power_steps(powers=[4], starts=[10.0])[0]
        >>> row.near_edge, row.warmup, round(row.predicted)
        (412, 37, 395)

    Reference: ours.
    """
    rows = []
    for power in powers:
        function = Power(exponent=float(power))
        end = (power * target) ** (1.0 / power)
        for start in starts:
            if progress is not None:
                progress(f"steps on |x|^{power} from {start:g}")
            predicted = (start / end) ** (power - 2) / (2.0 * (power - 2))
            edge = 2.0 * start ** -(power - 2)
            limit = 4 * math.ceil(predicted) + 1000
            rates, moved = (
                a.ravel() for a in np.broadcast_arrays(edge * _FRACTIONS[:, None], start * _MOVED)
            )
            steps = steps_to(function, moved[:, None], Constant(rates), target=target, limit=limit)
            slowest = np.nan_to_num(steps, nan=math.inf).reshape(_FRACTIONS.size, -1).max(axis=1)
            best = int(slowest.argmin())
            near_edge = steps_to(function, [start], Constant(0.95 * edge), target=target, limit=limit)
            warmup = steps_to(function, [start], Warmup(function.smoothness), target=target, limit=limit)
            rows.append(
                PowerRow(
                    power=power,
                    start=float(start),
                    constant=_or_none(slowest[best]),
                    lr=float(edge * _FRACTIONS[best]),
                    near_edge=_or_none(near_edge[0]),
                    warmup=_or_none(warmup[0]),
                    predicted=predicted,
                )
            )
    return tuple(rows)


def _or_none(steps: float) -> int | None:
    return int(steps) if math.isfinite(steps) else None


def power_laws(rows: Sequence[PowerRow]) -> tuple[Law, ...]:
    """Fit how the steps grow with the start, for each power that has three starts.

    Args:
        rows: of `power_steps`.
    """
    laws = []
    for power in dict.fromkeys(row.power for row in rows):
        mine = [row for row in rows if row.power == power]
        if len(mine) < 3 or any(row.constant is None or row.warmup is None for row in mine):
            continue
        starts = [row.start for row in mine]
        laws.append(
            fit_law(
                starts,
                [float(row.constant or 0) for row in mine],
                names=(f"steps, constant, p = {power}", "x0"),
                predicted=float(power - 2),
            )
        )
        # x shrinks by the factor 1 - 1 / (2 (p - 1) 3^rho) a step
        shrink = 1.0 - 0.5 / ((power - 1) * 3.0 ** ((power - 2) / power))
        laws.append(
            fit_law(
                starts,
                [float(row.warmup or 0) for row in mine],
                names=(f"steps, warmup, c = 0.5, p = {power}", "x0"),
                form="logarithm",
                predicted=-1.0 / math.log(shrink),
            )
        )
    return tuple(laws)
