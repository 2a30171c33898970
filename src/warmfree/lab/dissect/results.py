"""A dissection as plain JSON values, for `results.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from warmfree.lab.dissect.dissection import RULES, Dissection, FirstMoves
from warmfree.lab.dissect.envelope import margin_of
from warmfree.lab.dissect.history import History
from warmfree.lab.dissect.movers import Move, Mover, rate
from warmfree.report.runs.run import Row

__all__ = ["as_json"]


def as_json(dissection: Dissection, histories: Sequence[History]) -> dict[str, Any]:
    """Return everything that a dissection found.

    Returns:
        ``rules`` (all thresholds), ``problems``, ``runs`` (with their verdicts), ``events`` (of the loss, by
        failing run), ``first`` (what moved first, by failing run), ``quantities`` (all of them, ranked),
        ``healthy_symptoms`` (the control: how many symptoms move without a crash).
    """
    return {
        "rules": RULES,
        "problems": dissection.problems,
        "runs": [
            {
                "name": history.name,
                **dataclasses.asdict(history.cell),
                "final_val_loss": history.final_val_loss,
                "diverged": history.diverged,
                "overhead": history.overhead,
                **dataclasses.asdict(dissection.verdicts[history.name]),
            }
            for history in histories
        ],
        "events": {
            name: {"jump": events.jump, "leaves": events.leaves, "first": events.first}
            for name, events in dissection.events.items()
        },
        "first": {name: _first(firsts) for name, firsts in dissection.firsts.items()},
        "quantities": [_mover(mover) for mover in dissection.movers],
        "healthy_symptoms": {
            "before_step": dissection.median_event,
            "runs": {
                name: {"before": before, "ever": ever}
                for name, (before, ever) in dissection.healthy_symptoms.items()
            },
        },
    }


def _first(firsts: FirstMoves) -> dict[str, Any]:
    return {
        "symptom": _move(firsts.symptom),
        "trusted_symptom": _move(firsts.trusted_symptom),
        "by_construction": _move(firsts.by_construction),
        "symptoms_before": firsts.symptoms_before,
    }


def _mover(mover: Mover) -> dict[str, Any]:
    return {
        "name": mover.name,
        "title": mover.quantity.title,
        "kind": mover.kind,
        "scale": "log" if mover.quantity.is_log else "linear",
        "margin": margin_of(mover.name, is_log=mover.quantity.is_log),
        "healthy_runs": mover.healthy_runs,
        "failing_runs": mover.failing_runs,
        "moved_before_loss": len(mover.before),
        "median_lead": mover.median_lead,
        "false_alarm_rate": mover.false_alarm_rate,
        "false_alarms": dict(mover.run_alarms),
        "false_alarm_rate_other_methods": rate(mover.method_alarms),
        "false_alarms_other_methods": dict(mover.method_alarms),
        "moves": [_move(move) for move in mover.moves],
    }


def _move(move: Move | None) -> dict[str, Any] | None:
    if move is None:
        return None
    found = move.exit
    return {
        "run": move.run,
        "quantity": found.quantity,
        **_row(found.row),
        "step": found.step,
        "previous_step": found.previous,
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "together": [_row(row) for row in move.together],
        "rows_before": move.rows_before,
        "lead": move.lead,
        "lead_jump": move.lead_jump,
        "lead_leaves": move.lead_leaves,
    }


def _row(row: Row) -> dict[str, Any]:
    return {"layer": row.layer, "head": row.head}
