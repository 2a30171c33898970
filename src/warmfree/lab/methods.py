"""The training methods that the lab compares: an optimizer, its warmup and the learning rates to try."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from warmfree.optim import (
    Adam,
    AdamW2,
    GIAdamW,
    LionA,
    LionAR,
    RotationalAdamW,
    SizedOptimizer,
    parameter_groups,
)

__all__ = ["METHODS", "Method", "find_methods"]


class Build(Protocol):
    """Make the optimizer of a method."""

    def __call__(
        self, model: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float]
    ) -> Optimizer: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """One way to train, as compared.

    Attributes:
        name: what the command line calls it; also in file names.
        label: what tables and figures call it.
        kind: 'baseline', or 'warmup-free' for an optimizer made to need none.
        description: one line.
        build: makes the optimizer for a model.
        lrs: the learning rates to try, ascending.
        warmup: fraction of the run spent on linear warmup, in [0, 1].
    """

    name: str
    label: str
    kind: Literal["baseline", "warmup-free"]
    description: str
    build: Build
    lrs: tuple[float, ...]
    warmup: float = 0.0

    def settings(self) -> dict[str, Any]:
        """Return the optimizer's class and options but the learning rate, and the warmup, as JSON values.

        Two results of a method may be compared only if these agree.

        Example:
            >>> METHODS["radam"].settings()["groups"][0]["decoupled_weight_decay"]
            True
        """
        model = nn.Sequential(nn.Embedding(2, 2), nn.Linear(2, 2))
        optimizer = self.build(model, lr=1.0, weight_decay=0.1, betas=(0.9, 0.95))
        return {
            "optimizer": type(optimizer).__name__,
            "parts": [repr(getattr(optimizer, part, None)) for part in ("direction", "controls")],
            "warmup": self.warmup,
            "groups": [
                {
                    key: value if isinstance(value, int | float | str | None) else repr(value)
                    for key, value in group.items()
                    if key not in ("params", "param_names", "lr")
                }
                for group in optimizer.param_groups
            ],
        }


def find_methods(names: Iterable[str]) -> list[Method]:
    """Return the methods of these names, in this order.

    Raises:
        ValueError: a name is unknown or given twice; the message lists the known ones and the closest.

    Example:
        >>> [method.label for method in find_methods(["adamw", "radam"])]
        ['AdamW', 'RAdam']
    """
    found: dict[str, Method] = {}
    for name in names:
        if name in found:
            raise ValueError(f"optimizer {name!r} is given twice")
        if name not in METHODS:
            close = " or ".join(map(repr, get_close_matches(name, METHODS, n=2)))
            hint = f"did you mean {close}? Known: " if close else "known: "
            raise ValueError(f"unknown optimizer {name!r}; {hint}{', '.join(METHODS)}")
        found[name] = METHODS[name]
    return list(found.values())


def _adamw(model: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float]) -> Optimizer:
    return torch.optim.AdamW(parameter_groups(model, weight_decay=weight_decay), lr=lr, betas=betas)


def _radam(model: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float]) -> Optimizer:
    groups = parameter_groups(model, weight_decay=weight_decay)
    return torch.optim.RAdam(groups, lr=lr, betas=betas, decoupled_weight_decay=True)


def _adamd(model: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float]) -> Optimizer:
    groups = parameter_groups(model, weight_decay=weight_decay)
    return SizedOptimizer(groups, Adam(betas=betas, correct_momentum=False), lr=lr, weight_decay=weight_decay)


def _adamw2(model: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float]) -> Optimizer:
    return AdamW2(parameter_groups(model, weight_decay=weight_decay), lr=lr, betas=betas)


def _gi_adamw(model: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float]) -> Optimizer:
    return GIAdamW(parameter_groups(model, weight_decay=weight_decay), lr=lr, betas=betas)


def _liona(model: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float]) -> Optimizer:
    return LionA(parameter_groups(model, weight_decay=weight_decay), lr=lr, momentum=betas[0])


# The rotational optimizers read the angle off lr * weight_decay and leave norms alone. The weight decay that suits
# AdamW is too small for angles of use in a short run, and embeddings whose rows keep their initial norm, tied to the
# head, could not become confident: those are left to the plain direction, without decay.
_ROTATIONAL_DECAY = 1.0


def _lionar(model: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float]) -> Optimizer:
    del weight_decay, betas
    return LionAR(parameter_groups(model, weight_decay=_ROTATIONAL_DECAY, embedding_decay=0.0), lr=lr)


def _rotational_adamw(
    model: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float]
) -> Optimizer:
    del weight_decay
    groups = parameter_groups(model, weight_decay=_ROTATIONAL_DECAY, embedding_decay=0.0)
    return RotationalAdamW(groups, lr=lr, betas=betas)


def _grid(lowest: float) -> tuple[float, ...]:
    """Four learning rates a factor of 2 apart: equally fine for every method, placed so that its best is inside."""
    return (lowest, 2 * lowest, 4 * lowest, 8 * lowest)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            name="adamw",
            label="AdamW",
            kind="baseline",
            description="torch.optim.AdamW at full learning rate from the first step",
            build=_adamw,
            lrs=_grid(2.5e-4),
        ),
        Method(
            name="adamw-warmup",
            label="AdamW + 20 % warmup",
            kind="baseline",
            description="torch.optim.AdamW with linear warmup over the first fifth of the run",
            build=_adamw,
            lrs=_grid(5e-4),
            warmup=0.2,
        ),
        Method(
            name="radam",
            label="RAdam",
            kind="baseline",
            description="torch.optim.RAdam, decoupled weight decay: adaptive once the variance is known",
            build=_radam,
            lrs=_grid(2.5e-4),
        ),
        Method(
            name="adamd",
            label="AdamD",
            kind="baseline",
            description="AdamW without the first moment's bias correction: a warmup of about 1/(1 - beta1) steps",
            build=_adamd,
            lrs=_grid(5e-4),
        ),
        Method(
            name="adamw2",
            label="AdamW2",
            kind="warmup-free",
            description="AdamW whose step grows no singular value of a matrix by more than tau (Qi et al. 2025)",
            build=_adamw2,
            lrs=_grid(4e-3),
        ),
        Method(
            name="gi-adamw",
            label="GI-AdamW",
            kind="warmup-free",
            description="AdamW, second moment started from the first gradient (Kalra & Barkeshli 2024)",
            build=_gi_adamw,
            lrs=_grid(5e-4),
        ),
        Method(
            name="liona",
            label="LionA",
            kind="warmup-free",
            description="Lion at the size of AdamW's settled updates from the first step (Kosson et al. 2024)",
            build=_liona,
            lrs=_grid(5e-4),
        ),
        Method(
            name="lionar",
            label="LionAR",
            kind="warmup-free",
            description="each neuron turned by AdamW's settled angle, its norm kept (Kosson et al. 2024)",
            build=_lionar,
            lrs=_grid(8e-3),
        ),
        Method(
            name="rotational-adamw",
            label="RotationalAdamW",
            kind="warmup-free",
            description="the same with Adam's direction (Kosson et al. 2023)",
            build=_rotational_adamw,
            lrs=_grid(2e-3),
        ),
    )
}
