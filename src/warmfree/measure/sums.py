"""Sums over tensors of which every process holds a part, completed together and fetched at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from warmfree.optim.move import Layout
from warmfree.optim.norms import scalar_dtype
from warmfree.optim.sharding import agreement, peers_of

__all__ = ["whole_sums"]


def whole_sums(parts: Sequence[Tensor], tensors: Sequence[Tensor]) -> list[list[float]]:
    """Complete sums over tensors that may be sharded, and bring them to the host.

    One all-reduce for each process group that spreads some tensor, however many tensors there are, and one transfer
    for each device. Plain tensors are whole as they are; replicas are counted once.

    Args:
        parts: for each tensor a vector of sums over the elements that are here, all of one length.
        tensors: what was summed over; their placements say who has the rest. The same list in all processes.

    Returns:
        For each tensor its sums.

    Example:
        >>> whole_sums([torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])], [torch.ones(3), torch.ones(5)])
        [[1.0, 2.0], [3.0, 4.0]]
    """
    rows = [part.to(scalar_dtype(part.device)) for part in parts]
    peers = [peers_of(tensor, Layout("vector")) for tensor in tensors]
    agree = agreement(peers)
    if agree is not None:
        spread = [index for index, theirs in enumerate(peers) if theirs.groups]
        values = torch.stack([rows[index] for index in spread])
        owners = [index for index in spread for _ in range(values.shape[1])]
        completed = agree.of(peers)(values.flatten(), owners).view_as(values)
        for index, row in zip(spread, completed, strict=True):
            rows[index] = row
    found: list[list[float]] = [[] for _ in rows]
    for device in dict.fromkeys(row.device for row in rows):
        indices = [index for index, row in enumerate(rows) if row.device == device]
        for index, numbers in zip(
            indices, torch.stack([rows[index] for index in indices]).tolist(), strict=True
        ):
            found[index] = numbers
    return found
