"""Where points of loss and curvature come from: the record of a monitored run, or a file of points."""

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from warmfree.report.runs import Run, load_run
from warmfree.report.wording import count, listing

__all__ = ["KINDS", "Kind", "Measured", "measured_points", "other_points"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Kind = Literal[
    "preconditioned_local_smoothness",
    "local_smoothness",
    "preconditioned_sharpness",
    "sharpness",
]
KINDS: tuple[str, ...] = get_args(Kind)

_TITLES = {
    "preconditioned_local_smoothness": "preconditioned local smoothness",
    "local_smoothness": "local smoothness",
    "preconditioned_sharpness": "preconditioned sharpness",
    "sharpness": "sharpness",
    "curvature": "curvature",
}
_MOST_ROUNDING = 0.5
_FILES = (".csv", ".tsv", ".jsonl", ".json")
_HOW = 'watch a run with `Monitor(model, optimizer, out, probes=["smoothness", ...])`, or with the probe "curvature"'


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """Curvatures with the losses that go with them, in the order of the steps.

    Attributes:
        name: of the run or file.
        kind: what was measured, as the monitor calls it.
        title: the same as people say it.
        why: why this kind, in a sentence.
        loss_of: which loss, in words.
        steps: (n,).
        losses: (n,).
        curvatures: (n,).
        lr_steps: steps with a learning rate, (m,).
        lrs: learning rates there, (m,).
        loss_steps: steps of the whole loss curve, (k,).
        loss_curve: training losses there, (k,).
        notes: what a reader should know: what was left out, and why.
        facts: where it comes from.
    """

    name: str
    kind: str
    title: str
    why: str
    loss_of: str
    steps: Ints
    losses: Floats
    curvatures: Floats
    lr_steps: Ints
    lrs: Floats
    loss_steps: Ints
    loss_curve: Floats
    notes: tuple[str, ...]
    facts: Mapping[str, Any]

    @property
    def is_preconditioned(self) -> bool:
        """Whether the curvature is that of the loss as the optimizer's steps see it, in 1 / learning rate."""
        return self.kind.startswith("preconditioned") or self.facts.get("optimizer") == "SGD"


def measured_points(source: Path, *, kind: Kind | None) -> Measured:
    """Read a monitored run, or a file of points.

    Args:
        source: the folder that a monitor wrote to, the `monitor.jsonl` in it, or a CSV or JSONL file with columns loss
            and curvature, and optionally step and lr.
        kind: which curvature of a run; None chooses.

    Raises:
        FileNotFoundError: there is no such run or file.
        ValueError: the run has no curvature, or the file is not one of points.
    """
    if source.is_file() and source.name != "monitor.jsonl" and source.suffix.lower() in _FILES:
        if kind is not None:
            raise ValueError(
                f"--curvature chooses between the quantities of a run; {source} is a file of points"
            )
        return _from_file(source)
    return _from_run(load_run(source), kind)


def other_points(source: Path, measured: Measured) -> tuple[Measured, ...]:
    """Return the other kinds of curvature in the same run.

    Args:
        source: what `measured_points` was given.
        measured: what it returned.
    """
    if measured.kind not in KINDS:
        return ()
    run = load_run(source)
    there = [kind for kind in get_args(Kind) if kind != measured.kind and len(_row(run, kind)[0])]
    return tuple(_from_run(run, kind) for kind in there)


def _from_run(run: Run, asked: Kind | None) -> Measured:
    there = {name: _row(run, name) for name in KINDS if name in run.grids}
    counts = {name: len(steps) for name, (steps, _) in there.items() if len(steps)}
    kind, why = _choose(run, counts, asked)
    steps, curvatures = there[kind]
    notes = []
    rounding = (
        _at(steps, *_row(run, "smoothness_rounding")) if "local_smoothness" in kind else np.zeros(len(steps))
    )
    noisy = rounding >= _MOST_ROUNDING
    if noisy.any():
        notes.append(
            f"{count(int(noisy.sum()), 'point')} of {len(steps)} left out: half of the measured smoothness or "
            "more may be rounding there, because the step was that short."
        )
    probe = _at(steps, *_row(run, "probe_loss"))
    training = _at(steps, *run.loss_curve)
    losses = np.where(np.isfinite(probe), probe, training)
    loss_of = "the probe batch, on which the curvature was measured"
    if not np.isfinite(probe).any():
        loss_of = "the training batch of the same step, not the batch on which the curvature was measured"
    elif not np.isfinite(probe[np.isfinite(losses)]).all():
        loss_of = "the probe batch where it was recorded, else the training batch of the same step"
    lost = ~(np.isfinite(losses) & np.isfinite(curvatures)) & ~noisy
    if lost.any():
        notes.append(
            f"{count(int(lost.sum()), 'point')} of {len(steps)} left out: loss or curvature is not finite or missing."
        )
    flat = np.isfinite(curvatures) & (curvatures <= 0.0) & ~noisy & ~lost
    if flat.any():
        notes.append(
            f"{count(int(flat.sum()), 'point')} of {len(steps)} left out: the curvature is not positive there, "
            "and bounds no step."
        )
    kept = ~(noisy | lost | flat)
    facts = {"run": run.name, "model": run.model, "optimizer": run.optimizer, "parameters": run.parameters}
    return Measured(
        name=run.name,
        kind=kind,
        title=_TITLES[kind],
        why=why,
        loss_of=loss_of,
        steps=steps[kept],
        losses=losses[kept],
        curvatures=curvatures[kept],
        lr_steps=run.lr_curve[0],
        lrs=run.lr_curve[1],
        loss_steps=run.loss_curve[0],
        loss_curve=run.loss_curve[1],
        notes=tuple(notes),
        facts={key: value for key, value in facts.items() if value is not None},
    )


def _choose(run: Run, counts: Mapping[str, int], asked: Kind | None) -> tuple[str, str]:
    """Choose a kind of curvature, and say why."""
    if asked is not None:
        if asked not in counts:
            there = (
                f"it has {listing([name for name in KINDS if name in counts])}"
                if counts
                else f"it has none; {_HOW}"
            )
            raise ValueError(f"{run.name} has no {asked}: {there}")
        return asked, f"{_TITLES[asked].capitalize()} was asked for."
    if not counts:
        measured = f"it measured {listing(sorted(run.grids)[:6])}" if run.grids else "it measured nothing"
        raise ValueError(f"{run.name} has no curvature to fit ({measured}): {_HOW}, and give its folder")
    best = next(name for name in KINDS if name in counts) if run.optimizer != "SGD" else _plain_first(counts)
    optimizer = run.optimizer or "the optimizer"
    if best.startswith("preconditioned"):
        why = f"A step of {optimizer} is divided by a preconditioner: its learning rate is bounded by the "
        why += "curvature as its steps see it."
    elif run.optimizer == "SGD":
        why = "SGD has no preconditioner: its learning rate is bounded by the curvature itself."
    else:
        why = (
            f"No curvature as {optimizer} sees it is in the record; the plain one is not in the units of its "
        )
        why += "learning rate, unless it has no preconditioner."
    if "smoothness" in best and any("sharpness" in name for name in counts):
        why += " Along the steps, as in the paper, rather than the largest eigenvalue, which is recorded too."
    return best, f"{_TITLES[best].capitalize()}. {why}"


def _plain_first(counts: Mapping[str, int]) -> str:
    return next(name for name in ("local_smoothness", "sharpness", *KINDS) if name in counts)


def _row(run: Run, name: str) -> tuple[Ints, Floats]:
    """The steps at which a quantity of the whole model was measured, and its values."""
    grid = run.grids.get(name)
    place = next((place for place, row in enumerate(grid.rows) if not row.layer), None) if grid else None
    if grid is None or place is None:
        return np.zeros(0, np.int64), np.zeros(0)
    measured = grid.measured[place]
    return grid.steps[measured], grid.values[place][measured]


def _at(steps: Ints, known: Ints, values: Floats) -> Floats:
    """Values at steps; NaN where there is none."""
    found = np.full(len(steps), np.nan)
    if len(known):
        place = np.minimum(np.searchsorted(known, steps), len(known) - 1)
        is_there = known[place] == steps
        found[is_there] = values[place[is_there]]
    return found


def _from_file(path: Path) -> Measured:
    columns = _columns(path)
    for name in ("loss", "curvature"):
        if name not in columns:
            raise ValueError(
                f"{path} has no column {name!r} (it has {listing(sorted(columns)) or 'none'}): a file of points "
                "needs loss and curvature, and may have step and lr"
            )
    losses, curvatures = columns["loss"], columns["curvature"]
    steps = np.arange(len(losses), dtype=np.int64)
    if "step" in columns:
        given = columns["step"]
        if not np.isfinite(given).all() or (given != given.round()).any():
            raise ValueError(f"{path}: steps must be whole numbers")
        steps = given.astype(np.int64)
    order = np.argsort(steps, kind="stable")
    lrs = columns.get("lr", np.full(len(losses), np.nan))
    kept = np.isfinite(losses) & np.isfinite(curvatures) & (curvatures > 0.0)
    left = int((~kept).sum())
    notes = (
        [
            f"{count(left, 'point')} of {len(kept)} left out: the loss is not finite, or the curvature not "
            "finite and > 0."
        ]
        if left
        else []
    )
    order, lr_order = order[kept[order]], order[np.isfinite(lrs[order])]
    return Measured(
        name=path.name,
        kind="curvature",
        title="curvature",
        why="The curvature of the file; if it is not that as the optimizer's steps see it, implied learning rates are "
        "those of plain gradient descent.",
        loss_of="the file's points",
        steps=steps[order],
        losses=losses[order],
        curvatures=curvatures[order],
        lr_steps=steps[lr_order],
        lrs=lrs[lr_order],
        loss_steps=steps[order],
        loss_curve=losses[order],
        notes=tuple(notes),
        facts={"file": str(path)},
    )


def _columns(path: Path) -> dict[str, Floats]:
    """Read a file of points by columns."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(
            f"{path} is not a text file in UTF-8: save the points as CSV or JSONL in UTF-8"
        ) from None
    rows: list[Mapping[str, Any]]
    if path.suffix.lower() in (".jsonl", ".json"):
        rows = [
            _object(path, number, line)
            for number, line in enumerate(text.splitlines(), start=1)
            if line.strip()
        ]
    else:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        rows = list(csv.DictReader(text.splitlines(), delimiter=delimiter, skipinitialspace=True))
    if not rows:
        raise ValueError(f"{path} holds no points: expected a row or line for each, with loss and curvature")
    names = [name for name in ("loss", "curvature", "step", "lr") if any(name in row for row in rows)]
    others = {key: np.zeros(0) for row in rows[:1] for key in row if isinstance(key, str)}
    return others | {name: _numbers(path, name, rows) for name in names}


def _object(path: Path, number: int, line: str) -> Mapping[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: not JSON ({error}); expected an object a line") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}, line {number}: expected an object with loss and curvature, got {line:.60}")
    return found


def _numbers(path: Path, name: str, rows: Iterable[Mapping[str, Any]]) -> Floats:
    values = []
    for number, row in enumerate(rows, start=1):
        value = row.get(name)
        if isinstance(value, Mapping):  # what is not finite in records, which JSON has no number for
            value = value.get("$float")
        try:
            values.append(float("nan") if value in (None, "") else float(value))
        except (TypeError, ValueError):
            raise ValueError(f"{path}, point {number}: {name} is not a number, got {value!r:.40}") from None
    return np.array(values, np.float64)
