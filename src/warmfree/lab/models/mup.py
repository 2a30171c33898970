r"""Maximal update parametrisation (muP): one learning rate for every width.

Every tensor is stored as V and acts as :math:`m V`. With :math:`r_{in}, r_{out}` by how much wider its input and its
output are than in a base model of the same architecture:

.. math::
    m = \sqrt{r_{out}/r_{in}}, \qquad
    \mathrm{std}(V) = \frac{\mathrm{std}_{base}}{\sqrt{\max(r_{in}, r_{out})}}, \qquad
    \mathrm{lr}_{SGD} = \mathrm{lr}, \qquad
    \mathrm{lr}_{Adam} = \frac{\mathrm{lr}}{\sqrt{r_{in} r_{out}}}

=====================================  ==============  ==================  ==========  =========  ==========
width n times that of the base          acts as         std of V            SGD: lr     Adam: lr   m V: std
=====================================  ==============  ==================  ==========  =========  ==========
input weight, embedding, gain, bias     sqrt(n) V       base / sqrt(n)      lr          lr/sqrt n  base
hidden weight                           V               base / sqrt(n)      lr          lr/n       base/sqrt n
readout                                 V / sqrt(n)     base / sqrt(n)      lr          lr/sqrt n  base / n
tied embedding, where it reads out      V / sqrt(n)     (the same V)        lr          lr/sqrt n  base / n
attention logits                        scale sqrt(d_base) / d in place of 1 / sqrt(d), d the size of a head
=====================================  ==============  ==================  ==========  =========  ==========

That is Table 9 of Yang et al., in which a tied head needs no compromise: what it asks of an embedding and of a
readout is the same standard deviation and the same learning rate. At the base width it is the standard
parametrisation. Kalra & Barkeshli's multipliers (hidden :math:`\sqrt{fan_{out}/fan_{in}}` with variance 2/fan_out,
readout :math:`\sqrt{1/fan_{in}}` with variance 1/fan_in) are these with a base of width 1; their "simple muP" leaves
Adam's factors out. That the formulas of all kinds fall into one, and that base weights are measured, is ours.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from warmfree.lab.models.blocks import Attention
from warmfree.lab.models.gpt import GPT

__all__ = ["Scaling", "adam_groups", "parametrise"]


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """How much wider a tensor is than that of the base model, and what follows.

    Attributes:
        wider_in: width of its input over that of the base; 1 for what does not grow (pixels, a vocabulary, gains).
        wider_out: likewise of its output.
    """

    wider_in: float
    wider_out: float

    @property
    def multiplier(self) -> float:
        """What the stored tensor is multiplied with."""
        return math.sqrt(self.wider_out / self.wider_in)

    @property
    def std(self) -> float:
        """Standard deviation of the stored tensor over that of the base's."""
        return 1.0 / math.sqrt(max(self.wider_in, self.wider_out))

    @property
    def adam_lr(self) -> float:
        """Adam's learning rate for the stored tensor, over the global one. SGD's is 1."""
        return 1.0 / math.sqrt(self.wider_in * self.wider_out)


class _Times(nn.Module):
    """A stored tensor, multiplied: a parametrisation for `torch.nn.utils.parametrize`."""

    def __init__(self, multiplier: float) -> None:
        super().__init__()
        self.multiplier = multiplier

    def forward(self, stored: Tensor) -> Tensor:
        return stored * self.multiplier

    def extra_repr(self) -> str:
        return f"{self.multiplier:g}"


