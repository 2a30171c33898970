"""Complex tensors as optimizers see them: every number is two real ones."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["as_real"]


def as_real(tensor: Tensor) -> Tensor:
    """View a complex tensor as pairs of real numbers, in a new last dimension; a real one is returned as it is.

    Norms and inner products are those of the complex tensor, the latter their real part; singular values are not.

    Args:
        tensor: of any shape and type; not sharded.

    Example:
        >>> as_real(torch.tensor([3 + 4j])), as_real(torch.tensor([1.0]))
        (tensor([[3., 4.]]), tensor([1.]))
    """
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
