r"""Gradient noise from the micro-batches, or the ranks, that one optimizer step adds up.

The gradient of a small batch has more noise than that of a large one; a step that is made of N equal micro-batches
shows both (McCandlish et al. 2018, appendix A.1). Nothing has to be kept: backward passes hand each micro-batch's
gradient to a hook on the parameter before they add it to `.grad`, and before DistributedDataParallel averages it.

What cannot work: under FSDP2 no process ever sees a micro-batch's whole gradient (parameters are gathered copies, and
what comes back is already summed over ranks): hooks stay silent, and `estimate` says so. Under tensor parallelism it
works, with micro-batches. With ZeRO-style sharding of gradients by other libraries it does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from warmfree.measure.hooks import remove_hooks
from warmfree.measure.real import as_real
from warmfree.measure.sums import whole_sums
from warmfree.optim.norms import compute_dtype, scalar_dtype
from warmfree.optim.sharding import is_dtensor, local, local_gradient

__all__ = ["MicrobatchGradients", "watch_microbatches"]

_PEEKS = 32  # elements of each gradient that are kept, to find what became of it until the step
_TOLERANCE = 1e-3  # of their squares: half-precision communication stays far below it


@contextmanager
def watch_microbatches(named_parameters: Iterable[tuple[str, Tensor]]) -> Iterator[MicrobatchGradients]:
    """See the gradient of every backward pass until exit.

    Enter it with gradients zeroed (or None), before the first backward pass of a step; leave it after the last one.

    Args:
        named_parameters: pairs of name and parameter; those that do not require a gradient are left out.

    Returns:
        Yields what was seen; ask it for the estimate before or after exit, but before `optimizer.step()`.

    Example:
        >>> model = torch.nn.Linear(3, 1)
        >>> from warmfree.measure.noise import NoiseAverages
        >>> averages = NoiseAverages()
        >>> with watch_microbatches(model.named_parameters()) as seen:
        ...     for _ in range(4):  # micro-batches of 16 samples
        ...         (model(torch.randn(16, 3)).square().mean() / 4).backward()
        >>> found = averages.add(seen.estimate(samples=16))
        >>> sorted(found)
        ['', 'bias', 'weight']
    """
    seen = MicrobatchGradients(named_parameters)
    try:
        yield seen
    finally:
        seen.close()


class MicrobatchGradients:
    """Squared norms of the gradients of a step's backward passes; made by `watch_microbatches`."""

    def __init__(self, named_parameters: Iterable[tuple[str, Tensor]]) -> None:
        self._named = [(name, weight) for name, weight in named_parameters if weight.requires_grad]
        self._squares = [
            torch.zeros((), dtype=scalar_dtype(weight.device), device=weight.device)
            for _, weight in self._named
        ]
        self._peeks = [torch.zeros_like(_peek(local(weight.detach()))) for _, weight in self._named]
        self._calls = [0] * len(self._named)
        self._failure: Exception | None = None
        self._handles: list[RemovableHandle] = []
        try:
            for index, (_, weight) in enumerate(self._named):
                self._handles.append(cast(Any, weight).register_hook(self._hook(index)))
        except BaseException:
            self.close()
            raise

    @property
    def passes(self) -> int:
        """Backward passes seen in this process."""
        return max(self._calls, default=0)

    def close(self) -> None:
        """Remove the hooks."""
        remove_hooks(self._handles)
        self._handles = []

    def _hook(self, index: int) -> Callable[[Tensor], None]:
        def see(gradient: Tensor) -> None:
            try:
                self._add(index, gradient)
            except Exception as error:  # an exception would end the backward pass, and the run with it
                self._failure = error
                self._squares[index].fill_(math.nan)  # which tells the other processes

        return see

    @torch.no_grad()
    def _add(self, index: int, gradient: Tensor) -> None:
        if gradient.is_sparse:
            return  # as if it had none: it is left out
        self._calls[index] += 1
        part = _part(gradient, self._named[index][1])
        length = torch.linalg.vector_norm(part, dtype=compute_dtype(part))
        self._squares[index] += length.to(self._squares[index].dtype).square()
        self._peeks[index] += _peek(part)

    @torch.no_grad()
    def estimate(
        self,
        *,
        samples: float,
        group: dist.ProcessGroup | None = None,
        loss_scale: float | Callable[[], float] = 1.0,
    ) -> dict[str, tuple[float, float]]:
        r"""Signal and noise per sample from the N micro-batches of all ranks, b samples each.

        With :math:`g_i` the gradient of a micro-batch and :math:`\bar g` the mean of all,

        .. math::  \|G\|^2 = \frac{N\|\bar g\|^2 - \overline{\|g_i\|^2}}{N-1}, \qquad
                   \mathrm{tr}\,\Sigma = \frac{bN}{N-1}\left(\overline{\|g_i\|^2} - \|\bar g\|^2\right).

        The mean is taken from `.grad`. What happened to it since, by a common factor, does not matter, and is found
        from a few elements: the average over ranks, `GradScaler.unscale_`, clipping by the global norm.

        One measurement is coarse: with d directions of equal noise its signal has a standard deviation of
        :math:`\sqrt{2N/((N-1)d)}` times the noise of the whole batch's gradient. Average over many.

        The ratio of both does not depend on conventions either. Their own sizes do: they are right if the loss of each
        micro-batch is divided by the number of micro-batches of a rank, as gradient accumulation does it (each is
        larger by the square of that number if it is not).

        Args:
            samples: b, samples in a micro-batch, > 0; all have to be of one size.
            group: the processes over which DistributedDataParallel averages gradients; None if it is not used. One
                all-reduce.
            loss_scale: factor on the losses that were differentiated, or a function that returns it, such as
                `scaler.get_scale` before `scaler.update()`; it keeps averages over measurements even.

        Returns:
            (signal, noise) by name, to be passed to `NoiseAverages.add`. Empty with fewer than two micro-batches, and
            if gradients are not finite.

        Raises:
            ValueError: an argument is out of range.
            RuntimeError: no backward pass was seen though there are gradients; or one was that could not be read; or
                `.grad` is no multiple of the sum of what was seen.
        """
        scale = float(loss_scale() if callable(loss_scale) else loss_scale)
        for name, value in (("samples", samples), ("loss_scale", scale)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be finite and > 0, got {value}")
        passes, squares, peeks = self._everywhere(group)
        indices = [
            index
            for index, (_, weight) in enumerate(self._named)
            if weight.grad is not None and not weight.grad.is_sparse
        ]
        if indices and passes == 0:
            raise RuntimeError(
                "there are gradients, but none passed through the parameters since watch_microbatches was entered: "
                "enter it before the first backward pass; under FSDP2 gradients cannot be seen, use MomentumNoise"
            )
        if not indices or passes < 2:
            return {}
        rows = [self._row(self._named[index][1], squares[index], peeks[index]) for index in indices]
        sums = whole_sums(rows, [self._named[index][1] for index in indices])
        if self._failure is not None:
            raise RuntimeError(f"a gradient could not be read: {self._failure}") from self._failure
        factor = _factor(sums)
        if factor is None:
            return {}
        unit = (passes / (1 if group is None else dist.get_world_size(group)) / scale) ** 2
        found = {}
        for index, (total, square, *_) in zip(indices, sums, strict=True):
            each, together = total / passes, square / factor**2 / passes**2
            signal = (passes * together - each) / (passes - 1)
            noise = (each - together) * passes / (passes - 1) * samples
            found[self._named[index][0]] = signal * unit, noise * unit
        return found

    def _everywhere(self, group: dist.ProcessGroup | None) -> tuple[int, list[Tensor], list[Tensor]]:
        """Add up passes, squared norms and elements over the ranks, in one all-reduce."""
        if group is None or not self._named:
            return self.passes, self._squares, self._peeks
        wide = self._squares[0].dtype
        sizes = [peek.numel() for peek in self._peeks]
        pieces = [self._squares[0].new_tensor([self.passes]), torch.stack(self._squares)]
        buffer = torch.cat([*pieces, *(peek.to(wide) for peek in self._peeks)])
        dist.all_reduce(buffer, group=group)
        count = len(self._named)
        return (
            round(float(buffer[0])),
            list(buffer[1 : 1 + count]),
            list(torch.split(buffer[1 + count :], sizes)),
        )

    @staticmethod
    def _row(weight: Tensor, squares: Tensor, peek: Tensor) -> Tensor:
        """Return sums over the elements here: squares of micro-batches, of the gradient, and what `_factor` needs."""
        gradient = as_real(local_gradient(weight))
        length = torch.linalg.vector_norm(gradient, dtype=compute_dtype(gradient)).to(squares.dtype)
        now, then = _peek(gradient).to(squares.dtype), peek.to(squares.dtype)
        return torch.stack(
            [squares, length.square(), (now * now).sum(), (now * then).sum(), (then * then).sum()]
        )


def _factor(sums: list[list[float]]) -> float | None:
    """Find what the sum of all micro-batches was multiplied by until now; None if nothing can be said."""
    if not all(math.isfinite(number) for row in sums for number in row):
        return None
    now, product, then = (math.fsum(row[column] for row in sums) for column in (2, 3, 4))
    if now == 0 or then == 0:
        return None
    if now - product**2 / then > _TOLERANCE * now:
        raise RuntimeError(
            "the gradients in place are no multiple of the sum of what the backward passes gave: zero the gradients "
            "before watch_microbatches is entered, read the estimate before the next backward pass, and do not clip "
            "by value or by parameter in between"
        )
    return product / then


def _part(gradient: Tensor, weight: Tensor) -> Tensor:
    """Return the elements of a gradient that are here, spread as the parameter is, in real numbers."""
    if is_dtensor(gradient) and is_dtensor(weight):
        ours, theirs = cast(Any, weight), cast(Any, gradient)
        if (
            theirs.placements != ours.placements
        ):  # partial sums, of a replicated gain under sequence parallelism
            gradient = theirs.redistribute(placements=ours.placements)
    part = local(gradient)
    return as_real(cast(Tensor, cast(Any, part).wait() if hasattr(part, "wait") else part))


def _peek(part: Tensor) -> Tensor:
    """Return a few elements, far apart."""
    flat = as_real(part).reshape(-1)
    return flat[:: max(1, flat.numel() // _PEEKS)][:_PEEKS].to(compute_dtype(flat))
