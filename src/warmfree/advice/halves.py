"""How many samples a batch has, and the two halves of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor

__all__ = ["halves", "samples_in"]


def samples_in(batch: Any) -> int | None:
    """Return the size that all tensors of a batch have along dimension 0.

    Args:
        batch: a tensor, or dicts, lists and tuples of tensors. None and booleans among them do not count.

    Returns:
        Number of samples; None if there are no tensors, if their sizes differ, or if anything else is in the batch:
        then nobody knows what a sample is.

    Example:
        >>> samples_in({"tokens": torch.zeros(4, 7), "weights": torch.ones(4)})
        4
        >>> samples_in((torch.zeros(4, 7), torch.zeros(7, 7))) is None
        True
    """
    sizes = set(_sizes(batch))
    return cast(int, sizes.pop()) if len(sizes) == 1 and None not in sizes else None


def halves(batch: Any) -> tuple[Any, Any] | None:
    """Cut a batch in two along dimension 0, which has to count samples.

    Args:
        batch: as for `samples_in`.

    Returns:
        Two batches of the same structure with views of its tensors, the second larger by one if the number of samples
        is odd; None if it is not known or below 2.

    Example:
        >>> halves((torch.arange(3), None))
        ((tensor([0]), None), (tensor([1, 2]), None))
    """
    count = samples_in(batch)
    if count is None or count < 2:
        return None
    middle = count // 2
    return _map(batch, lambda leaf: leaf[:middle]), _map(batch, lambda leaf: leaf[middle:])


def _sizes(tree: Any) -> Iterator[int | None]:
    """Yield the first size of each tensor, None for what cannot be cut."""
    if isinstance(tree, Tensor):
        is_dense = tree.layout == torch.strided and not tree.is_nested
        yield tree.shape[0] if is_dense and tree.ndim else None
    elif isinstance(tree, Mapping):
        for leaf in tree.values():
            yield from _sizes(leaf)
    elif isinstance(tree, tuple | list):
        for leaf in tree:
            yield from _sizes(leaf)
    elif tree is not None and not isinstance(tree, bool):
        yield None


def _map(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, Mapping):
        # A copy of the same class: transformers' batches are also read by attribute.
        same_kind = cast(Any, copy.copy(tree))
        same_kind.update({key: _map(leaf, change) for key, leaf in tree.items()})
        return same_kind
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(_map(leaf, change) for leaf in tree))
    if isinstance(tree, tuple | list):
        return type(tree)(_map(leaf, change) for leaf in tree)
    return tree
