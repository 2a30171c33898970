"""The runs in which curvature is measured: those of the advice's benchmark, and the same models in muP.

In muP the readout starts small, its and the hidden layers' learning rates are smaller, those of the input, of gains and
of positions larger than in the standard parametrisation (`warmfree.lab.models.mup`); the base is a quarter as wide
(transformers), or a single channel wide, which is Kalra & Barkeshli's form (ResNet).
"""

import functools
import sys
from collections.abc import Callable
from pathlib import Path

from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "advice"))

import torch
from settings import (
    CONTEXT,
    SETTINGS,
    ResidualBlock,
    Setting,
    by_twos,
    classify,
    own_loss,
    sgd,
)
from torch.optim import Optimizer

from warmfree.lab.models.blocks import initialise
from warmfree.lab.models.gpt import GPT, GPTConfig
from warmfree.lab.models.mup import adam_groups, parametrise
from warmfree.lab.models.vit import ViT, ViTConfig

__all__ = ["REGIMES", "WARMUPS", "Setting", "warmups"]

WARMUPS = (0.0, 0.01, 0.05, 0.1, 0.3)  # of the run


def warmups(setting: Setting) -> list[int]:
    """Return the lengths of the linear warmups of the grid, in steps."""
    return [round(fraction * setting.steps) for fraction in WARMUPS]


def in_mup(make: Callable[[int], nn.Module], *, width: int, base: int) -> nn.Module:
    """Make a model and put it into muP."""
    model = make(width)
    state = torch.get_rng_state()  # the base draws weights, too
    scales = parametrise(model, make(base))
    torch.set_rng_state(state)
    model.scales = scales  # for its optimizer
    return model


def gpt(width: int) -> nn.Module:
    model = GPT(GPTConfig(vocabulary=256, context=CONTEXT, layers=2, width=width, heads=4))
    initialise(model, layers=2, std=(2 / (5 * width)) ** 0.5)  # by fan-in, as the ViT has it
    return model


def vit(width: int) -> nn.Module:
    return ViT(ViTConfig(patch=7, layers=3, width=width, heads=4))


def resnet(width: int) -> nn.Module:
    """Make the ResNet with GroupNorm of `settings`, of any width, with He's initialisation."""

    def norm(channels: int) -> nn.Module:
        return nn.GroupNorm(min(4, channels), channels)

    model = nn.Sequential(
        nn.Unflatten(1, (1, 28)),
        nn.Conv2d(1, width, 3, 2, 1, bias=False),
        norm(width),
        nn.ReLU(),
        ResidualBlock(width, width, 1, norm),
        ResidualBlock(width, 2 * width, 2, norm),
        ResidualBlock(2 * width, 4 * width, 2, norm),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, 10),
    )
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            nn.init.zeros_(module.bias)
    return model


def adamw(beta2: float) -> Callable[[nn.Module, float], Optimizer]:
    def build(model: nn.Module, lr: float) -> Optimizer:
        return torch.optim.AdamW(
            adam_groups(model, model.scales, lr=lr, weight_decay=0.1), lr=lr, betas=(0.9, beta2)
        )

    return build


REGIMES = {name: SETTINGS[name] for name in ("gpt-adamw", "vit-adamw", "resnet-adamw", "resnet-sgd")} | {
    setting.name: setting
    for setting in (
        Setting(
            name="gpt-mup",
            what="gpt-adamw in muP, base width 16",
            held_out=False,
            steps=600,
            batch_size=16,
            lrs=by_twos(8e-3),
            build=functools.partial(in_mup, gpt, width=64, base=16),
            optimizer=adamw(0.95),
            text="plays",
            loss_fn=own_loss,
        ),
        Setting(
            name="vit-mup",
            what="vit-adamw in muP, base width 16",
            held_out=False,
            steps=600,
            batch_size=64,
            lrs=by_twos(4e-3),
            build=functools.partial(in_mup, vit, width=64, base=16),
            optimizer=adamw(0.999),
            loss_fn=own_loss,
        ),
        Setting(
            name="resnet-mup",
            what="ResNet with GroupNorm in muP, base width 1, MNIST, SGD with momentum, batch 64",
            held_out=False,
            steps=400,
            batch_size=64,
            lrs=by_twos(5e-2),
            build=functools.partial(in_mup, resnet, width=12, base=1),
            optimizer=sgd,
            loss_fn=classify,
        ),
    )
}
