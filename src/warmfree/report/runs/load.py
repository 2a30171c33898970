"""Read the record that a monitor left in a folder.

Nothing in a record is taken on trust: it may end anywhere, hold kinds and quantities of a later version, NaN
and infinities, or several starts, where a run was resumed. A step that ran again counts with what was recorded
last.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from warmfree.record import read_records
from warmfree.report.runs.attempt import Attempt, Rows, number, whole
from warmfree.report.runs.run import Alert, Ending, Grid, Notice, Quantity, Row, Run

FILE = "monitor.jsonl"
_KINDS = frozenset({"start", "step", "values", "alert", "notice", "end"})


def load_run(folder: str | os.PathLike[str]) -> Run:
    r"""Read the run that was monitored into `folder`.

    Args:
        folder: what the monitor was given as its folder; the path of its `monitor.jsonl` will do too.

    Returns:
        The run, named like the folder.

    Raises:
        FileNotFoundError: there is no such folder, or no record in it.
        ValueError: the file is not a monitor's record; the message names file and line.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> lines = ['{"kind":"step","step":0,"loss":2.5}', '{"kind":"step","step":1,"loss":2.25}']
        >>> _ = (folder / "monitor.jsonl").write_text("\n".join(lines) + "\n")
        >>> load_run(folder).losses.tolist()
        [2.5, 2.25]
    """
    path = _find(Path(folder))
    attempts, rows, ending = _read(path)
    resumed = [span[0] for attempt in attempts[1:] if (span := attempt.span())]
    leftover = _drop_what_ran_again(attempts)
    starts = [attempt.start for attempt in attempts]
    facts = {key: value for start in starts for key, value in start.items() if value is not None}
    steps = dict(sorted(item for attempt in attempts for item in attempt.steps.items()))
    losses, lrs = zip(*steps.values(), strict=True) if steps else ((), ())
    return Run(
        name=path.parent.resolve().name or FILE,
        model=_word(facts.get("model")),
        optimizer=_word(facts.get("optimizer")),
        parameters=whole(facts.get("parameters")),
        budget=number(facts.get("budget")),
        started=number(starts[0].get("time")),
        steps=np.array(list(steps), np.int64),
        losses=np.array([np.nan if loss is None else loss for loss in losses], np.float64),
        has_loss=np.array([loss is not None for loss in losses], np.bool_),
        lrs=np.array([np.nan if lr is None else lr for lr in lrs], np.float64),
        grids=_grids(attempts, rows, facts),
        alerts=_alerts([alert for attempt in attempts for alert in attempt.alerts]),
        notices=tuple(_notice(notice) for attempt in attempts for notice in attempt.notices),
        resumes=tuple(resumed),
        leftover=leftover,
        ending=ending,
        parameter_names=frozenset(_names(facts.get("layers"))),
    )


def _find(folder: Path) -> Path:
    if folder.is_file():
        return folder
    if not folder.exists():
        raise FileNotFoundError(f"there is no folder {os.fspath(folder)}: give the folder of a monitored run")
    path = folder / FILE
    if path.is_file():
        return path
    inside = sorted(found.parent.name for found in folder.glob(f"*/{FILE}"))
    hint = f"; did you mean one inside it: {', '.join(inside[:5])}?" if inside else ""
    raise FileNotFoundError(
        f"{os.fspath(folder)} holds no {FILE}: give the folder that the monitor of a run was told to write to{hint}"
    )


def _read(path: Path) -> tuple[list[Attempt], dict[str, Rows], Ending | None]:
    attempts: list[Attempt] = []
    rows: dict[str, Rows] = {}
    ending = None
    try:
        for record in read_records(path):
            kind = record.get("kind")
            if kind not in _KINDS:
                continue
            if kind == "start" or not attempts:
                attempts.append(Attempt(record if kind == "start" else {}))
            if kind in ("start", "step", "end"):
                ending = _ending(record) if kind == "end" else None
            _take(record, attempts[-1], rows)
    except ValueError as error:
        raise ValueError(f"{error}; expected the {FILE} of a monitored run") from None
    if not attempts:
        what = "holds no line of a monitor's record" if path.stat().st_size else "is empty"
        raise ValueError(
            f"{os.fspath(path)} {what}: the run was stopped before it wrote anything, or this is another kind of "
            "file; give the folder of a run that has taken a step"
        )
    return attempts, rows, ending


def _take(record: dict[str, Any], attempt: Attempt, rows: dict[str, Rows]) -> None:
    kind, step = record["kind"], whole(record.get("step"))
    if kind == "step" and step is not None:
        attempt.steps[step] = (number(record.get("loss")), number(record.get("lr")))
    elif kind == "values" and step is not None:
        for name, values in _mapping(record.get("values")).items():
            if isinstance(values, Mapping) and values:
                measured = rows.setdefault(name, Rows()).place(values)
                attempt.values.setdefault(name, {})[step] = measured
    elif kind == "alert" and step is not None:
        attempt.alerts.append(record)
    elif kind == "notice":
        attempt.notices.append(record)


def _drop_what_ran_again(attempts: list[Attempt]) -> int | None:
    """Keep of every step what was recorded last; return the first step that only an abandoned attempt reached."""
    reached = [span for attempt in attempts if (span := attempt.span())]
    for number_, attempt in enumerate(attempts):
        span = attempt.span()
        for earlier in attempts[:number_] if span else ():
            earlier.drop(*span)  # type: ignore[misc]
    if not reached:
        return None
    last = reached[-1][1]
    return last + 1 if any(high > last for _, high in reached) else None


def _grids(attempts: list[Attempt], rows: dict[str, Rows], facts: Mapping[str, Any]) -> dict[str, Grid]:
    order = {name: place for place, name in enumerate(_names(facts.get("modules")))}
    order |= {name: place for place, name in enumerate(_names(facts.get("layers")))}
    described = _mapping(facts.get("quantities"))
    names = [name for name in described if name in rows] + [name for name in rows if name not in described]
    grids = {}
    for name in names:
        found = {step: entry for attempt in attempts for step, entry in attempt.values.get(name, {}).items()}
        grid = _grid(_quantity(name, described.get(name)), rows[name], dict(sorted(found.items())), order)
        if grid is not None:
            grids[name] = grid
    return grids


def _grid(quantity: Quantity, rows: Rows, found: Mapping[int, Any], order: Mapping[str, int]) -> Grid | None:
    values = np.full((len(rows.index), len(found)), np.nan)
    measured = np.zeros(values.shape, np.bool_)
    for column, (places, numbers) in enumerate(found.values()):
        values[places, column] = numbers
        measured[places, column] = True
    names = list(rows.index)
    kept = [place for place in range(len(names)) if measured[place].any()]
    # The model's order; what the start line does not name comes after it, as it appeared; the whole model first.
    kept.sort(key=lambda place: _position(names[place].layer, order))
    columns = np.flatnonzero(measured.any(axis=0))
    if not kept:
        return None
    steps = np.array(list(found), np.int64)[columns]
    cells = np.ix_(np.array(kept, np.int64), columns)
    return Grid(quantity, tuple(names[place] for place in kept), steps, values[cells], measured[cells])


def _position(layer: str, order: Mapping[str, int]) -> int:
    """Where a layer stands in the model; a part of one, such as `qkv[q]`, where the layer does."""
    return order.get(layer, order.get(layer.partition("[")[0], len(order))) if layer else -1


def _quantity(name: str, described: object) -> Quantity:
    facts = _mapping(described)
    title = _word(facts.get("title")) or name.replace("_", " ") or "unnamed"
    is_log = facts.get("scale") == "log"
    return Quantity(name, title, _word(facts.get("unit")) or "", is_log, _word(facts.get("meaning")) or "")


def _alerts(records: Iterable[dict[str, Any]]) -> tuple[Alert, ...]:
    """Pair every raised alert with the line that clears it."""
    alerts: list[Alert] = []
    active: dict[tuple[str, str, Row], int] = {}
    for record in records:
        row = Row(_word(record.get("layer")) or "", whole(record.get("head")))
        key = (_word(record.get("rule")) or "", _word(record.get("quantity")) or "", row)
        step = whole(record.get("step")) or 0
        if record.get("state") == "cleared":
            if key in active:
                place = active.pop(key)
                alerts[place] = replace(alerts[place], cleared=step)
            continue
        active[key] = len(alerts)
        value, threshold = number(record.get("value")), number(record.get("threshold"))
        threshold = threshold if threshold is not None and math.isfinite(threshold) else None
        message = (_word(record.get("message")) or key[0] or "no message").removeprefix(f"step {step}: ")
        is_critical = record.get("severity") == "critical"
        alerts.append(Alert(step, key[0], key[1], row, value, threshold, is_critical, message))
    return tuple(sorted(alerts, key=lambda alert: (alert.step, not alert.is_critical)))


def _notice(record: Mapping[str, Any]) -> Notice:
    return Notice(whole(record.get("step")), _word(record.get("message")) or "no message")


def _ending(record: Mapping[str, Any]) -> Ending:
    probes = {}
    for name, spent in _mapping(record.get("probes")).items():
        counts = _mapping(spent)
        probes[name] = (whole(counts.get("runs")) or 0, number(counts.get("seconds")) or 0.0)
    return Ending(number(record.get("seconds")), number(record.get("overhead")), probes)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _names(value: object) -> list[str]:
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def _word(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
