"""What happened in a run, in plain words: every sentence is computed, none says more than was measured."""

from __future__ import annotations

from warmfree.report import wording
from warmfree.report.runs.findings import (
    LOSS,
    FirstAlert,
    LossFindings,
    Rotation,
    Stability,
    read_first_alert,
    read_loss,
    read_rotation,
    read_stability,
)
from warmfree.report.runs.run import Alert, Run


def run_summary(run: Run) -> list[str]:
    """Say in plain words what happened in a run, the most important first.

    Args:
        run: what `load_run` returned.

    Returns:
        Sentences: the loss, the first alert and how long before the loss moved it came, the distance to the
        stability threshold, the early updates, and what is missing.

    Example:
        >>> run_summary(Run("empty"))
        ['Nothing was recorded yet: no loss, no measurement and no alert.']
    """
    loss = read_loss(run)
    if loss is None and not run.grids and not run.alerts and not run.notices:
        return ["Nothing was recorded yet: no loss, no measurement and no alert."]
    sentences = [
        _loss(loss),
        _moved(loss),
        _spikes(loss),
        _alerts(run, loss),
        _stability(read_stability(run)),
        _rotation(read_rotation(run)),
        *_attempts(run),
        _ending(run),
    ]
    return [sentence for sentence in sentences if sentence]


def name_alert(alert: Alert, titles: dict[str, str]) -> str:
    """Name an alert in few words: quantity and place."""
    if alert.quantity == LOSS and not alert.row.layer:
        return "the training loss"
    quantity = titles.get(alert.quantity) or alert.quantity.replace("_", " ") or alert.rule or "alert"
    return f"{quantity} of {alert.row.label if alert.row.layer else 'the whole model'}"


def say_loss(value: float) -> str:
    """Write a loss with three decimals where that says something.

    Example:
        >>> say_loss(1.5), say_loss(0.00123), say_loss(float("nan"))
        ('1.500', '0.00123', 'NaN')
    """
    return wording.loss(value) if 0.1 <= value < 100 else wording.number(value)


def _loss(loss: LossFindings | None) -> str:
    if loss is None:
        return "No loss was recorded, so whether the run trained is not known from this record."
    first, last = say_loss(loss.first), say_loss(loss.last)
    if loss.count == 1:
        return f"Only one loss was recorded, {first}: too little to say how the run went."
    where = (
        f"the best was {say_loss(loss.best)} at step {loss.best_step:,}"
        if loss.best is not None
        else "none was finite"
    )
    over = f"over {wording.count(loss.count, 'step')}"
    if loss.outcome == "diverged":
        return f"The run diverged: the loss went from {first} to {last} {over}; {where}."
    if loss.outcome == "high":
        return f"The loss rose and did not come back: from {first} to {last} {over}; {where}."
    if loss.outcome == "flat":
        return f"The loss did not fall: from {first} to {last} {over}; {where}."
    return f"The loss went from {first} to {last} {over}; {where}."


def _moved(loss: LossFindings | None) -> str:
    if loss is None or loss.count < 2:
        return ""
    if loss.moved is None:
        return "The smoothed loss never rose markedly above its best, and every loss was finite."
    if loss.moved_how == "not finite":
        return f"The first loss that is not finite came at step {loss.moved:,}."
    return f"The smoothed loss first rose markedly above its best at step {loss.moved:,}."


def _spikes(loss: LossFindings | None) -> str:
    if loss is None or not loss.spikes:
        return ""
    steps = [f"{step:,}" for step in loss.spikes]
    shown = wording.listing(steps) if len(steps) <= 4 else f"{', '.join(steps[:3])} and later"
    at = "step" if len(steps) == 1 else "steps"
    return f"{wording.count(len(steps), 'spike').capitalize()} of the loss came back down (at {at} {shown})."


