"""Extreme eigenvalues of a symmetric operator by the Lanczos method; knows of no model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from warmfree.measure.curvature.operators import Operator
from warmfree.measure.curvature.sharded import Space

__all__ = ["MEMORY", "Eigenvalues", "lanczos"]

# Bytes of basis vectors that are kept unless more is asked for: 20 vectors of 13 million float32 parameters.
MEMORY = 2**30
# A given start may be an eigenvector that another has overtaken. So that the other shows, as much of a random vector is
# added, and this many products are made at least.
_RANDOM = 1.0
_LEAST = 5
# The next Ritz value is further away than the next eigenvalue: gaps are narrower than they look.
_CAUTION = 2
# A product that leads out of the space by no more than so many roundings leads nowhere: the space is invariant.
_ROUNDING = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Eigenvalues:
    """What a Lanczos run found.

    Attributes:
        values: eigenvalue estimates, the most extreme first; fewer than asked for if no more were found; nan if a
            product was not finite.
        residuals: for each estimate the norm of A x - value x, x being its unit Ritz vector: an eigenvalue lies within.
        errors: for each estimate what it is probably off by: 2 residual^2 / gap, the gap being that to the nearest Ritz
            value, or the residual where that is less. (The true gap is narrower; the factor is our choice.)
        products: how many products with the operator were made.
        converged: whether relative to each estimate the error is at most `tolerance` and the residual its root (the
            gap means nothing before the residual is small; our choice). Of two eigenvalues that lie closer than the
            residual an estimate may be between.
        vector: the unit Ritz vector of the first value, one tensor per parameter (of a sharded one the local part);
            None if the basis was not kept, or a product was not finite.
    """

    values: tuple[float, ...]
    residuals: tuple[float, ...]
    errors: tuple[float, ...]
    products: int
    converged: bool
    vector: list[Tensor] | None


def lanczos(
    operator: Operator,
    *,
    count: int = 1,
    which: Literal["largest", "smallest", "magnitude"] = "largest",
    tolerance: float = 0.01,
    max_products: int = 20,
    start: Sequence[Tensor] | None = None,
    seed: int = 0,
    memory: int = MEMORY,
) -> Eigenvalues:
    r"""Estimate extreme eigenvalues of a symmetric operator A from products with vectors.

    .. math::  A Q_k = Q_k T_k + \beta_k q_{k+1} e_k^\top, \qquad T_k s = \theta s, \qquad
               \|A Q_k s - \theta Q_k s\| = \beta_k |s_k|

    with orthonormal :math:`Q_k` and tridiagonal :math:`T_k`, from a start :math:`q_1`. The vectors are
    reorthogonalised, twice against all before, as long as all that may be needed fit into `memory`. If they do not, a
    few vectors are held: one eigenvalue is found as well, but no vector. Inner products and :math:`T_k` are in
    float64. A multiple eigenvalue is found once, up to rounding.

    Args:
        operator: from a list of tensors to a list of tensors, symmetric; the shapes are those of its `parameters`.
        count: how many eigenvalues, >= 1.
        which: "largest" or "smallest" in the order of numbers, or of largest "magnitude".
        tolerance: relative, > 0: when to stop, see `Eigenvalues.errors`.
        max_products: >= 1; never more are made than there are dimensions.
        start: a guess of the first eigenvector, such as `Eigenvalues.vector` of an earlier run. Lest it hide a
            direction that has overtaken, a random vector of the same length is added and 5 products are made at least
            (our choice: what has overtaken by half is found then, what has by a tenth may be missed).
        seed: of the random vector, drawn on the CPU.
        memory: bytes, >= 0, that the basis may take in this process.

    Returns:
        Values with residuals; the same numbers in all processes, if parameters are sharded.

    Raises:
        ValueError: an argument is out of range, or `start` is zero or not finite.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(3))
        >>> from warmfree.measure.curvature.operators import Hessian
        >>> scales = torch.tensor([1.0, 2.0, 3.0])
        >>> found = lanczos(Hessian(lambda: (scales * weight.square()).sum() / 2, [weight]), tolerance=1e-6)
        >>> round(found.values[0], 5), found.products, found.converged
        (3.0, 3, True)

    Reference: Lanczos 1950; Parlett 1998, chapter 13 and section 11.7 (residual^2 / gap).
    """
    if count < 1 or max_products < 1 or not tolerance > 0 or memory < 0:
        raise ValueError(
            f"lanczos needs count >= 1, max_products >= 1, tolerance > 0 and memory >= 0, got {count}, {max_products}, "
            f"{tolerance} and {memory}"
        )
    space = Space(operator.parameters)
    limit = min(max_products, space.size)
    keeps = limit * space.local_size * space.dtype.itemsize <= memory
    basis = torch.empty(limit if keeps else 1, space.local_size, dtype=space.dtype, device=space.device)
    projected = _Projected(which=which, count=count if keeps else 1, tolerance=tolerance)
    vector, least = _first(space, start, seed), 1 if start is None else _LEAST
    previous = torch.zeros_like(vector)
    for products in range(1, limit + 1):
        known = basis[: products if keeps else 1]
        known[-1] = vector
        image = space.join(operator(space.split(vector))).to(space.wide)
        along = float(space.dots(known[-1:], image)[0])
        if not math.isfinite(along):
            return projected.result(products, broken=True, vector=None)
        image -= along * vector
        image -= projected.last * previous
        for _ in range(2 if keeps else 0):
            space.subtract(image, known, space.dots(known, image))
        beyond = space.norm(image)
        if products == space.size or beyond <= _ROUNDING * torch.finfo(space.dtype).eps * projected.scale(
            along
        ):
            beyond = 0.0
        projected.add(along, beyond)
        if beyond == 0 or (products >= least and projected.converged()):
            break
        previous, vector = vector, (image / beyond).to(space.dtype)
    return projected.result(products, vector=_combined(space, known, projected.first) if keeps else None)


def _first(space: Space, start: Sequence[Tensor] | None, seed: int) -> Tensor:
    """Return the unit vector to start from."""
    random = space.random(seed)
    random /= space.norm(random)
    if start is None:
        return random
    given = space.join(start)
    length = space.norm(given)
    if not 0 < length < math.inf:
        raise ValueError(f"start must be a finite vector that is not zero, got one of norm {length}")
    given = given / length + _RANDOM * random
    return given / space.norm(given)


def _combined(space: Space, basis: Tensor, amounts: Tensor) -> list[Tensor]:
    """Return the unit vector along `amounts @ basis`."""
    total = torch.zeros(space.local_size, dtype=space.wide, device=space.device)
    space.subtract(total, basis, -amounts)
    return space.split((total / space.norm(total)).to(space.dtype))


class _Projected:
    """The operator in the Krylov space: a tridiagonal matrix that grows, and its eigenvalues."""

    def __init__(self, *, which: str, count: int, tolerance: float) -> None:
        self._which, self._count, self._tolerance = which, count, tolerance
        self._diagonal: list[float] = []
        self._beside: list[float] = []
        self._values = torch.zeros(0, dtype=torch.float64)
        self._residuals, self._errors = self._values, self._values
        self.first = self._values

    @property
    def last(self) -> float:
        """How far the last product led out of the space."""
        return self._beside[-1] if self._beside else 0.0

    def scale(self, along: float) -> float:
        """Return the largest entry, one that is to be added included."""
        return max(abs(along), *map(abs, self._diagonal), *self._beside, 0.0)

    def add(self, along: float, beyond: float) -> None:
        """Grow by a row: the product's part along its vector and the length of that beyond the space."""
        self._diagonal.append(along)
        inner = torch.tensor(self._beside, dtype=torch.float64)
        self._beside.append(beyond)
        matrix = torch.tensor(self._diagonal, dtype=torch.float64).diag() + inner.diag(1) + inner.diag(-1)
        values, vectors = torch.linalg.eigh(matrix)
        keys = {"largest": -values, "smallest": values, "magnitude": -values.abs()}[self._which]
        order = keys.argsort(stable=True)
        self._values, self.first = values[order], vectors[:, order[0]]
        self._residuals = beyond * vectors[-1, order].abs()
        distances = (self._values[:, None] - self._values).abs().fill_diagonal_(math.inf)
        squared = self._residuals.square()
        # Of a zero residual the error is zero, whatever the gap.
        bounds = torch.where(squared > 0, _CAUTION * squared / distances.amin(1), 0.0)
        self._errors = bounds.minimum(self._residuals)

    def converged(self) -> bool:
        """Return whether as many eigenvalues as asked for are as exact as asked for."""
        sizes, count = self._values[: self._count].abs(), self._count
        exact = self._errors[:count] <= self._tolerance * sizes
        resolved = self._residuals[:count] <= self._tolerance**0.5 * sizes
        return len(sizes) == count and bool((exact & resolved).all())

    def result(self, products: int, *, vector: list[Tensor] | None, broken: bool = False) -> Eigenvalues:
        """Return what was found."""
        nan = (math.nan,)
        return Eigenvalues(
            values=nan if broken else tuple(self._values[: self._count].tolist()),
            residuals=nan if broken else tuple(self._residuals[: self._count].tolist()),
            errors=nan if broken else tuple(self._errors[: self._count].tolist()),
            products=products,
            converged=not broken and (self.last == 0 or self.converged()),
            vector=vector,
        )
