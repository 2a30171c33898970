"""How wrong the constants of a warmup that follows the gap may be."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from warmfree.theory.descent import descend
from warmfree.theory.functions import CoshBowl
from warmfree.theory.smoothness import Smoothness
from warmfree.theory.speedup.results import Mistake, Mistakes
from warmfree.theory.speedup.valley import start_of
from warmfree.theory.steps import State, StepRule

__all__ = ["MistakenWarmup", "mistakes"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class MistakenWarmup(StepRule):
    r"""The warmup step with a wrong size, or a wrong infimum.

    .. math:: \eta_t = \frac{m}{2} \min\{1/K_0, \hat\Delta_t^{-\rho} / (3^\rho K_\rho)\}, \quad
        \hat\Delta_t = \max\{f(w_t) - f^* - b, 0\}

    Args:
        smoothness: the true one.
        factor: m, (n,), > 0; 1 is no mistake. All constants of the smoothness too small by m do the same.
        raised: b, (n,), the infimum is taken for larger by this; negative for smaller. 0 is no mistake.
    """

    smoothness: Smoothness
    factor: Floats
    raised: Floats
    name = "mistaken warmup"

    @property
    def runs(self) -> int:
        """The number of mistakes."""
        return len(self.factor)

    def __call__(self, state: State) -> Floats:
        """Return the learning rates, of shape (n,)."""
        gap = np.maximum(state.gap - self.raised[state.runs], 0.0)
        return self.factor[state.runs] * self.smoothness.step(gap)


def mistakes(
    *,
    gaps: Sequence[float] = (1e2, 1e4, 1e6),
    factors: Sequence[float] = (0.125, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 8.0),
    raised: Sequence[float] = (-1e2, -10.0, -1.0, -0.1, 0.0, 0.1, 1.0, 10.0, 1e2),
    starts: int = 8,
    target: float = 1e-6,
    limit: int = 5000,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Mistakes:
    """Count the steps of warmups with wrong constants on the bowl of `steps_by_gap`, mu = 1.

    Too large a step may still land on the minimum by luck; therefore the slowest of several starts counts.

    Args:
        gaps: initial gaps of the wall.
        factors: m of `MistakenWarmup`; the learning rate is that many times that with c = 1/2.
        raised: b of `MistakenWarmup`.
        starts: how many: a within 2 % of that of the gap, y0 in [1/2, 2].
        target: eps.
        limit: steps after which a run is given up.
        seed: of the starts.
        progress: called with a line before each gap.

    Example:
        >>> rows = mistakes(gaps=[100.0], factors=[0.5, 1.0, 8.0], raised=[]).rows
        >>> [(row.steps, row.diverged) for row in rows]
        [(95, False), (46, False), (None, False)]

    Reference: ours.
    """
    bowl = CoshBowl(mu=1.0)
    wrong = [("step", float(m)) for m in factors] + [("f_star", float(b)) for b in raised]
    rule = MistakenWarmup(
        smoothness=bowl.smoothness,
        factor=np.repeat([amount if what == "step" else 1.0 for what, amount in wrong], starts),
        raised=np.repeat([amount if what == "f_star" else 0.0 for what, amount in wrong], starts),
    )
    draws = np.random.default_rng(seed).random((2, starts))
    rows = []
    for gap in gaps:
        if progress is not None:
            progress(f"wrong constants from a gap of {gap:.3g}")
        start = np.stack([start_of(gap) * (0.98 + 0.04 * draws[0]), 0.5 * 4.0 ** draws[1]], axis=1)
        path = descend(bowl, np.tile(start, (len(wrong), 1)), rule, steps=limit, target=target)
        steps = path.steps_to(target).reshape(len(wrong), starts).max(axis=1)  # nan if one is
        diverged = path.diverged.reshape(len(wrong), starts)
        rows += [
            Mistake(
                what="step" if what == "step" else "f_star",
                amount=amount,
                gap=float(gap),
                steps=int(taken) if np.isfinite(taken) else None,
                diverged=bool(lost.any()),
            )
            for (what, amount), taken, lost in zip(wrong, steps, diverged, strict=True)
        ]
    return Mistakes(target=target, limit=limit, rows=tuple(rows))
