"""From the histories of all runs of a model to what happened: verdicts, events of the loss, who moved first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from warmfree.lab.dissect.cases import SUBJECT
from warmfree.lab.dissect.history import History
from warmfree.lab.dissect.kinds import LEFT_OUT, LINEAR_MARGINS, LOG_MARGIN, Kind
from warmfree.lab.dissect.losses import JUMP, SMOOTHING, STAY, LossEvents, find_loss_events
from warmfree.lab.dissect.movers import TRUSTED, Move, Mover, find_movers
from warmfree.lab.dissect.verdicts import FAILED, HEALTHY, Verdict, judge

__all__ = ["RULES", "Dissection", "FirstMoves", "dissect_histories"]

RULES: dict[str, Any] = {
    "healthy_below": HEALTHY,
    "failed_above": FAILED,
    "loss_jump_factor": JUMP,
    "loss_smoothing_steps_each_side": SMOOTHING,
    "loss_stays_steps": STAY,
    "log_margin_factor": LOG_MARGIN,
    "linear_margins": LINEAR_MARGINS,
    "few_false_alarms": TRUSTED,
    "left_out": LEFT_OUT,
}


@dataclass(frozen=True, slots=True)
class FirstMoves:
    """What left the healthy range first in a failing run, before its loss did.

    Attributes:
        symptom: of the symptoms; None if none moved before the loss.
        trusted_symptom: of those that hardly ever move in healthy runs.
        by_construction: of the quantities that the learning rate sets.
        symptoms_before: how many symptoms moved before the loss.
    """

    symptom: Move | None
    trusted_symptom: Move | None
    by_construction: Move | None
    symptoms_before: int


@dataclass(frozen=True, slots=True)
class Dissection:
    """What the runs of a model show.

    Attributes:
        verdicts: by name of the run.
        events: of the loss, by name of the failing run.
        movers: all quantities, see `find_movers`.
        firsts: what moved first, by name of the failing run.
        healthy_symptoms: by healthy run, how many symptoms leave the range of the other healthy runs before the
            median event of the failing runs' losses, and at any time.
        problems: what keeps it from saying more, in words.
    """

    verdicts: dict[str, Verdict]
    events: dict[str, LossEvents] = field(default_factory=dict)
    movers: list[Mover] = field(default_factory=list)
    firsts: dict[str, FirstMoves] = field(default_factory=dict)
    healthy_symptoms: dict[str, tuple[int, int]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def of_outcome(self, outcome: str) -> list[str]:
        """Return the names of the runs with an outcome."""
        return [name for name, verdict in self.verdicts.items() if verdict.outcome == outcome]

    @property
    def median_event(self) -> float | None:
        """Median over failing runs of the first event of the loss."""
        first = [events.first for events in self.events.values() if events.first is not None]
        return median(first) if first else None


def dissect_histories(histories: Sequence[History]) -> Dissection:
    """Compare the failing runs of AdamW without warmup with all runs that went well.

    Other runs that fail, and those between, are reported and used for nothing: what is asked is why this method fails.
    """
    verdicts = judge(histories)
    failing = {
        h.name: h for h in histories if h.cell.method == SUBJECT and verdicts[h.name].outcome == "failed"
    }
    healthy = [h for h in histories if verdicts[h.name].outcome == "healthy"]
    problems = _problems(histories, verdicts)
    if not healthy or not failing:
        return Dissection(verdicts, problems=problems)
    events = {
        name: find_loss_events(history.losses, [h.losses for h in healthy])
        for name, history in failing.items()
    }
    movers = find_movers(events, histories, [h.name for h in healthy])
    return Dissection(
        verdicts=verdicts,
        events=events,
        movers=movers,
        firsts={name: _firsts(name, movers) for name in failing},
        healthy_symptoms=_healthy_symptoms(movers, events, [h.name for h in healthy]),
        problems=problems + _event_problems(events),
    )


def _problems(histories: Sequence[History], verdicts: dict[str, Verdict]) -> list[str]:
    problems = []
    subjects = [h for h in histories if h.cell.method == SUBJECT]
    healthy = [h.name for h in histories if verdicts[h.name].outcome == "healthy"]
    if not any(verdicts[h.name].outcome == "failed" for h in subjects):
        problems.append(
            f"No run of {SUBJECT} failed: there is no crash to dissect; try more steps or a higher lr."
        )
    if not healthy:
        problems.append(
            "No run went well: there is no healthy range, so nothing can be said to have left it."
        )
    elif len(healthy) < 5:
        problems.append(
            f"Only {len(healthy)} of the runs went well: the healthy range is narrow and false alarms are frequent."
        )
    for history in histories:
        verdict = verdicts[history.name]
        if verdict.outcome == "between":
            problems.append(f"{history.name} went neither well nor badly ({verdict.reason}): it is left out.")
        elif verdict.outcome == "failed" and history.cell.method != SUBJECT:
            problems.append(f"{history.name} failed ({verdict.reason}): it is left out.")
        problems += [f"{history.name}: {notice}" for notice in history.notices]
    return problems


def _event_problems(events: dict[str, LossEvents]) -> list[str]:
    return [
        f"The training loss of {name} never leaves the healthy range, though it failed: no lead can be given."
        for name, found in events.items()
        if found.first is None
    ]


def _firsts(run: str, movers: Sequence[Mover]) -> FirstMoves:
    def first(kind: Kind, *, trusted: bool = False) -> Move | None:
        moves = [
            move
            for mover in movers
            if mover.kind == kind and (mover.is_trusted or not trusted)
            for move in mover.before
            if move.run == run
        ]
        return min(moves, key=lambda move: (move.exit.step, -move.exit.excess), default=None)

    before = sum(
        mover.kind == "symptom" and any(move.run == run for move in mover.before) for mover in movers
    )
    return FirstMoves(
        symptom=first("symptom"),
        trusted_symptom=first("symptom", trusted=True),
        by_construction=first("cause by construction"),
        symptoms_before=before,
    )


def _healthy_symptoms(
    movers: Sequence[Mover], events: dict[str, LossEvents], healthy: Sequence[str]
) -> dict[str, tuple[int, int]]:
    if len(healthy) < 2:
        return {}  # there are no others to hold it against
    first = [found.first for found in events.values() if found.first is not None]
    until = median(first) if first else 0
    counts = {}
    for name in healthy:
        alarms = [mover.run_alarms.get(name) for mover in movers if mover.kind == "symptom"]
        steps = [step for step in alarms if step is not None]
        counts[name] = (sum(step < until for step in steps), len(steps))
    return counts
