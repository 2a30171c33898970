"""Rotate each neuron by a chosen angle a step and keep its norm (LionAR, RotationalAdamW)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from warmfree.optim import norms
from warmfree.optim.directions import equilibrium_rms
from warmfree.optim.move import Layout, Move

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
        """Steps made as a rotation; per neuron the kept norm (0: none yet) and the average squared update norm."""
        shape = [1] * parameter.ndim
        if group["per_neuron"]:
            shape[layout.out_dim] = parameter.shape[layout.out_dim]
        zeros = torch.zeros(shape, dtype=norms.compute_dtype(parameter), device=parameter.device)
        turns = torch.tensor(0.0, dtype=torch.float32, device="cpu")
        return {"turns": turns, "kept_norm": zeros, "update_norm_sq": zeros.clone()}

    def __call__(self, move: Move) -> None:
        """Make each update tangential, and its step size the one that turns the weight by the angle."""
        if move.lr == 0:
            return  # nothing moves, and a norm that is kept must be one that was trained with
        for index, weight in enumerate(move.weights):
            state = move.states[index]
            state["turns"] += 1
            self._latch_norms(move, index)
            kept = state["kept_norm"]
            rotational = kept > 0
            equilibrium, correction = self._angle(move, index)
            update, length, divisor = self._tangential(move, index, rotational)
            move.update.numerators[index] = update
            move.update.corrections[index] = 1.0

            # Controls that came before scale the angle as they scaled the learning rate.
            before = move.step_sizes[index]
            angle = correction * equilibrium * (before / move.lr)
            turn = torch.where(divisor > 0, angle / torch.where(divisor > 0, divisor, 1.0), 0.0)
            move.step_sizes[index] = torch.where(rotational, turn * kept, before).to(weight.dtype)
            move.decays[index] = 0.0
            move.scratch[index]["length"] = length
            move.note(index, factor=torch.full((), correction, dtype=length.dtype, device=length.device))
        move.update.denominators = None

    def restore(self, move: Move) -> None:
        """Give every rotational neuron its norm back, and note the angle that was made."""
        if move.lr == 0:
            return
        for index, weight in enumerate(move.weights):
            kept, length = move.states[index]["kept_norm"], move.scratch[index]["length"]
            rotational = kept > 0
            tangent = move.step_sizes[index] * length / torch.where(rotational, kept, 1.0)
            angles = torch.where(rotational, tangent.atan(), 0.0)
            move.note(index, angle=angles.sum() / rotational.sum().clamp(min=1))
            norm = self._norm(weight, move, index)
            weight.mul_(torch.where(rotational & (norm > 0), kept / torch.where(norm > 0, norm, 1.0), 1.0))

    def _norm(self, tensor: Tensor, move: Move, index: int) -> Tensor:
        if move.group["per_neuron"]:
            return norms.row_norms(tensor, out_dim=move.layouts[index].out_dim)
        return norms.frobenius_norm(tensor)

    def _latch_norms(self, move: Move, index: int) -> None:
        """Keep the norm of neurons that have one at the first rotation, of others when they have grown."""
        weight, state = move.weights[index], move.states[index]
        out_dim, kept = move.layouts[index].out_dim, state["kept_norm"]
        norm, first = self._norm(weight, move, index), state["turns"].item() == 1
        if norm.shape != kept.shape:
            raise RuntimeError("per_neuron was changed after the parameter was given to the optimizer")
        if first and move.group["zero_mean"]:
            centred = weight - weight.mean(dim=norms.row_dims(weight, out_dim=out_dim), keepdim=True)
            left = self._norm(centred, move, index)
            # Of a constant neuron centring leaves rounding alone: it stays as it is.
            sound = left > _ROUNDING * torch.finfo(weight.dtype).eps * norm
            weight.copy_(torch.where(sound, centred * norm / torch.where(sound, left, 1.0), weight))
        rows = 1 if move.group["per_neuron"] else weight.shape[out_dim]
        born = norm > 0 if first else norm >= _BORN_NORM * rows**0.5
        kept.copy_(torch.where((kept == 0) & born, norm, kept))

    def _angle(self, move: Move, index: int) -> tuple[float, float]:
        """Return the equilibrium angle at this learning rate, in radians, and the correction to multiply it by."""
        group, momentum = move.group, move.momentum
        rate = 2 * group["weight_decay"] * equilibrium_rms(momentum) ** 2
        if group["angle_schedule"] == "linear":
            peak = float(group["peak_lr"] or move.lr)
            angle = math.sqrt(rate * peak) * move.lr / peak if peak > 0 else 0.0
        else:
            angle = math.sqrt(rate * move.lr)
        return angle, 1 - momentum ** move.steps[index] if group["inverse_bias_correction"] else 1.0

    def _tangential(self, move: Move, index: int, rotational: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the update, tangential where rotational, its length, and what to divide it by (0: do not turn)."""
        weight, group = move.weights[index], move.group
        update = move.update.dense(index) / move.update.corrections[index]
        rows = norms.row_dims(update, out_dim=move.layouts[index].out_dim)
        if group["zero_mean"]:
            update = torch.where(rotational, update - update.mean(dim=rows, keepdim=True), update)
        whole = self._norm(update, move, index)
        dims = rows if group["per_neuron"] else tuple(range(update.ndim))
        square = (weight * weight).sum(dims, keepdim=True)
        radial = (update * weight).sum(dims, keepdim=True) / torch.where(square > 0, square, 1.0)
        update = update - torch.where(rotational, radial, 0.0) * weight
        length = self._norm(update, move, index)
        # What rounding leaves of a radial update is no direction to turn to.
        length = torch.where(length > _ROUNDING * torch.finfo(weight.dtype).eps * whole, length, 0.0)

        divisor, decay = length, group["update_norm_decay"]
        average = move.states[index]["update_norm_sq"]
        average.lerp_(length * length, 1 - decay)
        if decay > 0:
            divisor = (average / (1 - decay ** int(move.states[index]["turns"].item()))).sqrt()
        return update, length, torch.where(length > 0, divisor + group["rotational_eps"], 0.0)
