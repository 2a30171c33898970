"""Bound the largest singular value of an update by that of its weight (AdamW^2)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from warmfree.optim import norms
from warmfree.optim.move import Layout, Move, Number, Size

# Iterations of the very first step, when no vector is warm yet. Cold power iteration on a random 768x768 matrix is 10 %
# low after three iterations and 3 % after ten.
_COLD_ITERATIONS = 10
# Standard deviation of GPT-2's initialisation; a matrix drawn from it has sigma_1 close to 0.02 (sqrt(out) + sqrt(in)).
STANDARD_INIT = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class SpectralBound:
    r"""Size control: shorten the step where :math:`\mathrm{lr}\,\sigma_1(U)/\sigma_1(W) > \tau`.

    .. math::  a = \min\left(\mathrm{lr},\; \tau\,\max(\sigma_1(W), f)\,/\,\sigma_1(U)\right), \qquad
               W \leftarrow W - aU - a\lambda W

    so that :math:`\sigma_1` grows by at most :math:`1+\tau` a step. U is the *updating quantity* (Adam's direction),
    not the gradient, and the shortened step multiplies the weight decay, too (the paper leaves that open; our choice).
    A zero update is not bounded. A matrix whose sigma_1 is below the floor f, zero at worst (the B of LoRA), grows by
    at most tau*f a step until it has passed it.

    Attributes:
        tau: largest relative growth of sigma_1 in one step, > 0. `inf` switches the bound off.
        power_iterations: iterations of the power method a step for weight and update each, at least 1.
        floor: f in units of sigma_1 of a standard initialisation, 0.02 (sqrt(out) + sqrt(in)); at least 0. At 0 a
            zero matrix never moves.

    Reference: Qi et al. 2025, Algorithm 1. Floor, order and persistence of the power iterations are our choice.
    """

    tau: float = 0.05
    power_iterations: int = 2
    floor: float = 0.1
    counters: ClassVar[tuple[str, ...]] = ()

    def options(self) -> dict[str, Any]:
        """Return the parameter-group options and their defaults."""
        return {"tau": self.tau, "power_iterations": self.power_iterations, "spectral_floor": self.floor}

    def validate(self, group: Mapping[str, Any], *, momentum: float) -> None:
        """Raise ValueError if an option of a parameter group is out of range."""
        del momentum
        if not group["tau"] > 0:
            raise ValueError(f"tau must be > 0, got {group['tau']}")
        if not (isinstance(group["power_iterations"], int) and group["power_iterations"] >= 1):
            raise ValueError(f"power_iterations must be an integer >= 1, got {group['power_iterations']}")
        if not 0 <= group["spectral_floor"] < math.inf:
            raise ValueError(f"spectral_floor must be finite and >= 0, got {group['spectral_floor']}")

    def check_groups(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Do nothing: a bound on no matrix is no mistake."""

    def claims(self, parameter: Tensor, layout: Layout, group: Mapping[str, Any]) -> bool:
        """Take every matrix, embeddings and heads included."""
        del parameter, group
        return layout.role != "vector"

    def new_state(self, parameter: Tensor, layout: Layout, group: Mapping[str, Any]) -> dict[str, Tensor]:
        """Right singular vectors, one per section, of weight and update, and a random one."""
        del group
        fan_in = norms.fan_in(parameter, out_dim=layout.out_dim)
        dtype = norms.compute_dtype(parameter)
        start = norms.random_direction(fan_in, device=parameter.device, dtype=dtype)
        rows = start.repeat(max(1, len(layout.sections)), 1)
        # The fused step gives update vectors a length, sigma_1(U)/sigma_1(W); to this one only directions matter.
        return {"weight_vectors": rows, "update_vectors": rows.clone(), "random_vector": start}

    def scalars(
        self, group: Mapping[str, Any], *, counts: Mapping[str, Number], momentum: Number
    ) -> dict[str, Number]:
        """Return nothing: all depends on tensors."""
        del group, counts, momentum
        return {}

    def __call__(self, move: Move) -> None:
        """Shorten the steps whose spectral ratio exceeds tau."""
        for part, state in zip(move.parts, move.states, strict=True):
            if state["weight_vectors"].shape[0] != len(part.heights):
                raise RuntimeError("split was changed after the parameter was given to the optimizer")
        updates, steps = [], []
        for index, step in enumerate(move.step_sizes):
            update = move.update.whole(index)
            if isinstance(step, Tensor) and step.ndim:  # a step per neuron is part of what is bounded
                update, step = update * step, 1.0
            updates.append(update)
            steps.append(step)
        sigma_weights, sigma_updates = self._sigmas(move, updates)
        for index, step in enumerate(steps):
            factors = self._factors(move, index, step, sigma_weights[index], sigma_updates[index])
            move.step_sizes[index] = self._shortened(move, index, factors)
            move.note(
                index,
                sigma_weight=torch.stack(sigma_weights[index]).max(),
                sigma_update=torch.stack(sigma_updates[index]).max(),
                factor=torch.stack(factors).mean(),
            )

    def restore(self, move: Move) -> None:
        """Do nothing after the write."""

    @staticmethod
    def _factors(
        move: Move, index: int, step: Size, sigma_weights: list[Tensor], sigma_updates: list[Tensor]
    ) -> list[Tensor]:
        """What each section's step has to be multiplied by."""
        part, unit = move.parts[index], move.group["spectral_floor"] * STANDARD_INIT
        factors = []
        for sigma_weight, sigma_update, height in zip(
            sigma_weights, sigma_updates, part.heights, strict=True
        ):
            floor = unit * (height**0.5 + part.fan_in**0.5)
            allowed, wanted = move.group["tau"] * sigma_weight.clamp(min=floor), step * sigma_update
            factors.append(torch.where(wanted > allowed, allowed / wanted, 1.0))
        return factors

    @staticmethod
    def _shortened(move: Move, index: int, factors: list[Tensor]) -> Size:
        weight, part = move.weights[index], move.parts[index]
        if len(factors) == 1:
            return move.step_sizes[index] * factors[0]
        shape = [1] * weight.ndim
        shape[move.layouts[index].out_dim] = -1
        per_row = [factor.expand(height) for factor, height in zip(factors, part.local_heights, strict=True)]
        return move.step_sizes[index] * torch.cat(per_row).to(weight.dtype).view(shape)

    @staticmethod
    def _sigmas(move: Move, updates: list[Tensor]) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
        """Estimate sigma_1 of each section of weights and updates.

        An estimate for the weight that is low tightens the bound; one for the update that is low loosens it. The
        growth of sigma_1(W) is, to first order, how far the update moves W's own top direction: that direction is
        a start for the update, too, so that what matters most is never missed.
        """
        iterations = move.group["power_iterations"]
        if "step" in move.fresh:
            iterations = max(iterations, _COLD_ITERATIONS)
        columns = [part.columns for part in move.parts for _ in part.heights]
        olds = [old for state in move.states for old in state["weight_vectors"]]
        update_olds = [old for state in move.states for old in state["update_vectors"]]
        randoms = [
            state["random_vector"]
            for state, part in zip(move.states, move.parts, strict=True)
            for _ in part.heights
        ]
        # Of the weight an estimate that is low does no harm: one start will do, moved a little lest it see nothing.
        starts = [
            torch.add(old, random, alpha=0.1).unsqueeze(0) for old, random in zip(olds, randoms, strict=True)
        ]
        sigma_weights, tops = norms.largest_singular_values(
            _blocks(move, move.weights), starts, iterations=iterations, peers=move.peers, columns=columns
        )
        starts = [torch.stack(three) for three in zip(update_olds, randoms, tops, strict=True)]
        sigma_updates, found = norms.largest_singular_values(
            _blocks(move, updates), starts, iterations=iterations, peers=move.peers, columns=columns
        )
        for vectors, new in ((olds, tops), (update_olds, found)):
            for old, vector in zip(vectors, new, strict=True):
                old.copy_(vector)
        counts = [len(part.heights) for part in move.parts]
        return _nested(sigma_weights, counts), _nested(sigma_updates, counts)


def _blocks(move: Move, tensors: list[Tensor]) -> list[Tensor]:
    """List the sections of all tensors, as matrices."""
    return [
        block
        for tensor, layout, part in zip(tensors, move.layouts, move.parts, strict=True)
        for block in part.blocks(norms.as_matrix(tensor, out_dim=layout.out_dim))
    ]


def _nested(flat: list[Tensor], counts: list[int]) -> list[list[Tensor]]:
    values = iter(flat)
    return [[next(values) for _ in range(count)] for count in counts]
