"""Models that are usually run through kernels without a second derivative, made twice differentiable for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["twice_differentiable"]

# What Hugging Face's models call attention that has a second derivative, given the kernel that is chosen here.
_SOUND = (None, "eager", "sdpa")


@contextmanager
def twice_differentiable(model: nn.Module | None = None) -> Iterator[None]:
    """Let attention go through kernels that have a second derivative; what is computed stays the same up to rounding.

    Inside, `scaled_dot_product_attention` uses its plain form, torch's own transformer layers leave out their fast
    paths, and Hugging Face models that are set to flash, flex or other attention use "sdpa", or "eager" where they know
    no other. All is as before on exit. The forward passes have to be made inside.

    Args:
        model: whose configurations are switched; None if it is no Hugging Face model.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, 2, dropout=0.0, batch_first=True)
        >>> weight = layer.self_attn.in_proj_weight
        >>> with twice_differentiable(layer):
        ...     loss = layer(torch.ones(1, 3, 8)).square().sum()
        ...     (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
        >>> torch.autograd.grad(gradient.sum(), weight)[0].shape
        torch.Size([24, 8])
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    switched = _configurations(model)
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for config, _, plain in switched:
            config._attn_implementation = plain
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        # Setting one configuration sets those within it: outer ones come first.
        for config, kind, _ in switched:
            config._attn_implementation = kind
        torch.backends.mha.set_fastpath_enabled(fast)


def _configurations(model: nn.Module | None) -> list[tuple[Any, str | None, str | None]]:
    """List configurations with what they are set to and what they have to be, each once, outer ones first."""
    found: dict[int, tuple[Any, str | None, str | None]] = {}
    for module in model.modules() if model is not None else ():
        waiting: list[Any] = [getattr(module, "config", None)]
        while waiting:
            config = waiting.pop()
            if not hasattr(config, "_attn_implementation") or id(config) in found:
                continue
            kind = plain = config._attn_implementation
            if kind not in _SOUND:
                plain = "sdpa" if getattr(module, "_supports_sdpa", True) else "eager"
            found[id(config)] = config, kind, plain
            waiting.extend(getattr(config, name, None) for name in getattr(config, "sub_configs", ()))
    return list(found.values())
