"""What the layers of a model see: samples of the inputs of its linear maps, taken in one forward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations
from torch.utils.hooks import RemovableHandle

from warmfree.measure.hooks import hooked
from warmfree.optim.sharding import whole

__all__ = ["is_conv1d", "linear_layers", "watch_inputs"]

_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding, nn.MultiheadAttention)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Find the layers that apply a linear map: linear, convolution, embedding, nn.MultiheadAttention.

    Transformers' Conv1D is one, too. A subclass that has a `forward` of its own is left out: what it does with its
    weight is not known (adapters, quantised layers, embeddings that count positions).

    Args:
        model: any module.

    Returns:
        Layers by name as in `model.named_modules()`; a layer that is used in several places has its first name.

    Example:
        >>> list(linear_layers(nn.Sequential(nn.Embedding(7, 4), nn.LayerNorm(4), nn.Linear(4, 2))))
        ['0', '2']
    """
    return {name: module for name, module in model.named_modules() if _is_linear(module)}


@contextmanager
def watch_inputs(model: nn.Module, *, tokens: int = 256) -> Iterator[dict[str, Tensor]]:
    """Collect a sample of what each of `linear_layers` gets while the block runs.

    The sample is the same for the same inputs: rows at even distances, each at another place of its stretch, so that
    not all are at one position of their sequences. A layer that is called several times pools its inputs. Run one
    forward pass inside, under `torch.no_grad()`; the model keeps no trace of it. Activations that are sharded (tensor
    parallelism) are sampled whole; of a batch that is spread over processes each sees its own part.

    Args:
        model: any module.
        tokens: inputs to keep of each layer, at least 1.

    Yields:
        A dictionary that is empty until the block ends without an exception, and then has, by layer name, at most
        `tokens` inputs of every layer that was called: (tokens, features) of a linear map, (tokens,) indices of an
        embedding; of a convolution whole samples (samples, channels, ...), as many as have `tokens` positions, at least
        one (of the first call's shape). nn.MultiheadAttention has entries "name[q]", "name[k]" and "name[v]".

    Raises:
        ValueError: tokens is below 1.

    Example:
        >>> model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 2))
        >>> with torch.no_grad(), watch_inputs(model, tokens=6) as inputs:
        ...     _ = model(torch.arange(21).reshape(3, 7) % 7)
        >>> inputs["0"], inputs["1"].shape
        (tensor([0, 4, 2, 6, 1, 4]), torch.Size([6, 4]))
    """
    if tokens < 1:
        raise ValueError(f"tokens must be >= 1, got {tokens}")
    pieces: dict[str, list[Tensor]] = {}
    found: dict[str, Tensor] = {}

    def register(name: str, module: nn.Module) -> Iterator[RemovableHandle]:
        yield module.register_forward_pre_hook(_hook(name, pieces, tokens), with_kwargs=True)

    with hooked(linear_layers(model), register):
        yield found
    for name, some in pieces.items():
        alike = torch.cat([piece for piece in some if piece.shape[1:] == some[0].shape[1:]])
        if len(alike):
            found[name] = _spaced(alike, max(map(len, some)) if alike.ndim > 2 else tokens)


def is_conv1d(module: nn.Module) -> bool:
    """Recognise transformers' linear layer with the weight (in, out)."""
    return type_before_parametrizations(module).__name__ == "Conv1D"


def _is_linear(module: nn.Module) -> bool:
    if is_conv1d(module):
        return "weight" in module._parameters or is_parametrized(module, "weight")
    return any(type(module).forward is kind.forward for kind in _KINDS if isinstance(module, kind))


def _hook(
    name: str, pieces: dict[str, list[Tensor]], tokens: int
) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    """Return a forward pre-hook that keeps a sample of a layer's inputs."""

    @torch.no_grad()
    def keep(module: nn.Module, positional: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        if isinstance(module, nn.MultiheadAttention):
            query, key, value = (
                *positional[:3],
                *(named[k] for k in ("query", "key", "value") if k in named),
            )
            samples = {id(part): _sample(module, part, tokens) for part in (query, key, value)}
            for suffix, part in (("[q]", query), ("[k]", key), ("[v]", value)):
                pieces.setdefault(name + suffix, []).append(samples[id(part)])
            return
        given = positional[0] if positional else next(iter(named.values()))
        pieces.setdefault(name, []).append(_sample(module, given, tokens))

    return keep


def _sample(module: nn.Module, given: Tensor, tokens: int) -> Tensor:
    """Choose inputs of one call, at most `tokens`."""
    given = whole(given.detach())
    if given.is_nested:
        given = torch.cat([part.reshape(-1, part.shape[-1]) for part in given.unbind()])
    if isinstance(module, _CONVOLUTIONS):
        samples = given if given.ndim == 2 + len(module.kernel_size) else given.unsqueeze(0)
        return _spaced(samples, math.ceil(tokens / max(1, samples.shape[2:].numel())))
    if isinstance(module, nn.Embedding):
        return _spaced(given.flatten(), tokens)
    return _spaced(given.flatten(0, -2) if given.ndim > 1 else given.unsqueeze(0), tokens)


def _spaced(rows: Tensor, count: int) -> Tensor:
    """Return `count` rows at even distances, or all if there are no more."""
    total = len(rows)
    if total <= count:
        return rows.clone()
    index = torch.arange(count, device=rows.device)
    starts = index * total // count
    widths = (index + 1) * total // count - starts
    return rows.index_select(0, starts + index % widths)
