"""The persistent catapult warmup: a scheduler that stays at the critical learning rate, wherever it moves."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from warmfree.measure.guard import Guard
from warmfree.measure.unchanged import unchanged
from warmfree.schedule.critical.batches import first_batches
from warmfree.schedule.critical.critical import check_trainable, search_step, tolerance_of
from warmfree.schedule.critical.results import Search
from warmfree.schedule.critical.trials import LossFn, StepTrials
from warmfree.schedule.saved import SavedShape
from warmfree.schedule.shapes import Shape

__all__ = ["CatapultWarmup"]

_SEED = 0  # of every pass over the probe batch
_NOT_SAVED = ("_model", "_loss_fn", "_batches", "_scaler")


class CatapultWarmup(LRScheduler):
    r"""Warm up along the critical learning rate: raise it whenever the loss has recovered from the last raise.

    .. math::
        L(\theta_t) < L(\theta_*): \quad \eta \leftarrow \min\{\eta_c(\theta_t), \eta_{\text{target}}\}, \;
        \theta_* \leftarrow \theta_t; \qquad \text{otherwise } \eta \text{ stays}

    with the learning rate :math:`\eta_c` just above the critical one, at which the optimizer's next step raises the
    loss, but by no more than a fraction `tolerance`. A step there is the beginning of a catapult: the loss rises, the
    sharpness falls, the loss recovers, and by then the critical learning rate is higher. When it reaches the target,
    which is the learning rate that the optimizer was made with, the warmup is over and costs nothing any more. Call it
    as any scheduler::

        optimizer.step()
        scheduler.step()

    All losses are those of one probe batch, with the same random numbers (dropout, a diffusion model's noise), so that
    those of different steps can be compared. A check costs a forward pass over it, a search one backward pass and five
    to ten forward passes more, both the memory of `critical_lr`. Training is left as it was to the last bit: it gives
    what it would give with the same learning rates set by hand.

    What the paper leaves open is our choice:

    - the probe batch, and that the search starts from the learning rate at hand, with the optimizer's momentum.
    - the learning rate follows the critical one down, too, as in the paper; `monotone` forbids it.
    - where no learning rate lowers the probe's loss (momentum carries uphill), it stays; before the first step it is
      the smallest one tried.
    - where a search ends with too steep a rise (a cliff, no passes left), the largest one at which the loss fell.
    - a search that fails after the first one (a gradient that overflows in float16) warns, and the learning rate stays.
    - `then` counts from the first step of the run, and the smaller one of both holds; where it does, nothing is probed.

    It relies on the sharpness to fall. Where it does not (a quadratic loss), or where the target is too large for the
    model behind any warmup, the learning rate stays just above a critical one, and training may diverge.

    With DistributedDataParallel and FSDP2 all processes have to make it and call it; they get the same learning rate.

    Args:
        optimizer: any that steps without a closure; ``lr`` may be a tensor. Groups keep their proportions.
        model: what it trains, in training mode.
        loss_fn: ``loss_fn(model, batch)`` returns the scalar loss; mixed precision is entered inside of it.
        batches: an iterable of batches whose first ones are the probe; they are held, and not to be written to.
        tolerance: of the loss above its present value, > 0; default 0.1 for SGD and 0.01 for all others, as in the
            paper. A smaller one makes smaller catapults.
        precision: of the search: it ends no sooner than when its bracket's ends are this fraction apart, > 0. A larger
            one leaves more to the tolerance, a smaller one keeps nearer to the critical learning rate.
        every: steps between checks, >= 1.
        monotone: never lower the learning rate.
        then: the shape of the rest of the run, e.g. ``Cosine(steps=10_000)``.
        accumulate: batches that make the probe, as micro-batches of one step, >= 1.
        max_passes: most forward passes of one search, >= 4.
        max_grad_norm: the l2 norm to which training clips gradients; None if it does not.
        scaler: the GradScaler of float16 training.
        search: False makes no pass: for a scheduler whose state will be loaded.

    Raises:
        ValueError: an argument is out of range, too few batches, a model in eval mode, a loss that is constant or not
            finite.
        NonDeterministicLossError: the loss differs between two equal passes.
        TypeError: then is not a `Shape`, the optimizer needs a closure, or loss_fn returns no tensor.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> x = torch.linspace(-1, 1, 32)[:, None]
        >>> model = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
        >>> loss_fn = lambda model, batch: (model(batch) - batch.sin()).square().mean()
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.4)
        >>> scheduler = CatapultWarmup(optimizer, model, loss_fn, [x])
        >>> for _ in range(100):
        ...     optimizer.zero_grad()
        ...     loss_fn(model, x).backward()
        ...     optimizer.step()
        ...     scheduler.step()
        >>> scheduler.reached is not None, scheduler.get_last_lr()
        (True, [0.4])

    Reference: Kalra & Barkeshli 2024, section 7 and algorithm 3.
    """

    then = SavedShape()

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        loss_fn: LossFn,
        batches: Iterable[Any],
        *,
        tolerance: float | None = None,
        precision: float = 0.25,
        every: int = 1,
        monotone: bool = False,
        then: Shape | None = None,
        accumulate: int = 1,
        max_passes: int = 20,
        max_grad_norm: float | None = None,
        scaler: torch.amp.GradScaler | None = None,
        search: bool = True,
    ) -> None:
        for name, count, least in (
            ("every", every, 1),
            ("accumulate", accumulate, 1),
            ("max_passes", max_passes, 4),
        ):
            if isinstance(count, bool) or not isinstance(count, int) or count < least:
                raise ValueError(f"{name} must be an int >= {least}, got {count!r}")
        check_trainable(model, optimizer)
        self.tolerance = tolerance_of(optimizer) if tolerance is None else tolerance
        self.precision = precision
        for name, value in (
            ("tolerance", self.tolerance),
            ("precision", precision),
            ("max_grad_norm", max_grad_norm),
        ):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be > 0 and finite, got {value!r}")
        self.every, self.monotone, self.max_passes = every, monotone, max_passes
        self.max_grad_norm = max_grad_norm
        self.then = then
        self._model, self._loss_fn, self._scaler = model, loss_fn, scaler
        self._batches = first_batches(batches, accumulate)
        self._lr: float | None = None
        self._reference = math.inf
        self._reached: int | None = None
        self._forward_passes = 0
        self._history: tuple[tuple[int, float, float], ...] = ()
        if search:
            self.optimizer = optimizer  # as the base class will set it
            self._adopt(0, self._probe(_target(optimizer)), _target(optimizer))
        super().__init__(optimizer)

    @property
    def target(self) -> float:
        """The learning rate of the first group at which the warmup ends."""
        return float(self.base_lrs[0])

    @property
    def reached(self) -> int | None:
        """The step from which on the target holds, 0 if no warmup was needed; None until then."""
        return self._reached

    @property
    def searches(self) -> int:
        """How often the critical learning rate was searched for; as many backward passes were made."""
        return len(self._history)

    @property
    def forward_passes(self) -> int:
        """Forward passes over the probe batch so far."""
        return self._forward_passes

    @property
    def history(self) -> tuple[tuple[int, float, float], ...]:
        """For each search the step from which its learning rate holds, that learning rate, and the probe's loss."""
        return self._history

    def step(self, epoch: int | None = None) -> None:
        """Set the learning rate of the next optimizer step.

        Args:
            epoch: not supported, as the warmup depends on the run so far.

        Raises:
            RuntimeError: made with ``search=False``, and no state was loaded.
        """
        if self._step_count == 0:  # the constructor's own
            super().step()
            return
        if epoch is not None:
            raise TypeError("CatapultWarmup.step takes no epoch: it counts its steps itself")
        if self._lr is None:
            raise RuntimeError(
                "made with search=False, CatapultWarmup needs a state: call load_state_dict first"
            )
        found = self._probe(self.target) if self._is_due(self.last_epoch + 1, self._lr) else None
        with Guard():  # Ctrl-C comes before all of this, or after it
            if found is not None:
                self._adopt(self.last_epoch + 1, found, self.target)
            super().step()

    def get_lr(self) -> list[float | Tensor]:
        """Return the learning rate of every group."""
        if self._lr is None:
            return [group["lr"] for group in self.optimizer.param_groups]
        multiplier = self._lr / self.target
        if self.then is not None:
            multiplier = min(multiplier, self.then(self.last_epoch))
        return [base * multiplier for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain values: model, loss_fn, probe batch and scaler are not in it."""
        state: dict[str, Any] = super().state_dict()
        return {name: value for name, value in state.items() if name not in _NOT_SAVED}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue where a state was saved, with the settings that were saved; sets the optimizer's learning rates.

        Hand in the same probe batch as before, with ``search=False``, in any order with the optimizer's own loading.
        """
        super().load_state_dict(dict(state_dict))
        for group, lr in zip(self.optimizer.param_groups, self.get_last_lr(), strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(float(lr))
            else:
                group["lr"] = lr

    def _is_due(self, step: int, lr: float) -> bool:
        if self._reached is not None or step % self.every:
            return False
        return self.then is None or self.then(step) > lr / self.target

    def _probe(self, target: float) -> _Probe:
        """Evaluate the loss, and search if it is below the reference."""
        check_trainable(self._model, self.optimizer)
        with unchanged(self._model, self.optimizer) as session:
            _seed(session.weights)
            trials = _Trials(
                session,
                self._model,
                self._loss_fn,
                self.optimizer,
                max_grad_norm=self.max_grad_norm,
                scaler=self._scaler,
            )
            loss = trials.loss_of(self._batches)
            found: Search | None = None
            is_first = self._lr is None
            if loss < self._reference or is_first:
                try:
                    found = search_step(
                        session,
                        trials,
                        self._batches,
                        start=target if self._lr is None else self._lr,
                        precision=self.precision,
                        tolerance=self.tolerance,
                        max_lr=target,
                        max_passes=self.max_passes,
                    )
                except ValueError as error:
                    if is_first:
                        raise
                    warnings.warn(
                        f"no critical learning rate was searched for, the learning rate stays: {error}",
                        stacklevel=3,
                    )
            return _Probe(loss=loss, search=found, forward_passes=trials.forward_passes)

    def _adopt(self, step: int, probe: _Probe, target: float) -> None:
        """Take over what a probe found."""
        self._forward_passes += probe.forward_passes
        if not probe.loss < self._reference:
            return
        self._reference = probe.loss
        if probe.search is None:
            return
        lr = _chosen(probe.search, self.tolerance)
        if lr is None:
            lr = min(trial.lr for trial in probe.search.trials) if self._lr is None else self._lr
        if self.monotone and self._lr is not None:
            lr = max(lr, self._lr)
        self._lr = min(lr, target)
        self._history += ((step, self._lr, probe.loss),)
        if self._lr == target:
            self._reached = step


class _Probe(NamedTuple):
    """What one look at the probe batch came to."""

    loss: float
    search: Search | None
    forward_passes: int


class _Trials(StepTrials):
    """Trials that also tell a loss without preparing a step."""

    def loss_of(self, batches: Sequence[Any]) -> float:
        """Return the loss of some batches with the weights as they are."""
        self._batches = batches
        return self.loss_now()


def _chosen(search: Search, tolerance: float) -> float | None:
    """Return the learning rate that a search leads to; None if none lowers the loss."""
    if search.outcome != "found":
        return search.low
    highest = search.initial_loss + tolerance * abs(search.initial_loss)
    is_gentle = any(trial.lr == search.high and trial.loss <= highest for trial in search.trials)
    return search.high if is_gentle else search.low


def _target(optimizer: Optimizer) -> float:
    """Return what the base class will take as the first group's learning rate."""
    group = optimizer.param_groups[0]
    return float(group.get("initial_lr", group["lr"]))


def _seed(weights: Sequence[Tensor]) -> None:
    """Give the generators of Python, NumPy, torch and the weights' devices one state; `unchanged` puts theirs back."""
    random.seed(_SEED)
    np.random.seed(_SEED)  # noqa: NPY002 (the user's, if any)
    torch.set_rng_state(torch.Generator().manual_seed(_SEED).get_state())
    for device in {weight.device for weight in weights if weight.device.type not in ("cpu", "meta")}:
        state = torch.Generator(device).manual_seed(_SEED).get_state()
        torch.get_device_module(device).set_rng_state(state, device)
