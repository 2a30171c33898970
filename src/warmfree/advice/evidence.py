"""What an advice rests on: each quantity that says whether the first steps are too large, and what is missing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer

from warmfree.advice.first_step import FirstStep, measure_first_step
from warmfree.advice.gradient_noise import Noise, measure_noise
from warmfree.advice.missing import EXPECTED, reason
from warmfree.advice.rehearsal import Rehearsal
from warmfree.advice.step_sharpness import measure_sharpness
from warmfree.measure.curvature import Sharpness
from warmfree.schedule.critical import CriticalLR, LossFn

__all__ = ["Evidence", "FirstStep", "Noise", "gather_evidence", "plain_values"]

_Found = TypeVar("_Found")


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What was measured before a run.

    Attributes:
        critical: the critical learning rate of the step to come.
        sharpness: the preconditioned sharpness with its thresholds at the target learning rate.
        first_step: what the next step would do at it.
        noise: signal and noise of the gradient.
        rehearsal: how the critical learning rate goes on over the first steps.
        missing: a sentence for each thing that could not be measured, with why.
    """

    critical: CriticalLR
    sharpness: Sharpness | None
    first_step: FirstStep | None
    noise: Noise | None
    rehearsal: Rehearsal | None
    missing: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values, None for what is not finite; ratios to thresholds are added."""
        values: dict[str, Any] = plain_values(self)
        values["critical"] |= plain_values({"ratio": self.critical.ratio, "spread": self.critical.spread})
        if self.sharpness is not None:
            values["sharpness"] |= plain_values({"ratio": self.sharpness.ratio})
        return values


def gather_evidence(
    model: nn.Module,
    loss_fn: LossFn,
    batches: Sequence[Any],
    optimizer: Optimizer,
    *,
    critical: CriticalLR,
    lr: float,
    batch_size: int,
    accumulate: int = 1,
    max_grad_norm: float | None = None,
    scaler: torch.amp.GradScaler | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> Evidence:
    """Measure what else says whether the first steps are too large; leave everything as it was.

    What does not exist for a model or an optimizer, or does not fit into memory, becomes a sentence in `missing`. See
    `measure_first_step`, `measure_noise` and `measure_sharpness` for what they do and cost.

    Args:
        model: as it is trained, wrappers included; all processes have to call this.
        loss_fn: `loss_fn(model, batch)` returns the scalar loss of a batch.
        batches: micro-batches, at least `accumulate`. The first step's make the step; all, up to eight, show the noise.
        optimizer: of the model's parameters.
        critical: what `critical_lr` found.
        lr: the target, of the first group, > 0.
        batch_size: samples in one optimizer step, over all micro-batches and processes.
        accumulate: micro-batches in one step of a process.
        max_grad_norm: the l2 norm to which training clips gradients; None if it does not.
        scaler: the GradScaler of float16 training.
        on_progress: called with a few words before each measurement.

    Raises:
        ValueError: fewer batches than one step adds up, or an argument out of range.

    Example:
        >>> from warmfree.schedule.critical import critical_lr
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> batches, loss_fn = list(torch.randn(4, 16, 4)), lambda model, x: (model(x) - x.sum(1)).square().mean()
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        >>> evidence = gather_evidence(
        ...     model, loss_fn, batches, optimizer, critical=critical_lr(model, loss_fn, batches, optimizer), lr=1e-2,
        ...     batch_size=16,
        ... )
        >>> evidence.missing, round(evidence.first_step.update_rms, 2), evidence.first_step.predicted_angle
        ((), 1.0, None)
    """
    if not 1 <= accumulate <= len(batches):
        raise ValueError(
            f"one step needs accumulate={accumulate} batches, at least 1; got {len(batches)} batches"
        )
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be finite and > 0, got {lr}")
    step, missing = list(batches[:accumulate]), list[str]()

    def attempt(quantity: str, measure: Callable[[], _Found]) -> _Found | None:
        if on_progress is not None:
            on_progress(f"measuring {quantity}")
        try:
            return measure()
        except EXPECTED as error:
            missing.append(reason(quantity, error))
        return None

    first_step = attempt(
        "the first step",
        lambda: measure_first_step(
            model, loss_fn, step, optimizer, lr=lr, max_grad_norm=max_grad_norm, scaler=scaler
        ),
    )
    noise = attempt(
        "gradient noise",
        lambda: measure_noise(
            model, loss_fn, batches, optimizer, batch_size=batch_size, accumulate=accumulate, scaler=scaler
        ),
    )
    sharpness = attempt(
        "sharpness",
        lambda: measure_sharpness(
            model, loss_fn, step, optimizer, lr=lr, max_grad_norm=max_grad_norm, scaler=scaler
        ),
    )
    return Evidence(
        critical=critical,
        sharpness=sharpness,
        first_step=first_step,
        noise=noise,
        rehearsal=None,
        missing=tuple(missing),
    )


def plain_values(value: Any) -> Any:
    """Turn dataclasses, mappings and sequences of numbers and words into values that JSON has.

    Args:
        value: of dataclasses an eigenvector, in the field `vector`, is left out.

    Returns:
        Dicts, lists, strings, numbers, booleans and None; None for numbers that are not finite.

    Raises:
        TypeError: something else is in it.

    Example:
        >>> plain_values(Noise(signal_to_noise=0.0, critical_batch_size=math.inf, batch_size=8))
        {'signal_to_noise': 0.0, 'critical_batch_size': None, 'batch_size': 8}
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain_values(getattr(value, field.name))
            for field in fields(value)
            if field.name != "vector"
        }
    if isinstance(value, Mapping):
        return {str(key): plain_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    raise TypeError(f"JSON has no {type(value).__name__}")
