"""What passes between the parts of a step: the update a direction proposes and the move that is made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

# A number that is known on the host in an eager step, and a 0-D tensor in a compiled one. Nothing branches on it.
Number = float | Tensor
# A step size or decay: one number for the tensor, or a tensor that broadcasts against it (one value per neuron).
Size = float | Tensor


def of_type(number: Number, like: Tensor) -> Number:
    """Return a number that is a tensor in another tensor's type: compiled code would compute all of it in float64."""
    return number.to(like.dtype) if isinstance(number, Tensor) and number.ndim == 0 else number


@dataclass(slots=True)
class Update:
    """Updates u = numerator / (denominator * correction) of a list of tensors, to be subtracted from the weights.

    Kept in parts, so that the write can be the same `addcdiv` as in torch.optim, to the last bit.

    Attributes:
        numerators: one tensor per weight, of the weight's shape.
        denominators: likewise, or None for updates that are their numerator.
        corrections: one number per weight (1 - beta1^t for Adam).
        gradients: the gradients that the update was made of.
        momenta: their exponential moving averages, not corrected for their start at zero.
        momentum_scales: what makes of each momentum an unbiased average: 1/(1 - beta^t).
    """

    numerators: list[Tensor]
    denominators: list[Tensor] | None
    corrections: list[Number]
    gradients: list[Tensor]
    momenta: list[Tensor]
    momentum_scales: list[Number]

    def dense(self, index: int) -> Tensor:
        """Return the update of one tensor without its correction: numerator / denominator."""
        if self.denominators is None:
            return self.numerators[index]
        return self.numerators[index] / self.denominators[index]

    def whole(self, index: int) -> Tensor:
        """Return the update of one tensor."""
        dense = self.dense(index)
        return dense / of_type(self.corrections[index], dense)


@dataclass(frozen=True, slots=True)
class Layout:
    """How a tensor is read as a matrix, and into how many matrices it falls.

    Attributes:
        role: "matrix", "embedding", "head" or "vector".
        out_dim: the dimension that counts the output neurons.
        sections: sizes along `out_dim` of matrices that are bounded on their own; empty for one.
    """

    role: str
    out_dim: int = 0
    sections: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Part:
    """What this process holds of a tensor read as a matrix; everything, if the tensor is not sharded.

    Attributes:
        rows: output neurons of the whole tensor.
        fan_in: columns of the whole tensor.
        heights: rows of each section of the whole tensor; one section if it is not split.
        local_heights: how many of these rows are here.
        columns: indices of the columns that are here, None for all.
        where: coordinates of this process along the mesh axes that spread the tensor; replicas have the same.
    """

    rows: int
    fan_in: int
    heights: tuple[int, ...]
    local_heights: tuple[int, ...]
    columns: Tensor | None = None
    where: tuple[int, ...] = ()

    def blocks(self, matrix: Tensor) -> tuple[Tensor, ...]:
        """Split the local (rows, columns) matrix into its sections; a section may have no row here."""
        return torch.split(matrix, list(self.local_heights)) if len(self.heights) > 1 else (matrix,)


class Adder(Protocol):
    """Completes sums over matrices of which this process holds a part, all tensors of a list at once."""

    @property
    def row_groups(self) -> tuple[Any, ...]:
        """Process groups over which the rows are spread."""

    @property
    def column_groups(self) -> tuple[Any, ...]:
        """Process groups over which the columns are spread."""

    @property
    def groups(self) -> tuple[Any, ...]:
        """All of them."""

    def add_rows(self, partial: Sequence[Tensor]) -> list[Tensor]:
        """Complete sums over the rows of each matrix."""

    def add_columns(self, partial: Sequence[Tensor]) -> list[Tensor]:
        """Complete sums over the columns of each matrix."""

    def add(self, partial: Sequence[Tensor]) -> list[Tensor]:
        """Complete sums over all elements of each matrix."""


@dataclass(slots=True)
class Move:
    """One bucket of a step: weights, their update, and how far to go. Size controls change it before it is made.

    Tensors are the parts that this process holds. Numbers are floats in an eager step and 0-D tensors in a compiled
    one: what a control does must not depend on their values but through tensor operations.

    Attributes:
        weights: the tensors to be changed, float32 or float64 (copies, if the parameters are narrower).
        update: what to subtract.
        step_sizes: how much of the update, lr at first. A float, a 0-D tensor, or a value per neuron.
        decays: decoupled weight decay, likewise; multiplied by the step size when applied.
        states: the optimizer's state of each parameter.
        layouts: how each tensor is read as a matrix.
        parts: what of each matrix is here.
        peers: completes sums that run over what is not here.
        scalars: what the controls compute from numbers alone.
        fresh: counters that are 1 in this step.
        group: the parameter group's options.
        lr: the group's learning rate in this step.
        still: whether the learning rate is 0.
        momentum: the direction's momentum constant.
        reports: for each tensor the scalars that were computed on the way, 0-D tensors on the device.
        scratch: for each tensor what a control keeps between its call and its restore.
    """

    weights: list[Tensor]
    update: Update
    step_sizes: list[Size]
    decays: list[Size]
    states: list[dict[str, Any]]
    layouts: list[Layout]
    parts: list[Part]
    peers: Adder
    scalars: Mapping[str, Number]
    fresh: frozenset[str]
    group: Mapping[str, Any]
    lr: Number
    still: bool
    momentum: Number
    reports: list[dict[str, Tensor]] = field(init=False)
    scratch: list[dict[str, Tensor]] = field(init=False)

    def __post_init__(self) -> None:
        """Start every tensor's report and scratch empty."""
        self.reports = [{} for _ in self.weights]
        self.scratch = [{} for _ in self.weights]

    def note(self, index: int, **values: Tensor) -> None:
        """Add measured scalars to the report of one tensor; a factor multiplies the one already there."""
        report = self.reports[index]
        if "factor" in values and "factor" in report:
            values["factor"] = report["factor"] * values["factor"]
        report.update(values)


@dataclass(frozen=True, slots=True)
class StepReport:
    """The scalars that a step computed anyway, on the device until somebody fetches them.

    Attributes:
        step: number of the step, 1 for the first, skipped ones included.
        skipped: whether this step was skipped for a non-finite gradient.
        skipped_steps: how many steps were skipped so far.
        values: parameter name to quantity to 0-D tensor. `factor` is what the size controls made of the step (1 =
            untouched); `sigma_weight` and `sigma_update` are largest singular values; `angle` is in radians;
            `update_norm`, `update_rms`, `weight_norm` are of the update before the step size, if they were asked
            for by `optimizer.report_norms = True`.
    """

    step: int
    skipped: bool
    skipped_steps: int
    values: dict[str, dict[str, Tensor]]

    def fetch(self) -> dict[str, dict[str, float]]:
        """Bring all values to the host, in one transfer per device."""
        scalars = [scalar for report in self.values.values() for scalar in report.values()]
        by_device: dict[torch.device, list[int]] = {}
        for index, scalar in enumerate(scalars):
            by_device.setdefault(scalar.device, []).append(index)
        numbers = [0.0] * len(scalars)
        for device, indices in by_device.items():
            wide = torch.float32 if device.type == "mps" else torch.float64
            fetched = torch.stack([scalars[index].reshape(()).to(wide) for index in indices]).tolist()
            for index, number in zip(indices, fetched, strict=True):
                numbers[index] = number
        flat = iter(numbers)
        return {name: {key: next(flat) for key in report} for name, report in self.values.items()}
