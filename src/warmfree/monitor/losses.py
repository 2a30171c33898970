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
    lr: float | Tensor
    losses: list[float | Tensor] = field(default_factory=list)

    def waits(self) -> bool:
        """Return whether reading the numbers would wait for an accelerator."""
        numbers = [self.lr, *self.losses]
        return any(isinstance(number, Tensor) and number.device.type != "cpu" for number in numbers)


class Losses:
    """Collect the training loss of each step from `log` calls, or from what the model returned.

    A loss that is told belongs to the step to come if the model has been called since the last step, else to the step
    just made. Where no call was ever seen, the first loss decides for all: told before the first step, losses come
    before their steps. Numbers on an accelerator are read some steps later, many at once.
    """

    def __init__(self) -> None:
        self._told = False
        self._comes_before: bool | None = None
        self._next: list[float | Tensor] = []
        self._returned: list[float | Tensor] = []
        self._open: _Entry | None = None
        self._closed: list[_Entry] = []

    def log(self, loss: float | Tensor, *, stepped: int, called: bool | None) -> None:
        """Take a loss that the training tells.

        Args:
            loss: one number.
            stepped: how many steps were made.
            called: whether the model was called since the last; None if calls cannot be seen.
        """
        if isinstance(loss, Tensor):
            if loss.numel() != 1:
                raise ValueError(f"the loss must be one number, got a tensor of shape {tuple(loss.shape)}")
            # A number on the CPU is read at once, one on an accelerator when many are.
            loss = loss.item() if loss.device.type == "cpu" else loss.detach().reshape(()).clone()
        else:
            try:
                loss = float(loss)
            except (TypeError, ValueError):
                raise ValueError(f"the loss must be one number, got {loss!r:.60}") from None
        self._told = True
        if self._comes_before is None:
            self._comes_before = stepped == 0
        if self._comes_before if called is None else called:
            self._next.append(loss)
        elif self._open is not None:
            self._open.losses.append(loss)

    def returned(self, losses: Sequence[Tensor]) -> None:
        """Take losses that the model returned since the last step; used as long as none was told."""
        self._returned = [loss.item() if loss.device.type == "cpu" else loss for loss in losses]

    def begin(self, step: int, lr: float | Tensor) -> None:
        """Note that the optimizer is about to make a step."""
        if self._open is not None and self._open.step != step:
            self._closed.append(self._open)
        lr = lr.detach().reshape(()).clone() if isinstance(lr, Tensor) else lr
        self._open = _Entry(step, lr, list(self._next if self._told else self._returned))
        self._next, self._returned = [], []

    def ready(self, *, last: bool = False) -> list[tuple[int, float | None, float]]:
        """Return (step, loss, lr) of the steps whose loss is known; with `last`, of all that are left."""
        if self._open is not None and (last or self._open.losses):
            self._closed.append(self._open)
            self._open = None
        waiting = any(entry.waits() for entry in self._closed)
        if not self._closed or (waiting and not last and len(self._closed) < BUFFERED):
            return []
        closed, self._closed = self._closed, []
        return [(entry.step, loss, lr) for entry, (loss, lr) in zip(closed, _read(closed), strict=True)]


def _read(entries: Sequence[_Entry]) -> list[tuple[float | None, float]]:
    """Fetch losses and learning rates, those on an accelerator in one transfer."""
    numbers = [number for entry in entries for number in (entry.lr, *entry.losses)]
    tensors = [number for number in numbers if isinstance(number, Tensor)]
    wide = torch.float64 if all(tensor.device.type != "mps" for tensor in tensors) else torch.float32
    fetched = iter(torch.stack([tensor.to(wide) for tensor in tensors]).tolist() if tensors else [])
    found: list[tuple[float | None, float]] = []
    for entry in entries:
        lr, *losses = (
            next(fetched) if isinstance(number, Tensor) else float(number)
            for number in (entry.lr, *entry.losses)
        )
        found.append((math.fsum(losses) / len(losses) if _all_finite(losses) else _first_bad(losses), lr))
    return found


def _all_finite(losses: Sequence[float]) -> bool:
    return bool(losses) and all(map(math.isfinite, losses))


def _first_bad(losses: Sequence[float]) -> float | None:
    return next((loss for loss in losses if not math.isfinite(loss)), None)
