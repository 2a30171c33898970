"""A typed, checked view of the `results.json` that `warmfree compare` writes.

Everything after this file may trust what it reads: every cell belongs to a method, every finished cell has a
positive finite loss, every curve has one value per step (`nan` where nothing was measured).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

FORMAT = 1
_REMEDY = "pass the results.json that this version's `warmfree compare` wrote, or run it again"
_QUANTITIES = ("loss", "lr", "update_rms", "angle", "factor")


@dataclass(frozen=True, slots=True)
class Method:
    """One way to train: an optimizer, its warmup and the learning rates it was given."""

    name: str
    label: str
    kind: Literal["baseline", "warmup-free"]
    warmup_fraction: float
    description: str
    lrs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Curve:
    """What a run measured, one value per entry of `step`; `nan` where it measured nothing."""

    step: tuple[float, ...]
    loss: tuple[float, ...]
    lr: tuple[float, ...]
    update_rms: tuple[float, ...]
    angle: tuple[float, ...]
    factor: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where and why a run was given up."""

    step: int | None
    reason: str
    where: str | None


@dataclass(frozen=True, slots=True)
class Cell:
    """One training run: a method at one learning rate with one seed. `loss` is its final validation loss."""

    method: str
    lr: float
    seed: int
    finished: bool
    loss: float | None
    seconds: float
    divergence: Divergence | None
    skipped_steps: int
    curve: Curve


@dataclass(frozen=True, slots=True)
class Comparison:
    """A whole `results.json`."""

    command: str
    created: str
    versions: Mapping[str, Any]
    machine: Mapping[str, Any]
    task: Mapping[str, Any]
    methods: tuple[Method, ...]
    cells: tuple[Cell, ...]


def parse(results: Mapping[str, Any]) -> Comparison:
    """Check `results` and give it types.

    Args:
        results: the parsed `results.json` of `warmfree compare`.

    Raises:
        ValueError: a key is missing, a value has the wrong type or range, or the format is not 1; the message
            names the place.

    Example:
        >>> parse({"format": 2})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: results: format is 2, expected 1: pass the results.json that this version's...
    """
    if not isinstance(results, Mapping):
        raise ValueError(f"results: expected a mapping, got {type(results).__name__}: {_REMEDY}")
    version = _get(results, "format", int, "results")
    if version != FORMAT:
        raise ValueError(f"results: format is {version!r}, expected {FORMAT}: {_REMEDY}")
    methods = tuple(
        _method(m, f"methods[{i}]") for i, m in enumerate(_get(results, "methods", list, "results"))
    )
    cells = tuple(_cell(c, f"cells[{i}]") for i, c in enumerate(_get(results, "cells", list, "results")))
    _check_unique(methods, cells)
    return Comparison(
        command=_get(results, "command", str, "results"),
        created=_get(results, "created", str, "results"),
        versions=_get(results, "versions", Mapping, "results"),
        machine=_get(results, "machine", Mapping, "results"),
        task=_get(results, "task", Mapping, "results"),
        methods=methods,
        cells=cells,
    )


def _check_unique(methods: Sequence[Method], cells: Sequence[Cell]) -> None:
    if not methods:
        raise ValueError(f"results: methods is empty, expected at least one: {_REMEDY}")
    names = {method.name for method in methods}
    if len(names) < len(methods):
        raise ValueError(f"results: two methods share a name, expected every name once: {_REMEDY}")
    seen: set[tuple[str, float, int]] = set()
    for cell in cells:
        key = (cell.method, cell.lr, cell.seed)
        if cell.method not in names:
            raise ValueError(
                f"results: a cell names the method {cell.method!r}, which is not listed: {_REMEDY}"
            )
        if key in seen:
            raise ValueError(
                f"results: two cells for {cell.method!r}, lr {cell.lr:g}, seed {cell.seed}: {_REMEDY}"
            )
        seen.add(key)


