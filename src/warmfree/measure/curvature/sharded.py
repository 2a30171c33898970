"""Lists of tensors as one vector: of tensors that are spread over processes, the part that is here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor

from warmfree.optim.sharding import is_dtensor, local

__all__ = ["Space", "part_of"]

# Elements that are widened to float64 at a time: small beside a model, large beside the cost of a call.
_CHUNK = 2**18

_Range = tuple[int, int]


class Space:
    """The vectors with one tensor per parameter, laid end to end, and inner products of them.

    Of a parameter that is a DTensor a vector holds the local part, and inner products are completed over its mesh, so
    that they are the same numbers in all processes. All other parameters are taken to be the same everywhere.

    Args:
        parameters: floating-point tensors, at least one.

    Attributes:
        size: elements of a whole vector, over all processes.
        local_size: elements of the part that is here.

    Example:
        >>> space = Space([torch.zeros(2, 2), torch.zeros(3)])
        >>> vector = space.join([torch.ones(2, 2), torch.tensor([1.0, 2.0, 3.0])])
        >>> vector
        tensor([1., 1., 1., 1., 1., 2., 3.])
        >>> space.dots(vector[None], vector).tolist()
        [18.0]
        >>> [tuple(tensor.shape) for tensor in space.split(vector)]
        [(2, 2), (3,)]
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        if not parameters:
            raise ValueError(
                "there is no parameter to take curvature in; pass at least one that requires a gradient"
            )
        self._parameters = list(parameters)
        self._likes = [local(parameter).detach() for parameter in parameters]
        self.dtype = torch.float32
        for like in self._likes:
            self.dtype = torch.promote_types(self.dtype, like.dtype)
        self.device = self._likes[0].device
        # Float64 does not exist on Apple's devices.
        self.wide = torch.float32 if self.device.type == "mps" else torch.float64
        self.size = sum(parameter.numel() for parameter in parameters)
        ends = torch.tensor([0, *(like.numel() for like in self._likes)]).cumsum(0).tolist()
        self.local_size: int = ends[-1]
        self._ranges: list[_Range] = list(pairwise(ends))
        self._layouts: dict[tuple[Any, ...], list[_Range]] = {}
        for parameter, span in zip(parameters, self._ranges, strict=True):
            self._layouts.setdefault(_layout(parameter), []).append(span)

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """Lay tensors, one per parameter and of the shape of the part that is here, end to end."""
        return torch.cat([tensor.detach().reshape(-1).to(self.device, self.dtype) for tensor in tensors])

    def split(self, vector: Tensor) -> list[Tensor]:
        """Return a vector as a list of tensors of the parameters' shapes, types and devices; views where it can be."""
        return [
            vector[start:end].view(like.shape).to(like.device, like.dtype)
            for (start, end), like in zip(self._ranges, self._likes, strict=True)
        ]

    def random(self, seed: int) -> Tensor:
        """Draw a normal vector, on the CPU: it depends on the seed and on how parameters are spread alone."""
        parts = []
        for index, (parameter, like) in enumerate(zip(self._parameters, self._likes, strict=True)):
            # Parts of a tensor are drawn apart, replicas alike.
            key = hash((seed, index, *_coordinates(parameter))) % 2**63
            generator = torch.Generator().manual_seed(key)
            parts.append(torch.randn(like.numel(), generator=generator))
        return self.join(parts)

    def dots(self, rows: Tensor, vector: Tensor) -> Tensor:
        """Return the inner products of rows, of shape (k, local size), with a vector: (k,) float64 on the CPU."""
        total = torch.zeros(len(rows), dtype=self.wide, device=self.device)
        for layout, ranges in self._layouts.items():
            partial = torch.zeros_like(total)
            for start, end in _chunks(ranges):
                partial += rows[:, start:end].to(self.wide) @ vector[start:end].to(self.wide)
            total += _completed(partial, *layout)
        return total.to("cpu", torch.float64)

    def subtract(self, vector: Tensor, rows: Tensor, amounts: Tensor) -> None:
        """Subtract `amounts @ rows` from a vector in place, summed in float64."""
        amounts = amounts.to(self.device, self.wide)
        for start, end in _chunks([(0, self.local_size)]):
            vector[start:end] -= (amounts @ rows[:, start:end].to(self.wide)).to(vector.dtype)

    def norm(self, vector: Tensor) -> float:
        """Return the l2 norm of a vector."""
        return math.sqrt(self.dots(vector[None], vector)[0].item())


def part_of(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    """Return the local part of a parameter's gradient, zeros if there is none."""
    if gradient is None:
        return torch.zeros_like(local(parameter))
    if is_dtensor(parameter) and cast(Any, gradient).placements != cast(Any, parameter).placements:
        # The partial sums of a replicated gain under sequence parallelism.
        gradient = cast(Any, gradient).redistribute(placements=cast(Any, parameter).placements)
    return local(gradient).detach()


def _chunks(ranges: Sequence[_Range]) -> Iterator[_Range]:
    """Cut ranges, those that touch joined, into chunks."""
    joined: list[_Range] = []
    for start, end in ranges:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    for first, last in joined:
        for start in range(first, last, _CHUNK):
            yield start, min(start + _CHUNK, last)


def _layout(parameter: Tensor) -> tuple[Any, ...]:
    """Return mesh and placements of a DTensor, nothing of a plain tensor."""
    if not is_dtensor(parameter):
        return ()
    return cast(Any, parameter).device_mesh, cast(Any, parameter).placements


def _completed(partial: Tensor, *layout: Any) -> Tensor:
    """Add up what the processes that hold parts of a tensor have; replicas count once."""
    if not layout:
        return partial
    from torch.distributed.tensor import DTensor, Partial, Replicate

    mesh, placements = layout
    sums = [placement if placement.is_replicate() else Partial() for placement in placements]
    assert all(isinstance(placement, Replicate | Partial) for placement in sums)
    whole: Callable[[], Tensor] = DTensor.from_local(partial, mesh, sums, run_check=False).full_tensor
    return whole()


def _coordinates(parameter: Tensor) -> tuple[int, ...]:
    """Return where this process stands along the axes of the mesh that spread a tensor."""
    if not is_dtensor(parameter):
        return ()
    mesh, placements = cast(Any, parameter).device_mesh, cast(Any, parameter).placements
    return tuple(
        coordinate
        for coordinate, placement in zip(mesh.get_coordinate(), placements, strict=True)
        if not placement.is_replicate()
    )
