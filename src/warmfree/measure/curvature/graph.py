"""What torch's record of a computation tells: where it cannot be differentiated again, and how exact it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["hides_history", "precision_of"]


def hides_history(outputs: Iterable[Tensor | None]) -> bool:
    """Return whether a custom function among those that made outputs is marked `once_differentiable`.

    It would raise if it were reached, but torch goes only where parameters are, and what it hides ends there: without
    this check its part of a second derivative would be missing silently.
    """
    return any(type(node).__name__ == "Error" for node in _nodes(outputs))


def precision_of(outputs: Iterable[Tensor]) -> float:
    """Return the relative precision of the narrowest floating-point type that outputs were made in.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
        >>> precision_of([weight.sum()]), precision_of([weight.float().sum().double()])
        (2.220446049250313e-16, 1.1920928955078125e-07)
    """
    outputs = list(outputs)
    types = {output.dtype for output in outputs}
    for node in _nodes(outputs):
        types.update(entry.dtype for entry in node._input_metadata if entry.dtype.is_floating_point)
    return max(torch.finfo(dtype).eps for dtype in types)


def _nodes(outputs: Iterable[Tensor | None]) -> Iterator[Any]:
    waiting = [output.grad_fn for output in outputs if output is not None and output.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        yield node
        following = {other for other, _ in node.next_functions if other is not None} - seen
        seen |= following
        waiting.extend(following)
