"""``warmfree compare``: train every cell, write the results, show what they say."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from warmfree.lab.cells import read_cell
from warmfree.lab.folder import Grid, ResultsFolder
from warmfree.lab.live import format_duration
from warmfree.lab.methods import METHODS
from warmfree.lab.plan import Plan, estimate_seconds
from warmfree.lab.sweep import sweep
from warmfree.record import write_json

__all__ = ["RESULTS", "build_results", "compare", "preview"]

RESULTS = "results.json"
FORMAT = 1


def compare(plan: Plan, out: Path, *, workers: int, command: str, console: Console) -> Path:
    """Train the cells of a plan that the folder does not have, then write and show the results.

    The same call after an interruption, even by SIGKILL, goes on where it was and ends with the same numbers.

    Args:
        plan: what to compare.
        out: the results folder; made when missing.
        workers: processes, >= 1.
        command: what was typed, for the report.
        console: where to show progress and results.

    Returns:
        The path of the report.

    Raises:
        ValueError: the folder is unusable, see :class:`ResultsFolder`.
        Interrupted: Ctrl-C; everything done so far is kept.
        JobFailedError: a worker failed.
    """
    from warmfree import report  # needs matplotlib, which training does not

    folder = ResultsFolder(out, config=plan.config())
    with folder.opened(plan.grid) as grid:
        sweep(plan, folder, workers=workers, console=console)
        results = build_results(plan, folder, grid, command=command)
        write_json(out / RESULTS, results)
    page = report.write_report(results, out)
    console.print(report.summary_table(results))
    for sentence in report.verdict(results):
        console.print(f"- {sentence}", highlight=False)
    console.print(f"Report: {page}\nResults: {out / RESULTS}", highlight=False, soft_wrap=True)
    return page


def preview(plan: Plan, out: Path, *, workers: int, console: Console) -> None:
    """Print the cells of a plan and the time they would take, and write nothing.

    Raises:
        ValueError: the folder holds another comparison.
    """
    folder = ResultsFolder(out, config=plan.config())
    folder.read_grid()
    cells = plan.grid.cells()
    left = [cell for cell in cells if not cell.is_done(folder.cell(cell))]
    for name, lrs in plan.grid.lrs.items():
        console.print(
            f"{METHODS[name].label} ({name}): lr {', '.join(f'{lr:g}' for lr in lrs)}", highlight=False
        )
    seconds = estimate_seconds(plan, cells=len(left), workers=workers)
    console.print(
        f"{len(cells)} runs of {plan.task.steps} steps with {_count(len(plan.grid.seeds), 'seed')}, "
        f"{len(cells) - len(left)} of them done in {out}; {len(left)} left: about {format_duration(seconds)} "
        f"with {_count(workers, 'worker')}",
        highlight=False,
        soft_wrap=True,
    )


def build_results(plan: Plan, folder: ResultsFolder, grid: Grid, *, command: str) -> dict[str, Any]:
    """Return the content of ``results.json``: every finished cell of a folder, also those of earlier calls.

    Args:
        plan: what was asked for last.
        folder: with the cells.
        grid: all cells of the folder.
        command: what was typed.
    """
    done = [cell for cell in grid.cells() if cell.is_done(folder.cell(cell))]
    methods = []
    for name in grid.lrs:
        lrs = sorted({cell.lr for cell in done if cell.method == name})
        if lrs:
            method = METHODS[name]
            methods.append(
                {
                    "name": name,
                    "label": method.label,
                    "kind": method.kind,
                    "warmup_fraction": method.warmup,
                    "description": method.description,
                    "lrs": lrs,
                }
            )
    return {
        "format": FORMAT,
        "command": command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "warmfree", "numpy")},
        },
        "machine": {"cpu": _cpu_name(), "cores": os.cpu_count() or 1},
        "task": plan.task.describe(plan.corpus),
        "methods": methods,
        "cells": [read_cell(folder.cell(cell), steps=plan.task.steps) for cell in done],
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
