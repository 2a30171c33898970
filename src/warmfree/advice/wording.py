"""An advice in plain words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from warmfree.advice.evidence import Evidence
from warmfree.advice.rehearsal import Rehearsal, Rehearsed
from warmfree.advice.verdict import REPRESENTATION_LIMIT, Choice, Excess

if TYPE_CHECKING:
    from warmfree.advice.advise import Advice

__all__ = ["doubts_of", "reasons_of", "summary_of"]


def summary_of(advice: Advice) -> str:
    """Return the verdict as a sentence."""
    at = f"at learning rate {advice.lr:.3g}"
    if advice.verdict == "no warmup":
        return f"{advice.optimizer} needs no warmup {at}."
    if advice.verdict == "warmup":
        start = f" from {advice.start_lr:.2g}" if advice.start_lr > 0 else ""
        return (
            f"{advice.optimizer} needs {_steps(advice.warmup_steps)} of linear warmup{start} {at}: "
            f"{advice.warmup_steps / advice.steps:.1%} of the run."
        )
    if advice.verdict == "replace":
        assert advice.replacement is not None
        kept = (
            f"; {advice.optimizer} would need {_steps(advice.warmup_if_kept)} of warmup"
            if advice.warmup_if_kept
            else f"; no warmup that was tried made {advice.optimizer} as good"
        )
        return f"Take {advice.replacement.optimizer} {at}, without warmup{kept}."
    return f"Whether {advice.optimizer} needs warmup {at} is not known."


def reasons_of(
    evidence: Evidence, excess: Excess, choice: Choice | None, *, derived: int, lr: float
) -> tuple[str, ...]:
    """Return why, the most important first."""
    found = []
    if evidence.rehearsal is not None and choice is not None:
        found.append(_rehearsed(evidence.rehearsal))
    critical, first = evidence.critical, evidence.first_step
    if critical.lr is not None:
        what = (
            "the first step raises the loss of its own batch"
            if critical.ratio > 1
            else f"the first step, {1 / critical.ratio:.2g} times smaller, lowers the loss"
        )
        found.append(f"The critical learning rate is {critical.lr:.2g}, the target {lr:.2g}: {what}.")
    elif critical.outcome == "none":
        found.append(
            f"One step at up to {critical.low or 0:.2g}, far above the target {lr:.2g}, still lowers the loss."
        )
    else:
        found.append(
            "The step goes uphill on its own batch at every learning rate: momentum points elsewhere."
        )
    if first is not None:
        how = "more" if excess.representation > 1 else "no more"
        found.append(
            f"The first step at {lr:.2g} changes what {first.layer} computes by "
            f"{first.representation_change:.0%}, {how} than the {REPRESENTATION_LIMIT:.0%} that is safe."
        )
        if first.predicted_rms is not None and first.update_rms > 1.5 * first.predicted_rms:
            found.append(
                f"Its updates are {first.update_rms / first.predicted_rms:.2g} times as large as they will be once "
                f"gradients are mostly noise."
            )
    if derived and evidence.rehearsal is None:
        found.append(f"From this follow {_steps(derived)} of warmup from {lr / excess.value:.2g}.")
    sharp = evidence.sharpness
    if sharp is not None and sharp.early_threshold and math.isfinite(sharp.value):
        ratio = sharp.value / sharp.early_threshold
        found.append(
            f"Preconditioned sharpness is {ratio:.2g} times what a first step at {lr:.2g} bears"
            + (", and falls in a few steps where the rehearsal goes well." if ratio > 1 else ".")
        )
    noise = evidence.noise
    if noise is not None and math.isfinite(noise.critical_batch_size):
        side = "below" if noise.batch_size < noise.critical_batch_size else "above"
        found.append(
            f"The batch of {noise.batch_size} is {side} the critical batch size of about "
            f"{noise.critical_batch_size:.2g}: first gradients are mostly "
            f"{'noise' if side == 'below' else 'signal, and add up'}."
        )
    return tuple(found)


def doubts_of(evidence: Evidence, choice: Choice | None, *, steps: int) -> tuple[str, ...]:
    """Return what keeps the advice from being certain."""
    found = list(evidence.missing)
    rehearsal = evidence.rehearsal
    if rehearsal is None:
        found.append("Nothing was rehearsed: the rule for the length of a warmup was fitted to small runs.")
    else:
        if rehearsal.repeated > 1:
            found.append(
                f"Each batch was used {rehearsal.repeated:.2g} times in the rehearsal, which a run does not; pass "
                f"{rehearsal.length} steps' batches."
            )
        if choice is not None and choice.best is None:
            found.append(
                "The loss fell in no rehearsed beginning: the learning rate may be too high for any warmup."
            )
        elif choice is not None and not choice.clear:
            found.append("The candidates are close: a smaller or larger margin would have decided otherwise.")
        if rehearsal.length < 0.05 * steps:
            found.append(
                f"{rehearsal.length} of {steps} steps were rehearsed: harm that shows later was not seen."
            )
    return tuple(found)


def _rehearsed(rehearsal: Rehearsal) -> str:
    parts = ", ".join(f"{one.loss:.4g} with {_name(one, rehearsal)}" for one in _sorted(rehearsal))
    return f"Loss at the end of {rehearsal.length} rehearsed steps: {parts}."


def _sorted(rehearsal: Rehearsal) -> list[Rehearsed]:
    own = rehearsal.candidates[0].optimizer
    return sorted(rehearsal.candidates, key=lambda one: (one.optimizer != own, one.warmup))


def _name(one: Rehearsed, rehearsal: Rehearsal) -> str:
    warmup = _steps(one.warmup) + " of warmup" if one.warmup else "no warmup"
    return warmup if one.optimizer == rehearsal.candidates[0].optimizer else f"{one.optimizer} and {warmup}"


def _steps(number: int | None) -> str:
    return f"{number} step{'s' if number != 1 else ''}"
