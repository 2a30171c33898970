r"""Curvature along the optimizer's next step, against what it can bear at the learning rate that is meant."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from warmfree.advice.missing import NotMeasuredError
from warmfree.measure.curvature import Sharpness, preconditioned_sharpness
from warmfree.measure.curvature.optimizers import recognise
from warmfree.measure.unchanged import Session, bare, unchanged
from warmfree.optim.sharding import whole
from warmfree.schedule.critical.trials import LossFn, StepTrials, proportions, set_learning_rate

__all__ = ["measure_sharpness"]


def measure_sharpness(
    model: nn.Module,
    loss_fn: LossFn,
    batches: Sequence[Any],
    optimizer: Optimizer,
    *,
    lr: float,
    max_grad_norm: float | None = None,
    scaler: torch.amp.GradScaler | None = None,
    tolerance: float = 0.05,
    max_products: int = 20,
) -> Sharpness:
    r"""Measure the preconditioned sharpness and its thresholds at a learning rate; leave everything as it was.

    :math:`\lambda_{max}(P^{-1/2} \nabla^2 L\, P^{-1/2})` of the loss on the batches of one step, with the P that the
    step's own gradient makes, and the thresholds :math:`c/\eta` of the learning rate given, whatever the optimizer's
    is now.

    Modules stay in the mode that they are in, as the step will see them: BatchNorm in eval mode makes another network,
    at initialisation one that does not normalise. Dropout masks are drawn once, and are those of the gradient.

    **Before Adam's very first step it says little of that step**: P is then the magnitude of one gradient, and the top
    eigenvalue is that of weights whose gradient happens to be next to 0. On small GPTs (three seeds, random text) it
    was 10 to 77 times the threshold at a learning rate 43 to 55 times below the critical one, 0.4 to 0.9 of it a step
    later, and 0.02 to 0.03 after 20 steps.

    A gradient that is clipped, by the factor c, makes a step on :math:`cH`: P is made of the clipped gradient, and the
    sharpness is c times that of the loss. So that of Adam's first step does not depend on clipping (our choice).

    One gradient, then at most `max_products` Hessian products; a product costs about as much as two gradients, and
    where graphs are kept memory is three to four times a gradient's. If that is too much, or a part of the model has no
    second derivative, products are differences of gradients: see `Sharpness.method`.

    Args:
        model: as it is trained, wrappers included; all processes have to call this.
        loss_fn: `loss_fn(model, batch)` returns the scalar loss of a batch.
        batches: the micro-batches of one step.
        optimizer: as for `adam_preconditioner`, without size controls.
        lr: of the first group, > 0; the others keep their proportions, those that a schedule started from if all are 0.
        max_grad_norm: the l2 norm to which training clips gradients; None if it does not.
        scaler: the GradScaler of float16 training.
        tolerance: of the eigenvalue, relative.
        max_products: Hessian products, at most.

    Returns:
        The eigenvalue with `threshold` and `early_threshold`; without its eigenvector.

    Raises:
        UnsupportedOptimizerError: no threshold is known for the optimizer (Lion, Muon).
        NotTwiceDifferentiableError: a part of the model has no second derivative, and its weights are too narrow for
            finite differences.
        NotMeasuredError: the optimizer sizes its steps; or a product is not finite.
        ValueError: as for `StepTrials.prepare`.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
        >>> found = measure_sharpness(model, lambda model, x: model(x).square().sum(), [x], optimizer, lr=0.1)
        >>> round(found.value, 3), found.threshold
        (18.0, 20.0)

    Reference: Kalra & Barkeshli 2024, eq. 6 and sections 4.2, 4.3.
    """
    outer = recognise(optimizer).outer
    if getattr(outer, "controls", ()):
        raise NotMeasuredError(
            f"{type(outer).__name__} shortens or turns the step itself, by size controls that no threshold knows of"
        )
    in_training = [module for module in bare(model).modules() if module.training]
    with unchanged(model, optimizer) as session:
        trials = StepTrials(session, model, loss_fn, optimizer, scaler=scaler)
        trials.prepare(batches)
        set_learning_rate(optimizer, proportions(optimizer), lr)
        clipped = _clip(session.weights, max_grad_norm)
        scale = scaler.get_scale() if scaler is not None else 1.0

        def loss(batch: Any) -> Tensor:
            # Left so until the end of the measurement, which puts flags back: a checkpointed layer runs a second time.
            for module in in_training:
                module.training = True
            return loss_fn(model, batch) * scale

        losses = [(partial(loss, batch), 1.0) for batch in batches]
        found = _search(session, model, optimizer, losses, tolerance=tolerance, max_products=max_products)
    if not math.isfinite(found.value):
        raise NotMeasuredError("a product with the Hessian is not finite")
    factor = clipped / scale
    return replace(
        found,
        value=found.value * factor,
        residual=found.residual * factor,
        error=found.error * factor,
        vector=None,  # as large as the model
    )


def _search(
    session: Session,
    model: nn.Module,
    optimizer: Optimizer,
    losses: Sequence[tuple[Callable[[], Tensor], float]],
    **search: Any,
) -> Sharpness:
    """Measure with second derivatives where memory allows it, else with differences of gradients."""
    # A step of a difference is lost in the rounding of narrow weights.
    is_wide = all(torch.finfo(weight.dtype).bits >= 32 for weight in session.weights)
    with session.guard.open():
        try:
            return preconditioned_sharpness(
                model, optimizer, losses, method="auto" if is_wide else "exact", **search
            )
        except torch.OutOfMemoryError:
            if not is_wide:
                raise
        # Out of the handler, which holds the graph.
        return preconditioned_sharpness(model, optimizer, losses, method="differences", **search)


def _clip(weights: Sequence[Tensor], max_grad_norm: float | None) -> float:
    """Clip the gradients in place; return the factor."""
    if max_grad_norm is None:
        return 1.0
    norm = float(whole(torch.nn.utils.clip_grad_norm_(weights, max_grad_norm)))
    return min(1.0, max_grad_norm / (norm + 1e-6))