def _alerts(run: Run, loss: LossFindings | None) -> str:
    first = read_first_alert(run, loss)
    if first is None:
        return "No alert was raised."
    count = wording.count(len(run.alerts), "alert")
    opening = f"The first of {count}" if len(run.alerts) > 1 else "The only alert"
    sentence = _alert(run, opening, first, loss)
    if first.alert.quantity == LOSS:
        beside = read_first_alert(run, loss, besides_loss=True)
        if beside is not None:
            sentence += f" {_alert(run, 'The first on anything but the loss', beside, loss)}"
    return sentence


def _alert(run: Run, opening: str, first: FirstAlert, loss: LossFindings | None) -> str:
    alert = first.alert
    titles = {name: grid.quantity.title for name, grid in run.grids.items()}
    numbers = f" was {wording.number(alert.value)}" if alert.value is not None else ""
    if numbers and alert.threshold is not None:
        numbers += f" (the alert's threshold is {wording.number(alert.threshold)})"
    kind = "critical alert" if alert.is_critical else "warning"
    cleared = f", and cleared at step {alert.cleared:,}" if alert.cleared is not None else ""
    others = sum(other.step == alert.step for other in run.alerts) - 1
    beside = f", with {wording.count(others, 'other')} at that step" if others else ""
    return (
        f"{opening}, a {kind}, came at step {alert.step:,}{beside}: {name_alert(alert, titles)}{numbers}{cleared}. "
        f"{_lead(loss, first.lead)}"
    )


def _lead(loss: LossFindings | None, lead: int | None) -> str:
    if loss is None:
        return "Without a loss in the record, whether it mattered cannot be said."
    if lead is None:
        return "The loss did not move in the steps recorded."
    if lead > 0:
        return f"That was {wording.count(lead, 'step')} before the loss moved."
    if lead == 0:
        return "That was the very step at which the loss moved."
    return f"That was {wording.count(-lead, 'step')} after the loss had moved."


def _stability(stability: Stability | None) -> str:
    if stability is None:
        return "The distance to the stability threshold was not measured."
    highest = f"{wording.number(stability.highest)} times the threshold, at step {stability.highest_step:,}"
    first, last = wording.number(stability.first), wording.number(stability.last)
    course = f"at most {highest}, {first} times at first, {last} at last"
    if stability.above:
        return (
            f"Sharpness exceeded the stability threshold in {stability.above:,} of "
            f"{wording.count(stability.count, 'measurement')}, first at step {stability.first_above:,}: {course}."
        )
    if stability.count == 1:
        return f"Sharpness was measured once: {highest}, which is below it."
    return (
        f"Sharpness stayed below the stability threshold in all {stability.count:,} measurements: {course}."
    )


def _rotation(rotation: Rotation | None) -> str:
    if rotation is None:
        return ""
    until = "At step 0" if rotation.early_end == 0 else f"Up to step {rotation.early_end:,}"
    late = (
        f"; in the second half of the run it was {wording.number(rotation.late)} times"
        if rotation.late is not None
        else ""
    )
    return (
        f"{until}, updates turned the weights {wording.number(rotation.early)} times as far as predicted for "
        f"equilibrium (median over layers){late}. The largest early multiple was "
        f"{wording.number(rotation.largest)}, in {rotation.largest_row.label} at step {rotation.largest_step:,}."
    )


def _attempts(run: Run) -> list[str]:
    sentences = []
    if run.resumes:
        steps = wording.listing([f"{step:,}" for step in run.resumes])
        sentences.append(f"The run was resumed at {'step' if len(run.resumes) == 1 else 'steps'} {steps}.")
    if run.leftover is not None:
        sentences.append(
            f"From step {run.leftover:,} on, the record is of an attempt that was abandoned when the run was resumed."
        )
    return sentences


def _ending(run: Run) -> str:
    if run.ending is None:
        return "The record has no end: the run was killed, or is still going."
    if run.ending.overhead is None:
        return ""
    return f"Monitoring took {wording.percent(run.ending.overhead)} of the time."
