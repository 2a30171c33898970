"""``warmfree dissect``: train and watch every run, find what moved first, show it."""

import functools
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from warmfree.lab.cells import Cell
from warmfree.lab.dissect.cases import Case, grid_of
from warmfree.lab.dissect.dissection import Dissection, dissect_histories
from warmfree.lab.dissect.history import History, read_history
from warmfree.lab.dissect.results import as_json
from warmfree.lab.dissect.watch import DENSE_STEPS, PACES, PRODUCTS, watch_cell
from warmfree.lab.dissect.wording import markdown, mover_table, notes, run_table, sentences
from warmfree.lab.folder import Grid, ResultsFolder
from warmfree.lab.live import LiveTable, format_duration
from warmfree.lab.methods import METHODS, find_methods
from warmfree.lab.plan import spread_seconds, time_run
from warmfree.lab.sweep import sweep_cells
from warmfree.record import write_json
from warmfree.report.runs import write_run_report

__all__ = ["PAGE", "RESULTS", "dissect", "preview"]

RESULTS = "results.json"
PAGE = "dissection.md"
FORMAT = 1
_SHOWN = 12
# Watching at these paces takes about 1.3 times as long as the training itself, more than half of it for curvature.
_WATCHED = 2.3


def dissect(
    cases: Sequence[Case], out: Path, *, seeds: int, workers: int, command: str, console: Console
) -> list[Path]:
    """Train and watch the runs that the folder does not have, then write and show what they say.

    Each model has a folder: ``cells/`` with a folder a run (``record.jsonl``, ``result.json``, ``monitor.jsonl``),
    ``results.json``, ``dissection.md`` and a page a seed, ``seed0.html``. The same call after an interruption goes on
    where it was; runs that went on measure at other steps for a while, and their averages of noise begin anew.

    Args:
        cases: the models.
        out: the results folder; made when missing.
        seeds: 0, 1, ..., >= 1.
        workers: processes, >= 1.
        command: what was typed, for the results.
        console: where to show progress and results.

    Returns:
        The paths of ``results.json``, one a model.

    Raises:
        ValueError: the folder is unusable, see :class:`ResultsFolder`, or seeds is out of range.
        Interrupted: Ctrl-C; everything done so far is kept.
        JobFailedError: a worker failed.
    """
    written = []
    for case in cases:
        asked, folder = grid_of(case, seeds=seeds), _folder(case, out)
        with folder.opened(asked) as grid:
            console.print(f"{case.title}, {_size(asked, case)}", highlight=False)
            table = LiveTable(
                grid=asked, labels={name: METHODS[name].label for name in case.lrs}, steps=case.steps
            )
            work = functools.partial(watch_cell, case=case, cells=folder.path / "cells")
            sweep_cells(work, table, folder, workers=workers, console=console)
            written.append(_conclude(case, folder, grid, command=command, console=console))
    return written


def preview(cases: Sequence[Case], out: Path, *, seeds: int, workers: int, console: Console) -> None:
    """Print the runs and the time they would take, and write nothing.

    Raises:
        ValueError: the folder holds something else, or seeds is out of range.
    """
    for case in cases:
        grid, folder = grid_of(case, seeds=seeds), _folder(case, out)
        folder.read_grid()
        cells = grid.cells()
        left = [cell for cell in cells if not cell.is_done(folder.cell(cell))]
        console.print(f"{case.title}, {_size(grid, case)}", highlight=False)
        for name, lrs in case.lrs.items():
            console.print(
                f"  {METHODS[name].label} ({name}): lr {', '.join(f'{lr:g}' for lr in lrs)}", highlight=False
            )
        seconds = 0.0
        if left:
            run = case.prepare(METHODS[left[0].method], lr=left[0].lr, seed=left[0].seed)
            seconds = spread_seconds(_WATCHED * time_run(run), cells=len(left), workers=workers)
        console.print(
            f"  {len(cells) - len(left)} of them done in {folder.path}; {len(left)} left: about "
            f"{format_duration(seconds)} with {workers} worker{'' if workers == 1 else 's'}",
            highlight=False,
            soft_wrap=True,
        )


def _folder(case: Case, out: Path) -> ResultsFolder:
    config = {
        "task": case.describe(),
        "versions": {name: version(name) for name in ("torch", "numpy", "warmfree")},
        "threads": 1,
        "watched": {name: [pace.early, pace.late] for name, pace in PACES.items()}
        | {"dense_steps": DENSE_STEPS, "products": PRODUCTS},
        "methods": {method.name: method.settings() for method in find_methods(case.lrs)},
    }
    return ResultsFolder(out / case.name, config=config)


def _size(grid: Grid, case: Case) -> str:
    count = len(grid.seeds)
    return f"{len(grid.cells())} runs of {case.steps} steps with {count} seed{'' if count == 1 else 's'}"


def _conclude(case: Case, folder: ResultsFolder, grid: Grid, *, command: str, console: Console) -> Path:
    """Write and show what the finished runs of a folder say."""
    done = [cell for cell in grid.cells() if cell.is_done(folder.cell(cell))]
    histories = [read_history(cell, folder.cell(cell)) for cell in done]
    dissection = dissect_histories(histories)
    pages = [_write_page(case, folder, done, seed) for seed in sorted({cell.seed for cell in done})]
    paces = ", ".join(f"{name} {pace.early}, then {pace.late}" for name, pace in PACES.items())
    rules = notes(dense_steps=DENSE_STEPS, pace=paces)
    head: dict[str, Any] = {
        "format": FORMAT,
        "command": command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **folder.config["versions"]},
        "model": case.name,
        "task": case.describe(),
        "watched": folder.config["watched"],
        "pages": [page.name for page in pages],
    }
    results, page = folder.path / RESULTS, folder.path / PAGE
    write_json(results, head | as_json(dissection, histories))
    page.write_text(
        markdown(dissection, histories, title=case.title, command=command, notes=rules), encoding="utf-8"
    )
    _show(dissection, histories, console)
    for path in (results, page, *pages):
        console.print(path, highlight=False, soft_wrap=True)
    return results


def _write_page(case: Case, folder: ResultsFolder, done: Sequence[Cell], seed: int) -> Path:
    """Overlay the runs of a seed, each method at the learning rate of the failing one."""
    cells = [Cell(name, lrs[0], seed) for name, lrs in case.lrs.items()]
    folders = [folder.cell(cell) for cell in cells if cell in done]
    return write_run_report(folders, folder.path / f"seed{seed}.html")


def _show(dissection: Dissection, histories: Sequence[History], console: Console) -> None:
    console.print(run_table(dissection, histories))
    for kind in ("symptom", "cause by construction"):
        if any(mover.kind == kind and mover.before for mover in dissection.movers):
            console.print(mover_table(dissection, kind, limit=_SHOWN))
    for sentence in sentences(dissection):
        console.print(f"- {sentence}", highlight=False)
