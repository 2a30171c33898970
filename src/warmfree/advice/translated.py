"""Build the optimizer that takes the place of another, group by group."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from warmfree.advice.pace import settings_of
from warmfree.advice.translation import Angle, Match, Target, Translation, target_class, translate
from warmfree.measure.momentum import unwrapped
from warmfree.optim import AdamW2, LionA, LionAR, RotationalAdamW, SizedOptimizer, norms, parameter_groups

__all__ = ["translated"]

# What rotational optimizers are to a tensor that they do not turn.
_UNTURNED: dict[type[SizedOptimizer], type[SizedOptimizer]] = {LionAR: LionA, RotationalAdamW: AdamW2}
# Options of a group that mean the same in torch's optimizers and in ours.
_SHARED = ("foreach", "maximize", "role", "out_dim", "split")
Group = dict[str, Any]


class _Member(NamedTuple):
    """A parameter of a group."""

    weight: Tensor
    name: str | None
    role: str | None  # as `parameter_groups` says
    out_dim: int  # that counts its neurons


def translated(
    optimizer: Optimizer,
    to: Target,
    *,
    match: Match = "both",
    momentum: float | None = None,
    weight_decay: float | None = None,
    angle: Angle = "settled",
    model: nn.Module | None = None,
    **options: Any,
) -> SizedOptimizer:
    """Return an optimizer of this package, for the same parameters, that settles as the given one would.

    Every group is translated by itself: groups, their order, names of parameters and ratios of learning rates stay. A
    group without weight decay stays without and keeps the size of its steps. The new optimizer has no state yet; make
    schedulers anew, for it.

    A group of which LionAR or RotationalAdamW turns one part only falls into two, of which the second, with vectors and
    embeddings (known by the groups' roles or by the model), gets the settings that LionA or AdamW would get.

    Args:
        optimizer: an optimizer that `translate_lr` knows.
        to: "AdamW2", "GIAdamW", "LionA", "LionAR", "RotationalAdamW", or such a class.
        match: see `translate_lr`.
        momentum: see `translate_lr`.
        weight_decay: of the groups that have decay, or of all if none has; see `translate_lr`.
        angle: see `translate_lr`; "present" turns the matrices of all groups if none has decay.
        model: tells the rotational optimizers which parameters are embeddings, tied heads included, and of which
            matrices the output neurons are columns.
        options: further ones of the new optimizer's constructor, such as tau or fused.

    Raises:
        ValueError: see `translate_lr`; or an option that is translated, or carried over, is given again.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        >>> adamw = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
        >>> new = translated(adamw, "LionAR", model=model)
        >>> [(len(group["params"]), group["lr"], round(group["weight_decay"], 3)) for group in new.param_groups]
        [(1, 0.001, 0.1), (3, 0.001, 0.051)]

    Reference: see `translate_lr`; to translate what is not rotated by itself is our choice.
    """
    build, optimizer = target_class(to), unwrapped(optimizer)
    roles, rotates, groups = _roles_in(model), build in _UNTURNED, list[Group]()
    decayed = [
        group for group in optimizer.param_groups if group.get("weight_decay")
    ] or optimizer.param_groups
    keep: Match = "rms" if match == "rms" else "both"
    for group in optimizer.param_groups:
        settings, members = settings_of(optimizer, group), _members(group, roles)
        decays = any(group is other for other in decayed)
        wanted = partial(
            translate, settings, build, match=match, momentum=momentum, weight_decay=weight_decay, angle=angle
        )
        plain = partial(
            translate,
            settings,
            _UNTURNED.get(build, build),
            match=keep,
            momentum=momentum,
            weight_decay=weight_decay if decays and match == "rms" else None,
            angle="settled",
            weights=(),
        )
        turned = [member for member in members if rotates and decays and _can_turn(member)]
        for out_dim in dict.fromkeys(member.out_dim for member in turned):
            some = [member for member in turned if member.out_dim == out_dim]
            new = wanted(weights=[(member.weight, out_dim) for member in some])
            groups.append(_group(group, some, new, out_dim=out_dim))
        taken = {id(member.weight) for member in turned}
        rest = [member for member in members if id(member.weight) not in taken]
        if rest and rotates:
            # Of the matrices among them no role must let the rotation in.
            groups.append(_group(group, rest, plain(), **({"role": "vector"} if decays else {})))
        elif rest:
            groups.append(_group(group, rest, wanted(weights=()) if decays else plain()))
    return _built(build, groups, options)


def _roles_in(model: nn.Module | None) -> dict[int, tuple[str, int]]:
    """Map the ids of a model's parameters to role and out_dim."""
    groups = [] if model is None else parameter_groups(model)
    return {
        id(weight): (group["role"], group["out_dim"]) for group in groups for _, weight in group["params"]
    }


def _members(group: Group, roles: Mapping[int, tuple[str, int]]) -> list[_Member]:
    """List a group's parameters; what its options say of them goes before what the model says."""
    names = group.get("param_names") or [None] * len(group["params"])
    members = []
    for weight, name in zip(group["params"], names, strict=True):
        role, out_dim = roles.get(id(weight), (None, 0))
        members.append(_Member(weight, name, group.get("role") or role, group.get("out_dim", out_dim)))
    return members


def _can_turn(member: _Member) -> bool:
    """Return whether a parameter is a matrix that a rotational optimizer should turn."""
    plain = member.role in ("vector", "embedding") or member.weight.ndim < 2
    return not plain and norms.fan_in(member.weight, out_dim=member.out_dim) > 1


def _group(old: Group, members: list[_Member], new: Translation, **options: Any) -> Group:
    shared = {key: old[key] for key in _SHARED if key in old}
    params = [member.weight if member.name is None else (member.name, member.weight) for member in members]
    return {**shared, **options, "params": params, "lr": new.lr, **new.options}


def _built(build: type[SizedOptimizer], groups: list[Group], options: Mapping[str, Any]) -> SizedOptimizer:
    """Make the optimizer; groups that are added to it later begin with the settings of its first with decay."""
    main = next((group for group in groups if group["weight_decay"]), groups[0])
    if clash := options.keys() & {key for group in groups for key in group}:
        raise ValueError(
            f"{', '.join(sorted(clash))} come from the given optimizer and cannot be given again"
        )
    defaults = {key: main[key] for key in ("lr", "betas", "eps", "momentum", "weight_decay") if key in main}
    return build(groups, **defaults, **options)
