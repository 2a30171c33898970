"""Tensors that are spread over processes: which part is here, and who has to add up. All that knows of DTensor.

The parts of an optimizer step see local tensors. What they add up over rows or columns of a matrix is partial where
the matrix is sharded; `Peers` completes such sums for all matrices of a bucket in one all-reduce. Weights, updates
and moments are never gathered.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from warmfree.optim.move import Layout, Part


@dataclass(frozen=True, slots=True)
class Peers:
    """The process groups over which rows and columns of a bucket's matrices are spread; none for plain tensors."""

    row_groups: tuple[Any, ...] = ()
    column_groups: tuple[Any, ...] = ()

    @property
    def groups(self) -> tuple[Any, ...]:
        """All groups: what is summed over a whole matrix is summed over each."""
        return self.column_groups + self.row_groups

    def add_rows(self, partial: Sequence[Tensor]) -> list[Tensor]:
        """Complete sums over the rows of each matrix."""
        return _all_reduce(partial, self.row_groups)

    def add_columns(self, partial: Sequence[Tensor]) -> list[Tensor]:
        """Complete sums over the columns of each matrix."""
        return _all_reduce(partial, self.column_groups)

    def add(self, partial: Sequence[Tensor]) -> list[Tensor]:
        """Complete sums over all elements of each matrix."""
        return _all_reduce(partial, self.groups)


