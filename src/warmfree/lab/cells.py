"""One training run of a comparison, in a folder of its own."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warmfree.lab.data import Corpus
from warmfree.lab.lock import exclusive
from warmfree.lab.methods import METHODS
from warmfree.lab.tasks import ByteGPTConfig, prepare_run
from warmfree.lab.train import CHECKPOINT, RECORD, OnStep, Run, Watch, train
from warmfree.record import read_json, read_records, write_json

__all__ = ["Cell", "finish_cell", "read_cell", "read_result", "run_cell"]

RESULT = "result.json"
CURVE_POINTS = 200
_RESULT_KEYS = {"method", "lr", "seed", "status", "final_val_loss", "seconds", "divergence", "skipped_steps"}
_CURVE_KEYS = ("step", "loss", "lr", "update_rms", "angle", "factor")


@dataclass(frozen=True, order=True, slots=True)
class Cell:
    """A method at one learning rate with one seed.

    Example:
        >>> Cell("adamw", 3e-3, 0).name
        'adamw-lr0.003-seed0'
    """

    method: str
    lr: float
    seed: int

    @property
    def name(self) -> str:
        """Return the name of the cell's folder; repr keeps every digit, so that no two cells share one."""
        return f"{self.method}-lr{self.lr!r}-seed{self.seed}"

    def is_done(self, folder: Path) -> bool:
        """Return whether the cell has a result in its folder."""
        return (folder / RESULT).exists()


def run_cell(
    cell: Cell, config: ByteGPTConfig, corpus: Corpus, folder: Path, *, on_step: OnStep | None = None
) -> None:
    """Train a cell to its end and write its result, last and in one move; a cell with a result is left alone.

    Args:
        cell: what to train.
        config: model, batches and schedule.
        corpus: the text.
        folder: of this cell; created when missing. A checkpoint in it is continued.
        on_step: called after every step with (steps done, loss, lr).

    Raises:
        Interrupted: a signal asked to stop; the state is saved.
    """

    def prepare() -> Run:
        return prepare_run(config, corpus, METHODS[cell.method], lr=cell.lr, seed=cell.seed)

    finish_cell(cell, prepare, folder, on_step=on_step)


def finish_cell(
    cell: Cell,
    prepare: Callable[[], Run],
    folder: Path,
    *,
    on_step: OnStep | None = None,
    watch: Watch | None = None,
) -> None:
    """Do the same for a run of any kind.

    Args:
        cell: what it is called.
        prepare: makes the run.
        folder: of this cell; created when missing. A checkpoint in it is continued.
        on_step: called after every step with (steps done, loss, lr).
        watch: makes a monitor of the run.

    Raises:
        Interrupted: a signal asked to stop; the state is saved.
    """
    folder.mkdir(exist_ok=True)
    # A worker of a killed run may need a moment to notice; two writers must never meet in one record.
    with exclusive(folder / ".lock", wait=10.0):
        if cell.is_done(folder):
            return
        outcome = train(prepare(), folder, on_step=on_step, watch=watch)
        write_json(folder / RESULT, dataclasses.asdict(cell) | dataclasses.asdict(outcome))
        (folder / CHECKPOINT).unlink(missing_ok=True)


def read_result(folder: Path) -> dict[str, Any]:
    """Return the result of a finished cell.

    Raises:
        ValueError: it is damaged; the message says what to delete.
    """
    try:
        result = read_json(folder / RESULT)
    except ValueError as error:
        raise _damaged(folder, str(error)) from None
    if not isinstance(result, dict) or not result.keys() >= _RESULT_KEYS:
        raise _damaged(folder, f"{RESULT} lacks entries")
    return result


def _damaged(folder: Path, reason: str) -> ValueError:
    return ValueError(
        f"the finished run in {folder} is damaged ({reason}); delete that folder and run the same command again: "
        f"only this run is repeated"
    )


def read_cell(folder: Path, *, steps: int) -> dict[str, Any]:
    """Return a finished cell as it stands in ``results.json``.

    Args:
        folder: of the cell.
        steps: length of the run: of long runs about 200 unmeasured steps are kept, and all measured ones.

    Returns:
        The result with ``curve``, equally long lists with None where nothing finite was measured, and
        ``evals``.

    Raises:
        ValueError: the record or the result is damaged; the message says what to delete.
    """
    result = read_result(folder)
    try:
        rows = list(read_records(folder / RECORD))
    except (ValueError, FileNotFoundError) as error:
        raise _damaged(folder, str(error)) from None
    if result["status"] == "finished" and not any("val_loss" in row for row in rows):
        raise _damaged(folder, f"{RECORD} holds no validation")
    # A resumed run repeats what it did since its checkpoint: the later record of a step wins.
    trained: dict[int, dict[str, Any]] = {}
    evaluated: dict[int, float] = {}
    for row in rows:
        if "val_loss" in row:
            evaluated[row["step"]] = row["val_loss"]
        else:
            trained[row["step"]] = row
    kept = list(_thin(trained, stride=max(steps // CURVE_POINTS, 1)))
    curve = {key: [_finite_or_none(row.get(key)) for row in kept] for key in _CURVE_KEYS}
    evals = {"step": list(evaluated), "val_loss": [_finite_or_none(value) for value in evaluated.values()]}
    return {**result, "curve": curve, "evals": evals}


def _thin(rows: dict[int, dict[str, Any]], *, stride: int) -> Iterator[dict[str, Any]]:
    last = max(rows, default=0)
    for step in sorted(rows):
        if step % stride == 0 or "angle" in rows[step] or step == last:
            yield rows[step]


def _finite_or_none(value: float | None) -> float | None:
    return value if value is not None and abs(value) < float("inf") else None  # nan compares false
