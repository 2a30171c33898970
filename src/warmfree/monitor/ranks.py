"""Processes that train together: one writes, and all measure on the same steps."""

import time
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn

__all__ = ["Ranks"]


class Ranks:
    """This process among those that train together.

    Attributes:
        first: whether this is the one that writes.
    """

    def __init__(self) -> None:
        self._many = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.first = not self._many or dist.get_rank() == 0

    def agreed(self, names: Sequence[str], chosen: Sequence[str]) -> list[str]:
        """Return what the first process chose of the names: measured times differ, and probes communicate."""
        if not self._many:
            return list(chosen)
        device = "cpu" if "gloo" in dist.get_backend() else torch.accelerator.current_accelerator()
        mask = torch.tensor([name in chosen for name in names], dtype=torch.int32, device=device)
        dist.broadcast(mask, src=0)
        return [name for name, is_chosen in zip(names, mask.tolist(), strict=True) if is_chosen]

    @staticmethod
    def synchronize(model: nn.Module) -> float:
        """Wait for what was launched on accelerators, so that a clock sees it; return the seconds it took."""
        begin = time.perf_counter()
        for device in {weight.device for weight in model.parameters()}:
            if device.type not in ("cpu", "meta"):
                torch.accelerator.synchronize(device)
        return time.perf_counter() - begin
