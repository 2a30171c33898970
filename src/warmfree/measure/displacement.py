"""How far weights moved, as sums over neurons: right for tensors of which every process holds a part.

A tensor is read as a matrix of one row per output neuron. What rows and whole tensors turned is found from the part
of the change that is perpendicular to the old weights, never from a difference of large numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from warmfree.measure.real import as_real
from warmfree.optim.norms import as_matrix, compute_dtype, scalar_dtype
from warmfree.optim.sharding import Peers

# Elements that the CPU compares at a time: old, new and two temporaries of that size stay in its cache.
_CHUNK = 1 << 18


class Totals(NamedTuple):
    """Sums over a tensor; numbers of a row in the order of `total`."""

    square: float  # |old|^2
    slope: float  # change along old, in units of old
    across: float  # |the rest of the change|^2
    change: float  # |change|^2
    turned: float  # squared angles of the neurons that have one
    turning: float  # how many have
    size: float  # 0 if the new tensor is zero

    @property
    def angle(self) -> float:
        """Angle between the old and the new tensor, in radians; nan when either is zero."""
        norm = math.sqrt(self.square)
        return math.atan2(math.sqrt(self.across), norm * (1 + self.slope)) if norm and self.size else math.nan

    @property
    def neuron_angle(self) -> float:
        """Root mean square of the neurons' angles, leaving out those that are zero before or after."""
        return math.sqrt(self.turned / self.turning) if self.turning else math.nan


def matrices(
    before: Tensor, after: Tensor, *, out_dim: int, whole: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield old and new neurons, each (neurons, weights of one), in float32 or wider.

    Args:
        before: the old tensor, or the part of it that is here; a vector is one neuron. Of a complex one the neurons
            have pairs of real weights.
        after: the new one, of the same shape.
        out_dim: the dimension that counts the neurons.
        whole: all at once; else a few at a time on the CPU. Even of an empty tensor there is one pair.
    """
    if before.ndim < 2:
        before, after, out_dim = before.reshape(1, -1), after.reshape(1, -1), 0
    before, after = as_real(before), as_real(after)
    rows, dtype = before.shape[out_dim], compute_dtype(before)
    at_once = max(1, rows)
    if not whole and before.device.type == "cpu":
        at_once = max(1, _CHUNK * rows // max(1, before.numel()))
    for first in range(0, max(1, rows), at_once):
        count = min(at_once, rows - first)
        old, new = before.narrow(out_dim, first, count), after.narrow(out_dim, first, count)
        yield as_matrix(old, out_dim=out_dim).to(dtype), as_matrix(new, out_dim=out_dim).to(dtype)


def measure_neurons(
    olds: Sequence[Tensor], news: Sequence[Tensor], add: Callable[[list[Tensor]], list[Tensor]]
) -> list[Tensor]:
    """Measure each row: |old|^2, slope along old, |rest of the change|^2, largest magnitude of new.

    Args:
        olds: old matrices, one row per neuron, or the parts of them that are here.
        news: the new ones.
        add: completes sums over the columns, for all matrices at once; `list` if all columns are here.

    Returns:
        For each matrix (4, rows), in float64 where the device has it: sums of squares do not overflow.
    """
    wide = scalar_dtype(olds[0].device)
    changes = [new - old for old, new in zip(olds, news, strict=True)]
    along = add(
        [
            torch.stack([torch.linalg.vector_norm(old, dim=1).to(wide) ** 2, (change * old).sum(1).to(wide)])
            for old, change in zip(olds, changes, strict=True)
        ]
    )
    slopes = [torch.where(square > 0, product / square, 0.0) for square, product in along]
    rests = [
        torch.addcmul(change, old, slope.to(old.dtype).unsqueeze(1), value=-1)
        for old, change, slope in zip(olds, changes, slopes, strict=True)
    ]
    across = add(
        [
            torch.stack([torch.linalg.vector_norm(rest, dim=1).to(wide) ** 2, _largest(new).to(wide)])
            for rest, new in zip(rests, news, strict=True)
        ]
    )
    return [
        torch.stack([square, slope, *rest])
        for (square, _), slope, rest in zip(along, slopes, across, strict=True)
    ]


def _largest(rows: Tensor) -> Tensor:
    """Return the largest magnitude in each row, 0 in an empty one."""
    return rows.abs().amax(1) if rows.shape[1] else rows.new_zeros(rows.shape[0])


def total(neurons: Sequence[Tensor], peers: Peers) -> list[Tensor]:
    """Sum what `measure_neurons` found over all rows, those of other processes included.

    Across the whole tensor lies what lies across its rows, and what the rows' slopes deviate from the tensor's.

    Returns:
        The numbers of a `Totals` for each tensor, stacked.
    """
    counts = [found.shape[1] for found in neurons]

    def add_up(rows: Tensor) -> Tensor:
        """Return the sums over the rows of each tensor, (tensors, quantities)."""
        return peers.add_rows([torch.stack([some.sum(1) for some in torch.split(rows, counts, dim=1)])])[0]

    # The rows of all tensors in one: few operations, however many tensors.
    square, slope, rest, size = torch.cat(list(neurons), dim=1)
    whole, product = add_up(torch.stack([square, slope * square])).unbind(1)
    mean = torch.where(whole > 0, product / whole, 0.0)
    deviation = slope - mean.repeat_interleave(
        torch.tensor(counts, device=mean.device), output_size=sum(counts)
    )
    angle = torch.atan2(rest.sqrt(), square.sqrt() * (1 + slope))
    turns = (square != 0) & (size != 0)  # what is not a number shows
    across, change = rest + deviation**2 * square, rest + slope**2 * square
    turned = torch.where(turns, angle**2, 0.0)
    sums = add_up(torch.stack([across, change, turned, turns.to(angle.dtype), size]))
    return list(torch.cat([whole.unsqueeze(1), mean.unsqueeze(1), sums], dim=1))
