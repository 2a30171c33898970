r"""How much a step changes what the layers compute: the relative representation change, measured and predicted.

A layer that computes y = Wx has :math:`\mathrm{RRC} = \lVert\Delta W\,X\rVert_F / \lVert W X\rVert_F` on the
inputs X of a batch. An update of a given size changes y by more the more the gradients of the samples agree: early in
training they do, and a step that is right later is then too long.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (its usual name)

from warmfree.measure.inputs import is_conv1d, linear_layers
from warmfree.measure.updates import UpdateProbe
from warmfree.optim.norms import compute_dtype, scalar_dtype
from warmfree.optim.sharding import whole

__all__ = [
    "RepresentationChange",
    "input_overlap",
    "mean_square_cosine",
    "predicted_rrc",
    "relative_change",
    "representation_changes",
]

# Linear maps whose outputs are queries, keys and values one after the other, if they are three times their inputs.
_FUSED_QKV = frozenset({"qkv", "c_attn", "Wqkv"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RepresentationChange:
    r"""What one step did to what a layer computes.

    Attributes:
        rrc: :math:`\lVert\Delta W\,X\rVert_F / \lVert W X\rVert_F`, old inputs, without biases.
        relative: :math:`\lVert\Delta W\rVert_F / \lVert W\rVert_F`, the relative update.
        fan_in: number C of inputs of a neuron; of an embedding the number of its rows.
        overlap: `input_overlap` of the layer's inputs; nan for a convolution, for complex inputs, and with fewer than
            two.
    """

    rrc: float
    relative: float
    fan_in: int
    overlap: float

    def predicted(self, *, samples: float, snr: float | None = None) -> float:
        """Return `predicted_rrc` for this layer, with its measured overlap if there is one."""
        overlap = None if math.isnan(self.overlap) else self.overlap
        return predicted_rrc(self.relative, fan_in=self.fan_in, samples=samples, snr=snr, overlap=overlap)


@torch.no_grad()
def representation_changes(
    model: nn.Module, inputs: Mapping[str, Tensor], snapshot: UpdateProbe
) -> dict[str, RepresentationChange]:
    """Measure how a step changed what each layer makes of its inputs before the step.

    Sharded weights are gathered, one layer at a time: all processes have to call it. Each has the change on
    its own part of the batch.

    Args:
        model: after the step.
        inputs: what `watch_inputs` found before it.
        snapshot: took its copy of the weights before it.

    Returns:
        One `RepresentationChange` per layer that was called and whose weight was copied, under the layer's name. The
        projections of nn.MultiheadAttention and of fused layers (called qkv, c_attn or Wqkv, three times as many
        outputs as inputs) have entries of their own, "name[q]", "name[k]" and "name[v]". Not there are the output
        projection of nn.MultiheadAttention and weights that are used without their layer, such as a head that calls
        `F.linear` with the embedding's weight: nobody sees their inputs. A weight that is parametrised (`weight_norm`,
        `spectral_norm`) is left out, too: it is no parameter, and the snapshot has no copy of it.

    Example:
        >>> from warmfree.measure.inputs import watch_inputs
        >>> _ = torch.manual_seed(0)  # or all four units may be dead
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> probe = UpdateProbe(model)
        >>> with torch.no_grad(), watch_inputs(model) as inputs:
        ...     _ = model(torch.ones(8, 4))
        >>> probe.snapshot()
        >>> _ = model[2].weight.data.mul_(1.5)  # instead of an optimizer's step
        >>> changes = representation_changes(model, inputs, probe)
        >>> {name: round(change.rrc, 4) for name, change in changes.items()}
        {'0': 0.0, '2': 0.5}

    Reference: Kosson et al. 2024, section on the relative representation change.
    """
    names = {id(weight): name for name, weight in model.named_parameters()}
    found: dict[str, tuple[Tensor, int]] = {}
    overlaps: dict[int, Tensor] = {}
    for layer, module in linear_layers(model).items():
        for parameter, maps in _linear_maps(layer, module):
            name = names.get(id(parameter), "")
            if name not in snapshot:
                continue
            # Gathered even where this process has no inputs: others may have.
            dtype = _dtype(parameter)
            old = whole(snapshot.before(name)).to(dtype)
            change = whole(parameter.detach()).to(dtype) - old
            for key, place, section in maps:
                seen = inputs.get(place)
                if seen is None:
                    continue
                if id(seen) not in overlaps:
                    overlaps[id(seen)] = _overlap(seen)
                parts, overlap = (change[section], old[section]), overlaps[id(seen)]
                numbers = (*_change_and_output(*parts, seen, module), *map(torch.linalg.vector_norm, parts))
                row = torch.stack([number.to(overlap) for number in (*numbers, overlap)])
                found[key] = row, _fan_in(parts[1], module)
    # Fetched together, so that an accelerator is waited for once.
    values = torch.stack([row for row, _ in found.values()]).tolist() if found else []
    return {
        key: RepresentationChange(
            rrc=_ratio(row[0], row[1]), relative=_ratio(row[2], row[3]), fan_in=fan_in, overlap=row[4]
        )
        for (key, (_, fan_in)), row in zip(found.items(), values, strict=True)
    }


@torch.no_grad()
def relative_change(weight_change: Tensor, weight: Tensor, inputs: Tensor, module: nn.Module) -> float:
    r"""Relative representation change of one linear map: :math:`\lVert\Delta W\,X\rVert_F / \lVert W X\rVert_F`.

    It is the norm of the change of the layer's outputs over the norm of the outputs, the bias left out of both.

    Args:
        weight_change: W after the step minus W before it, of the weight's shape.
        weight: W before the step; may be complex.
        inputs: as `watch_inputs` collects them for such a layer.
        module: says how the weight acts on the inputs: nn.Linear, nn.Conv1d to nn.Conv3d with all their options,
            nn.Embedding, transformers' Conv1D; of nn.MultiheadAttention weight and inputs of one projection.

    Returns:
        The ratio; 0 if nothing changed, inf if the outputs were zero before, nan if something is not finite.

    Example:
        >>> layer, inputs = nn.Linear(2, 2, bias=False), torch.tensor([[1.0, 0.0], [2.0, 0.0]])
        >>> relative_change(torch.tensor([[1.0, 9.0], [0.0, 9.0]]), torch.eye(2) * 4, inputs, layer)
        0.25

    Reference: Kosson et al. 2024, section on the relative representation change.
    """
    change, output = _change_and_output(weight_change, weight, inputs, module)
    return _ratio(change.item(), output.item())


@torch.no_grad()
def input_overlap(inputs: Tensor) -> float:
    r"""How much different inputs of a layer resemble each other.

    .. math::  \kappa = E[(x \cdot x')^2] / E[\lVert x\rVert^2]^2

    is one over the effective number of dimensions: 1/C for isotropic inputs of C features, near 1 for inputs that
    are mostly their mean. What a step for one sample does to another goes with it.

    Args:
        inputs: (samples, features), or (samples,) indices of an embedding's rows, whose overlap is the probability
            that two of them are the same.

    Returns:
        The mean over pairs of different samples; nan for fewer than two, for zero or complex inputs, and for other
        shapes.

    Example:
        >>> input_overlap(torch.eye(4)), input_overlap(torch.ones(5, 4)), input_overlap(torch.tensor([0, 0, 1]))
        (0.0, 1.0, 0.3333333333333333)

    Reference: derived for the relative representation change of Kosson et al. 2024; not in the paper.
    """
    return float(_overlap(inputs))


@torch.no_grad()
def mean_square_cosine(gradients: Tensor) -> float:
    r"""How well gradients of samples agree with their mean: :math:`E_b[\cos^2(g_B, g_b)]`.

    For a neuron y = w.x with gradients :math:`g_b = \delta_b x_b` and a step of length eta along their mean it gives

    .. math::  \mathrm{RRC}^2 = \frac{\eta^2 \lVert x\rVert^2}{E[y^2]}\, E_b[\cos^2(g_B, g_b)],

    exactly if the delta_b and the lengths of x_b do not vary. For isotropic noise in C dimensions it is
    (phi + 1/B + 1/C)/(1 + phi) within 2 %.

    Args:
        gradients: (samples, parameters), one gradient a sample; zero ones have no direction and are left out.

    Returns:
        The mean, in [0, 1]; nan if the gradients cancel or are all zero.

    Example:
        >>> mean_square_cosine(torch.eye(4)), mean_square_cosine(torch.ones(4, 1))
        (0.25, 1.0)

    Reference: derived for Kosson et al. 2024.
    """
    units = F.normalize(gradients.double(), dim=1, eps=0.0)
    mean = gradients.double().mean(0)
    return float((units @ (mean / torch.linalg.vector_norm(mean))).square().nanmean())


def predicted_rrc(
    relative: float, *, fan_in: int, samples: float, snr: float | None = None, overlap: float | None = None
) -> float:
    r"""Relative representation change that an update of this size makes, from the gradients' signal-to-noise ratio.

    .. math::  \mathrm{RRC}^2 = \left(\frac{\lVert\Delta W\rVert}{\lVert W\rVert}\right)^2
               \frac{1 + C/B + C\varphi}{1 + \varphi}, \qquad\text{or}\qquad
               \left(\frac{\lVert\Delta W\rVert}{\lVert W\rVert}\right)^2
               C\,\frac{\varphi + 1/B + \kappa(1 - 1/B)}{1 + \varphi}

    with a measured overlap kappa in place of that of isotropic inputs, 1/C.

    It holds for a step along the mean of B gradients of equal size, a layer of many neurons (for one alone it is up to
    a quarter too high), and weights that are random with respect to the inputs. At phi = 0 the second form is then
    within 5 % for inputs of which up to 0.9 are their mean, where the first is too low, many times. Where the
    gradients' common direction is that of the inputs' mean, both are too low, up to five times. Momentum, and Adam's
    division by the root of v, are not in it. So measure the change, and read the prediction as what it would be under
    these assumptions.

    Args:
        relative: relative update, the norm of the change over the weight's, >= 0.
        fan_in: C, inputs of a neuron.
        samples: B, samples (tokens) that the gradient is the mean of, >= 1.
        snr: per-sample signal-to-noise ratio phi >= 0 of the gradients, inf included; None for 0.
        overlap: kappa of `input_overlap`, >= 0; None for isotropic inputs.

    Example:
        >>> predicted_rrc(1e-3, fan_in=64, samples=64) / 1e-3  # sqrt(1 + C/B): noise, as many samples as inputs
        1.4142135623730951
        >>> predicted_rrc(1e-3, fan_in=64, samples=64, snr=math.inf)  # all gradients agree: sqrt(C)
        0.008

    Reference: derived for Kosson et al. 2024; the paper's formula was not found.
    """
    phi = snr or 0.0
    signal = 1.0 if math.isinf(phi) else phi / (1 + phi)
    noise = 1 + fan_in / samples
    if overlap is not None:
        noise = fan_in * (1 / samples + overlap * (1 - 1 / samples))
    return relative * math.sqrt(noise * (1 - signal) + fan_in * signal)


class _Map(NamedTuple):
    """One linear map of a layer: its name, that of its inputs, and its part of the weight."""

    key: str
    inputs: str
    section: tuple[slice, ...]


def _linear_maps(layer: str, module: nn.Module) -> Iterator[tuple[Tensor, list[_Map]]]:
    """Name a layer's weights and the linear maps in each."""
    suffixes = ("[q]", "[k]", "[v]")
    # Not as attributes: to read a parametrised one runs code, which may change the layer.
    parameters = module._parameters
    if isinstance(module, nn.MultiheadAttention):
        together = parameters.get("in_proj_weight")
        if together is not None:
            sections = _thirds(together, 0)
            keys = [layer + suffix for suffix in suffixes]
            yield together, [_Map(key, key, part) for key, part in zip(keys, sections, strict=True)]
            return
        for suffix in suffixes:
            separate = parameters.get(f"{suffix[1]}_proj_weight")
            if separate is not None:
                yield separate, [_Map(layer + suffix, layer + suffix, ())]
        return
    weight, out_dim = parameters.get("weight"), int(is_conv1d(module))
    if weight is None:
        return
    fused = layer.rpartition(".")[2] in _FUSED_QKV and weight.ndim == 2
    if fused and weight.shape[out_dim] == 3 * weight.shape[1 - out_dim]:
        sections = _thirds(weight, out_dim)
        yield (
            weight,
            [_Map(layer + suffix, layer, part) for suffix, part in zip(suffixes, sections, strict=True)],
        )
    else:
        yield weight, [_Map(layer, layer, ())]


def _thirds(weight: Tensor, dim: int) -> list[tuple[slice, ...]]:
    size = weight.shape[dim] // 3
    return [(*[slice(None)] * dim, slice(part * size, (part + 1) * size)) for part in range(3)]


def _dtype(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32) if weight.is_complex() else compute_dtype(weight)


def _change_and_output(
    weight_change: Tensor, weight: Tensor, inputs: Tensor, module: nn.Module
) -> tuple[Tensor, Tensor]:
    """Return the norms of the layer's change and of its output, without bias."""
    dtype = _dtype(weight)
    inputs = inputs.to(weight.device, dtype if inputs.is_floating_point() or inputs.is_complex() else None)

    def output(linear_map: Tensor) -> Tensor:
        linear_map = linear_map.to(dtype)
        if isinstance(module, nn.Embedding):
            return F.embedding(inputs, linear_map)
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            return cast(Tensor, cast(Any, module)._conv_forward(inputs, linear_map, None))
        return inputs @ linear_map if is_conv1d(module) else F.linear(inputs, linear_map)

    change, before = (torch.linalg.vector_norm(output(some)) for some in (weight_change, weight))
    return change, before


def _fan_in(weight: Tensor, module: nn.Module) -> int:
    if isinstance(module, nn.Embedding) or is_conv1d(module):
        return weight.shape[0]
    return weight[0].numel()


def _overlap(inputs: Tensor) -> Tensor:
    count, wide = len(inputs), scalar_dtype(inputs.device)
    if count < 2 or inputs.ndim > 2 or (inputs.ndim == 2) != inputs.is_floating_point():
        return torch.full((), math.nan, dtype=wide, device=inputs.device)
    if inputs.ndim == 1:
        counts = torch.bincount(inputs).to(wide)
        return torch.sum(counts * (counts - 1)) / (count * (count - 1))
    rows = inputs.to(compute_dtype(inputs))
    squares = torch.linalg.vector_norm(rows, dim=1).to(wide) ** 2
    # |X X'|_F = |X' X|_F: the smaller of the two.
    products = rows @ rows.mT if count <= rows.shape[1] else rows.mT @ rows
    pairs = torch.linalg.vector_norm(products).to(wide) ** 2 - (squares**2).sum()
    overlap: Tensor = pairs.clamp(min=0) / (count * (count - 1)) / squares.mean() ** 2
    return overlap


def _ratio(change: float, before: float) -> float:
    return change / before if before else (math.inf if change else 0.0)
