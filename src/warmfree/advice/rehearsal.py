"""The first steps of a run, made with several warmups in turn and undone: which of them would have lost what."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from warmfree.measure.kept import Kept
from warmfree.measure.unchanged import Session, bare
from warmfree.measure.undisturbed import undisturbed
from warmfree.schedule.critical.trials import LossFn, StepTrials, learning_rate

__all__ = ["Rehearsal", "Rehearsed", "Stage"]

_JUDGED = 0.25  # of the steps, the last ones


@dataclass(frozen=True, kw_only=True, slots=True)
class Rehearsed:
    """The first steps of one way to begin.

    Attributes:
        optimizer: name of its class.
        warmup: steps of linear warmup.
        start: multiple of the learning rate that the warmup starts from.
        loss: mean training loss over the last quarter of the steps; inf if a loss was not finite.
        losses: of each step, before it.
    """

    optimizer: str
    warmup: int
    start: float
    loss: float
    losses: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rehearsal:
    """Ways to begin a run, side by side: all from the same weights, with the same batches and random numbers.

    Attributes:
        length: steps of each.
        candidates: in the order in which they were tried.
        repeated: how often each batch was used; above 1 the loss also fell by memory.
        forward_passes: over one step's batches, in all; as many backward passes.
        seconds: wall time.
    """

    length: int
    candidates: tuple[Rehearsed, ...]
    repeated: float
    forward_passes: int
    seconds: float

    def find(self, *, warmup: int, optimizer: str | None = None) -> Rehearsed | None:
        """Return the candidate with this warmup, and this optimizer (default: that of the first); None if none."""
        name = optimizer or self.candidates[0].optimizer
        return next((one for one in self.candidates if (one.optimizer, one.warmup) == (name, warmup)), None)


class Stage:
    """Where the beginnings of a run are rehearsed, inside of `unchanged`.

    Args:
        session: of `unchanged`.
        model: as it is trained.
        loss_fn: `loss_fn(model, batch)` returns the scalar loss of a batch.
        optimizer: in the state from which the run begins.
        batches: for each step its micro-batches; used again from the first if there are fewer than steps.
        length: steps to rehearse, >= 1.
        max_grad_norm: as in training.
        scaler: as in training.
        on_progress: told what is being rehearsed.
    """

    def __init__(
        self,
        session: Session,
        model: nn.Module,
        loss_fn: LossFn,
        optimizer: Optimizer,
        batches: Sequence[Sequence[Any]],
        *,
        length: int,
        max_grad_norm: float | None = None,
        scaler: torch.amp.GradScaler | None = None,
        on_progress: Callable[[str], None] | None = None,
    ) -> None:
        self._session, self._model, self._loss_fn = session, model, loss_fn
        self._optimizer, self._batches, self._length = optimizer, batches, length
        self._max_grad_norm, self._scaler, self._on_progress = max_grad_norm, scaler, on_progress
        self._lr = learning_rate(optimizer)
        self._candidates: list[Rehearsed] = []
        self._forward_passes = 0
        self._since = time.perf_counter()

    def rehearse(
        self, *, warmup: int = 0, start: float = 0.0, optimizer: Optimizer | None = None
    ) -> Rehearsed:
        """Make the first steps with a linear warmup, and undo them.

        Args:
            warmup: steps until the full learning rate, >= 0; it may be longer than the rehearsal.
            start: multiple of the learning rate that it starts from, in [0, 1].
            optimizer: another one of the same weights, at the learning rate it is to have; None for the run's own.
        """
        own = self._optimizer if optimizer is None else optimizer
        name = type(own).__name__
        if self._on_progress is not None:
            length = f"{warmup} steps of warmup" if warmup else "no warmup"
            with self._session.guard.open():
                self._on_progress(f"rehearsing {self._length} steps of {name} with {length}")
        lr = self._lr if optimizer is None else learning_rate(optimizer)
        kept = Kept(own)
        try:
            with undisturbed(bare(self._model), evaluate=False):
                losses = self._train(own, lr, warmup, start)
        finally:
            kept.restore()
        judged = losses[-max(round(_JUDGED * self._length), 1) :]
        finite = len(losses) == self._length and all(map(math.isfinite, losses))
        found = Rehearsed(
            optimizer=name,
            warmup=warmup,
            start=start,
            loss=math.fsum(judged) / len(judged) if finite else math.inf,
            losses=tuple(losses),
        )
        self._candidates.append(found)
        return found

    def result(self) -> Rehearsal:
        """Return all that was rehearsed so far."""
        return Rehearsal(
            length=self._length,
            candidates=tuple(self._candidates),
            repeated=self._length / len(self._batches),
            forward_passes=self._forward_passes,
            seconds=time.perf_counter() - self._since,
        )

    def _train(self, optimizer: Optimizer, lr: float, warmup: int, start: float) -> list[float]:
        trials = StepTrials(
            self._session,
            self._model,
            self._loss_fn,
            optimizer,
            max_grad_norm=self._max_grad_norm,
            scaler=self._scaler,
            same_draws=False,
        )
        losses: list[float] = []
        for step in range(self._length):
            losses.append(trials.gradient(self._batches[step % len(self._batches)]))
            self._forward_passes += 1
            if not math.isfinite(losses[-1]):
                break
            climbed = min((step + 1) / warmup, 1.0) if warmup else 1.0
            trials.step(lr * (start + (1 - start) * climbed))
        return losses
