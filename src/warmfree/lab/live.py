"""The table that a running comparison shows: a row a method, a column a learning rate."""

import math
import time
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table
from rich.text import Text

from warmfree.lab.cells import Cell
from warmfree.lab.folder import Grid

__all__ = ["LiveTable", "format_duration"]


@dataclass
class LiveTable:
    """What is known of every cell, drawn on demand.

    Attributes:
        grid: all cells.
        labels: of the methods, by name.
        steps: of every run.
        done: results by cell: the final validation loss, None for a diverged cell.
        running: steps done by running cell.
    """

    grid: Grid
    labels: dict[str, str]
    steps: int
    done: dict[Cell, float | None] = field(default_factory=dict)
    running: dict[Cell, int] = field(default_factory=dict)
    _began: tuple[float, int] | None = None

    def __rich__(self) -> Table:
        """Draw the table; rich calls this at every refresh."""
        cells = self.grid.cells()
        columns = max(len(lrs) for lrs in self.grid.lrs.values())
        table = Table(title=f"{len(self.done)} of {len(cells)} runs done, {self._time_left(len(cells))}")
        table.add_column("method")
        for _ in range(columns):
            table.add_column("lr: loss", justify="right", no_wrap=True)
        for name, lrs in self.grid.lrs.items():
            row = [self._draw([Cell(name, lr, seed) for seed in self.grid.seeds], lr) for lr in lrs]
            table.add_row(self.labels.get(name, name), *row, *[""] * (columns - len(row)))
        return table

    def _draw(self, cells: list[Cell], lr: float) -> Text:
        losses = [self.done[cell] for cell in cells if cell in self.done]
        finite = [loss for loss in losses if loss is not None]
        parts = [(f"{lr:g}: ", "dim")]
        if finite:
            parts.append((f"{math.fsum(finite) / len(finite):.3f}", "bold"))
        if len(finite) < len(losses):
            number = len(losses) - len(finite)
            parts.append(("diverged" if len(cells) == 1 else f" {number} diverged", "red"))
        progress = [self.running[cell] / self.steps for cell in cells if cell in self.running]
        if progress:
            parts.append((f"{' ' if losses else ''}{100 * max(progress):.0f} %", "cyan"))
        if not losses and not progress:
            parts.append(("·", "dim"))
        if len(cells) > 1 and len(losses) < len(cells):
            parts.append((f" ({len(losses)}/{len(cells)})", "dim"))
        return Text.assemble(*parts)

    def _time_left(self, number: int) -> str:
        steps_done = len(self.done) * self.steps + sum(self.running.values())
        now = time.monotonic()
        if self._began is None:  # what an earlier process did says nothing of this one's speed
            self._began = (now, steps_done)
        elapsed, gained = now - self._began[0], steps_done - self._began[1]
        if gained <= 0:
            return "time left unknown"
        return f"about {format_duration(elapsed / gained * (number * self.steps - steps_done))} left"

    def line(self, cell: Cell) -> str:
        """Return one line on a cell that is done, for output that is not a terminal."""
        loss = self.done[cell]
        outcome = "diverged" if loss is None else f"validation loss {loss:.4f}"
        return f"{len(self.done)}/{len(self.grid.cells())} {cell.name}: {outcome}"


def format_duration(seconds: float) -> str:
    """Return a duration as people say it.

    Example:
        >>> [format_duration(seconds) for seconds in (8.2, 95, 4000)]
        ['8 s', '1 min 35 s', '1 h 06 min']
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{minutes} min {rest:02d} s" if hours == 0 else f"{hours} h {minutes:02d} min"


def known_loss(result: dict[str, Any]) -> float | None:
    """Return what the table shows of a result: the loss of a finished run, None of a diverged one."""
    loss: float | None = result["final_val_loss"]
    return loss if result["status"] == "finished" else None
