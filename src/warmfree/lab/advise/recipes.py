"""Optimizers by name, with the options that people give them: the lab's methods and plain ones of torch."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import nn
from torch.optim import Optimizer

from warmfree.lab.advise.muon import MuonAndAdamW
from warmfree.lab.methods import METHODS
from warmfree.optim import parameter_groups

__all__ = ["OPTIMIZERS", "Recipe"]

BETA1, BETA2, WEIGHT_DECAY = 0.9, 0.95, 0.1

Betas = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kind:
    """An optimizer: what makes it of (model, lr, weight_decay, betas), defaults, and the options it has no use for."""

    make: Callable[[nn.Module, float, float, Betas], Optimizer]
    lr: float
    weight_decay: float = WEIGHT_DECAY
    beta1: float = BETA1
    ignores: tuple[str, ...] = ()


def _method(name: str, *ignores: str) -> _Kind:
    method = METHODS[name]

    def make(model: nn.Module, lr: float, weight_decay: float, betas: Betas) -> Optimizer:
        return method.build(model, lr=lr, weight_decay=weight_decay, betas=betas)

    return _Kind(make=make, lr=method.lrs[2], ignores=ignores)


def _adam_like(kind: Callable[..., Optimizer]) -> Callable[[nn.Module, float, float, Betas], Optimizer]:
    def make(model: nn.Module, lr: float, weight_decay: float, betas: Betas) -> Optimizer:
        return kind(parameter_groups(model, weight_decay=weight_decay), lr=lr, betas=betas)

    return make


def _sgd(model: nn.Module, lr: float, weight_decay: float, betas: Betas) -> Optimizer:
    return torch.optim.SGD(parameter_groups(model, weight_decay=weight_decay), lr=lr, momentum=betas[0])


def _adagrad(model: nn.Module, lr: float, weight_decay: float, betas: Betas) -> Optimizer:  # noqa: ARG001 (has none)
    return torch.optim.Adagrad(parameter_groups(model, weight_decay=weight_decay), lr=lr)


def _muon(model: nn.Module, lr: float, weight_decay: float, betas: Betas) -> Optimizer:
    return MuonAndAdamW(model, lr=lr, weight_decay=weight_decay, momentum=betas[0], betas=(BETA1, betas[1]))


# Weight decay that goes through the gradient is off unless it is asked for: 0.1 there would be a different thing.
OPTIMIZERS: dict[str, _Kind] = {
    "adamw": _method("adamw"),
    "adam": _Kind(make=_adam_like(torch.optim.Adam), lr=1e-3, weight_decay=0.0),
    "nadam": _Kind(make=_adam_like(torch.optim.NAdam), lr=1e-3, weight_decay=0.0),
    "adamax": _Kind(make=_adam_like(torch.optim.Adamax), lr=2e-3, weight_decay=0.0),
    "adagrad": _Kind(make=_adagrad, lr=1e-2, weight_decay=0.0, ignores=("beta1", "beta2")),
    "sgd": _Kind(make=_sgd, lr=0.1, weight_decay=0.0, ignores=("beta2",)),
    "muon": _Kind(make=_muon, lr=1e-3, beta1=0.95),
    "radam": _method("radam"),
    "adamd": _method("adamd"),
    "adamw2": _method("adamw2"),
    "gi-adamw": _method("gi-adamw"),
    "liona": _method("liona", "beta2"),
    "lionar": _method("lionar", "weight_decay", "beta1", "beta2"),
    "rotational-adamw": _method("rotational-adamw", "weight_decay"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """An optimizer and its options, as typed; None takes the optimizer's own default.

    Attributes:
        name: one of `OPTIMIZERS`; None for adamw.
        lr: the full learning rate, > 0.
        weight_decay: of matrices, embeddings and the head, >= 0.
        beta1: momentum of whatever kind, in [0, 1).
        beta2: of the second moment, in [0, 1).

    Raises:
        ValueError: a number is out of range, the name is unknown, or the optimizer has no such option.

    Example:
        >>> optimizer = Recipe(name="sgd", lr=0.5).build(nn.Linear(2, 2))
        >>> type(optimizer).__name__, optimizer.param_groups[0]["momentum"]
        ('SGD', 0.9)
    """

    name: str | None = None
    lr: float | None = None
    weight_decay: float | None = None
    beta1: float | None = None
    beta2: float | None = None

    def __post_init__(self) -> None:
        name = self.name or "adamw"
        if name in METHODS and METHODS[name].warmup:
            raise ValueError(
                f"{name} has a warmup, and whether it needs one is the question; leave the warmup out"
            )
        if name not in OPTIMIZERS:
            close = " or ".join(map(repr, get_close_matches(name, OPTIMIZERS, n=2)))
            hint = f"did you mean {close}? Known: " if close else "known: "
            raise ValueError(f"unknown optimizer {name!r}; {hint}{', '.join(OPTIMIZERS)}")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be finite and > 0, got {self.lr}")
        if self.weight_decay is not None and not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be finite and >= 0, got {self.weight_decay}")
        for option in ("beta1", "beta2"):
            value = getattr(self, option)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"{option} must be in [0, 1), got {value}")
        for option in OPTIMIZERS[name].ignores:
            if getattr(self, option) is not None:
                raise ValueError(
                    f"--{option.replace('_', '-')} has no effect on the optimizer {name}; leave it out"
                )

    def build(self, model: nn.Module) -> Optimizer:
        """Make the optimizer of a model."""
        kind = OPTIMIZERS[self.name or "adamw"]
        lr, weight_decay, beta1, beta2 = (
            default if given is None else given
            for given, default in (
                (self.lr, kind.lr),
                (self.weight_decay, kind.weight_decay),
                (self.beta1, kind.beta1),
                (self.beta2, BETA2),
            )
        )
        return kind.make(model, lr, weight_decay, (beta1, beta2))
