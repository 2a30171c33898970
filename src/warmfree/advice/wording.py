"""An advice in plain words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from warmfree.advice.evidence import Evidence
from warmfree.advice.first_step import FirstStep
from warmfree.advice.gradient_noise import Noise
from warmfree.advice.rehearsal import Rehearsal, Rehearsed, judged_steps
from warmfree.advice.verdict import REPRESENTATION_LIMIT, Choice, Excess
from warmfree.schedule.critical import CriticalLR

if TYPE_CHECKING:
    from warmfree.advice.advise import Advice

__all__ = ["doubts_of", "reasons_of", "summary_of"]

_LARGER = 1.5  # times: from here on updates are said to be larger than later ones
_ALIKE = 1.1  # times: up to here two learning rates are called alike
_SMALL_SHARE = 0.05  # of a run


def summary_of(advice: Advice) -> str:
    """Return the verdict as a sentence."""
    name, at = advice.optimizer, f"learning rate {advice.lr:g}"
    if advice.verdict == "no warmup":
        return f"{name} needs no warmup at {at}."
    if advice.verdict == "warmup":
        start = f" from {_number(advice.start_lr)}" if advice.start_lr > 0 else ""
        share = _percent(advice.warmup_steps / advice.steps)
        return (
            f"{name} needs {_steps(advice.warmup_steps)} of linear warmup{start} to {at}: {share} of the run."
        )
    if advice.verdict == "replace":
        assert advice.replacement is not None
        kept = (
            f"{name} would need {_steps(advice.warmup_if_kept)} of warmup"
            if advice.warmup_if_kept
            else f"no warmup that was tried makes {name} as good"
        )
        return f"Take {advice.replacement.optimizer} at {at}, without warmup; {kept}."
    why = "nothing could be measured that tells"
    if advice.evidence.rehearsal is not None:
        why = "the loss did not fall, whatever the warmup"
    return f"Whether {name} needs warmup at {at} is not known: {why}."


def reasons_of(
    evidence: Evidence, excess: Excess, choice: Choice | None, *, derived: int, lr: float
) -> tuple[str, ...]:
    """Return why, the most important first.

    Args:
        evidence: what was measured.
        excess: what follows from it.
        choice: what the rehearsal shows; None without one.
        derived: warmup that follows from the excess.
        lr: the target.
    """
    found = []
    if evidence.rehearsal is not None and choice is not None:
        found.append(_rehearsed(evidence.rehearsal))
    found.append(_critical(evidence.critical, lr))
    first, sharp, noise = evidence.first_step, evidence.sharpness, evidence.noise
    if first is not None:
        found += _first_step(first, lr)
    if derived and choice is None:
        found.append(
            f"From this follow {_steps(derived)} of warmup from learning rate {_number(lr / excess.value)}."
        )
    if sharp is not None and sharp.early_threshold and math.isfinite(sharp.value):
        ratio = sharp.value / sharp.early_threshold
        found.append(
            f"Preconditioned sharpness is {_number(ratio)} times the threshold of a single step at {lr:g}"
            + (", which says little before Adam's first step." if ratio > 1 and _is_fresh(first) else ".")
        )
    if noise is not None and math.isfinite(noise.critical_batch_size):
        found.append(_noise(noise))
    return tuple(found)


def doubts_of(evidence: Evidence, choice: Choice | None, *, warmup: int, steps: int) -> tuple[str, ...]:
    """Return what keeps the advice from being certain.

    Args:
        evidence: what was measured.
        choice: what the rehearsal shows; None without one.
        warmup: steps of warmup that the run's own optimizer is advised to have.
        steps: of the run.
    """
    found = []
    rehearsal = evidence.rehearsal
    if rehearsal is None:
        found.append("No steps were rehearsed: that the first step is safe, or not, is all that is known.")
    else:
        found += _of_rehearsal(rehearsal, choice, warmup=warmup, steps=steps)
    lr = evidence.critical.target
    sides = {search.lr < lr for search in evidence.critical.searches if search.lr is not None}
    if len(sides) > 1:
        found.append(
            "The critical learning rate is above the target on some batches, and below it on others."
        )
    return (*found, *(f"{sentence[:1].upper()}{sentence[1:].rstrip('. ')}." for sentence in evidence.missing))


def _of_rehearsal(rehearsal: Rehearsal, choice: Choice | None, *, warmup: int, steps: int) -> list[str]:
    found = []
    if choice is not None and choice.best is None:
        found.append(
            "The learning rate may be too high for any warmup, or the batches too few to learn from."
        )
    elif choice is not None and not choice.clear:
        found.append("The candidates are close: a smaller or larger margin would have decided otherwise.")
    if warmup > rehearsal.length:
        found.append(
            f"The warmup is longer than the {_steps(rehearsal.length)} rehearsed: how training goes on at the full "
            f"learning rate was not seen."
        )
    if rehearsal.repeated > 1:
        given = round(rehearsal.length / rehearsal.repeated)
        found.append(
            f"There were batches for {_steps(given)}, of {rehearsal.length} rehearsed: seen again and again, they are "
            f"learned by heart."
        )
    if rehearsal.length < _SMALL_SHARE * steps:
        found.append(
            f"Only {rehearsal.length} of {steps} steps were rehearsed: harm that shows later was not seen."
        )
    return found


def _rehearsed(rehearsal: Rehearsal) -> str:
    last, own = judged_steps(rehearsal.length), rehearsal.candidates[0].optimizer
    where = f"the last {last} of" if last > 1 else "the last of"
    candidates = sorted(rehearsal.candidates, key=lambda one: (one.optimizer != own, one.warmup))
    parts = ", ".join(f"{_loss(one)} {_beginning(one, own)}" for one in candidates)
    before = (
        f"; {rehearsal.initial_loss:.4g} before training" if math.isfinite(rehearsal.initial_loss) else ""
    )
    return f"Mean loss over {where} {_steps(rehearsal.length)} rehearsed: {parts}{before}."


def _loss(one: Rehearsed) -> str:
    return f"{one.loss:.4g}" if math.isfinite(one.loss) else "not finite"


def _beginning(one: Rehearsed, own: str) -> str:
    warmup = f"with {_steps(one.warmup)} of it" if one.warmup else "without warmup"
    return warmup if one.optimizer == own else f"with {one.optimizer} {warmup}"


def _critical(critical: CriticalLR, lr: float) -> str:
    trials = [trial.lr for search in critical.searches for trial in search.trials]
    if critical.lr is not None:
        which = f"The critical learning rate is {_number(critical.lr)}"
        if critical.ratio > 1:
            return f"{which}: the first step at {lr:g} raises the loss of its own batch."
        if critical.ratio > 1 / _ALIKE:
            return f"{which}, just above the target of {lr:g}."
        return (
            f"{which}: the first step at {lr:g} could be {_number(1 / critical.ratio)} times as large before it "
            f"raised the loss of its own batch."
        )
    if critical.outcome == "none":
        return (
            f"The first step lowers the loss of its own batch at every learning rate that was tried, up to "
            f"{_number(max(trials))}."
        )
    why = ": it leads uphill" if all(search.slope >= 0 for search in critical.searches) else ""
    return (
        f"The first step raises the loss of its own batch at every learning rate that was tried, down to "
        f"{_number(min(trials))}{why}."
    )


def _first_step(first: FirstStep, lr: float) -> list[str]:
    found = []
    change = first.representation_change
    if math.isfinite(change):
        side = "above" if change > REPRESENTATION_LIMIT else "within"
        found.append(
            f"The first step at {lr:g} changes the outputs of layer {first.layer} by {_percent(change)}, {side} "
            f"the limit of {_percent(REPRESENTATION_LIMIT)}."
        )
    if _is_fresh(first):
        assert first.predicted_rms is not None
        found.append(
            f"Its updates are {_number(first.update_rms / first.predicted_rms)} times as large as those to come, in "
            f"which momentum averages noise away."
        )
    return found


def _is_fresh(first: FirstStep | None) -> bool:
    """Return whether Adam has yet to average gradients, as its first steps show."""
    return (
        first is not None
        and first.predicted_rms is not None
        and first.update_rms > _LARGER * first.predicted_rms
    )


def _noise(noise: Noise) -> str:
    below = noise.batch_size < noise.critical_batch_size
    return (
        f"The batch of {noise.batch_size} is {'below' if below else 'above'} the critical batch size of about "
        f"{_number(noise.critical_batch_size)}: gradients are mostly "
        f"{'noise' if below else 'signal, and steps add up'}."
    )


def _steps(number: int | None) -> str:
    return f"{number} step{'s' if number != 1 else ''}"


def _number(value: float) -> str:
    """Write a number with two digits, or all before the point if it is below a million."""
    return f"{value:.0f}" if 99.5 <= value < 1e6 else f"{value:.2g}"


def _percent(share: float) -> str:
    return f"{_number(100 * share)} %"
