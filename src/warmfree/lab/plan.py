"""From what the command line asks to what is trained: the task, the cells and a guess of the time."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from warmfree.lab.data import Batches, Corpus, load_shakespeare, load_text
from warmfree.lab.folder import Grid
from warmfree.lab.methods import METHODS, Method, find_methods
from warmfree.lab.tasks import ByteGPTConfig, prepare_run
from warmfree.lab.train import Run

__all__ = [
    "DEFAULT_TASK",
    "QUICK_TASK",
    "Plan",
    "estimate_seconds",
    "make_plan",
    "spread_seconds",
    "time_run",
]

DEFAULT_TASK = ByteGPTConfig()
QUICK_TASK = ByteGPTConfig(layers=2, width=64, context=32)

_START_SECONDS = 6.0  # processes that import torch, and the report
_CALIBRATION_STEPS = 6
_SHARED_MACHINE = 1.12  # two runs at once slow each other: 82 ms a step against 73 ms, on 2 cores


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A comparison before it starts.

    Attributes:
        task: model, batches and schedule.
        corpus: the text.
        methods: what to compare.
        grid: learning rates by method, and seeds.
    """

    task: ByteGPTConfig
    corpus: Corpus
    methods: tuple[Method, ...]
    grid: Grid

    def config(self) -> dict[str, Any]:
        """Return everything that decides the numbers of a cell, as JSON values."""
        return {
            "task": self.task.describe(self.corpus),
            "versions": {name: version(name) for name in ("torch", "numpy", "warmfree")},
            "threads": 1,
            "methods": {method.name: method.settings() for method in self.methods},
        }


def make_plan(
    *,
    quick: bool = False,
    optimizers: Sequence[str] | None = None,
    lrs: Sequence[float] | None = None,
    steps: int | None = None,
    seeds: int = 1,
    text: Path | None = None,
) -> Plan:
    """Check what is asked for and return the plan.

    Args:
        quick: the small task instead of the default one.
        optimizers: names of methods; None for all.
        lrs: learning rates > 0 for every method; None for each method's own.
        steps: of every run, >= 1; None for the task's own.
        seeds: how many, >= 1; they are 0, 1, ...
        text: a UTF-8 text file; None for Shakespeare's plays.

    Raises:
        ValueError: an argument is out of range, or the text unusable.
        FileNotFoundError: there is no such text.
        ModuleNotFoundError: the package with the default text is missing.
    """
    methods = tuple(find_methods(METHODS if optimizers is None else optimizers))
    if not methods:
        raise ValueError(f"no optimizer to compare; known: {', '.join(METHODS)}")
    if lrs is not None:
        _check_lrs(lrs)
    if seeds < 1:
        raise ValueError(f"seeds must be >= 1, got {seeds}")
    base = QUICK_TASK if quick else DEFAULT_TASK
    task = base.with_steps(base.steps if steps is None else steps)
    corpus = load_shakespeare() if text is None else load_text(text)
    # Whether the text is long enough is known here, before any folder or process is made.
    Batches(corpus, context=task.context, batch_size=task.batch_size, seed=0)
    chosen = {method.name: tuple(sorted(lrs)) if lrs is not None else method.lrs for method in methods}
    return Plan(task=task, corpus=corpus, methods=methods, grid=Grid(lrs=chosen, seeds=tuple(range(seeds))))


def estimate_seconds(plan: Plan, *, cells: int, workers: int) -> float:
    """Return about how long ``cells`` runs take, from a few timed steps of the first method on one thread.

    Args:
        plan: what is trained.
        cells: number of runs left, >= 0.
        workers: processes, >= 1; more than there are cores bring nothing.
    """
    if cells == 0:
        return 0.0
    method = plan.methods[0]
    run = prepare_run(plan.task, plan.corpus, method, lr=plan.grid.lrs[method.name][0], seed=0)
    return spread_seconds(time_run(run), cells=cells, workers=workers)


def spread_seconds(per_cell: float, *, cells: int, workers: int) -> float:
    """Return about how long runs of so many seconds each take in parallel processes.

    Example:
        >>> spread_seconds(10.0, cells=3, workers=1)
        36.0
    """
    return _START_SECONDS + math.ceil(cells / workers) * per_cell * (_SHARED_MACHINE if workers > 1 else 1.0)


def time_run(run: Run) -> float:
    """Return about how many seconds a run takes, from a few timed steps of it on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        durations = []
        for step in range(_CALIBRATION_STEPS):
            began = time.perf_counter()
            run.optimizer.zero_grad()
            run.loss(step).backward()  # type: ignore[no-untyped-call]
            run.optimizer.step()
            durations.append(time.perf_counter() - began)
        with torch.no_grad():
            began = time.perf_counter()
            run.validate()
        validation = time.perf_counter() - began
    finally:
        torch.set_num_threads(threads)
    per_step = sorted(durations)[len(durations) // 2]
    return run.steps * per_step + math.ceil(run.steps / run.eval_every) * validation


def _check_lrs(lrs: Sequence[float]) -> None:
    if not lrs:
        raise ValueError("lrs must hold at least one learning rate")
    for lr in lrs:
        if not 0.0 < lr < math.inf:
            raise ValueError(f"lrs must be finite and > 0, got {lr}")
    if len(set(lrs)) < len(lrs):
        raise ValueError(f"lrs must differ from each other, got {' '.join(map(str, lrs))}")
