"""Make the move: decoupled weight decay, then the write."""

from __future__ import annotations

import torch
from torch import Tensor

from warmfree.optim.move import Move, of_type


def apply_move(move: Move) -> None:
    r"""Write :math:`w \leftarrow (1 - a\lambda)\,w - a\,u` for every tensor of a move.

    The step size a multiplies the decay as well as the update. With step sizes that are plain numbers these are
    torch.optim.AdamW's own operations in the same order; with step sizes on the device nothing is fetched from it,
    and one for the whole tensor that is exactly lr still gives the same bits.

    Args:
        move: changed in place are its `weights`, nothing else.

    Reference: Loshchilov & Hutter 2019 (decoupled decay); Qi et al. 2025 for the shortened step, see SpectralBound.
    """
    amounts = [
        -(size / correction)
        for size, correction in zip(move.step_sizes, move.update.corrections, strict=True)
    ]
    for weight, size, decay in zip(move.weights, move.step_sizes, move.decays, strict=True):
        if isinstance(decay, Tensor) or decay != 0:
            weight.mul_(of_type(1 - size * decay, weight))

    numbers = [amount for amount in amounts if not isinstance(amount, Tensor)]
    if len(numbers) == len(amounts):
        if move.update.denominators is None:
            torch._foreach_add_(move.weights, torch._foreach_mul(move.update.numerators, numbers))
        else:
            torch._foreach_addcdiv_(move.weights, move.update.numerators, move.update.denominators, numbers)
        return
    for index, (weight, amount) in enumerate(zip(move.weights, amounts, strict=True)):
        scaled = move.update.numerators[index] * of_type(amount, weight)
        if move.update.denominators is None:
            weight.add_(scaled)
        else:
            weight.addcdiv_(scaled, move.update.denominators[index])