def is_dtensor(tensor: Tensor) -> bool:
    """Return whether a tensor is a DTensor, spread over a mesh or replicated."""
    # Importing torch.distributed.tensor takes half as long as torch itself; who has a DTensor has imported it.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds, sharing memory; a plain tensor is its own part."""
    return cast(Any, tensor).to_local() if is_dtensor(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor, gathered from the processes that hold parts of it; a plain tensor is whole."""
    if not is_dtensor(tensor):
        return tensor
    gathered = cast(Any, tensor).full_tensor()
    return cast(Tensor, gathered.wait() if hasattr(gathered, "wait") else gathered)


def local_state(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state with the local part of each entry."""
    return {name: local(value) for name, value in state.items()}


def local_gradient(parameter: Tensor) -> Tensor:
    """Return the local part of a parameter's gradient, spread as the parameter is.

    Raises:
        RuntimeError: parameter and gradient are not spread over the same processes.
    """
    gradient = parameter.grad
    assert gradient is not None
    if not is_dtensor(parameter):
        if is_dtensor(gradient):
            raise RuntimeError("a plain parameter has a sharded gradient (DTensor): shard the parameter, too")
        return gradient
    ours, theirs = cast(Any, parameter), cast(Any, gradient)
    if not is_dtensor(gradient) or theirs.device_mesh != ours.device_mesh:
        raise RuntimeError("a sharded parameter must have a gradient on its own mesh")
    if theirs.placements != ours.placements:
        # The partial sums of a replicated gain under sequence parallelism.
        theirs = theirs.redistribute(placements=ours.placements)
    part = theirs.to_local()
    return cast(Tensor, part.wait() if hasattr(part, "wait") else part)


def signature(tensor: Tensor) -> tuple[Any, ...] | None:
    """Return what tensors must have in common to be reduced together; None for plain ones."""
    return (cast(Any, tensor).device_mesh, cast(Any, tensor).placements) if is_dtensor(tensor) else None


def check_placements(parameter: Tensor, *, name: str) -> None:
    """Raise TypeError or ValueError if a DTensor cannot be stepped by this process."""
    if not is_dtensor(parameter):
        return
    mesh, placements = cast(Any, parameter).device_mesh, cast(Any, parameter).placements
    kind = f"a DTensor of shape {tuple(parameter.shape)} with placements {placements}"
    if mesh.get_coordinate() is None:
        raise ValueError(
            f"{name} got {kind} on a mesh that this process is not part of; give each process its own"
        )
    for placement in placements:
        if not (placement.is_replicate() or placement.is_shard() or _is_strided(placement)):
            raise TypeError(f"{name} needs parameters that are sharded or replicated, got {kind}")


def peers_of(parameter: Tensor, layout: Layout) -> Peers:
    """Find the process groups that share the rows and the columns of a parameter."""
    if not is_dtensor(parameter):
        return Peers()
    mesh, placements = cast(Any, parameter).device_mesh, cast(Any, parameter).placements
    spread = [
        (mesh.get_group(axis), placement.dim % parameter.ndim == layout.out_dim)
        for axis, placement in enumerate(placements)
        if not placement.is_replicate() and mesh.size(axis) > 1
    ]
    rows = tuple(group for group, over_rows in spread if over_rows)
    return Peers(rows, tuple(group for group, over_rows in spread if not over_rows))


@dataclass(frozen=True, slots=True)
class Agreement:
    """Lets all processes that share a parameter of an optimizer come to the same numbers.

    Attributes:
        groups: the process groups of all its parameters.
    """

    groups: tuple[Any, ...]

    def of(self, members: Sequence[Peers]) -> Callable[[Tensor, Sequence[int]], Tensor]:
        """Return a function that adds up one value per sharded tensor over the processes.

        All values go into every all-reduce, those of tensors that a group does not spread at their share: what is
        found to be NaN by one process is NaN in all.
        """

        def add(values: Tensor, indices: Sequence[int]) -> Tensor:
            for group in self.groups:
                shares = [
                    1.0 if group in members[index].groups else 1 / dist.get_world_size(group)
                    for index in indices
                ]
                values = values * values.new_tensor(shares)
                dist.all_reduce(values, group=group)
            return values

        return add

    def all_of(self, verdict: bool) -> bool:
        """Return whether all processes say so."""
        for group in self.groups:
            kind = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
            against = torch.tensor(float(not verdict), device=kind)
            dist.all_reduce(against, group=group)
            verdict = against.item() == 0
        return verdict


def agreement(members: Sequence[Peers]) -> Agreement | None:
    """Return how the processes that share parameters agree, or None if nothing is sharded."""
    groups = tuple(dict.fromkeys(group for peers in members for group in peers.groups))
    return Agreement(groups) if groups else None


def part_of(parameter: Tensor, layout: Layout) -> Part:
    """Find which rows and columns of a parameter are here.

    Raises:
        RuntimeError: the local tensor is not what its placements say.
    """
    shape, out_dim = tuple(parameter.shape), layout.out_dim
    rows = shape[out_dim] if shape else 1
    fan_in = parameter.numel() // max(1, rows) if parameter.ndim > 1 else 1
    heights = layout.sections or (rows,)
    if not is_dtensor(parameter) or layout.role == "vector":
        return Part(rows, fan_in, heights, heights)
    indices = [_indices(parameter, dim) for dim in range(parameter.ndim)]
    if (sizes := tuple(map(len, indices))) != tuple(local(parameter).shape):
        raise RuntimeError(
            f"a parameter of shape {shape} should have a part of shape {sizes} here, "
            f"has {tuple(local(parameter).shape)}"
        )
    ends = torch.tensor(heights).cumsum(0)
    below = torch.searchsorted(indices[out_dim], ends).tolist()
    local_heights = tuple(high - low for low, high in zip([0, *below], below, strict=False))
    columns = torch.arange(fan_in).view([size for dim, size in enumerate(shape) if dim != out_dim])
    for axis, index in enumerate(index for dim, index in enumerate(indices) if dim != out_dim):
        columns = columns.index_select(axis, index)
    columns = columns.flatten().to(parameter.device)
    mesh, placements = cast(Any, parameter).device_mesh, cast(Any, parameter).placements
    spread = [axis for axis, placement in enumerate(placements) if not placement.is_replicate()]
    where = tuple(mesh.get_coordinate()[axis] for axis in spread)
    return Part(rows, fan_in, heights, local_heights, columns if len(columns) < fan_in else None, where)


def zeros_per_row(parameter: Tensor, *, out_dim: int, dtype: torch.dtype) -> Tensor:
    """Return one zero per output neuron, shaped to broadcast against the parameter and spread as its rows are."""
    shape = [1] * parameter.ndim
    shape[out_dim] = parameter.shape[out_dim]
    if not is_dtensor(parameter):
        return torch.zeros(shape, dtype=dtype, device=parameter.device)
    mesh, placements = cast(Any, parameter).device_mesh, cast(Any, parameter).placements
    from torch.distributed.tensor import DTensor, Replicate

    over_rows = [
        placement
        if not placement.is_replicate() and placement.dim % parameter.ndim == out_dim
        else Replicate()
        for placement in placements
    ]
    here = [1] * parameter.ndim
    here[out_dim] = local(parameter).shape[out_dim]
    zeros = torch.zeros(here, dtype=dtype, device=local(parameter).device)
    stride = torch.empty(shape, device="meta").stride()
    whole = DTensor.from_local(
        zeros, mesh, over_rows, run_check=False, shape=torch.Size(shape), stride=stride
    )
    return cast(Tensor, whole)


def _is_strided(placement: Any) -> bool:
    return type(placement).__name__ == "_StridedShard"


def _indices(parameter: Any, dim: int) -> Tensor:
    """Indices along one dimension that are here, ascending: placements apply from left to right."""
    indices, coordinate = torch.arange(parameter.shape[dim]), parameter.device_mesh.get_coordinate()
    for axis, placement in enumerate(parameter.placements):
        if placement.is_replicate() or placement.dim % parameter.ndim != dim:
            continue
        # FSDP over tensor parallelism: each of `split_factor` chunks is divided on its own.
        chunks: tuple[Tensor, ...] = (indices,)
        if _is_strided(placement):
            chunks = torch.chunk(indices, placement.split_factor)
        size, here = parameter.device_mesh.size(axis), coordinate[axis]
        parts = [torch.chunk(chunk, size) for chunk in chunks]
        indices = torch.cat([part[here] if here < len(part) else indices[:0] for part in parts])
    return indices


def _all_reduce(tensors: Sequence[Tensor], groups: Sequence[Any]) -> list[Tensor]:
    """Sum each tensor over the groups, all of them in one buffer."""
    if not groups or not tensors:
        return list(tensors)
    buffer = torch.cat([tensor.reshape(-1) for tensor in tensors])
    for group in groups:
        dist.all_reduce(buffer, group=group)
    pieces = torch.split(buffer, [tensor.numel() for tensor in tensors])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]
