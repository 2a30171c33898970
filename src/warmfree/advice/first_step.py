"""What the optimizer's next step would do at its full learning rate: how far weights and representations move."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from warmfree.advice.missing import NotMeasuredError
from warmfree.measure.equilibrium import predicted_equilibrium, predicted_update_rms
from warmfree.measure.inputs import watch_inputs
from warmfree.measure.representation import representation_changes
from warmfree.measure.unchanged import bare, unchanged
from warmfree.measure.updates import Update, UpdateProbe
from warmfree.schedule.critical.trials import LossFn, StepTrials

__all__ = ["FirstStep", "measure_first_step"]

_LATE = 1_000_000  # a step by which no bias correction is left
_COMPILED = "_orig_mod."  # what torch.compile puts before names


@dataclass(frozen=True, kw_only=True, slots=True)
class FirstStep:
    r"""What the optimizer's next step would do at its target learning rate.

    Matrices are the weights with two dimensions or more, and more than one element, that have a gradient and a learning
    rate. The sizes leave out embeddings, of which a step moves the rows that its batch uses, unless there is nothing
    else.

    Attributes:
        update_rms: root mean square, over the elements of all matrices, of weight change / learning rate.
        predicted_rms: that of the same optimizer late in training, if gradients are white noise; None if it is not
            known for all matrices. See `predicted_update_rms`.
        angle: root mean square over matrices of the angle by which their neurons turn (itself a root mean square), in
            radians; nan if all matrices are zero.
        predicted_angle: the angle at which weight decay lets the same matrices settle, likewise averaged, in radians;
            None if it is not known for all (no weight decay). See `predicted_equilibrium`.
        representation_change: largest :math:`\lVert\Delta W X\rVert/\lVert W X\rVert` of any layer, on its inputs
            from the step's batches, without layers whose outputs are zero now; nan without any.
        layer: where.
        spectral_ratio: largest :math:`\sigma_1(\Delta W)/\sigma_1(W)` of any matrix that is not zero now, by ten power
            iterations, which find sigmas to a few percent; nan without such a matrix.
        spectral_layer: name of that weight.
    """

    update_rms: float
    predicted_rms: float | None
    angle: float
    predicted_angle: float | None
    representation_change: float
    layer: str
    spectral_ratio: float
    spectral_layer: str


def measure_first_step(
    model: nn.Module,
    loss_fn: LossFn,
    batches: Sequence[Any],
    optimizer: Optimizer,
    *,
    lr: float,
    max_grad_norm: float | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> FirstStep:
    """Let the optimizer make its next step at a learning rate, measure it, and leave everything as it was.

    It is the optimizer's own step from its own state, weight decay and size controls included, with the modules in the
    mode that they are in. One forward and one backward pass over the step's batches, the step, and a few power
    iterations; a copy of the matrices beside what `unchanged` and `StepTrials` keep.

    Args:
        model: as it is trained, wrappers included; all processes have to call this. The representation change is that
            on a process's own part of the batch.
        loss_fn: `loss_fn(model, batch)` returns the scalar loss of a batch.
        batches: the micro-batches of one step.
        optimizer: of the model's parameters.
        lr: of the first group, > 0; the others keep their proportions, those that a schedule started from if all are 0.
        max_grad_norm: the l2 norm to which training clips gradients; None if it does not.
        scaler: the GradScaler of float16 training.

    Raises:
        NotMeasuredError: the model has no matrix that the step moves, or the step makes weights that are not finite.
        ValueError: as for `StepTrials.prepare`.

    Example:
        >>> model = nn.Linear(4, 4)
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=0.3, weight_decay=0.1)
        >>> found = measure_first_step(
        ...     model, lambda model, x: model(x).square().mean(), [torch.randn(8, 4)], optimizer, lr=1e-3
        ... )
        >>> round(found.update_rms, 1), round(found.predicted_rms, 3), round(found.predicted_angle, 6)
        (1.0, 0.229, 0.003244)

    Reference: Kosson et al. 2024, section 3, for update size, angle and representation change; Qi et al. 2025,
    Algorithm 1, for the spectral ratio.
    """
    plain = bare(model)
    with unchanged(model, optimizer) as session:
        trials = StepTrials(session, model, loss_fn, optimizer, max_grad_norm=max_grad_norm, scaler=scaler)
        with watch_inputs(plain) as inputs:
            trials.prepare(batches)
        owned = {id(weight) for weight in session.weights}
        matrices = {name: weight for name, weight in plain.named_parameters() if _is_moved(weight, owned)}
        if not matrices:
            raise NotMeasuredError("the step moves no weight with two dimensions or more")
        probe = UpdateProbe(plain, names=matrices, spectral=True)
        probe.snapshot()
        trials.step(lr)
        rates = {
            id(weight): float(group["lr"]) for group in optimizer.param_groups for weight in group["params"]
        }
        updates = probe.compare(lr={name: rates[id(weight)] for name, weight in matrices.items()})
        updates = {name: update for name, update in updates.items() if rates[id(matrices[name])]}
        if not all(math.isfinite(update.l2) for update in updates.values()):
            raise NotMeasuredError(f"the step at learning rate {lr:.3g} makes weights that are not finite")
        changes = representation_changes(plain, inputs, probe)
        late = predicted_update_rms(optimizer, step=_LATE, model=plain)
        settled = {name: found.angle for name, found in predicted_equilibrium(optimizer, model=plain).items()}
    layer, change = _largest({name: change.rrc for name, change in changes.items()})
    spectral_layer, ratio = _largest({name: update.spectral_ratio for name, update in updates.items()})
    sized = _without_lookups(plain, updates)
    elements = {name: matrices[name].numel() for name in sized}
    turned = {
        name: update.neuron_angle for name, update in sized.items() if not math.isnan(update.neuron_angle)
    }
    return FirstStep(
        update_rms=_mean_square({name: update.rms_per_lr for name, update in sized.items()}, elements),
        predicted_rms=_known({name: late.get(name) for name in sized}, elements),
        angle=_mean_square(turned, dict.fromkeys(turned, 1)),
        predicted_angle=_known({name: settled.get(name) for name in turned}, dict.fromkeys(turned, 1)),
        representation_change=change,
        layer=layer.replace(_COMPILED, ""),
        spectral_ratio=ratio,
        spectral_layer=spectral_layer.replace(_COMPILED, ""),
    )


def _is_moved(weight: Tensor, owned: set[int]) -> bool:
    return id(weight) in owned and weight.grad is not None and weight.ndim > 1 and weight.numel() > 1


def _without_lookups(model: nn.Module, updates: Mapping[str, Update]) -> Mapping[str, Update]:
    """Leave out embeddings, if anything else is there."""
    weights = dict(model.named_parameters())
    tables = {
        id(module._parameters.get("weight"))
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
    }
    return {name: update for name, update in updates.items() if id(weights[name]) not in tables} or updates


def _largest(values: Mapping[str, float]) -> tuple[str, float]:
    """Return the largest finite value with its name."""
    finite = {name: value for name, value in values.items() if math.isfinite(value)}
    return max(finite.items(), key=lambda item: item[1], default=("", math.nan))


def _mean_square(values: Mapping[str, float], counts: Mapping[str, int]) -> float:
    """Return the root mean square, each value counting so often; nan of none."""
    total = sum(counts.values())
    return (
        math.sqrt(math.fsum(counts[name] * value**2 for name, value in values.items()) / total)
        if total
        else math.nan
    )


def _known(values: Mapping[str, float | None], counts: Mapping[str, int]) -> float | None:
    """Return the same, None unless all are known."""
    known = {name: value for name, value in values.items() if value is not None}
    return _mean_square(known, counts) if known and len(known) == len(values) else None
