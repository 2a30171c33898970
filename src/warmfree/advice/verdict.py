r"""From evidence to a verdict: how much too large the first step is, the warmup that follows, what a rehearsal says.

**Excess.** The target learning rate over the largest that the first step bears: by the critical learning rate
(:math:`\eta_c`, Kalra & Barkeshli 2024), and by the relative representation change, which is to stay below 0.2 in every
layer (Kosson et al. 2024 for the quantity; the limit is ours: in dissected runs of a GPT and a ViT no step of a healthy
run changed a layer by more than 0.22, and first steps of failing ones did by 0.94 to 2.03).

**Length.** A warmup may start at :math:`\eta_{init} = \eta/\text{excess}`. From there it may climb by what was safe
at first, :math:`\eta_{init}`, in each memory of the momentum, :math:`1/(1-\beta_1)` steps: so long does what an early,
coherent gradient left in the momentum add to the steps. So

.. math:: N = (\text{excess} - 1)\,/\,(1 - \beta_1)

(our derivation; 10 steps of memory where there is no momentum to read).

**Rehearsal.** Both are about the first step, and what follows may be better or worse. So the first steps are made, from
the same weights on the same batches, with warmups around N and with none, and undone; the shortest whose loss is within
a margin of the best one's is advised. If that is a long one, and AdamW2 without warmup is as good, it takes its place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch.optim import Optimizer

from warmfree.advice.evidence import Evidence
from warmfree.advice.rehearsal import Rehearsed, Stage

__all__ = [
    "Choice",
    "Excess",
    "choose",
    "derived_warmup",
    "measure_excess",
    "momentum_memory",
    "rehearsal_length",
    "rehearse",
]

REPRESENTATION_LIMIT = 0.2
MARGIN = 0.02  # of what the best candidate's loss has fallen
LONGEST = 0.3  # of the run
CHEAP = 0.03  # of the run: a warmup that is not worth another optimizer
_MEMORY = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Excess:
    """How much too large the first step is.

    Attributes:
        loss: target over critical learning rate; 0 if no catapult was found, nan if unknown.
        representation: relative representation change over its limit; nan if unknown.
    """

    loss: float
    representation: float

    @property
    def value(self) -> float:
        """The larger one that is known, at least 1; nan if none is."""
        known = [one for one in (self.loss, self.representation) if not math.isnan(one)]
        return max(1.0, *known) if known else math.nan


def measure_excess(evidence: Evidence) -> Excess:
    """Read off the evidence how much too large the first step is."""
    critical = evidence.critical
    loss = critical.ratio if critical.lr is not None else 0.0 if critical.outcome == "none" else math.nan
    change = evidence.first_step.representation_change if evidence.first_step is not None else math.nan
    return Excess(loss=loss, representation=change / REPRESENTATION_LIMIT)


def momentum_memory(optimizer: Optimizer) -> float:
    """Return the steps over which an optimizer's momentum averages, 1/(1 - beta1), at least 1."""
    group = optimizer.param_groups[0]
    momentum = group["betas"][0] if "betas" in group else group.get("momentum")
    return _MEMORY if momentum is None else 1 / (1 - min(float(momentum), 0.999))


def rehearsal_length(steps: int) -> int:
    """Return how many steps to rehearse: a tenth of the run, 100 to 200, and no more than half of it.

    Less than 100 are too few to see what AdamW2 does: its bound lets a small initial matrix grow by 5 % a step.
    """
    return min(max(steps // 10, 100), 200, max(steps // 2, 1))


def derived_warmup(excess: float, memory: float, *, steps: int) -> int:
    """Return the steps of warmup that follow from the excess of the first step, at most 0.3 of the run.

    Args:
        excess: of the first step, >= 1; nan if unknown.
        memory: of the momentum, in steps.
        steps: of the run.

    Example:
        >>> derived_warmup(3.0, 10.0, steps=600), derived_warmup(1.0, 10.0, steps=600)
        (20, 0)
    """
    if math.isnan(excess):
        return 0
    found = round(min((excess - 1) * memory, LONGEST * steps))
    return found if found > 1 else 0  # the one step of a warmup of 1 is at the full learning rate


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What a rehearsal shows.

    Attributes:
        best: the candidate with the lowest loss; None if no loss fell.
        warmup: the shortest warmup of the run's own optimizer within the margin of the best; None if none is.
        replaces: whether the replacement is within it.
        clear: whether the decision would be the same with twice and with half the margin.
    """

    best: Rehearsed | None
    warmup: Rehearsed | None
    replaces: bool
    clear: bool


def rehearse(
    stage: Stage,
    derived: int,
    *,
    start: float,
    length: int,
    steps: int,
    replacement: Callable[[], Optimizer] | None,
) -> Choice:
    """Rehearse beginnings until it is clear which one to advise.

    Args:
        stage: where.
        derived: warmup that follows from the evidence.
        start: multiple of the learning rate at which a warmup starts.
        length: of the rehearsal.
        steps: of the run.
        replacement: builds an optimizer to try without warmup where the run's own needs one; None if there is none.
    """
    longest, before = round(LONGEST * steps), stage.initial_loss()
    own = [stage.rehearse()]

    def try_warmups(*warmups: float) -> None:
        tried = {one.warmup for one in own}
        new = {min(round(one), longest) for one in warmups} - tried
        own.extend([stage.rehearse(warmup=warmup, start=start) for warmup in sorted(new) if warmup > 1])

    try_warmups(derived or length / 3, length)
    other = None
    if not (_falls(own, before) and _within(own[0], own, MARGIN, before)):
        if replacement is not None:
            other = stage.rehearse(build=replacement)
        try_warmups((derived or length / 3) / 3, 3 * length)
    return choose(own, other, before=before, steps=steps)


def choose(own: Sequence[Rehearsed], other: Rehearsed | None, *, before: float, steps: int) -> Choice:
    """Choose among beginnings.

    Args:
        own: candidates with the run's own optimizer, the first of them without warmup.
        other: the replacement's.
        before: loss of the same batches before any step.
        steps: of the run.
    """
    everyone = [*own, *([other] if other is not None else [])]
    best = min(everyone, key=lambda one: one.loss)
    if not _falls(everyone, before):
        return Choice(best=None, warmup=None, replaces=False, clear=False)
    decisions = [_decide(own, other, before, steps, margin) for margin in (MARGIN, MARGIN / 2, 2 * MARGIN)]
    warmup, replaces = decisions[0]
    return Choice(
        best=best, warmup=warmup, replaces=replaces, clear=all(one == decisions[0] for one in decisions)
    )


def _decide(
    own: Sequence[Rehearsed], other: Rehearsed | None, before: float, steps: int, margin: float
) -> tuple[Rehearsed | None, bool]:
    everyone = [*own, *([other] if other is not None else [])]
    good = [one for one in own if _within(one, everyone, margin, before)]
    shortest = min(good, key=lambda one: one.warmup, default=None)
    replaces = other is not None and _within(other, everyone, margin, before)
    cheap = shortest is not None and shortest.warmup <= CHEAP * steps
    return shortest, replaces and not cheap


def _falls(everyone: Sequence[Rehearsed], before: float) -> bool:
    """Return whether any candidate lowered the loss."""
    return min(one.loss for one in everyone) < before


def _within(one: Rehearsed, everyone: Sequence[Rehearsed], margin: float, before: float) -> bool:
    """Return whether a candidate's loss has fallen as far as the best one's, up to a margin of that."""
    best = min(other.loss for other in everyone)
    return one.loss <= best + margin * max(before - best, 0.0)
