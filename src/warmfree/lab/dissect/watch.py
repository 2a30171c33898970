"""Watch the runs of a dissection: every probe, at full budget, densely at first."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from warmfree.lab.cells import Cell, finish_cell
from warmfree.lab.dissect.cases import Case
from warmfree.lab.methods import METHODS
from warmfree.lab.train import Run
from warmfree.lab.workers import Report
from warmfree.monitor import PROBES, Curvature, Monitor, Probe

__all__ = ["DENSE_STEPS", "PACES", "PRODUCTS", "Pace", "Watcher", "watch_cell"]

DENSE_STEPS = 60


@dataclass(frozen=True, slots=True)
class Pace:
    """Steps between the measurements of a probe, in the first `DENSE_STEPS` steps and after them."""

    early: int
    late: int


# The cheap ones as often as the loss, where it happens; all that the warmup-free optimizers report themselves, too,
# is measured on the same steps from outside, so that methods compare.
PACES: dict[str, Pace] = {
    **dict.fromkeys(("report", "updates", "gradients", "noise"), Pace(1, 2)),
    **dict.fromkeys(("attention", "representation", "activations", "spectra", "weights"), Pace(1, 2)),
    "blocks": Pace(2, 4),
    "curvature": Pace(2, 12),
}
PRODUCTS = 12  # with the Hessian in one measurement: it goes on from the last one's eigenvector


class Watcher:
    """The monitor of a run, and the pace of its probes.

    Args:
        case: what is trained.
        folder: of the record.
    """

    def __init__(self, case: Case, folder: Path) -> None:
        self._case, self._folder = case, folder
        self._probes: dict[str, Probe] = {
            name: Curvature(products=PRODUCTS) if name == "curvature" else PROBES[name]() for name in PACES
        }

    def monitor(self, run: Run, first_step: int) -> Monitor:
        """Return the monitor of a run that begins, or goes on, with `first_step`."""
        self.pace(first_step)
        return Monitor(
            run.model,
            run.optimizer,
            self._folder,
            probes=list(self._probes.values()),
            batch=self._case.probe_batch(),
            loss_fn=_loss,
            budget=math.inf,
            total_steps=run.steps,
            batch_size=self._case.batch_size,
            first_step=first_step,
        )

    def pace(self, step: int) -> None:
        """Set how often probes measure from a step on."""
        for name, probe in self._probes.items():
            probe.every = PACES[name].early if step < DENSE_STEPS else PACES[name].late


def watch_cell(cell: Cell, report: Report, *, case: Case, cells: Path) -> None:
    """Do one watched run in its folder (in a worker process).

    Args:
        cell: which run.
        report: called with the number of steps done.
        case: what is trained.
        cells: where the folders of runs are.

    Raises:
        Interrupted: a signal asked to stop; the state is saved.
    """
    folder = cells / cell.name
    watcher = Watcher(case, folder)

    def prepare() -> Run:
        return case.prepare(METHODS[cell.method], lr=cell.lr, seed=cell.seed)

    def on_step(step: int, loss: float, lr: float) -> None:  # noqa: ARG001 (the loop's signature)
        watcher.pace(step)
        report(step)

    finish_cell(cell, prepare, folder, on_step=on_step, watch=watcher.monitor)


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    module: Any = model
    loss: Tensor = module.loss(*batch)
    return loss
