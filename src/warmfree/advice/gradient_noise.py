r"""How much of a gradient is noise, from the gradients of several batches at the same weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from warmfree.advice.halves import halves, samples_in
from warmfree.advice.missing import NotMeasuredError
from warmfree.measure.curvature.gradient import Gradient
from warmfree.measure.curvature.operators import averaged
from warmfree.measure.noise import GradientNoise
from warmfree.measure.real import as_real
from warmfree.measure.sums import whole_sums
from warmfree.measure.unchanged import bare, unchanged
from warmfree.optim.norms import compute_dtype, scalar_dtype
from warmfree.schedule.critical.trials import LossFn

__all__ = ["Noise", "measure_noise", "pooled_noise"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Noise:
    r"""Signal and noise in the gradients of single samples, at the weights as they are.

    Attributes:
        signal_to_noise: :math:`\varphi = \|E g\|^2 / E\|g - E g\|^2` of per-sample gradients, in [0, inf]; 0 where the
            noise hides the signal.
        critical_batch_size: 1/phi, in samples: the batch whose gradient is half signal; inf where phi is 0.
        batch_size: samples of one optimizer step.
    """

    signal_to_noise: float
    critical_batch_size: float
    batch_size: int


def measure_noise(
    model: nn.Module,
    loss_fn: LossFn,
    batches: Sequence[Any],
    optimizer: Optimizer,
    *,
    batch_size: int,
    accumulate: int = 1,
    scaler: torch.amp.GradScaler | None = None,
    most: int = 8,
) -> Noise:
    r"""Measure the gradient's signal-to-noise ratio and the critical batch size; leave everything as it was.

    One forward and one backward pass of each batch, all at the present weights; see `pooled_noise` for the formula. A
    single batch is cut in two. Modules stay in the mode that they are in, and each batch draws random numbers of its
    own: in training mode what dropout does differently to each batch is noise, as it is in the run, and BatchNorm
    sees batches of the size that it is given here, half as large where one is cut.

    The loss has to be a mean over samples, which dimension 0 counts. Batches of different sizes are weighted by them;
    where sizes cannot be told, all count the same.

    How sharp it is: with d directions of equal noise, which are far fewer than weights, the signal of N batches has a
    standard deviation of :math:`\sqrt{2N/((N-1)d)}` times the noise of their mean gradient. A critical batch size of
    many times N batches cannot be told from infinity.

    Args:
        model: as it is trained; a DistributedDataParallel model, too: all processes take part with their batches.
        loss_fn: `loss_fn(model, batch)` returns the scalar loss of a batch.
        batches: micro-batches; the first `most` are used.
        optimizer: of the model's parameters; gradients are taken in all of those together.
        batch_size: samples in one optimizer step, over all micro-batches and processes, >= 1.
        accumulate: micro-batches in one step of a process, >= 1.
        scaler: a GradScaler by whose present scale the loss is multiplied.
        most: batches to look at, at most, >= 1 (our choice).

    Raises:
        NotMeasuredError: there is only one batch and it cannot be cut in two, or it is but a part of a step; or a
            gradient is not finite.
        ValueError: an argument is out of range.

    Example:
        >>> model = nn.Linear(4, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> found = measure_noise(
        ...     model, lambda model, x: model(x).square().mean(), list(torch.randn(4, 8, 4)), optimizer, batch_size=8
        ... )
        >>> found.signal_to_noise > 0, found.batch_size
        (True, 8)

    Reference: McCandlish et al. 2018, appendix A.1, for the estimator; Kosson et al. 2024 for the ratio. A critical
    batch size far below the batch size is their sign of updates that change representations much.
    """
    for name, value in (("batch_size", batch_size), ("accumulate", accumulate), ("most", most)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    group = model.process_group if isinstance(model, DistributedDataParallel) else None
    ranks = 1 if group is None else dist.get_world_size(group)
    chosen = _enough(list(batches[:most]), accumulate=accumulate, ranks=ranks)
    gradients = _Gradients(model, loss_fn, optimizer, scale=scaler.get_scale() if scaler is not None else 1.0)
    is_cut = len(chosen) > len(batches)
    samples = _samples(chosen, is_cut=is_cut, per_batch=batch_size / accumulate / ranks)
    squares: list[float] = []
    with unchanged(model, optimizer) as session, session.guard.open():
        first_draw = 0 if group is None else dist.get_rank(group) * len(chosen)
        for draw, (batch, count) in enumerate(zip(chosen, samples, strict=True), first_draw):
            squares.append(gradients.add(batch, weight=count, draw=draw))
        squares, pooled = gradients.everywhere(squares, group)
    found = pooled_noise(squares * ranks, samples * ranks, pooled=pooled)
    if not (math.isfinite(found.signal) and math.isfinite(found.noise)):
        raise NotMeasuredError("a gradient is not finite")
    return Noise(signal_to_noise=found.snr, critical_batch_size=found.critical_batch, batch_size=batch_size)


def pooled_noise(squares: Sequence[float], samples: Sequence[float], *, pooled: float) -> GradientNoise:
    r"""Split gradients of N independent batches of b_i samples into signal and noise per sample.

    .. math::  \mathrm{tr}\,\Sigma = \frac{\sum_i b_i \|g_i\|^2 - B\|\bar g\|^2}{N - 1}, \qquad
               \|G\|^2 = \|\bar g\|^2 - \frac{\mathrm{tr}\,\Sigma}{B}, \qquad
               \bar g = \frac{\sum_i b_i g_i}{B}, \quad B = \sum_i b_i

    without bias, whatever the sizes are: :math:`E\|g_i\|^2 = \|G\|^2 + \mathrm{tr}\,\Sigma/b_i`.

    Args:
        squares: squared norms of the batches' gradients, at least two.
        samples: b_i.
        pooled: squared norm of the pooled gradient.

    Example:
        >>> pooled_noise([1.0, 1.0], [4.0, 4.0], pooled=0.5)  # two gradients at right angles
        GradientNoise(signal=0.0, noise=4.0)

    Reference: McCandlish et al. 2018, appendix A.1, for equal sizes; the general form is derived.
    """
    total = math.fsum(samples)
    each = math.fsum(count * square for count, square in zip(samples, squares, strict=True))
    noise = (each - total * pooled) / (len(squares) - 1)
    return GradientNoise(signal=pooled - noise / total, noise=noise)


class _Gradients:
    """Gradients of one batch after another, of which only their weighted sum is kept."""

    def __init__(self, model: nn.Module, loss_fn: LossFn, optimizer: Optimizer, *, scale: float) -> None:
        self._model, self._loss_fn, self._scale = bare(model), loss_fn, scale
        weights = {id(weight): weight for group in optimizer.param_groups for weight in group["params"]}
        self._weights = [weight for weight in weights.values() if weight.requires_grad]
        self._others = [weight for weight in model.parameters() if weight.requires_grad]
        self._sum: list[Tensor] = []
        self._total = 0.0

    def add(self, batch: Any, *, weight: float, draw: int) -> float:
        """Take in a batch; return the squared norm of its gradient."""

        def loss() -> Tensor:
            torch.manual_seed(draw)  # masks of the batch's own; the caller's state is kept around this
            return self._loss_fn(self._model, batch) * self._scale

        found = [_real(part) for part in Gradient(loss, self._weights, others=self._others)()]
        if self._sum:
            torch._foreach_add_(self._sum, found, alpha=weight)
        else:
            self._sum = list(torch._foreach_mul(found, weight))
        self._total += weight
        return self._square(found)

    def everywhere(self, squares: list[float], group: dist.ProcessGroup | None) -> tuple[list[float], float]:
        """Return squared norms, averaged over processes that have as many batches, and that of the pooled gradient."""
        mean = list(torch._foreach_div(self._sum, self._total))
        if group is not None:
            mean = averaged(mean, group)
            device = mean[0].device
            (average,) = averaged([torch.tensor(squares, dtype=scalar_dtype(device), device=device)], group)
            squares = average.tolist()
        return squares, self._square(mean)

    def _square(self, gradients: Sequence[Tensor]) -> float:
        lengths = [
            torch.linalg.vector_norm(part).to(scalar_dtype(part.device)).square().reshape(1)
            for part in gradients
        ]
        return math.fsum(row[0] for row in whole_sums(lengths, self._weights))


def _enough(batches: list[Any], *, accumulate: int, ranks: int) -> list[Any]:
    """Return two batches or more."""
    if not batches:
        raise ValueError("batches is empty: pass one batch or more")
    if len(batches) * ranks > 1:
        return batches
    if accumulate > 1:
        raise NotMeasuredError(
            f"one batch is not enough with accumulate={accumulate}; pass all micro-batches of a step, or two"
        )
    both = halves(batches[0])
    if both is None:
        raise NotMeasuredError(
            "one batch is not enough, and this one cannot be cut in two: it takes tensors alone, all of the same size "
            "along dimension 0, above 1; pass two batches or more"
        )
    return list(both)


def _samples(batches: Sequence[Any], *, is_cut: bool, per_batch: float) -> list[float]:
    """Return how many samples each batch counts for: the largest is a full one, unless it is a half."""
    sizes = [samples_in(batch) for batch in batches]
    known = [size for size in sizes if size]
    if len(known) < len(sizes):
        return [per_batch] * len(batches)
    full = sum(known) if is_cut else max(known)
    return [per_batch * size / full for size in known]


def _real(part: Tensor) -> Tensor:
    part = as_real(part)
    return part.to(compute_dtype(part))
