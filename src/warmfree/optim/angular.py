"""Rotate each neuron by a chosen angle a step and keep its norm (LionAR, RotationalAdamW)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from warmfree.optim import norms
from warmfree.optim.directions import equilibrium_rms
from warmfree.optim.move import Layout, Move, Number
from warmfree.optim.sharding import zeros_per_row

# A row that was zero at the first step is trained like a vector until its norm reaches that of PyTorch's own
# initialisation of nn.Linear and nn.Conv, uniform with RMS 1/sqrt(3 fan_in); then it keeps its norm and rotates.
_BORN_NORM = 3**-0.5
# What is left of a norm after a subtraction is rounding if it is below this many units of the type's precision.
_ROUNDING = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class AngularControl:
    r"""Size control: rotate by the angle that Adam with weight decay would settle at, from the first step on.

    .. math::  u_\perp = u - w\,\langle u, w\rangle/\|w\|^2, \qquad
               w' = w - \theta\, n_0\, u_\perp/\|u_\perp\|, \qquad w \leftarrow n_0\, w'/\|w'\|

    with the equilibrium angle :math:`\theta = \sqrt{2\,\mathrm{lr}\,\lambda\,(1-b)/(1+b)}` (`schedule="sqrt"`) or
    :math:`\theta = \sqrt{2\,\mathrm{lr}_{\max}\lambda(1-b)/(1+b)}\;\mathrm{lr}/\mathrm{lr}_{\max}` ("linear"), where b
    is the direction's momentum. The realised angle is atan(theta). Weight decay is not applied: its part in the
    equilibrium is played by keeping the norm :math:`n_0 = \|w_0\|`, taken at the first step.

    Rotational are matrices, embeddings and heads with weight_decay > 0; the rest keeps the direction's plain update.
    A neuron of one weight cannot rotate and counts as the rest. A neuron that is zero at the first step does so, too,
    without decay, until its norm reaches that of PyTorch's initialisation, 1/sqrt(3) (our choice). An update without
    a tangential part, up to rounding, rotates nothing.

    Attributes:
        per_neuron: a norm and an angle for each neuron; False: for each tensor.
        schedule: how the angle follows a learning-rate schedule; see above. "linear" reads the group's `peak_lr`.
        inverse_bias_correction: multiply theta by 1 - b^t, which makes early updates smaller, as dropping the bias
            correction does for an update that is not normalised.
        update_norm_decay: average ||u||^2 over steps with this constant in [0, 1) before dividing by it; 0: the angle
            is exact at every step.
        zero_mean: remove each neuron's mean from its update and, at the first step, from the weights (norms stay).
        eps: added to the norm that the update is divided by, at least 0.

    Reference: Kosson et al. 2024 (LionAR, reconstructed); Kosson et al. 2023, arXiv 2305.17212 (rotational
    equilibrium, zero_mean, update_norm_decay). (1 - b^t), the "linear" schedule and zero neurons are our choice.
    """

    per_neuron: bool = True
    schedule: Literal["sqrt", "linear"] = "sqrt"
    inverse_bias_correction: bool = False
    update_norm_decay: float = 0.0
    zero_mean: bool = False
    eps: float = 0.0
    counters: ClassVar[tuple[str, ...]] = ("turns",)

    def options(self) -> dict[str, Any]:
        """Return the parameter-group options and their defaults."""
        return {
            "per_neuron": self.per_neuron,
            "angle_schedule": self.schedule,
            "peak_lr": None,
            "inverse_bias_correction": self.inverse_bias_correction,
            "update_norm_decay": self.update_norm_decay,
            "zero_mean": self.zero_mean,
            "rotational_eps": self.eps,
        }

    def validate(self, group: Mapping[str, Any], *, momentum: float) -> None:
        """Raise ValueError if an option of a parameter group is out of range."""
        del momentum
        if group["angle_schedule"] not in ("sqrt", "linear"):
            raise ValueError(f"angle_schedule must be 'sqrt' or 'linear', got {group['angle_schedule']!r}")
        if group["peak_lr"] is not None and not group["peak_lr"] > 0:
            raise ValueError(f"peak_lr must be > 0 or None (the lr given at first), got {group['peak_lr']}")
        if not 0 <= group["update_norm_decay"] < 1:
            raise ValueError(f"update_norm_decay must be in [0, 1), got {group['update_norm_decay']}")
        if not 0 <= group["rotational_eps"] < math.inf:
            raise ValueError(f"rotational_eps must be finite and >= 0, got {group['rotational_eps']}")

    def check_groups(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Raise ValueError if no group has the weight decay that the angle is derived from."""
        if not any(group["weight_decay"] > 0 for group in groups):
            raise ValueError(
                "the angle of a rotation is derived from weight_decay, which must be > 0 in some group, got 0; "
                "use an optimizer without rotation if you want no decay"
            )

    def claims(self, parameter: Tensor, layout: Layout, group: Mapping[str, Any]) -> bool:
        """Take matrices under weight decay whose neurons (or which themselves) have at least two weights."""
        if layout.role == "vector" or group["weight_decay"] == 0:
            return False
        if group["per_neuron"] or group["zero_mean"]:
            return norms.fan_in(parameter, out_dim=layout.out_dim) > 1
        return parameter.numel() > 1

    def new_state(self, parameter: Tensor, layout: Layout, group: Mapping[str, Any]) -> dict[str, Tensor]:
        """Per neuron the kept norm (0: none yet) and the average squared update norm."""
        dtype = norms.compute_dtype(parameter)
        if group["per_neuron"]:
            zeros = [zeros_per_row(parameter, out_dim=layout.out_dim, dtype=dtype) for _ in range(2)]
        else:
            zeros = [
                torch.zeros([1] * parameter.ndim, dtype=dtype, device=parameter.device) for _ in range(2)
            ]
        return {"kept_norm": zeros[0], "update_norm_sq": zeros[1]}

    def scalars(
        self, group: Mapping[str, Any], *, counts: Mapping[str, Number], momentum: Number
    ) -> dict[str, Number]:
        """Return the equilibrium angle, in radians, its correction, and that of the averaged update norm."""
        if "turns" not in counts:  # at lr 0
            return {}
        lr, rate = group["lr"], 2 * group["weight_decay"] * equilibrium_rms(momentum) ** 2
        if group["angle_schedule"] == "linear":
            peak = group["peak_lr"]
            angle = (rate * lr) ** 0.5 if peak is None else (rate * peak) ** 0.5 * lr / peak
        else:
            angle = (rate * lr) ** 0.5
        return {
            "angle": angle,
            "angle_correction": 1 - momentum ** counts["step"] if group["inverse_bias_correction"] else 1.0,
            "average_correction": 1 - group["update_norm_decay"] ** counts["turns"],
        }

    def __call__(self, move: Move) -> None:
        """Make each update tangential, and its step size the one that turns the weight by the angle."""
        if move.still:
            return  # nothing moves, and a norm that is kept must be one that was trained with
        self._check(move)
        if "turns" in move.fresh and move.group["zero_mean"]:
            self._centre_weights(move)
        updates = [move.update.whole(index) for index in range(len(move.weights))]
        kept = [state["kept_norm"] for state in move.states]
        weight_norms = self._norms(move.weights, move)
        self._latch(move, weight_norms)
        wholes = self._norms(updates, move)  # of which centring, too, may leave nothing but rounding
        if move.group["zero_mean"]:
            updates = self._centred(updates, [norm > 0 for norm in kept], move)
        products = self._products(updates, move.weights, move)
        for index, weight in enumerate(move.weights):
            square = weight_norms[index] ** 2
            radial = products[index] / torch.where(square > 0, square, 1.0)
            updates[index] = updates[index] - torch.where(kept[index] > 0, radial, 0.0) * weight
        lengths = self._norms(updates, move)
        equilibrium, correction = move.scalars["angle"], move.scalars["angle_correction"]
        for index, weight in enumerate(move.weights):
            # What rounding leaves of a radial update is no direction to turn to.
            noise = _ROUNDING * torch.finfo(weight.dtype).eps * wholes[index]
            length = torch.where(lengths[index] > noise, lengths[index], 0.0)
            divisor = self._divisor(length, move, index)
            # Controls that came before scale the angle as they scaled the learning rate.
            before = move.step_sizes[index]
            share = before / move.lr
            if isinstance(move.lr, Tensor):  # a captured step may be replayed at lr 0
                share = torch.where(move.lr > 0, share, 0.0)
            angle = correction * equilibrium * share
            turn = torch.where(divisor > 0, angle / torch.where(divisor > 0, divisor, 1.0), 0.0)
            move.step_sizes[index] = torch.where(kept[index] > 0, turn * kept[index], before).to(weight.dtype)
            move.decays[index] = 0.0
            move.scratch[index]["length"] = length
            move.note(index, factor=torch.as_tensor(correction, dtype=length.dtype, device=length.device))
        move.update.numerators = updates
        move.update.corrections = [1.0] * len(updates)
        move.update.denominators = None

    def restore(self, move: Move) -> None:
        """Give every rotational neuron its norm back, and note the mean angle of the neurons that are here."""
        if move.still:
            return
        lengths = self._norms(move.weights, move)
        for index, (weight, norm) in enumerate(zip(move.weights, lengths, strict=True)):
            kept, length = move.states[index]["kept_norm"], move.scratch[index]["length"]
            rotational = kept > 0
            tangent = move.step_sizes[index] * length / torch.where(rotational, kept, 1.0)
            angles = torch.where(rotational, tangent.atan(), 0.0)
            move.note(index, angle=angles.sum() / rotational.sum().clamp(min=1))
            weight.mul_(torch.where(rotational & (norm > 0), kept / torch.where(norm > 0, norm, 1.0), 1.0))

    @staticmethod
    def _check(move: Move) -> None:
        for weight, layout, state in zip(move.weights, move.layouts, move.states, strict=True):
            rows = weight.shape[layout.out_dim] if move.group["per_neuron"] else 1
            if state["kept_norm"].numel() != rows:
                raise RuntimeError("per_neuron was changed after the parameter was given to the optimizer")

    @staticmethod
    def _dims(tensor: Tensor, move: Move, index: int) -> tuple[int, ...]:
        """What a sum over one neuron, or over the whole tensor, runs over."""
        if move.group["per_neuron"]:
            return norms.row_dims(tensor, out_dim=move.layouts[index].out_dim)
        return tuple(range(tensor.ndim))

    def _norms(self, tensors: Sequence[Tensor], move: Move) -> list[Tensor]:
        """l2 norm of each neuron, or of the whole tensor, shaped to broadcast against it."""
        here = [
            torch.linalg.vector_norm(tensor, dim=self._dims(tensor, move, index), keepdim=True)
            for index, tensor in enumerate(tensors)
        ]
        if move.group["per_neuron"]:
            return norms.whole_norms(here, move.peers.add_columns, spread=bool(move.peers.column_groups))
        return norms.whole_norms(here, move.peers.add, spread=bool(move.peers.groups))

    def _products(self, left: Sequence[Tensor], right: Sequence[Tensor], move: Move) -> list[Tensor]:
        """Inner products of each neuron, or of the whole tensor, shaped likewise."""
        partial = [
            (a * b).sum(self._dims(a, move, index), keepdim=True)
            for index, (a, b) in enumerate(zip(left, right, strict=True))
        ]
        return move.peers.add_columns(partial) if move.group["per_neuron"] else move.peers.add(partial)

    @staticmethod
    def _centred(tensors: Sequence[Tensor], where: Sequence[Tensor | bool], move: Move) -> list[Tensor]:
        """Subtract each neuron's mean where asked for."""
        sums = move.peers.add_columns(
            [
                tensor.sum(norms.row_dims(tensor, out_dim=layout.out_dim), keepdim=True)
                for tensor, layout in zip(tensors, move.layouts, strict=True)
            ]
        )
        return [
            tensor - total / part.fan_in * mask
            for tensor, total, part, mask in zip(tensors, sums, move.parts, where, strict=True)
        ]

    def _centre_weights(self, move: Move) -> None:
        """Give each neuron a zero mean at the norm that it has."""
        before = self._norms(move.weights, move)
        centred = self._centred(move.weights, [True] * len(before), move)
        after = self._norms(centred, move)
        for weight, new, norm, left in zip(move.weights, centred, before, after, strict=True):
            # Of a constant neuron centring leaves rounding alone: it stays as it is.
            sound = left > _ROUNDING * torch.finfo(weight.dtype).eps * norm
            weight.copy_(torch.where(sound, new * norm / torch.where(sound, left, 1.0), weight))

    @staticmethod
    def _latch(move: Move, lengths: list[Tensor]) -> None:
        """Keep the norm of neurons that have one at the first rotation, of others when they have grown."""
        for norm, part, state in zip(lengths, move.parts, move.states, strict=True):
            rows = 1 if move.group["per_neuron"] else part.rows
            born = norm > 0 if "turns" in move.fresh else norm >= _BORN_NORM * rows**0.5
            kept = state["kept_norm"]
            kept.copy_(torch.where((kept == 0) & born, norm, kept))

    @staticmethod
    def _divisor(length: Tensor, move: Move, index: int) -> Tensor:
        """Return what to divide the tangential update by, 0 for no turn."""
        divisor, decay = length, move.group["update_norm_decay"]
        average = move.states[index]["update_norm_sq"]
        average.add_((length * length - average) * (1 - decay))
        if isinstance(decay, Tensor) or decay > 0:
            divisor = (average / move.scalars["average_correction"]).sqrt()
        return torch.where(length > 0, divisor + move.group["rotational_eps"], 0.0)
