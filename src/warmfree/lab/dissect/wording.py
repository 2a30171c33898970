"""A dissection in sentences and tables: for a terminal, and as markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from rich.table import Table

from warmfree.lab.dissect.cases import CONTROL
from warmfree.lab.dissect.dissection import Dissection
from warmfree.lab.dissect.history import History
from warmfree.lab.dissect.kinds import LOG_MARGIN
from warmfree.lab.dissect.losses import JUMP, SMOOTHING, STAY, LossEvents
from warmfree.lab.dissect.movers import TRUSTED, Move, Mover
from warmfree.lab.dissect.verdicts import FAILED, HEALTHY

__all__ = ["markdown", "mover_table", "notes", "run_table", "sentences"]

_MOVER_COLUMNS = (
    *("quantity", "moved before the loss", "median lead", "to leaving", "resolution", "first in"),
    *("false alarms", "of them by then", "other methods"),
)
_ON_TERMINAL = (0, 1, 2, 5, 6, 8)  # of these columns: what fits
_RUN_COLUMNS = (
    "run",
    "validation loss",
    "over control",
    "went",
    "loss jumps",
    "loss leaves",
    "cost of watching",
)


def sentences(dissection: Dissection) -> list[str]:
    """Say what happened: the problems first, then each failing run, then the control of the count."""
    said = list(dissection.problems)
    movers = {mover.name: mover for mover in dissection.movers}
    for run, events in dissection.events.items():
        firsts = dissection.firsts[run]
        parts = [f"{run}: {_events(events)}"]
        if events.first is not None:
            if firsts.symptom is None:
                parts.append("no symptom moved before it")
            else:
                parts.append(f"first symptom: {_moved(firsts.symptom, movers)}")
                if firsts.trusted_symptom is None:
                    parts.append("none with few false alarms moved before it")
                elif firsts.trusted_symptom != firsts.symptom:
                    parts.append(f"first with few false alarms: {_moved(firsts.trusted_symptom, movers)}")
            if firsts.by_construction is not None:
                parts.append(f"by construction: {_moved(firsts.by_construction, movers)}")
        said.append("; ".join(parts) + ".")
    if dissection.healthy_symptoms and dissection.median_event is not None:
        said.append(_control(dissection))
    return said


def notes(*, dense_steps: int, pace: str) -> list[str]:
    """Say by which rules, and what they cannot tell."""
    return [
        f"Healthy: final validation loss at most {HEALTHY:g} times that of {CONTROL} with the same seed; failed: "
        f"above {FAILED:g} times, or diverged. What is between is used for nothing. A star marks runs that were held "
        "against the median of the controls instead.",
        f"The loss jumps at the first step above {JUMP:g} times the highest of all healthy runs at that step. It "
        f"leaves where it is above theirs and its mean over {2 * SMOOTHING + 1} steps, centred, stays above theirs "
        f"for at least {STAY} steps; one that leaves by little may have done so up to {SMOOTHING} steps earlier.",
        f"A quantity moves at the first measured step at which a layer is outside of all that healthy runs ever show "
        f"there, at any step: beyond a factor {LOG_MARGIN:g} (log scale) or a margin in its own units. Heads of a "
        "layer share one range.",
        "Values at a step are those of the weights before it; sizes of the step are of the step itself, so that the "
        "loss shows what it did one step later.",
        "Lead: steps from there to the first event of the loss. It is a lower bound: the quantity moved at or before "
        "that step, but after the measurement before it; resolution is the longest such gap.",
        "False alarms: healthy runs that leave the range of the other healthy runs, at any step, and of them before "
        "the median event of the failing runs; other methods: healthy runs that leave the range of the runs of all "
        "other methods.",
        f"Something always moves first among hundreds of series: quantities with at most {TRUSTED:.0%} false alarms "
        "come first in the tables.",
        "Size of the step, stability threshold and what holds it differ by construction: at first warmup has a "
        "smaller learning rate, and the warmup-free optimizers bound the step. They are listed apart, as causes that "
        "were set.",
        f"Steps between measurements in the first {dense_steps} steps, and after them: {pace}. Loss and learning "
        "rate are known at every step. Curvature is that of a small held-out batch.",
    ]


def run_table(dissection: Dissection, histories: Sequence[History]) -> Table:
    """Return how every run went."""
    return _rich(_RUN_COLUMNS, _run_rows(dissection, histories), title="Runs")


def mover_table(dissection: Dissection, kind: str, *, limit: int) -> Table:
    """Return the quantities of a kind that moved before the loss in at least one failing run."""
    rows = _mover_rows(dissection, kind)
    title = "Symptoms" if kind == "symptom" else "Differ by construction"
    if len(rows) > limit:
        title += f" (first {limit} of {len(rows)} that moved before the loss)"
    columns = [_MOVER_COLUMNS[at] for at in _ON_TERMINAL]
    return _rich(columns, [[row[at] for at in _ON_TERMINAL] for row in rows[:limit]], title=title)


def markdown(
    dissection: Dissection, histories: Sequence[History], *, title: str, command: str, notes: Sequence[str]
) -> str:
    """Return all of it as a markdown page, ready for docs."""
    parts = [f"# A crash, dissected: {title}", f"`{command}`"]
    parts.append("\n".join(f"- {sentence}" for sentence in sentences(dissection)))
    parts += ["## Runs", _grid(_RUN_COLUMNS, _run_rows(dissection, histories))]
    if dissection.movers:
        parts += _mover_parts(dissection)
    parts += ["## How it was measured", "\n".join(f"- {note}" for note in notes)]
    return "\n\n".join(parts) + "\n"


def _mover_parts(dissection: Dissection) -> list[str]:
    parts = []
    for heading, kind in (
        ("Symptoms that moved before the loss", "symptom"),
        ("Quantities that differ by construction", "cause by construction"),
    ):
        rows = _mover_rows(dissection, kind)
        parts += [f"## {heading}", _grid(_MOVER_COLUMNS, rows) if rows else "None."]
    silent = [mover.quantity.title for mover in dissection.movers if not mover.before]
    if silent:
        parts.append(f"Never before the loss: {'; '.join(silent)}.")
    return parts


def _events(events: LossEvents) -> str:
    if events.first is None:
        return "the loss never leaves the healthy range"
    jump = "never jumps" if events.jump is None else f"jumps at step {events.jump}"
    leaves = "never leaves for long" if events.leaves is None else f"leaves at step {events.leaves}"
    return f"the loss {jump} and {leaves}"


def _moved(move: Move, movers: dict[str, Mover]) -> str:
    mover, exit_ = movers[move.exit.quantity], move.exit
    others = f" and {len(move.together) - 1} more" if len(move.together) > 1 else ""
    alarms = f"false alarms {_fraction(mover.run_alarms)}"
    before = f"{move.lead} step{'' if move.lead == 1 else 's'}"
    return (
        f"{mover.quantity.title} of {exit_.row.label}{others} at step {exit_.step}, {before} before "
        f"({exit_.value:.3g}, healthy {exit_.low:.3g} to {exit_.high:.3g} with margin; {alarms})"
    )


def _control(dissection: Dissection) -> str:
    before, ever = zip(*dissection.healthy_symptoms.values(), strict=True)
    failing = [firsts.symptoms_before for firsts in dissection.firsts.values()]
    return (
        f"How many symptoms move without a crash: {_span(before)} before step {dissection.median_event:g} and "
        f"{_span(ever)} at any time in healthy runs, each held against the others; {_span(failing)} in the failing "
        "runs before their loss."
    )


def _span(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low} to {high}"


def _run_rows(dissection: Dissection, histories: Sequence[History]) -> list[list[str]]:
    rows = []
    for history in histories:
        verdict, events = dissection.verdicts[history.name], dissection.events.get(history.name)
        loss, ratio, cost = history.final_val_loss, verdict.ratio, history.overhead
        rows.append(
            [
                history.name,
                "diverged" if loss is None else f"{loss:.3f}",
                "-" if ratio is None else f"{ratio:.2f}{'' if verdict.own_control else '*'}",
                {"healthy": "well", "failed": "badly", "between": "between"}[verdict.outcome],
                _step(None if events is None else events.jump),
                _step(None if events is None else events.leaves),
                "-" if cost is None else f"{1 + cost:.1f}x",
            ]
        )
    return rows


def _mover_rows(dissection: Dissection, kind: str) -> list[list[str]]:
    return [
        _mover_row(mover, dissection.median_event)
        for mover in dissection.movers
        if mover.kind == kind and mover.before
    ]


def _mover_row(mover: Mover, until: float | None) -> list[str]:
    leaving = [move.lead_leaves for move in mover.before if move.lead_leaves is not None]
    gaps = [
        move.exit.step - move.exit.previous if move.exit.previous is not None else None
        for move in mover.before
    ]
    known = [gap for gap in gaps if gap is not None]
    leads = sorted(move.lead for move in mover.before if move.lead is not None)
    return [
        mover.quantity.title,
        f"{len(mover.before)}/{mover.failing_runs}",
        f"{mover.median_lead:g} ({_span(leads)})",
        _span(leaving) if leaving else "-",
        "from the first on" if not known else f"{max(known)}",
        _layers(mover.before),
        _fraction(mover.run_alarms),
        "-" if until is None or not mover.run_alarms else f"{mover.alarms_before(until)}",
        _fraction(mover.method_alarms),
    ]


def _layers(moves: Sequence[Move]) -> str:
    """Name the rows that left first, the most frequent ones first, at most three."""
    counts = Counter(move.exit.row.label for move in moves)
    named = [label if count == 1 else f"{label} ({count}x)" for label, count in counts.most_common(3)]
    return ", ".join(named) + (", ..." if len(counts) > 3 else "")


def _fraction(alarms: Mapping[str, int | None]) -> str:
    steps = list(alarms.values())
    return f"{sum(step is not None for step in steps)}/{len(steps)}" if steps else "-"


def _step(step: int | None) -> str:
    return "-" if step is None else str(step)


def _rich(columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str) -> Table:
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    return table


def _grid(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
