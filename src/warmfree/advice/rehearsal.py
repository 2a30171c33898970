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

from warmfree.measure.health import gradient_norms
from warmfree.measure.momentum import unwrapped
from warmfree.measure.unchanged import Session, bare
from warmfree.measure.undisturbed import undisturbed
from warmfree.schedule.critical.trials import LossFn, StepTrials, learning_rate
from warmfree.schedule.shapes import Constant

__all__ = ["Rehearsal", "Rehearsed", "Stage", "judged_steps"]

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
        initial_loss: mean loss of the last quarter's batches before the first step; nan if it was not measured.
    """

    length: int
    candidates: tuple[Rehearsed, ...]
    repeated: float
    forward_passes: int
    seconds: float
    initial_loss: float = math.nan

    def find(self, *, warmup: int, optimizer: str | None = None) -> Rehearsed | None:
        """Return the candidate with this warmup, and this optimizer (default: that of the first); None if none."""
        name = optimizer or self.candidates[0].optimizer
        return next((one for one in self.candidates if (one.optimizer, one.warmup) == (name, warmup)), None)


def judged_steps(length: int) -> int:
    """Return how many of the rehearsed steps, the last ones, make the loss of a candidate: a quarter.

    Example:
        >>> judged_steps(100), judged_steps(2)
        (25, 1)
    """
    return max(round(_JUDGED * length), 1)


class Stage:
    """Where the beginnings of a run are rehearsed, inside of `unchanged`.

    After each one weights, optimizer, buffers and random numbers are again as the run would find them, so that no
    candidate sees what was tried before it.

    Args:
        session: of `unchanged`.
        model: as it is trained.
        loss_fn: `loss_fn(model, batch)` returns the scalar loss of a batch.
        optimizer: in the state from which the run begins.
        batches: for each step its micro-batches; used again from the first if there are fewer than steps.
        length: steps to rehearse, >= 1.
        max_grad_norm: as in training.
        scaler: as in training; of it the scale is taken, and that it leaves out steps and lowers the scale.
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
        self._max_grad_norm, self._on_progress = max_grad_norm, on_progress
        self._scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self._candidates: list[Rehearsed] = []
        self._forward_passes, self._initial_loss = 0, math.nan
        self._since = time.perf_counter()

    def initial_loss(self) -> float:
        """Return what candidates start from: the loss before any step, of the batches that they are judged by.

        Of other batches, such as the first step's, losses differ by noise, which may be more than a slow run learns.
        """
        trials = self._trials(self._optimizer, self._scaler)
        judged = range(self._length - judged_steps(self._length), self._length)
        with undisturbed(bare(self._model), evaluate=False):
            losses = [trials.gradient(self._batches_of(step)) for step in judged]
        self._forward_passes += len(losses)
        self._initial_loss = math.fsum(losses) / len(losses)
        return self._initial_loss

    def rehearse(
        self, *, warmup: int = 0, start: float = 0.0, build: Callable[[], Optimizer] | None = None
    ) -> Rehearsed:
        """Make the first steps with a linear warmup, and undo them.

        Args:
            warmup: steps until the full learning rate, >= 0; it may be longer than the rehearsal.
            start: multiple of the learning rate that it starts from, in [0, 1].
            build: makes another optimizer of the same weights, at the learning rate that it is to have, which is
                thrown away afterwards; None for the run's own.
        """
        optimizer = self._optimizer if build is None else build()
        name = type(unwrapped(optimizer)).__name__
        self._tell(f"rehearsing {self._length} steps of {name}, warmup {warmup or 'none'}")
        kept, moved = self._session.kept_of(self._optimizer), self._session.moved
        try:
            with undisturbed(bare(self._model), evaluate=False):
                losses = self._train(optimizer, Constant(warmup=warmup, start=start))
        finally:
            kept.restore()
            self._session.moved = moved
        judged = losses[-judged_steps(self._length) :]
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
            initial_loss=self._initial_loss,
        )

    def _tell(self, what: str) -> None:
        """Report; what the caller does in answer must not change what is rehearsed."""
        if self._on_progress is not None:
            with undisturbed(bare(self._model), evaluate=False), self._session.guard.open():
                self._on_progress(what)

    def _train(self, optimizer: Optimizer, shape: Constant) -> list[float]:
        lr = learning_rate(optimizer)
        trials, scale = self._trials(optimizer, self._scaler), 1.0
        losses: list[float] = []
        for step in range(self._length):
            losses.append(trials.gradient(self._batches_of(step)))
            self._forward_passes += 1
            if not math.isfinite(losses[-1]):
                break
            if self._scaler is not None and not self._has_finite_gradient():
                scale *= self._scaler.get_backoff_factor()
                lower = torch.amp.GradScaler("cpu", init_scale=self._scaler.get_scale() * scale)
                trials = self._trials(optimizer, lower)
                continue
            trials.step(lr * shape(step))
        return losses

    def _batches_of(self, step: int) -> Sequence[Any]:
        return self._batches[step % len(self._batches)]

    def _trials(self, optimizer: Optimizer, scaler: torch.amp.GradScaler | None) -> StepTrials:
        return StepTrials(
            self._session,
            self._model,
            self._loss_fn,
            optimizer,
            max_grad_norm=self._max_grad_norm,
            scaler=scaler,
            same_draws=False,
        )

    def _has_finite_gradient(self) -> bool:
        named = [("", weight) for weight in self._session.weights if weight.grad is not None]
        return math.isfinite(gradient_norms(named)[""])
