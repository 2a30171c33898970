"""Train the missing cells of a comparison in parallel processes, and show how far they are."""

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.live import Live

from warmfree.lab.cells import Cell, read_result, run_cell
from warmfree.lab.data import Corpus
from warmfree.lab.folder import ResultsFolder
from warmfree.lab.interrupt import Interrupted, Interrupts
from warmfree.lab.live import LiveTable, known_loss
from warmfree.lab.plan import Plan
from warmfree.lab.tasks import ByteGPTConfig
from warmfree.lab.workers import Event, Report, run_jobs

__all__ = ["sweep", "sweep_cells"]


def sweep(plan: Plan, folder: ResultsFolder, *, workers: int, console: Console) -> None:
    """Train the cells of a plan that the folder does not have, in parallel processes, with a live table.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; running cells are saved.
        JobFailedError: a cell raised, or its process died.
    """
    table = LiveTable(grid=plan.grid, labels={m.name: m.label for m in plan.methods}, steps=plan.task.steps)
    work = functools.partial(_train_cell, config=plan.task, corpus=plan.corpus, cells=folder.path / "cells")
    sweep_cells(work, table, folder, workers=workers, console=console)


def sweep_cells(
    work: Callable[[Cell, Report], None],
    table: LiveTable,
    folder: ResultsFolder,
    *,
    workers: int,
    console: Console,
) -> None:
    """Do the same for cells of any kind.

    Args:
        work: does one cell, in its folder; picklable, called in a worker process.
        table: of the grid of all cells.
        folder: where they are.
        workers: processes, >= 1.
        console: where to show progress.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; running cells are saved.
        JobFailedError: a cell raised, or its process died.
    """
    cells, waiting = table.grid.cells(), []
    for cell in cells:
        if cell.is_done(folder.cell(cell)):
            table.done[cell] = _loss_of(cell, folder)
        else:
            waiting.append(cell)
    if not waiting:
        return
    # Off a terminal the table would be a page for every refresh: there, each run is one line when it is done.
    live = Live(table, console=console, auto_refresh=False, transient=True) if console.is_terminal else None
    with (
        Interrupts() as interrupts,
        live or contextlib.nullcontext(),
        run_jobs(work, waiting, workers=workers) as events,
    ):
        for event in events:
            if event is not None:
                _follow(event, table, folder)
                if event.kind == "done" and live is None:
                    console.print(table.line(event.job), highlight=False, soft_wrap=True)
            if live is not None:
                live.refresh()
            if interrupts.requested:
                raise Interrupted(
                    f"interrupted; {len(table.done)} of {len(cells)} runs are done and saved in "
                    f"{folder.path}: run the same command again to resume"
                )


def _train_cell(cell: Cell, report: Report, *, config: ByteGPTConfig, corpus: Corpus, cells: Path) -> None:
    """Do one cell (in a worker process)."""

    def on_step(step: int, loss: float, lr: float) -> None:  # noqa: ARG001 (the loop's signature)
        report(step)

    run_cell(cell, config, corpus, cells / cell.name, on_step=on_step)


def _follow(event: Event[Cell], table: LiveTable, folder: ResultsFolder) -> None:
    if event.kind == "done":
        table.running.pop(event.job, None)
        table.done[event.job] = _loss_of(event.job, folder)
    else:
        table.running[event.job] = event.value or 0


def _loss_of(cell: Cell, folder: ResultsFolder) -> float | None:
    return known_loss(read_result(folder.cell(cell)))
