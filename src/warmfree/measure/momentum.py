"""What optimizers keep of past gradients: where it lies, and with which weights it adds them up.

Optimizers are recognised by the names of their classes, options and state; none of them is imported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

__all__ = ["Momentum", "coupled_decay", "momentum_of", "unwrapped"]


@dataclass(frozen=True, slots=True)
class Momentum:
    r"""A weighted sum of a parameter's past gradients, :math:`m \leftarrow bm + ag`.

    Attributes:
        tensor: m.
        decay: b in (0, 1).
        intake: a, the weight of a new gradient: 1 - b in an average, 1 - dampening in torch's SGD.
        first: the weight of the first gradient, if it is another.
    """

    tensor: Tensor
    decay: float
    intake: float
    first: float | None = None

    def weights(self, count: float) -> tuple[float, float]:
        """Return the sum of the weights of `count` gradients, and the sum of their squares.

        Args:
            count: gradients taken in so far, at least 1; inf for many.

        Example:
            >>> import torch
            >>> Momentum(torch.zeros(1), decay=0.5, intake=1.0).weights(2)  # 0.5 and 1
            (1.5, 1.25)
        """
        b, new = self.decay, self.intake
        start = b ** (count - 1) if count < math.inf else 0.0
        total = new * (1 - start * b) / (1 - b)
        squares = new**2 * (1 - (start * b) ** 2) / (1 - b**2)
        if self.first is not None:
            total += (self.first - new) * start
            squares += (self.first**2 - new**2) * start**2
        return total, squares


def unwrapped(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer that has the momentum: what warmfree's `wrap` or Accelerate was put around."""
    for name in ("inner", "optimizer"):
        inside = getattr(optimizer, name, None)
        if isinstance(inside, Optimizer):
            return unwrapped(inside)
    return optimizer


def momentum_of(optimizer: Optimizer, group: Mapping[str, Any], state: Mapping[str, Any]) -> Momentum | None:
    """Return a parameter's momentum; None if the optimizer has none, or one that is not known to average gradients."""
    kind = type(optimizer).__name__
    if "Prodigy" in kind or "DAdapt" in kind:  # their exp_avg holds gradients times a step size that changes
        return None
    if isinstance(tensor := state.get("exp_avg"), Tensor):
        if "momentum" in group:  # warmfree's Lion
            decay = float(group["momentum"])
        elif "betas" in group:
            decay = float(group["betas"][1 if "Lion" in kind else 0])
        else:
            return None
        return Momentum(tensor, decay, 1 - decay) if decay > 0 else None
    tensor, decay = state.get("momentum_buffer"), float(group.get("momentum", 0.0))
    if not isinstance(tensor, Tensor) or decay <= 0:
        return None
    if "Muon" in kind:
        return Momentum(tensor, decay, 1 - decay)
    if dampening := float(group.get("dampening", 0.0)):
        return Momentum(tensor, decay, 1 - dampening, first=1.0)
    return Momentum(tensor, decay, 1.0)


def coupled_decay(optimizer: Optimizer, group: Mapping[str, Any]) -> float:
    """Return the weight decay that torch's optimizers add to the gradients before they average them."""
    coupled = ("SGD", "Adam", "NAdam", "RAdam", "Adamax")
    if not type(optimizer).__module__.startswith("torch.optim") or type(optimizer).__name__ not in coupled:
        return 0.0
    return 0.0 if group.get("decoupled_weight_decay", False) else float(group.get("weight_decay", 0.0))
