r"""What an optimizer does to weights once it has settled: the size of its steps, and how far many of them lead.

On gradients of white noise a step changes the n elements of a tensor by updates of RMS :math:`\mathrm{lr}\,r`, and
many steps carry it as far as independent ones of mean square :math:`\mathrm{lr}^2 D` would. Decoupled weight decay
takes back what this walk adds, so that norm and rotation a step settle at

.. math::  \|w\|^2 = \frac{\mathrm{lr}\,nD}{2\lambda}, \qquad
           \theta = \frac{\mathrm{lr}\,r\sqrt n}{\|w\|} = r\sqrt{2\,\mathrm{lr}\,\lambda/D}.

An optimizer is its pace (r, D): two of them at equal lr r make the same step, at equal lr lambda r^2 / D the same
rotation, and at both the same norm.

Reference: Kosson et al. 2023, arXiv 2305.17212 (AdamW, Lion); see `white_noise`. The form by (r, D) is derived.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer

from warmfree.measure.momentum import unwrapped
from warmfree.measure.white_noise import sign_displacement
from warmfree.optim.directions import Adam, Lion, equilibrium_rms

__all__ = ["Pace", "Settings", "peak_lr", "settings_of"]

# torch's, for AdamW.
_DEFAULTS: dict[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}
_KINDS = frozenset({"Adam", "AdamW", "RAdam", "NAdam"})
# OneCycleLR scales max_lr, other schedulers initial_lr; without one there is only lr.
_PEAKS = ("max_lr", "initial_lr", "lr")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """How one unit of learning rate moves settled weights, on gradients of white noise.

    Attributes:
        rms: root mean square r of a step's update.
        walk: mean square D of the independent steps that lead as far; 1 for all averages whose weights sum to one.
    """

    rms: float
    walk: float = 1.0

    @classmethod
    def adam(cls, momentum: float) -> Pace:
        """Of AdamW, RAdam, AdamW2, GIAdamW and, their angle being AdamW's, the rotational optimizers."""
        return cls(rms=float(equilibrium_rms(momentum)))

    @classmethod
    def nadam(cls, momentum: float) -> Pace:
        """Of NAdam, whose newest gradient weighs 1 - b^2, when its momentum has risen to b = beta1."""
        return cls(rms=math.sqrt((1 - momentum**2) ** 2 + momentum**4 * (1 - momentum) / (1 + momentum)))

    @classmethod
    def liona(cls, momentum: float, *, nesterov: bool = True) -> Pace:
        """Of LionA: Adam's steps, whose signs lose some of the correlation that would carry them on."""
        rms = float(equilibrium_rms(momentum))
        betas = (momentum**2 if nesterov else momentum, momentum)
        return cls(rms=rms, walk=rms**2 * sign_displacement(betas=betas))

    def angle(self, *, lr: float, weight_decay: float) -> float:
        """Angle a step at which weights settle, in radians: r sqrt(2 lr wd / D); 0 without decay.

        Example:
            >>> round(Pace.adam(0.9).angle(lr=1e-3, weight_decay=0.1), 6)
            0.003244
        """
        return self.rms * math.sqrt(2 * lr * weight_decay / self.walk)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a group of an optimizer of Adam's kind, or of this package, is set to.

    Attributes:
        name: of the optimizer's class.
        lr: peak learning rate, > 0.
        weight_decay: >= 0.
        momentum: beta1, or LionA's momentum.
        pace: how it moves weights.
        beta2: of Adam; torch's default if there is none.
        eps: likewise.
        decoupled: the decay is multiplied by lr alone; False: it is added to the gradient (L2).
        signs: updates are signs, of one size whatever the gradients.
    """

    name: str
    lr: float
    weight_decay: float
    momentum: float
    pace: Pace
    beta2: float = 0.999
    eps: float = 1e-8
    decoupled: bool = True
    signs: bool = False

    @property
    def update_rms(self) -> float:
        """RMS of a settled step, lr included."""
        return self.lr * self.pace.rms

    @property
    def walk_rms(self) -> float:
        """RMS of the independent steps that lead as far as settled ones, lr included."""
        return self.lr * math.sqrt(self.pace.walk)

    @property
    def angle(self) -> float | None:
        """Angle a step at which weights settle, in radians; None without decay, or if it is not known."""
        known = self.decoupled and self.weight_decay > 0
        return self.pace.angle(lr=self.lr, weight_decay=self.weight_decay) if known else None


def settings_of(source: Optimizer | Mapping[str, Any], group: Mapping[str, Any] | None = None) -> Settings:
    """Read the settings of a group of an optimizer, or of AdamW from a mapping.

    Args:
        source: torch's Adam, AdamW, RAdam, NAdam; the 8-bit ones of bitsandbytes; an optimizer of this package with
            the direction of Adam or Lion; or AdamW's `lr`, `betas`, `eps`, `weight_decay`, all but lr with torch's
            defaults.
        group: one of its groups.

    Raises:
        ValueError: nothing is known of such an optimizer, or an option is unknown or out of range.
    """
    if not isinstance(source, Optimizer):
        if unknown := source.keys() - {"lr", *_DEFAULTS}:
            raise ValueError(
                f"settings have lr, betas, eps and weight_decay, got {', '.join(sorted(unknown))}"
            )
        if "lr" not in source:
            raise ValueError(
                "settings must have an lr: {'lr': 1e-3, 'betas': (0.9, 0.95), 'weight_decay': 0.1}"
            )
        return _adam("AdamW", {**_DEFAULTS, **source})
    optimizer = unwrapped(source)
    group = optimizer.param_groups[0] if group is None else group
    name, direction = type(optimizer).__name__, getattr(optimizer, "direction", None)
    if isinstance(direction, Lion):
        momentum, nesterov = float(group["momentum"]), bool(group["nesterov"])
        rotates = "angle_schedule" in group
        pace = Pace.adam(momentum) if rotates else Pace.liona(momentum, nesterov=nesterov)
        return Settings(
            name=name,
            lr=peak_lr(group),
            weight_decay=float(group["weight_decay"]),
            momentum=momentum,
            pace=pace,
            signs=True,
        )
    if isinstance(direction, Adam):
        return _adam(name, group)
    kind = next(
        (found for base in type(optimizer).__mro__ if (found := _plain(base.__name__)) in _KINDS), None
    )
    if kind is None:
        raise ValueError(
            f"{name} cannot be translated: the size of its steps depends on that of the gradients, or is not known. "
            f"Known are {', '.join(sorted(_KINDS))} and the optimizers of this package; else pass the settings of a "
            f"tuned AdamW as a mapping"
        )
    decoupled = kind == "AdamW" or bool(group.get("decoupled_weight_decay"))
    return _adam(name, group, nesterov=kind == "NAdam", decoupled=decoupled)


def _plain(name: str) -> str:
    """Take off what bitsandbytes adds to the names of optimizers that make the same step."""
    return name.removeprefix("Paged").removesuffix("8bit").removesuffix("32bit")


def _adam(name: str, group: Mapping[str, Any], *, nesterov: bool = False, decoupled: bool = True) -> Settings:
    beta1, beta2 = map(float, group["betas"])
    if not (0 <= beta1 < 1 and 0 <= beta2 < 1):
        raise ValueError(f"betas must be two numbers in [0, 1), got {group['betas']}")
    if group.get("amsgrad"):
        raise ValueError(
            f"{name} with amsgrad cannot be translated: it makes steps smaller by an amount that nobody knows. Pass "
            f"the settings of an AdamW without it"
        )
    weight_decay = float(group["weight_decay"])
    return Settings(
        name=name,
        lr=peak_lr(group),
        weight_decay=weight_decay,
        momentum=beta1,
        pace=Pace.nadam(beta1) if nesterov else Pace.adam(beta1),
        beta2=beta2,
        eps=float(group["eps"]),
        decoupled=decoupled or weight_decay == 0,
    )


def peak_lr(group: Mapping[str, Any]) -> float:
    """Return the learning rate that a scheduler scales, else the group's present one.

    Raises:
        ValueError: it is not above 0.
    """
    lr = float(next(group[key] for key in _PEAKS if key in group))
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be finite and > 0 to be translated, got {lr}")
    return lr
