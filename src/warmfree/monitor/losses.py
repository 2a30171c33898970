"""Which loss belongs to which step, and when it is worth waiting for its value."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["Losses"]

BUFFERED = 32


@dataclass(slots=True)
class _Entry:
    step: int
    lr: float
    losses: list[float | Tensor] = field(default_factory=list)

    def waits(self) -> bool:
        """Return whether reading the loss would wait for an accelerator."""
        return any(isinstance(loss, Tensor) and loss.device.type != "cpu" for loss in self.losses)


class Losses:
    """Collect the training loss of each step from `log` calls, or from what the model returned.

    A first call before the first step says that calls come before the step they are about; a first call after it,
    that they come after. Losses on an accelerator are read some steps later, many at once.
    """

    def __init__(self) -> None:
        self._comes_before: bool | None = None
        self._next: list[float | Tensor] = []
        self._returned: list[Tensor] = []
        self._open: _Entry | None = None
        self._closed: list[_Entry] = []

    def log(self, loss: float | Tensor, *, stepped: int) -> None:
        """Take a loss that the training tells."""
        if isinstance(loss, Tensor):
            if loss.numel() != 1:
                raise ValueError(f"the loss must be one number, got a tensor of shape {tuple(loss.shape)}")
            loss = loss.detach().reshape(()).clone()
        if self._comes_before is None:
            self._comes_before = stepped == 0
        if self._comes_before:
            self._next.append(loss)
        elif self._open is not None:
            self._open.losses.append(loss)

    def returned(self, losses: Sequence[Tensor]) -> None:
        """Take losses that the model returned since the last step; used as long as none was told."""
        self._returned = list(losses)

    def begin(self, step: int, lr: float) -> None:
        """Note that the optimizer is about to make a step."""
        if self._open is not None and self._open.step != step:
            self._closed.append(self._open)
        losses = self._next if self._comes_before else [] if self._comes_before is False else self._returned
        self._open = _Entry(step, lr, list(losses))
        self._next, self._returned = [], []

    def ready(self, *, last: bool = False) -> list[tuple[int, float | None, float]]:
        """Return (step, loss, lr) of the steps whose loss is known; with `last`, of all that are left."""
        settled = self._comes_before or (self._comes_before is None and self._open and self._open.losses)
        if self._open is not None and (last or settled):
            self._closed.append(self._open)
            self._open = None
        waiting = any(entry.waits() for entry in self._closed)
        if not self._closed or (waiting and not last and len(self._closed) < BUFFERED):
            return []
        closed, self._closed = self._closed, []
        return [(entry.step, loss, entry.lr) for entry, loss in zip(closed, _read(closed), strict=True)]


def _read(entries: Sequence[_Entry]) -> list[float | None]:
    """Fetch all losses, those on an accelerator in one transfer."""
    tensors = [loss for entry in entries for loss in entry.losses if isinstance(loss, Tensor)]
    wide = torch.float64 if all(tensor.device.type != "mps" for tensor in tensors) else torch.float32
    values = iter(torch.stack([tensor.to(wide) for tensor in tensors]).tolist() if tensors else [])
    means: list[float | None] = []
    for entry in entries:
        numbers = [next(values) if isinstance(loss, Tensor) else float(loss) for loss in entry.losses]
        means.append(sum(numbers) / len(numbers) if numbers else None)
    return [mean if mean is None or not math.isnan(mean) else math.nan for mean in means]
