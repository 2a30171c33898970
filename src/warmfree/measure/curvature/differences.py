"""Hessian products by finite differences of gradients: for models without a second derivative, and for sharded ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from warmfree.measure.curvature.gradient import Gradient
from warmfree.measure.curvature.operators import Losses, checked
from warmfree.measure.curvature.sharded import Space
from warmfree.optim.sharding import local

__all__ = ["DifferenceHessian"]

# How far the relative change of the gradient may be off its aim, as a factor, and how often a product is made anew.
_LEEWAY = 2
_RETRIES = 4


class DifferenceHessian:
    r"""The Hessian of a loss by central differences of its gradient: :math:`Hv \approx (g(w + hv) - g(w - hv)) / 2h`.

    A product costs two gradients and a copy of the weights and holds no graph. Weights are restored bit for bit, also
    after an exception; `.grad` is left as it was.

    With the precision :math:`\epsilon` of the narrowest type that the loss is computed in, h is such that the gradient
    changes by :math:`\|hHv\| = \epsilon^{1/3} \|g\|/4`, within a factor of 2: the rounding of gradients then is an
    error of about :math:`\epsilon^{2/3}`, and the step is as short as a sharp direction needs. It is sought between
    :math:`\|hv\| = \epsilon_w^{2/3}\|w\|`, below which the weights' own rounding shows, and
    :math:`\epsilon^{1/3}\|w\|`, from where the last product found it (our choice). Products of small GPTs are right to
    about 1e-3 in float32. Under bfloat16 autocast they are off by a tenth or a fifth, and top eigenvalues of the
    preconditioned Hessian were by 5 to 34 percent: an order of magnitude, not a measurement.

    Args:
        loss: as for `Gradient`.
        parameters: tensors that require a gradient, float32 or wider.
        others: likewise.

    Raises:
        ValueError: as for `Hessian`.
        TypeError: a parameter is narrower than float32, so that w + hv would be mostly rounding.
        RuntimeError: as for `Gradient`.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
        >>> hessian = DifferenceHessian(lambda: weight[0] ** 2 * weight[1], [weight])  # [[2 w1, 2 w0], [2 w0, 0]]
        >>> (product,) = hessian([torch.tensor([1.0, 0.0], dtype=torch.float64)])
        >>> torch.allclose(product, torch.tensor([4.0, 2.0], dtype=torch.float64))
        True
    """

    def __init__(self, loss: Losses, parameters: Sequence[Tensor], *, others: Iterable[Tensor] = ()) -> None:
        self.parameters = checked(parameters)
        self._space = Space(self.parameters)
        self._gradient = Gradient(loss, self.parameters, others=others)
        for parameter in self.parameters:
            if torch.finfo(parameter.dtype).bits < 32:
                raise TypeError(
                    f"finite differences need weights in float32 or wider, got {parameter.dtype}; keep the weights in "
                    f"float32 and use autocast"
                )
        self._weight_precision = max(torch.finfo(parameter.dtype).eps for parameter in self.parameters)
        self._gradient_size: float | None = None
        self._distance = 0.0

    def __call__(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Return the product with a vector, about; collective if parameters are sharded."""
        space = self._space
        direction = space.join(vectors)
        length = space.norm(direction)
        if not length > 0:
            return [torch.zeros_like(vector) for vector in vectors]
        weights = space.join([local(parameter) for parameter in self.parameters])
        size = space.norm(weights) or 1.0
        if self._gradient_size is None:
            self._gradient_size = space.norm(space.join(self._gradient()))
            self._distance = self._gradient.precision**0.5 * size
        longest = self._gradient.precision ** (1 / 3) * size
        shortest = min(self._weight_precision ** (2 / 3) * size, longest)
        wanted = self._gradient.precision ** (1 / 3) / 4 * self._gradient_size
        distance = min(max(self._distance, shortest), longest)
        for _ in range(_RETRIES + 1):
            change, found = self._change(weights, direction * (distance / length))
            self._distance = distance
            # Where one of them is zero (a linear loss, a minimum) any distance is as good.
            if not (found > 0 and wanted > 0) or 1 / _LEEWAY <= found / wanted <= _LEEWAY:
                break
            distance = min(max(distance * wanted / found, shortest), longest)
            if distance == self._distance:
                break
        return space.split(change * (length / self._distance))

    def _change(self, weights: Tensor, step: Tensor) -> tuple[Tensor, float]:
        """Return half of how the gradient changes from -step to step, and the norm of it."""
        try:
            ahead = self._gradient_at(weights + step)
            behind = self._gradient_at(weights - step)
        finally:
            self._write(weights)
        change = (ahead - behind) / 2
        return change, self._space.norm(change)

    @torch.no_grad()
    def _write(self, weights: Tensor) -> None:
        for parameter, weight in zip(self.parameters, self._space.split(weights), strict=True):
            local(parameter).copy_(weight)

    def _gradient_at(self, weights: Tensor) -> Tensor:
        self._write(weights)
        return self._space.join(self._gradient())
