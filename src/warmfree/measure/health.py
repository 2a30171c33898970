r"""Whether a network is well: sizes of gradients and weights, stable ranks, and the first tensor that is not finite.

Sharded parameters (DTensor) are measured whole: every process sums over its part, and one all-reduce completes the sums
of all parameters. All processes have to call these functions alike, and get the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from warmfree.measure.real import as_real
from warmfree.measure.sums import whole_sums
from warmfree.optim import norms
from warmfree.optim.move import Layout, Part
from warmfree.optim.sharding import Peers, local, local_gradient, part_of, peers_of

__all__ = [
    "StableRank",
    "StableRanks",
    "first_nonfinite_gradient",
    "first_nonfinite_parameter",
    "gradient_norms",
    "weight_norms",
]

NamedParameters = Iterable[tuple[str, Tensor]]


@torch.no_grad()
def gradient_norms(named_parameters: NamedParameters) -> dict[str, float]:
    r"""l2 norm of each parameter's gradient, and under the name "" of all together.

    Args:
        named_parameters: pairs of name and parameter, as from `model.named_parameters()`. Parameters without a
            gradient are left out.

    Returns:
        Norm by name; inf or nan where a gradient is not finite, and never where it is (squares that overflow or
        underflow in float32 are summed again in float64). Empty if no parameter has a gradient.

    Example:
        >>> weight, bias = torch.zeros(2, 2, requires_grad=True), torch.zeros(2, requires_grad=True)
        >>> weight.grad = torch.full((2, 2), 2e30)
        >>> gradient_norms([("weight", weight), ("bias", bias)])["weight"] > 3.9e30
        True
    """
    named = [(name, weight) for name, weight in named_parameters if weight.grad is not None]
    return _norms_by_name(named, _gradients(named))


@torch.no_grad()
def weight_norms(named_parameters: NamedParameters) -> dict[str, float]:
    """l2 norm of each parameter, and under the name "" of all together; as `gradient_norms`.

    Args:
        named_parameters: pairs of name and parameter.

    Example:
        >>> weight_norms([("a", torch.tensor([3.0])), ("b", torch.tensor([[4.0]]))])
        {'a': 3.0, 'b': 4.0, '': 5.0}
    """
    named = list(named_parameters)
    return _norms_by_name(named, [as_real(local(weight.detach())) for _, weight in named])


def first_nonfinite_gradient(named_parameters: NamedParameters) -> str | None:
    """Return the name of the first parameter whose gradient holds inf or nan, None if there is none."""
    return _first_nonfinite(gradient_norms(named_parameters))


def first_nonfinite_parameter(named_parameters: NamedParameters) -> str | None:
    """Return the name of the first parameter that holds inf or nan, None if there is none."""
    return _first_nonfinite(weight_norms(named_parameters))


def _first_nonfinite(sizes: dict[str, float]) -> str | None:
    return next((name for name, size in sizes.items() if name and not math.isfinite(size)), None)


def _gradients(named: Sequence[tuple[str, Tensor]]) -> list[Tensor]:
    """Return the elements of each gradient that are here."""
    parts = [local_gradient(weight) for _, weight in named]
    return [as_real(part.coalesce().values() if part.is_sparse else part) for part in parts]


def _norms_by_name(named: Sequence[tuple[str, Tensor]], parts: Sequence[Tensor]) -> dict[str, float]:
    if not named:
        return {}
    weights = [weight for _, weight in named]
    sizes = _whole_norms(torch._foreach_norm(list(parts)), weights)
    # Squares of large finite numbers overflow, those of small ones underflow: neither norm is to be believed.
    doubtful = [index for index, size in enumerate(sizes) if not 0 < size < math.inf]
    if doubtful:
        precise = [
            torch.linalg.vector_norm(parts[index], dtype=norms.scalar_dtype(parts[index].device))
            for index in doubtful
        ]
        again = _whole_norms(precise, [weights[index] for index in doubtful])
        for index, size in zip(doubtful, again, strict=True):
            sizes[index] = size
    by_name = {name: size for (name, _), size in zip(named, sizes, strict=True)}
    return by_name | {"": math.hypot(*sizes)}


def _whole_norms(lengths: Sequence[Tensor], tensors: Sequence[Tensor]) -> list[float]:
    squares = [length.to(norms.scalar_dtype(length.device)).square().reshape(1) for length in lengths]
    return [math.sqrt(total) for (total,) in whole_sums(squares, tensors)]


@dataclass(frozen=True, slots=True)
class StableRank:
    r"""The largest singular value of a matrix, and how many directions share its energy.

    Attributes:
        sigma: :math:`\sigma_1(W)`, an estimate from below.
        stable_rank: :math:`\lVert W\rVert_F^2 / \sigma_1(W)^2`, from 1 to the rank; nan for a zero matrix.
    """

    sigma: float
    stable_rank: float


class StableRanks:
    r"""Largest singular value and stable rank of every matrix, by power iteration from the last measurement's vector.

    .. math::  \mathrm{srank}(W) = \lVert W\rVert_F^2 / \sigma_1(W)^2

    Tensors of three or more dimensions (convolutions) are read as (out, rest); vectors and complex matrices are left
    out. Sharded matrices
    are not gathered. The object keeps one right vector a matrix.

    Args:
        first: iterations of a matrix's first measurement, from a random vector, at least 1.
        later: iterations of each measurement after it, at least 1.

    Example:
        >>> weight = torch.diag(torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64))
        >>> found = StableRanks().measure([("weight", weight)])["weight"]
        >>> round(found.sigma, 6), round(found.stable_rank, 6)
        (2.0, 1.5)

    Reference: the stable rank is watched by Kosson et al. 2024 (appendix on ResNet-20); sigma_1 by Qi et al. 2025. The
    numbers of iterations are our choice.
    """

    def __init__(self, *, first: int = 20, later: int = 3) -> None:
        for name, count in (("first", first), ("later", later)):
            if count < 1:
                raise ValueError(f"{name} must be >= 1 power iterations, got {count}")
        self._first, self._later = first, later
        self._vectors: dict[str, Tensor] = {}

    @torch.no_grad()
    def measure(self, named_parameters: NamedParameters) -> dict[str, StableRank]:
        """Measure all matrices.

        Args:
            named_parameters: pairs of name and parameter.

        Returns:
            By name, for real tensors of two or more dimensions with at least one element.
        """
        named = [(name, weight.detach()) for name, weight in named_parameters]
        named = [
            (name, weight)
            for name, weight in named
            if weight.ndim > 1 and weight.numel() and not weight.is_complex()
        ]
        sizes = weight_norms(named)
        sigmas: dict[str, Tensor] = {}
        layout = Layout("matrix")
        for peers, known in dict.fromkeys(
            (peers_of(weight, layout), name in self._vectors) for name, weight in named
        ):
            chosen = [
                (name, weight)
                for name, weight in named
                if (peers_of(weight, layout), name in self._vectors) == (peers, known)
            ]
            sigmas |= self._iterate(chosen, peers, self._later if known else self._first)
        values = whole_sums([sigma.reshape(1) for sigma in sigmas.values()], [torch.empty(0)] * len(sigmas))
        return {name: _rank(sizes[name], sigma) for name, (sigma,) in zip(sigmas, values, strict=True)}

    def _iterate(
        self, named: Sequence[tuple[str, Tensor]], peers: Peers, iterations: int
    ) -> dict[str, Tensor]:
        """Estimate sigma_1 of matrices that are spread alike, and keep their vectors."""
        parts = [part_of(weight, Layout("matrix")) for _, weight in named]
        matrices = [_matrix(weight) for _, weight in named]
        starts = [
            self._start(name, matrix, part)
            for (name, _), matrix, part in zip(named, matrices, parts, strict=True)
        ]
        sigmas, vectors = norms.largest_singular_values(
            matrices,
            starts,
            iterations=iterations,
            peers=peers if peers.groups else None,
            columns=[part.columns for part in parts],
        )
        names = [name for name, _ in named]
        self._vectors |= dict(zip(names, vectors, strict=True))
        return dict(zip(names, sigmas, strict=True))

    def _start(self, name: str, matrix: Tensor, part: Part) -> Tensor:
        """Return the last vector and a fixed random one, which sees a direction that is new."""
        fresh = norms.random_direction(part.fan_in, device=matrix.device, dtype=matrix.dtype)
        last = self._vectors.get(name)
        return torch.stack([fresh] if last is None else [last, fresh])


def _matrix(weight: Tensor) -> Tensor:
    here = local(weight)
    return norms.as_matrix(here.to(norms.compute_dtype(here)))


def _rank(frobenius: float, sigma: float) -> StableRank:
    # A random start cannot be orthogonal to all of a matrix that is not zero, but for one whose squares underflow.
    return StableRank(sigma, (frobenius / sigma) ** 2 if sigma else math.nan)
