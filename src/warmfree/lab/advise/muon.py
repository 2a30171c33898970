"""Muon for the matrices and AdamW for all else, as one optimizer."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from warmfree.optim import parameter_groups

__all__ = ["MuonAndAdamW"]


class MuonAndAdamW(Optimizer):
    """Step hidden matrices by torch.optim.Muon, embeddings, head, vectors and all else by torch.optim.AdamW.

    Muon's updates are scaled to the RMS of AdamW's, so that one learning rate suits both.

    Args:
        model: whose parameters; see `parameter_groups` for what is a matrix. Muon takes those of two dimensions.
        lr: learning rate, > 0.
        weight_decay: decoupled, >= 0; vectors have none.
        momentum: Muon's, in [0, 1).
        betas: AdamW's.

    Raises:
        ValueError: this torch has no Muon.

    Example:
        >>> model = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 4), nn.Linear(4, 8))
        >>> optimizer = MuonAndAdamW(model, lr=1e-3, weight_decay=0.1, momentum=0.95, betas=(0.9, 0.95))
        >>> [(group["use_muon"], len(group["params"])) for group in optimizer.param_groups]
        [(False, 1), (True, 1), (False, 1), (False, 2)]
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float,
        weight_decay: float,
        momentum: float,
        betas: tuple[float, float],
    ) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise ValueError(f"muon needs torch 2.9 or later, this is {torch.__version__}; update torch")
        self._muon = torch.optim.Muon(
            [torch.zeros(2, 2)],
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            adjust_lr_fn="match_rms_adamw",
        )
        self._adamw = torch.optim.AdamW([torch.zeros(1)], lr=lr, weight_decay=weight_decay, betas=betas)
        groups = []
        for group in parameter_groups(model, weight_decay=weight_decay):
            matrix = group["role"] == "matrix"
            flat = [weight for _, weight in group["params"] if matrix and weight.ndim == 2]
            rest = [weight for _, weight in group["params"] if not (matrix and weight.ndim == 2)]
            for part, inner, use in ((flat, self._muon, True), (rest, self._adamw, False)):
                if part:
                    decay = group["weight_decay"]
                    groups.append({**inner.defaults, "params": part, "weight_decay": decay, "use_muon": use})
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make both steps."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        inners: tuple[tuple[Any, bool], ...] = ((self._muon, True), (self._adamw, False))
        for inner, use in inners:
            # Lent anew each time: load_state_dict replaces both.
            inner.state = self.state
            inner.param_groups = [group for group in self.param_groups if group["use_muon"] is use]
            if inner.param_groups:
                inner.step()
        return loss