class _TimesOutput:
    """A forward hook that multiplies the output; a class, so that a model can be copied and pickled."""

    def __init__(self, multiplier: float) -> None:
        self.multiplier = multiplier

    def __call__(self, _module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return output * self.multiplier


@torch.no_grad()
def parametrise(model: nn.Module, base: nn.Module) -> dict[str, Scaling]:
    """Put a freshly made model into muP, in place.

    Initial weights are rescaled to what the base model's say; multipliers become parametrizations of torch, so that
    the stored tensors are called ``...parametrizations.weight.original``. Call it once, before the optimizer is made;
    a checkpoint is loaded into a model that has been through it.

    Knows Linear, convolutions, Embedding, norms (any module with vectors), the lab's `Attention` and the tied head of
    its `GPT`; other tensors of two and more dimensions are an error. Biases of weights with a multiplier are vectors of
    their own, not multiplied with the weight's.

    Args:
        model: freshly initialised, of any width. At the base's width nothing changes.
        base: the same architecture at the width whose standard parametrisation is known to be good; read only.

    Returns:
        For every parameter of the model, by its name afterwards, how it is scaled.

    Raises:
        ValueError: the models differ in more than widths, the model is in muP already, or modules share a parameter.
        TypeError: a tensor whose dimensions are not known.

    Example:
        >>> def net(width: int) -> nn.Module:
        ...     return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.Linear(width, 3))
        >>> model = net(64)
        >>> scales = parametrise(model, net(16))
        >>> for name in ("0.parametrizations.weight.original", "2.weight", "3.parametrizations.weight.original"):
        ...     print(scales[name].multiplier, scales[name].adam_lr)
        2.0 0.5
        1.0 0.25
        0.5 0.5

    Reference: Yang et al. 2022, Tensor Programs V, Table 9 (appendix B.1: a tied head's logits over the width);
    Kalra & Barkeshli 2024, D.2.1. One formula for all kinds: Yang, Simon & Bernstein 2023, the spectral condition.
    """
    ours, theirs = dict(model.named_parameters()), dict(base.named_parameters())
    if any(parametrize.is_parametrized(module) for module in (*model.modules(), *base.modules())):
        raise ValueError("model and base must be as they were made: one is parametrised already")
    if list(ours) != list(theirs):
        raise ValueError("base must have the model's architecture, and differ in widths alone")
    shared = dict(model.named_parameters(remove_duplicate=False)).keys() - ours.keys()
    if shared:
        raise ValueError(
            f"{', '.join(sorted(shared))}: also the parameter of another module, where its multiplier would be "
            "another; give each module its own, or use a functional head as the lab's GPT does"
        )
    modules, scales = dict(model.named_modules()), {}
    known = {
        name: _scaling(name, modules[name.rpartition(".")[0]], stored, theirs[name])
        for name, stored in ours.items()
    }
    for name, stored in ours.items():
        owner, _, attribute = name.rpartition(".")
        scaling = known[name]
        if scaling.wider_in != 1.0 or scaling.wider_out != 1.0:
            stored.mul_(_over(theirs[name], stored) * scaling.std)
        if scaling.multiplier != 1.0:
            # `unsafe`: the check would compare dtypes and shapes, which a factor cannot change.
            parametrize.register_parametrization(
                modules[owner], attribute, _Times(scaling.multiplier), unsafe=True
            )
            name = f"{owner}.parametrizations.{attribute}.original".removeprefix(".")
        scales[name] = scaling
    _scale_attention(model, base)
    _scale_tied_heads(model, base)
    return {name: scales[name] for name, _ in model.named_parameters()}


def adam_groups(
    model: nn.Module, scales: Mapping[str, Scaling], *, lr: float, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    r"""Return the parameter groups with which Adam's one learning rate is right for every width.

    Decoupled weight decay is divided by the factor of the learning rate, so that :math:`lr \lambda`, what a weight
    shrinks by in a step, does not depend on the width. Vectors get none.

    Args:
        model: that `parametrise` has put into muP.
        scales: what it returned.
        lr: the global learning rate: the one of the base model.
        weight_decay: of the base model's matrices, at least 0.

    Returns:
        Groups with "params", "lr" and "weight_decay", the one with the largest learning rate first.

    Example:
        >>> model, base = nn.Linear(8, 64), nn.Linear(8, 16)
        >>> groups = adam_groups(model, parametrise(model, base), lr=0.1, weight_decay=0.1)
        >>> [(group["lr"], group["weight_decay"]) for group in groups]  # the weight, the bias
        [(0.05, 0.2), (0.05, 0.0)]
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, stored in model.named_parameters():
        factor = scales[name].adam_lr
        decay = weight_decay / factor if stored.ndim > 1 else 0.0
        groups.setdefault((lr * factor, decay), []).append(stored)
    ordered = sorted(groups.items(), key=lambda item: (-item[0][0], -item[0][1]))
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in ordered]


def _scaling(name: str, owner: nn.Module, stored: Tensor, base: Tensor) -> Scaling:
    """Read from the shapes how a tensor has grown."""
    if stored.ndim != base.ndim:
        raise ValueError(f"{name}: base must have the model's architecture, and differ in widths alone")
    wider = [ours / theirs for ours, theirs in zip(stored.shape, base.shape, strict=True)]
    if stored.ndim < 2:
        return Scaling(wider_in=1.0, wider_out=wider[0] if wider else 1.0)
    if isinstance(owner, nn.Embedding):
        return Scaling(wider_in=wider[0], wider_out=wider[1])
    plain = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    if isinstance(owner, plain) and getattr(owner, "groups", 1) == 1 and set(wider[2:]) <= {1.0}:
        return Scaling(wider_in=wider[1], wider_out=wider[0])
    raise TypeError(
        f"{name}: of {type(owner).__name__} it is not known which dimension is the input; "
        "Linear, Embedding, and convolutions without groups are"
    )


def _over(base: Tensor, stored: Tensor) -> float:
    """Return the root mean square of one tensor over that of another; 1 if one is zero."""
    sizes = [float(tensor.detach().double().square().mean().sqrt()) for tensor in (base, stored)]
    return sizes[0] / sizes[1] if all(sizes) else 1.0


def _scale_attention(model: nn.Module, base: nn.Module) -> None:
    r"""Make attention logits :math:`q \cdot k \sqrt{d_{base}} / d`; queries that are normalised are scaled after it."""
    pairs = [[module for module in net.modules() if isinstance(module, Attention)] for net in (model, base)]
    for ours, theirs in zip(*pairs, strict=True):
        ratio = _head_size(theirs) / _head_size(ours)
        if ratio != 1.0:
            ours.query_norm.register_forward_hook(_TimesOutput(ratio**0.5))


def _scale_tied_heads(model: nn.Module, base: nn.Module) -> None:
    pairs = [[module for module in net.modules() if isinstance(module, GPT)] for net in (model, base)]
    for ours, theirs in zip(*pairs, strict=True):
        if ours.config.width != theirs.config.width:
            ours.register_forward_hook(_TimesOutput(theirs.config.width / ours.config.width))


def _head_size(attention: Attention) -> float:
    return attention.out.in_features / attention.heads
