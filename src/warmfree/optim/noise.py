"""Hold the representation change that a step causes, whatever the gradient's signal-to-noise ratio."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from warmfree.optim import norms
from warmfree.optim.move import Layout, Move, Number


def representation_change_factor(snr: Tensor, *, batch_size: Number, input_overlap: Number) -> Tensor:
    r"""Multiplier of the learning rate that keeps the relative representation change at its value for pure noise.

    .. math::  s(\varphi) = \sqrt{\frac{(1+\varphi)(1/B+\kappa)}{\varphi + 1/B + \kappa}}
               \;\in\; \left[\sqrt{1/B+\kappa},\, 1\right]

    Args:
        snr: per-sample signal-to-noise ratio phi = |E g|^2 / E|g - E g|^2, any shape, >= 0.
        batch_size: B, samples in the gradient's batch, at least 1.
        input_overlap: kappa = E[(x.x')^2]/|x|^4 of the layer's inputs; 1/fan_in if they are isotropic.

    Example:
        >>> snr = torch.tensor([0.0, 0.01, 1e9], dtype=torch.float64)
        >>> representation_change_factor(snr, batch_size=256, input_overlap=0.0)
        tensor([1.0000, 0.5326, 0.0625], dtype=torch.float64)

    Reference: derived for normalised updates; the idea and its measurement: Kosson et al. 2024, section on the RRC.
    """
    floor = 1 / batch_size + input_overlap
    # The limit of large phi is written as one over phi + 1: (1+phi)/(phi+floor) = 1 + (1-floor)/(phi+floor).
    return (floor * (1 + (1 - floor) / (snr + floor))).sqrt().clamp(max=1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseControl:
    r"""Size control: multiply the learning rate by s(phi), phi measured from momentum and gradient norms.

    Early gradients agree with each other, so a step of given size changes what the layers compute by more; the
    critical batch size is small. With :math:`r = \overline{\|\hat m\|^2}/\overline{\|g\|^2}` and, for an average with
    constant b at step t, :math:`\rho_t = \frac{(1-b)(1+b^t)}{(1+b)(1-b^t)}`,

    .. math::  \varphi_B = \frac{r - \bar\rho}{1 - r}, \qquad \varphi = \varphi_B/B, \qquad
               \mathrm{lr} \leftarrow s(\varphi)\,\mathrm{lr}.

    All three averages (the bars) run over steps with the same constant. At the first step r = rho = 1 and phi is not
    known: the smallest s is used. Each tensor has its own phi. Before an `AngularControl` it scales the angle.

    Attributes:
        batch_size: B, samples (sequences) in the batch of one optimizer step, over all micro-batches and ranks.
        input_overlap: kappa; None for 1/fan_in (for an embedding: 1/number of its rows).
        averaged_batches: count the (1+b)/(1-b) batches that the momentum averages as one batch.
        smoothing: constant of the averages over steps, in [0, 1); None for the direction's b.

    Reference: Kosson et al. 2024 for the signal-to-noise ratio and the aim; the estimator and s are derived.
    """

    batch_size: float
    input_overlap: float | None = None
    averaged_batches: bool = False
    smoothing: float | None = None
    counters: ClassVar[tuple[str, ...]] = ()

    def options(self) -> dict[str, Any]:
        """Return the parameter-group options and their defaults."""
        return {
            "batch_size": self.batch_size,
            "input_overlap": self.input_overlap,
            "averaged_batches": self.averaged_batches,
            "snr_smoothing": self.smoothing,
        }

    def validate(self, group: Mapping[str, Any], *, momentum: float) -> None:
        """Raise ValueError if an option of a parameter group is out of range, or there is no momentum."""
        if momentum == 0:
            raise ValueError(
                "NoiseControl estimates noise from momentum: it needs momentum (beta1) > 0, got 0"
            )
        if not 1 <= group["batch_size"] < math.inf:
            raise ValueError(f"batch_size must be >= 1 samples, got {group['batch_size']}")
        overlap, smoothing = group["input_overlap"], group["snr_smoothing"]
        if overlap is not None and not 0 <= overlap <= 1:
            raise ValueError(f"input_overlap must be in [0, 1] or None, got {overlap}")
        if smoothing is not None and not 0 <= smoothing < 1:
            raise ValueError(f"snr_smoothing must be in [0, 1) or None, got {smoothing}")

    def check_groups(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Do nothing: every group will do."""

    def claims(self, parameter: Tensor, layout: Layout, group: Mapping[str, Any]) -> bool:
        """Take every matrix, embeddings and heads included."""
        del parameter, group
        return layout.role != "vector"

    def new_state(self, parameter: Tensor, layout: Layout, group: Mapping[str, Any]) -> dict[str, Tensor]:
        """Averages of |m|^2, |g|^2 and rho."""
        del layout, group
        return {
            "noise_averages": torch.zeros(
                3, dtype=norms.scalar_dtype(parameter.device), device=parameter.device
            )
        }

    def scalars(
        self, group: Mapping[str, Any], *, counts: Mapping[str, Number], momentum: Number
    ) -> dict[str, Number]:
        """Return rho, what the averages take in, what makes them unbiased, and the samples of a batch."""
        smoothing = momentum if group["snr_smoothing"] is None else group["snr_smoothing"]
        batches = (1 + momentum) / (1 - momentum) if group["averaged_batches"] else 1.0
        decayed = momentum ** counts["step"]
        return {
            "rho": (1 - momentum) * (1 + decayed) / ((1 + momentum) * (1 - decayed)),
            "noise_intake": 1 - smoothing,
            "noise_correction": 1 - smoothing ** counts["step"],
            "noise_batch": group["batch_size"] * batches,
        }

    def __call__(self, move: Move) -> None:
        """Multiply the step sizes by s(phi)."""
        update, rho, size = move.update, move.scalars["rho"], move.scalars["noise_batch"]
        sizes = [
            torch.linalg.vector_norm(tensor).to(norms.scalar_dtype(tensor.device))
            for tensor in (*update.momenta, *update.gradients)
        ]
        sizes = norms.whole_norms(sizes, move.peers.add, spread=bool(move.peers.groups))
        count = len(move.weights)
        for index, (mean, size_now) in enumerate(zip(sizes[:count], sizes[count:], strict=True)):
            averages = move.states[index]["noise_averages"]
            mean_square, square = (mean * update.momentum_scales[index]) ** 2, size_now**2
            now = torch.stack([mean_square, square, square * 0 + rho])
            averages.add_((now - averages) * move.scalars["noise_intake"])
            # At the first step the momentum is the gradient: the ratio is 0/0, and rounding decides.
            snr = (
                torch.full_like(square, math.inf)
                if "step" in move.fresh
                else self._batch_snr(averages / move.scalars["noise_correction"]) / size
            )
            factor = representation_change_factor(
                snr, batch_size=size, input_overlap=self._overlap(move, index)
            )
            move.step_sizes[index] = move.step_sizes[index] * factor
            move.note(index, snr=snr, factor=factor)

    def restore(self, move: Move) -> None:
        """Do nothing after the write."""

    @staticmethod
    def _batch_snr(averages: Tensor) -> Tensor:
        """phi_B = (r - rho)/(1 - r), clamped to [0, inf]; inf where the gradients do not vary."""
        mean_square, square, rho = averages.unbind()
        ratio = mean_square / torch.where(square > 0, square, 1.0)
        signal, noise = ratio - rho, 1 - ratio
        varies = noise > 0
        return torch.where(varies, (signal / torch.where(varies, noise, 1.0)).clamp(min=0.0), math.inf)

    @staticmethod
    def _overlap(move: Move, index: int) -> Number:
        overlap: Number | None = move.group["input_overlap"]
        if overlap is not None:
            return overlap
        part = move.parts[index]
        return 1 / (part.rows if move.layouts[index].role == "embedding" else part.fan_in)
