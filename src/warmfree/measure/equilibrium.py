"""Where weight decay leads, for a known optimizer: the rotation a step and the norm at which weights settle.

A measured angle above it says that updates are large for the size that the weights have, as without warmup in the
first steps; one below it, that the weights are still larger than they will stay.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from warmfree.measure.white_noise import (
    adam_update_rms,
    adamw_angle,
    lion_angle,
    sgd_angle,
    sign_displacement,
    walk_norm,
)
from warmfree.optim.norms import fan_in

__all__ = ["Equilibrium", "predicted_equilibrium", "predicted_update_rms"]

Group = Mapping[str, Any]

# Under these names, or under a class of these names, optimizers make torch's AdamW step.
_ADAMW = frozenset(
    {"AdamW", "AdamW8bit", "AdamW32bit", "PagedAdamW", "PagedAdamW8bit", "PagedAdamW32bit", "AdamWFp8"}
)
_LION = frozenset({"Lion", "Lion8bit", "Lion32bit", "PagedLion", "PagedLion8bit", "PagedLion32bit"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Equilibrium:
    """Where a tensor settles.

    Attributes:
        angle: rotation of the tensor in one step, in radians; None if it is not known.
        norm: its l2 norm; None if it is not known, or a matter of the gradients.
        reason: why something is None, "" if nothing is.
    """

    angle: float | None
    norm: float | None
    reason: str = ""


def predicted_equilibrium(optimizer: Optimizer, *, model: nn.Module | None = None) -> dict[str, Equilibrium]:
    """Say where each parameter of an optimizer settles at its present learning rate.

    Known are torch's AdamW, SGD, and Adam and RAdam with decoupled decay; optimizers called Lion; and those of this
    package. What their size controls leave of a step multiplies lr and is not in it, but for the rotation of LionAR and
    RotationalAdamW: the angle that they turn by at every step, once an inverse bias correction has passed. All others
    are predicted for gradients of pure noise; see `white_noise` for formulas and sources.

    Args:
        optimizer: of torch.optim's kind.
        model: names the parameters; else they have the optimizer's names, or "group.index".

    Returns:
        One `Equilibrium` per parameter; for what is not known None and the reason.

    Example:
        >>> import torch
        >>> model = nn.Linear(4, 4)
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
        >>> found = predicted_equilibrium(optimizer, model=model)["bias"]
        >>> round(found.angle, 6), round(found.norm, 6)
        (0.003244, 0.141421)
        >>> predicted_equilibrium(torch.optim.SGD(model.parameters()))["0.0"]
        Equilibrium(angle=None, norm=None, reason='no weight decay: nothing settles')
    """
    return {
        name: _equilibrium(optimizer, group, parameter)
        for name, group, parameter in _members(optimizer, model)
    }


def predicted_update_rms(
    optimizer: Optimizer, *, step: int, model: nn.Module | None = None
) -> dict[str, float | None]:
    """Say which update RMS (weight change / lr) each parameter has at a step if its gradients are white noise.

    Args:
        optimizer: of torch.optim's kind.
        step: 1 for the first.
        model: names the parameters, as for `predicted_equilibrium`.

    Returns:
        RMS by name, without decay and before size controls; None where it is a matter of the gradients (SGD; the first
        ones of GI-Adam) or not known.

    Example:
        >>> import torch
        >>> predicted_update_rms(torch.optim.Adam([torch.nn.Parameter(torch.ones(2))]), step=1)
        {'0.0': 1.0}
    """
    found = {}
    for name, group, _ in _members(optimizer, model):
        kind = _kind(optimizer, group)
        rms: float | None = None
        direction = getattr(optimizer, "direction", None)
        if kind == "adam" and not (group.get("amsgrad") or getattr(direction, "gradient_start", False)):
            corrected = getattr(direction, "correct_momentum", True)
            rms = adam_update_rms(step, betas=_betas(group), correct_momentum=corrected)
        elif kind == "lion":
            rms = _lion_rms(group)
        found[name] = rms
    return found


def _members(optimizer: Optimizer, model: nn.Module | None) -> Iterator[tuple[str, Group, Tensor]]:
    """Name the parameters with their groups."""
    known = {id(weight): name for name, weight in model.named_parameters()} if model is not None else {}
    for place, group in enumerate(optimizer.param_groups):
        names = group.get("param_names")
        for index, parameter in enumerate(group["params"]):
            name = names[index] if names else f"{place}.{index}"
            yield known.get(id(parameter), name), group, parameter


def _equilibrium(optimizer: Optimizer, group: Group, parameter: Tensor) -> Equilibrium:
    if group.get("lr") is None:
        return _unknown("the optimizer has no learning rate, or finds it by itself")
    lr, weight_decay = float(group["lr"]), float(group.get("weight_decay", 0.0))
    if weight_decay == 0 or lr == 0:
        return _unknown("no weight decay: nothing settles" if weight_decay == 0 else "the learning rate is 0")
    if group.get("weight_decouple") is False or group.get("fixed_decay"):
        return _unknown("no formula for this kind of weight decay")
    if "angle_schedule" in group and _rotates(group, parameter):
        return Equilibrium(
            angle=_rotation(group, lr=lr), norm=None, reason="a rotation keeps the norm it began with"
        )
    kind, decay = _kind(optimizer, group), {"lr": lr, "weight_decay": weight_decay}
    if kind in ("adam", "radam"):
        if not _is_decoupled(optimizer, group):
            return _unknown("no formula for Adam with L2 decay; decoupled decay (AdamW) has one")
        angle = adamw_angle(**decay, beta1=_betas(group)[0])
        if group.get("amsgrad"):
            return Equilibrium(
                angle=angle, norm=None, reason="amsgrad makes updates smaller, nobody knows by what"
            )
        return Equilibrium(angle=angle, norm=walk_norm(**decay, size=parameter.numel()))
    if kind == "lion":
        displacement = sign_displacement(betas=_betas(group)) * _lion_rms(group) ** 2
        norm = walk_norm(**decay, size=parameter.numel(), displacement=displacement)
        return Equilibrium(angle=lion_angle(**decay, betas=_betas(group)), norm=norm)
    if kind == "sgd":
        options = {name: float(group.get(name) or 0) for name in ("momentum", "dampening")}
        angle = sgd_angle(
            **decay,
            momentum=options["momentum"],
            dampening=options["dampening"] if options["momentum"] else 0.0,
            nesterov=bool(group.get("nesterov")),
            decoupled=_is_decoupled(optimizer, group),
        )
        return Equilibrium(angle=angle, norm=None, reason="the norm depends on the size of the gradients")
    return _unknown(f"no formula for {type(optimizer).__name__}")


def _unknown(reason: str) -> Equilibrium:
    return Equilibrium(angle=None, norm=None, reason=reason)


def _kind(optimizer: Optimizer, group: Group) -> str | None:
    """Recognise an optimizer: "adam", "radam", "lion", "sgd" or None."""
    optimizer = getattr(optimizer, "inner", optimizer)  # size controls around another
    if (direction := getattr(optimizer, "direction", None)) is not None:
        return type(direction).__name__.lower()
    for name in (base.__name__ for base in type(optimizer).__mro__):
        if name in _ADAMW or name == "Adam":
            return "adam"
        if name in _LION and len(group.get("betas", ())) == 2:
            return "lion"
        if name in ("RAdam", "SGD"):
            return name.lower()
    return None


def _is_decoupled(optimizer: Optimizer, group: Group) -> bool:
    optimizer = getattr(optimizer, "inner", optimizer)
    named = any(base.__name__ in _ADAMW for base in type(optimizer).__mro__)
    return named or hasattr(optimizer, "direction") or bool(group.get("decoupled_weight_decay"))


def _betas(group: Group) -> tuple[float, float]:
    """Return Adam's or Lion's betas, those that LionA amounts to included."""
    if "betas" in group:
        return float(group["betas"][0]), float(group["betas"][1])
    momentum = float(group["momentum"])
    return (momentum**2 if group["nesterov"] else momentum), momentum


def _lion_rms(group: Group) -> float:
    """RMS of a sign-optimizer's updates: LionA's, which has one momentum constant, are as large as Adam's."""
    return 1.0 if "betas" in group else math.sqrt((1 - group["momentum"]) / (1 + group["momentum"]))


def _rotates(group: Group, parameter: Tensor) -> bool:
    """Return whether a rotational optimizer turns a parameter."""
    if parameter.ndim < 2 or group.get("role") == "vector":
        return False
    return fan_in(parameter, out_dim=group.get("out_dim", 0)) > 1 or not (
        group["per_neuron"] or group["zero_mean"]
    )


def _rotation(group: Group, *, lr: float) -> float:
    """Angle by which a rotational optimizer turns a neuron."""
    momentum = float(group["betas"][0] if "betas" in group else group.get("momentum", 0.0))
    peak = group["peak_lr"] if group["angle_schedule"] == "linear" and group["peak_lr"] else lr
    return math.atan(adamw_angle(lr=peak, weight_decay=group["weight_decay"], beta1=momentum) * lr / peak)
