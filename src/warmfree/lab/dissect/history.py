"""What is known of a finished run: how it ended, the loss of every step, and all that was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from warmfree.lab.cells import Cell, read_result
from warmfree.lab.train import RECORD
from warmfree.record import read_records
from warmfree.report.runs import load_run
from warmfree.report.runs.run import Grid

__all__ = ["History", "read_history"]


@dataclass(frozen=True, eq=False)
class History:
    """One run.

    Attributes:
        cell: which one.
        final_val_loss: after its last step; None when it did not get there or it is not finite.
        diverged: why it counts as diverged, None when it does not.
        losses: training loss by step, before the step; NaN where it was, missing where it is not known.
        grids: measured values by quantity.
        overhead: time of measuring over that of training; None when it is not known.
        notices: what the monitor had to say about itself.
    """

    cell: Cell
    final_val_loss: float | None = None
    diverged: str | None = None
    losses: Mapping[int, float] = field(default_factory=dict)
    grids: Mapping[str, Grid] = field(default_factory=dict)
    overhead: float | None = None
    notices: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the cell."""
        return self.cell.name


def read_history(cell: Cell, folder: Path) -> History:
    """Read a finished run.

    The losses are those of the training loop, which has the last one of a run that blew up.

    Args:
        cell: which run.
        folder: its folder.

    Raises:
        ValueError: a file is damaged; the message names it.
        FileNotFoundError: a file is missing.
    """
    result = read_result(folder)
    rows = read_records(folder / RECORD)
    run = load_run(folder)
    divergence = result["divergence"]
    return History(
        cell=cell,
        final_val_loss=result["final_val_loss"],
        diverged=None if result["status"] == "finished" else divergence["reason"],
        losses={row["step"]: row["loss"] for row in rows if "loss" in row},
        grids=run.grids,
        overhead=None if run.ending is None else run.ending.overhead,
        notices=tuple(notice.message for notice in run.notices),
    )
