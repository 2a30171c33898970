r"""Which settings of a warmup-free optimizer do, once training has settled, what tuned settings of Adam do.

From the paces (r, D) of both optimizers, see `pace`: a step of the same RMS, rotating weights by the same angle, needs

.. math::  \mathrm{lr}' = \mathrm{lr}\,\frac{r}{r'}, \qquad
           \mathrm{lr}'\lambda' = \mathrm{lr}\,\lambda\,\frac{r^2}{r'^2}\,\frac{D'}{D}.

LionA with the momentum that was beta1 keeps lr; its weight decay shrinks by D' = 0.51 (momentum 0.9), or weights would
settle at a smaller norm. LionAR and RotationalAdamW turn matrices by :math:`r'\sqrt{2\,\mathrm{lr}'\lambda'}` (D' = 1)
and step everything else as LionA or AdamW at lr': the first equation is for the rest, the second for the matrices, and
the weight decay, which does nothing else there, solves both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from warmfree.advice.pace import Pace, Settings, settings_of
from warmfree.advice.translation_notes import what_differs, what_is_kept
from warmfree.optim import AdamW2, GIAdamW, LionA, LionAR, RotationalAdamW, SizedOptimizer, norms
from warmfree.optim.move import Layout
from warmfree.optim.sharding import local, peers_of

__all__ = ["Angle", "Match", "Translation", "target_class", "translate", "translate_lr"]

Match = Literal["both", "rms", "angle"]
Angle = Literal["settled", "present"]
Target = str | type[SizedOptimizer]

_TARGETS: dict[str, type[SizedOptimizer]] = {
    known.__name__: known for known in (AdamW2, GIAdamW, LionA, LionAR, RotationalAdamW)
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Translation:
    """Settings of another optimizer: `warmfree.LionA(params, lr=t.lr, **t.options)`.

    Attributes:
        optimizer: name of its class.
        lr: peak learning rate.
        options: keyword arguments for its constructor, beside lr.
        update_rms: RMS of its settled update a step, times lr; of a rotational one, of what is not rotated.
        angle: by which it turns weights a step when settled, in radians; None without weight decay.
        exact: what is the same as of the source, in words.
        notes: what is not, and what to know.
    """

    optimizer: str
    lr: float
    options: dict[str, Any]
    update_rms: float
    angle: float | None
    exact: tuple[str, ...]
    notes: tuple[str, ...]


def translate_lr(
    source: Optimizer | Mapping[str, Any],
    to: Target,
    *,
    match: Match = "both",
    momentum: float | None = None,
    weight_decay: float | None = None,
    angle: Angle = "settled",
) -> Translation:
    r"""Translate tuned settings of an optimizer of Adam's kind into those of one of this package.

    .. math::  \mathrm{lr}' = \mathrm{lr}\,\frac{r}{r'} \quad\text{("rms")}, \qquad
               \mathrm{lr}'\lambda' = \mathrm{lr}\,\lambda\,\frac{r^2 D'}{r'^2 D} \quad\text{("angle")}

    "rms" keeps the size of settled steps, "angle" the rotation a step, both for the weight decay that was or is given.
    "both" takes lr' from the first and the weight decay from the second: weights settle at the same norm, too.

    Args:
        source: an optimizer, see `settings_of` for which; or AdamW's settings as a mapping with `lr` and, unless they
            are torch's defaults, `betas`, `eps` and `weight_decay`. Of an optimizer it is the first group with weight
            decay, else the first; `translated` takes all of them. Under a scheduler its peak learning rate counts.
        to: "AdamW2", "GIAdamW", "LionA", "LionAR", "RotationalAdamW", or such a class.
        match: what to keep.
        momentum: of the new optimizer (beta1), in [0, 1); None for the source's.
        weight_decay: of the new optimizer, >= 0, for "rms" and "angle".
        angle: of the rotational optimizers. "settled": that at which the source would settle. "present": that by which
            its settled steps turn neurons of the weights as they are, :math:`\mathrm{lr}\,r/\mathrm{RMS}(w)`: for runs
            too short to settle, and for sources without weight decay.

    Returns:
        A `Translation`, with what is not matched in its `notes`.

    Raises:
        ValueError: the source has no known equilibrium (SGD, Adam with L2 decay ...), what is asked for contradicts
            itself, or a number is out of range.

    Example:
        >>> adamw = {"lr": 1e-3, "betas": (0.9, 0.95), "weight_decay": 0.1}
        >>> translate_lr(adamw, "AdamW2").lr
        0.001
        >>> new = translate_lr(adamw, "LionAR", momentum=0.95)
        >>> round(new.lr, 5), round(new.options["weight_decay"], 4), round(new.angle, 6)
        (0.00143, 0.1433, 0.003244)

    Reference: derived from the equilibria of Kosson et al. 2023 and 2024; what to match is our choice.
    """
    group = _main_group(source) if isinstance(source, Optimizer) else None
    weights = [] if group is None else [(weight, group.get("out_dim", 0)) for weight in group["params"]]
    return translate(
        settings_of(source, group),
        target_class(to),
        match=match,
        momentum=momentum,
        weight_decay=weight_decay,
        angle=angle,
        weights=weights,
    )


def target_class(to: Target) -> type[SizedOptimizer]:
    """Return the optimizer that is meant.

    Raises:
        ValueError: it is none of those that are translated to.
    """
    name = to if isinstance(to, str) else to.__name__
    if name not in _TARGETS:
        raise ValueError(f"can translate to {', '.join(_TARGETS)}, got {name!r}")
    return _TARGETS[name]


def translate(
    source: Settings,
    to: type[SizedOptimizer],
    *,
    match: Match,
    momentum: float | None,
    weight_decay: float | None,
    angle: Angle,
    weights: Iterable[tuple[Tensor, int]],
) -> Translation:
    """Translate the settings of one group; see `translate_lr`.

    Args:
        source: what the group is set to.
        to: one of the optimizers that `target_class` knows.
        match: see `translate_lr`, as the next three.
        momentum: of the new optimizer.
        weight_decay: likewise.
        angle: of a rotational one.
        weights: that it will turn, each with the dimension that counts its neurons.
    """
    rotates, signs = to in (LionAR, RotationalAdamW), to in (LionA, LionAR)
    _check(match, momentum, weight_decay, angle)
    if angle == "present" and not rotates:
        raise ValueError(f"angle='present' is for optimizers that rotate weights; {to.__name__} does not")
    momentum = source.momentum if momentum is None else momentum
    pace = Pace.liona(momentum) if to is LionA else Pace.adam(momentum)
    turn = _present_angle(weights, step=source.update_rms) if angle == "present" and match != "rms" else None
    lr, decay = _solve(source, pace, match=match, weight_decay=weight_decay, turn=turn)
    if rotates and decay == 0:
        raise ValueError(
            f"{to.__name__} derives its angle from a weight decay, and {source.name} has none: there is no angle at "
            f"which it settles. Ask for angle='present', that of its steps at the weights' present norms, or give "
            f"weight_decay with match='rms'"
        )
    new = Settings(
        name=to.__name__,
        lr=lr,
        weight_decay=decay,
        momentum=momentum,
        pace=pace,
        beta2=source.beta2,
        eps=source.eps,
        signs=signs,
    )
    lion = {"momentum": momentum}
    adam = {"betas": (momentum, source.beta2), "eps": source.eps}
    return Translation(
        optimizer=to.__name__,
        lr=lr,
        options={**(lion if signs else adam), "weight_decay": decay},
        update_rms=new.update_rms,
        angle=new.angle,
        exact=what_is_kept(source, new, present=turn is not None),
        notes=what_differs(source, new),
    )


def _check(match: Match, momentum: float | None, weight_decay: float | None, angle: Angle) -> None:
    for name, value, known in (
        ("match", match, ("both", "rms", "angle")),
        ("angle", angle, ("settled", "present")),
    ):
        if value not in known:
            raise ValueError(f"{name} must be {' or '.join(map(repr, known))}, got {value!r}")
    if momentum is not None and not 0 <= momentum < 1:
        raise ValueError(f"momentum must be in [0, 1), got {momentum}")
    if weight_decay is None:
        return
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay must be finite and >= 0, got {weight_decay}")
    if match == "both":
        raise ValueError(
            "match='both' finds the weight decay; to set it, keep the size of steps with match='rms' or the rotation "
            "with match='angle'"
        )


def _solve(
    source: Settings, to: Pace, *, match: Match, weight_decay: float | None, turn: float | None
) -> tuple[float, float]:
    """Return learning rate and weight decay.

    Quotients rather than products, so that equal paces give back the very numbers that came in.
    """
    if not source.decoupled and turn is None and not (match == "rms" and weight_decay is not None):
        raise ValueError(
            f"the weight decay of {source.name} is added to the gradient (L2), and nobody knows which decoupled one it "
            f"amounts to: use match='rms' with a weight_decay, or decoupled_weight_decay=True in the source"
        )
    lr = source.lr * (source.pace.rms / to.rms)
    if match == "rms":
        return lr, source.weight_decay if weight_decay is None else weight_decay
    share = (source.pace.rms / to.rms) ** 2 * (to.walk / source.pace.walk)
    if match == "both":
        if turn is not None:
            return lr, turn**2 * to.walk / (2 * to.rms**2 * lr)
        return lr, source.weight_decay * share * (source.lr / lr)
    decay = source.weight_decay if weight_decay is None else weight_decay
    if decay == 0 or (source.weight_decay == 0 and turn is None):
        raise ValueError(
            f"match='angle' needs weight decay, without which nothing settles: {source.name} has "
            f"{source.weight_decay:g}, the new optimizer would have {decay:g}; use match='rms'"
        )
    if turn is not None:
        return turn**2 * to.walk / (2 * to.rms**2 * decay), decay
    return source.lr * share * (source.weight_decay / decay), decay


def _main_group(optimizer: Optimizer) -> dict[str, Any]:
    groups = optimizer.param_groups
    return next((group for group in groups if group.get("weight_decay")), groups[0])


@torch.no_grad()
def _present_angle(weights: Iterable[tuple[Tensor, int]], *, step: float) -> float:
    """Return the RMS over neurons of the angle that independent changes of RMS `step` turn them by, in radians."""
    total = count = 0.0
    for weight, out_dim in weights:
        if weight.ndim < 2 or norms.fan_in(weight, out_dim=out_dim) < 2:
            continue
        part, peers = local(weight.detach()), peers_of(weight, Layout("matrix", out_dim % weight.ndim))
        squares = part.to(norms.scalar_dtype(part.device)).square().sum(norms.row_dims(part, out_dim=out_dim))
        (squares,) = peers.add_columns([squares])
        squares = squares[squares > 0] / norms.fan_in(weight, out_dim=out_dim)
        angles = torch.atan(step / squares.sqrt())
        (sums,) = peers.add_rows(
            [torch.stack([angles.square().sum(), angles.new_tensor(float(len(angles)))])]
        )
        total, count = total + float(sums[0]), count + float(sums[1])
    if count == 0:
        raise ValueError(
            "angle='present' is that of an optimizer's matrices, and needs one that is not zero: got none"
        )
    return math.sqrt(total / count)
