"""The critical learning rate: how large the optimizer's next step may be, found by forward passes."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from warmfree.measure.curvature.optimizers import UnsupportedOptimizerError, recognise
from warmfree.measure.unchanged import Session, bare, unchanged
from warmfree.measure.undisturbed import undisturbed
from warmfree.schedule.critical.batches import first_batches
from warmfree.schedule.critical.results import CriticalLR, Search, Trial, combined
from warmfree.schedule.critical.search import find_critical
from warmfree.schedule.critical.trials import (
    LossFn,
    NonDeterministicLossError,
    StepTrials,
    learning_rate,
)

__all__ = ["check_trainable", "critical_lr", "search_step"]

# delta of algorithm 2: Kalra & Barkeshli 2024 take 0.1 for SGD and about 0.01 for Adam.
_TOLERANCE_SGD, _TOLERANCE = 0.1, 0.01
_FULL_PRECISION = 1e-4  # relative difference of two passes that ought to be equal
_HALF_PRECISION = 2e-2


def critical_lr(
    model: nn.Module,
    loss_fn: LossFn,
    batches: Iterable[Any],
    optimizer: Optimizer,
    *,
    num_steps: int = 1,
    accumulate: int = 1,
    precision: float = 0.05,
    tolerance: float | None = None,
    start: float | None = None,
    max_lr: float | None = None,
    max_passes: int = 20,
    max_grad_norm: float | None = None,
    scaler: torch.amp.GradScaler | None = None,
    on_trial: Callable[[Trial], None] | None = None,
) -> CriticalLR:
    r"""Find the critical learning rate: the largest with which the optimizer's next step does not raise the loss.

    .. math:: \eta_c = \min\{\eta > 0 : L(\theta - \eta\, u) \ge L(\theta)\}

    with the loss L of the step's own batches and the optimizer's own update u, which may itself depend on the learning
    rate: the step is made, from the optimizer's present state, and undone. One gradient, and then forward passes alone.

    On a quadratic loss it is :math:`2\, g^\top u / u^\top H u`: :math:`2/\lambda_{max}` when the update lies along the
    top eigenvector of the Hessian, as SGD's soon does, and larger otherwise. For Adam it is the like with the
    preconditioned Hessian. From a state in which heavy-ball momentum swings from step to step it is
    :math:`(2 + 2\beta)/\lambda`. It is where a warmup may start: see `critical_warmup`. It speaks of one step on one
    batch: what a run can bear is another question, see docs/critical-lr.md.

    **Nothing is changed**: weights, optimizer state and options, buffers, random numbers, gradients and flags are
    afterwards what they were, to the last bit, also after an exception or Ctrl-C (see `unchanged`). The model runs in
    training mode, as it will train, without compilation, every pass with the same random numbers.

    Works with any optimizer that steps without a closure; under autocast (call it inside the context, or let `loss_fn`
    enter it); with DistributedDataParallel and FSDP2, where all processes call it with their own batches. Memory: a
    copy of weights, optimizer state and gradients.

    Where the loss along the step rises and falls more than once, the crossing found is one of several: the search sees
    the learning rates that it tries.

    Args:
        model: in training mode.
        loss_fn: `loss_fn(model, batch)` returns the scalar loss of a batch, a mean over samples. Trials call it under
            `torch.no_grad()`: a loss that differentiates within itself enters `torch.enable_grad()`. It may take items
            out of a batch. What it changes elsewhere (metrics, averages of weights) is its own affair.
        batches: an iterable of batches, such as a list or a DataLoader, read from its start.
        optimizer: of the model's parameters, in any state. Groups keep the proportions of their learning rates.
        num_steps: searches, each along the step of other batches, >= 1: their spread is what one batch's noise does.
        accumulate: micro-batches that one step adds up, >= 1.
        precision: a search ends when its bracket's ends are this fraction apart, > 0.
        tolerance: and when the loss at the upper end is no more than this fraction above the initial one; default 0.1
            for SGD and 0.01 for all others, as in the paper.
        start: first learning rate tried, > 0; default the optimizer's own.
        max_lr: largest learning rate tried; default none.
        max_passes: most forward passes of one search, >= 4; two of them are made before the first trial.
        max_grad_norm: the l2 norm to which training clips gradients; None if it does not.
        scaler: the GradScaler of float16 training.
        on_trial: called after each trial.

    Returns:
        The critical learning rate with its bracket, every trial, and the cost. `outcome` says if there is none: "none"
        if the loss fell at all learning rates tried, "uphill" if at none (the step does not descend on these batches,
        as when momentum carries it on).

    Raises:
        ValueError: too few batches, a model in eval mode, a loss that is constant or not finite, an optimizer whose
            step moves no weight (SOAP's first one), a bad option.
        NonDeterministicLossError: the loss differs between two equal passes.
        TypeError: the optimizer needs a closure, weights are flattened by FSDP1, or loss_fn returns no tensor.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> found = critical_lr(model, lambda model, x: model(x).square().sum(), [x], optimizer)
        >>> found.outcome, found.forward_passes <= 8, found.low < found.lr < found.high
        ('found', True, True)

    Reference: Kalra & Barkeshli 2024, section 6.1 and algorithms 1 and 2. Starting from the optimizer's learning rate,
    the secants in logarithms (see `search`), several batches and states in mid-training are ours.
    """
    since = time.perf_counter()
    _check_options(
        num_steps=num_steps,
        accumulate=accumulate,
        precision=precision,
        tolerance=tolerance,
        start=start,
        max_lr=max_lr,
        max_passes=max_passes,
        max_grad_norm=max_grad_norm,
    )
    check_trainable(model, optimizer)
    target = learning_rate(optimizer)
    lr = target if start is None else start
    searches: list[Search] = []
    with unchanged(model, optimizer) as session:
        with session.guard.open():
            found = first_batches(batches, num_steps * accumulate)
        trials = StepTrials(session, model, loss_fn, optimizer, max_grad_norm=max_grad_norm, scaler=scaler)
        for first in range(0, len(found), accumulate):
            search = search_step(
                session,
                trials,
                found[first : first + accumulate],
                start=lr,
                precision=precision,
                tolerance=tolerance_of(optimizer) if tolerance is None else tolerance,
                max_lr=math.inf if max_lr is None else max_lr,
                max_passes=max_passes,
                on_trial=on_trial,
            )
            searches.append(search)
            lr = search.lr or lr
    return combined(
        searches,
        target=target,
        backward_passes=trials.backward_passes,
        seconds=time.perf_counter() - since,
    )


def search_step(
    session: Session,
    trials: StepTrials,
    batches: list[Any],
    *,
    start: float,
    precision: float,
    tolerance: float,
    max_lr: float = math.inf,
    max_passes: int = 20,
    check: bool = True,
    on_trial: Callable[[Trial], None] | None = None,
) -> Search:
    """Search along the step of some batches, inside of `unchanged`; see `critical_lr`.

    Args:
        session: of `unchanged`.
        trials: of the model and its optimizer.
        batches: the micro-batches of the step.
        start: first learning rate tried.
        precision: of the bracket.
        tolerance: of the loss at its upper end.
        max_lr: largest learning rate tried.
        max_passes: most forward passes.
        check: make sure that the loss is deterministic.
        on_trial: called after each trial.
    """
    passes = trials.forward_passes
    initial_loss = trials.prepare(batches)
    if check:
        again = trials.loss_now()
        _check_deterministic(initial_loss, again, session)
        initial_loss = again  # of the very kernels that the trials use

    def loss_at(lr: float) -> float:
        loss = trials.loss_at(lr)
        if on_trial is not None:
            with undisturbed(trials.model, evaluate=False), session.guard.open():
                on_trial(Trial(lr=lr, loss=loss))
        return loss

    found = find_critical(
        loss_at,
        trials.slope,
        initial_loss=initial_loss,
        start=start,
        precision=precision,
        tolerance=tolerance,
        noise=trials.noise(initial_loss),
        max_lr=max_lr,
        max_trials=max_passes - (trials.forward_passes - passes),
    )
    if found.outcome == "none" and math.isnan(found.slope):
        raise ValueError(
            f"the optimizer's step moves no weight at learning rates up to {found.trials[-1].lr:.3g}: if its first "
            f"steps only prepare its state, search after them"
        )
    return Search(
        outcome=found.outcome,
        lr=found.lr,
        low=found.low,
        high=found.high,
        initial_loss=initial_loss,
        slope=found.slope,
        trials=found.trials,
        forward_passes=trials.forward_passes - passes,
    )


def check_trainable(model: nn.Module, optimizer: Optimizer) -> None:
    """Raise unless a model is in training mode, and its optimizer, and it alone, makes a step when it is told to."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    parameters = list(inspect.signature(type(optimizer).step).parameters.values())[1:]
    needed = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if needed:
        raise TypeError(
            f"{type(optimizer).__name__}.step needs {needed[0]!r}: an optimizer that evaluates the loss within its "
            f"step has no single step to try; use one that steps without a closure"
        )
    owned = [weight for group in optimizer.param_groups for weight in group["params"]]
    flat = ("_is_flat_param", "_fsdp_flattened")
    if any(getattr(weight, name, False) for weight in (*model.parameters(), *owned) for name in flat):
        raise TypeError(
            "FullyShardedDataParallel (FSDP1) keeps weights and gradients in flat parameters of its own, which no step "
            "can be tried on: shard the model with torch.distributed.fsdp.fully_shard"
        )
    if any(getattr(weight, "_post_accumulate_grad_hooks", None) for weight in model.parameters()):
        raise ValueError(
            "a parameter has a hook that runs when its gradient is there, such as an optimizer's step in the backward "
            "pass, which a search would set off; remove it meanwhile"
        )
    if not bare(model).training:
        raise ValueError(
            "the model is in eval mode, in which it will not train (dropout, batch statistics): call model.train()"
        )


def tolerance_of(optimizer: Optimizer) -> float:
    """Return the paper's delta for a kind of optimizer."""
    try:
        return _TOLERANCE_SGD if recognise(optimizer).family == "sgd" else _TOLERANCE
    except UnsupportedOptimizerError:
        return _TOLERANCE


def _check_options(
    *,
    num_steps: int,
    accumulate: int,
    precision: float,
    tolerance: float | None,
    start: float | None,
    max_lr: float | None,
    max_passes: int,
    max_grad_norm: float | None,
) -> None:
    for name, count, least in (
        ("num_steps", num_steps, 1),
        ("accumulate", accumulate, 1),
        ("max_passes", max_passes, 4),
    ):
        if isinstance(count, bool) or not isinstance(count, int) or count < least:
            raise ValueError(f"{name} must be an int >= {least}, got {count!r}")
    for name, value in (
        ("precision", precision),
        ("tolerance", tolerance),
        ("start", start),
        ("max_lr", max_lr),
        ("max_grad_norm", max_grad_norm),
    ):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} must be > 0 and finite, got {value!r}")


def _check_deterministic(first: float, second: float, session: Session) -> None:
    half = torch.is_autocast_enabled() or any(weight.dtype.itemsize < 4 for weight in session.weights)
    allowed = (_HALF_PRECISION if half else _FULL_PRECISION) * max(abs(first), abs(second))
    if not abs(first - second) <= allowed:
        raise NonDeterministicLossError(
            f"loss_fn is not deterministic: {first:.7g} and {second:.7g} on the same batch with the same weights and "
            f"random numbers of torch, Python and NumPy's global state. Seed other generators inside loss_fn, and let "
            f"it neither count calls, nor draw its own data, nor write to the batch"
        )
