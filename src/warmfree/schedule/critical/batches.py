"""The first batches of what training will read, without moving it on."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader

__all__ = ["first_batches"]

_COPYABLE: tuple[type, ...] = (type(iter([])), type(iter(())))


def first_batches(
    batches: Iterable[Any], number: int, *, at_least: int | None = None, memory: float = math.inf
) -> list[Any]:
    """Read batches from where an iteration starts.

    The generators of a DataLoader and its samplers are put back, so that training reads what it would have read. An
    iterator of a list stays where it is; any other iterator cannot be rewound: as many as are needed are taken from it,
    with a warning. Python's, NumPy's and torch's own generators are the caller's affair.

    Args:
        batches: a list of batches, a DataLoader, or another iterable.
        number: how many, >= 1.
        at_least: how many there have to be; default all.
        memory: bytes of tensors in them after which no more are read, if there are enough.

    Raises:
        TypeError: not an iterable of batches.
        ValueError: there are fewer.

    Example:
        >>> first_batches([torch.zeros(2), torch.ones(2)], 1)
        [tensor([0., 0.])]
    """
    if isinstance(batches, Tensor | Mapping | str | bytes) or not isinstance(batches, Iterable):
        raise TypeError(
            f"batches must be an iterable of batches, such as a list or a DataLoader, got {type(batches).__name__}; "
            f"for a single batch pass [batch]"
        )
    least = number if at_least is None else at_least
    found: list[Any] = []
    with _as_it_was(batches):
        source = _copy(batches) if isinstance(batches, _COPYABLE) else batches
        held = 0
        if number > 0:
            for batch in source:
                found.append(batch)
                held += _size(batch)
                if len(found) >= number or (held >= memory and len(found) >= least):
                    break
    if isinstance(source, Iterator) and source is batches and found:
        warnings.warn(
            f"batches is an iterator, which cannot be rewound: {len(found)} were taken from it; pass the DataLoader or "
            f"a list to leave your data where it is",
            stacklevel=3,
        )
    if len(found) < least:
        raise ValueError(
            f"batches is empty: {least} needed"
            if not found
            else f"batches has only {len(found)} of the {least} that are needed; pass more, or ask for fewer steps"
        )
    return found


def _size(tree: Any) -> int:
    """Return the bytes of the tensors in a batch."""
    if isinstance(tree, Tensor):
        return tree.numel() * tree.element_size()
    if isinstance(tree, Mapping):
        return sum(map(_size, tree.values()))
    return sum(map(_size, tree)) if isinstance(tree, list | tuple) else 0


def _copy(iterator: Any) -> Any:
    """Copy the iterator of a list or tuple, which remembers a position and nothing else."""
    function, *rest = iterator.__reduce__()
    copied = function(*rest[0])
    if len(rest) > 1:
        copied.__setstate__(rest[1])
    return copied


@contextmanager
def _as_it_was(loader: Any) -> Iterator[None]:
    """Keep the generators that a DataLoader draws from, its workers, and what Accelerate notes of it."""
    sampler = getattr(loader, "sampler", None)
    holders = (loader, sampler, getattr(getattr(loader, "batch_sampler", None), "sampler", None))
    found = [getattr(holder, "generator", None) for holder in holders]
    held = [(one, one.get_state()) for one in found if isinstance(one, torch.Generator)]
    # Persistent workers have one iterator, which each iteration starts anew: that of a loop which is under way, too.
    is_loader = isinstance(loader, DataLoader)
    running = loader._iterator if is_loader else None
    noted = getattr(loader, "gradient_state", None)
    references = list(getattr(noted, "dataloader_references", ()))
    try:
        if is_loader:
            loader._iterator = None
        yield
    finally:
        for generator, state in held:
            generator.set_state(state)
        if is_loader:
            loader._iterator = running
        if references:
            cast(Any, noted).dataloader_references = references
