"""What a monitor's record holds, as arrays: a run, its measured quantities, its alerts."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Row(NamedTuple):
    """What one row of a grid was measured on: a parameter, a module, one head of it, or ("") the whole model."""

    layer: str
    head: int | None = None

    @property
    def label(self) -> str:
        """Its name as people read it.

        Example:
            >>> Row("blocks.0.attention", 3).label, Row("").label
            ('blocks.0.attention, head 3', 'whole model')
        """
        name = self.layer or "whole model"
        return name if self.head is None else f"{name}, head {self.head}"


@dataclass(frozen=True, slots=True)
class Quantity:
    """What a measured number is called and how it is drawn."""

    name: str
    title: str
    unit: str = ""
    is_log: bool = False
    meaning: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """One quantity over rows and measured steps.

    `values` (rows, steps) holds NaN and infinities as they were measured; where `measured` is False there is
    no value, and `values` is NaN.
    """

    quantity: Quantity
    rows: tuple[Row, ...]
    steps: Ints
    values: Floats
    measured: NDArray[np.bool_]

    @property
    def is_global(self) -> bool:
        """Whether it was measured on the whole model alone."""
        return self.rows == (Row(""),)


@dataclass(frozen=True, slots=True)
class Alert:
    """One rule that began to hold at `step`; `cleared` is the step at which it ceased to, None if it did not."""

    step: int
    rule: str
    quantity: str
    row: Row
    value: float | None
    threshold: float | None
    is_critical: bool
    message: str
    cleared: int | None = None


@dataclass(frozen=True, slots=True)
class Notice:
    """What the monitor had to say about itself."""

    step: int | None
    message: str


@dataclass(frozen=True, slots=True)
class Ending:
    """The record's last line; a run that was killed has none."""

    seconds: float | None = None
    overhead: float | None = None
    probes: dict[str, tuple[int, float]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Run:
    """One run as its record tells it.

    Where a run was resumed, a step that ran again counts with what was recorded last. `leftover` is the first
    step that only an abandoned attempt reached: from it on, the record is that attempt's.
    """

    name: str
    model: str | None = None
    optimizer: str | None = None
    parameters: int | None = None
    budget: float | None = None
    started: float | None = None
    steps: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    losses: Floats = field(default_factory=lambda: np.zeros(0))
    has_loss: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    lrs: Floats = field(default_factory=lambda: np.zeros(0))
    grids: dict[str, Grid] = field(default_factory=dict)
    alerts: tuple[Alert, ...] = ()
    notices: tuple[Notice, ...] = ()
    resumes: tuple[int, ...] = ()
    leftover: int | None = None
    ending: Ending | None = None
    parameter_names: frozenset[str] = frozenset()

    @cached_property
    def loss_curve(self) -> tuple[Ints, Floats]:
        """The steps with a loss, and the losses."""
        return self.steps[self.has_loss], self.losses[self.has_loss]

    @cached_property
    def lr_curve(self) -> tuple[Ints, Floats]:
        """The steps with a finite learning rate, and the learning rates."""
        known = np.isfinite(self.lrs)
        return self.steps[known], self.lrs[known]

    @property
    def last_step(self) -> int:
        """The last step that anything was recorded at; 0 for none."""
        ends = [self.steps, *(grid.steps for grid in self.grids.values())]
        return max((int(steps[-1]) for steps in ends if len(steps)), default=0)