def _method(raw: Any, where: str) -> Method:
    kind = _get(raw, "kind", str, where)
    if kind not in ("baseline", "warmup-free"):
        raise ValueError(
            f"results: {where}.kind is {kind!r}, expected 'baseline' or 'warmup-free': {_REMEDY}"
        )
    return Method(
        name=_get(raw, "name", str, where),
        label=_get(raw, "label", str, where),
        kind="baseline" if kind == "baseline" else "warmup-free",
        warmup_fraction=_number(raw, "warmup_fraction", where),
        description=_get(raw, "description", str, where),
        lrs=tuple(_positive(lr, f"{where}.lrs") for lr in _get(raw, "lrs", list, where)),
    )


def _cell(raw: Any, where: str) -> Cell:
    status = _get(raw, "status", str, where)
    if status not in ("finished", "diverged"):
        raise ValueError(
            f"results: {where}.status is {status!r}, expected 'finished' or 'diverged': {_REMEDY}"
        )
    loss = _get(raw, "final_val_loss", object, where)
    if status == "finished":
        loss = _positive(loss, f"{where}.final_val_loss")
    else:
        loss = float(loss) if _is_finite(loss) else None
    return Cell(
        method=_get(raw, "method", str, where),
        lr=_positive(_get(raw, "lr", object, where), f"{where}.lr"),
        seed=_get(raw, "seed", int, where),
        finished=status == "finished",
        loss=loss,
        seconds=_number(raw, "seconds", where),
        divergence=_divergence(_get(raw, "divergence", object, where), f"{where}.divergence"),
        skipped_steps=_get(raw, "skipped_steps", int, where),
        curve=_curve(_get(raw, "curve", Mapping, where), f"{where}.curve"),
    )


def _divergence(raw: Any, where: str) -> Divergence | None:
    if raw is None:
        return None
    step, place = _get(raw, "step", object, where), _get(raw, "where", object, where)
    return Divergence(
        step=None if step is None else int(step),
        reason=_get(raw, "reason", str, where),
        where=None if place is None else str(place),
    )


def _curve(raw: Mapping[str, Any], where: str) -> Curve:
    steps = tuple(float(step) for step in _get(raw, "step", list, where))
    columns = {name: _column(raw, name, len(steps), where) for name in _QUANTITIES}
    return Curve(step=steps, **columns)


def _column(raw: Mapping[str, Any], name: str, length: int, where: str) -> tuple[float, ...]:
    """A measured column, `null` (as a whole or per entry) and non-finite values as `nan`."""
    values = _get(raw, name, object, where)
    if values is None:
        return (math.nan,) * length
    if not isinstance(values, list) or len(values) != length:
        found = f"{len(values)} values" if isinstance(values, list) else type(values).__name__
        raise ValueError(
            f"results: {where}.{name} has {found}, expected one for each of {length} steps: {_REMEDY}"
        )
    return tuple(float(v) if v is not None and math.isfinite(v) else math.nan for v in values)


def _get(raw: Any, key: str, kind: type, where: str) -> Any:
    if not isinstance(raw, Mapping):
        raise ValueError(f"results: {where} is {type(raw).__name__}, expected a mapping: {_REMEDY}")
    if key not in raw:
        raise ValueError(f"results: {where} has no {key!r}: {_REMEDY}")
    value = raw[key]
    if not isinstance(value, kind):
        raise ValueError(
            f"results: {where}.{key} is {type(value).__name__}, expected {kind.__name__}: {_REMEDY}"
        )
    return value


def _number(raw: Any, key: str, where: str) -> float:
    value = _get(raw, key, object, where)
    if not _is_finite(value):
        raise ValueError(f"results: {where}.{key} is {value!r}, expected a finite number: {_REMEDY}")
    return float(value)


def _positive(value: Any, where: str) -> float:
    if not _is_finite(value) or value <= 0:
        raise ValueError(f"results: {where} is {value!r}, expected a finite number > 0: {_REMEDY}")
    return float(value)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
