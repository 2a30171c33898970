"""Watch the attention maps of any model during one forward pass, without ever holding one whole."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from warmfree.measure.attention.layouts import layout_of
from warmfree.measure.attention.sample import (
    AttentionStatistics,
    Call,
    Sampling,
    add_calls,
    finish,
    measure_rows,
    rows_of_map,
    rows_of_product,
)
from warmfree.measure.hooks import hooked
from warmfree.optim.sharding import whole

__all__ = ["watch_attention"]

SOFTMAX = frozenset((F.softmax, torch.softmax, torch.special.softmax, Tensor.softmax))


@contextmanager
def watch_attention(
    model: nn.Module, *, samples: int = 4, heads: int = 16, queries: int = 32
) -> Iterator[dict[str, AttentionStatistics]]:
    """Collect the statistics of every attention layer during one forward pass.

    The model computes as ever, with its own kernels: calls of ``F.scaled_dot_product_attention`` are seen, and
    from their exact queries and keys (after rotary embedding and norms, with scale and mask) a few rows of the map are
    recomputed in float32 or wider. Where attention is written out, the logits are taken from a softmax over the last
    of four dimensions inside a layer that :func:`query_key_weights` knows or whose class is called ...Attention. Models
    of Hugging Face that are set to flash or flex attention run with ``"sdpa"`` inside the context.

    Samples, heads and queries are evenly spaced with the last one among them; no random number is drawn. A batch of
    windows (Swin) has a window for a sample. A query that sees no key is left out; one that sees one key (the first of
    a causal map) has no entropy ratio. What hides a key is a logit of -1e8 or less, or half the dtype's minimum;
    softer masks count as visible keys. Calls of one layer in one pass (shared weights, recurrence, or self- and
    cross-attention in a module of unknown layout) are averaged, the largest logit is the largest of all.

    Memory: at most about samples x heads x keys x (head_dim + 4 queries) numbers of 4 bytes, one layer at a time: 50 MB
    for the defaults, 1024 keys and a head_dim of 64. Nothing is kept but eight numbers a head; no gradient flows
    through. Under tensor parallelism a process reports the heads that it computes, under FSDP its own samples; queries
    and keys that are DTensors are gathered.

    Args:
        model: the module that is called inside the context, unwrapped (no DistributedDataParallel).
        samples: at most how many samples of the batch, >= 1.
        heads: at most how many heads, >= 1.
        queries: at most how many queries of a sample, >= 1.

    Yields:
        Module name -> :class:`AttentionStatistics`, in the order of the calls; filled when the context ends. A layer is
        called after the innermost module whose layout is known, else after the innermost module that made the call.
        Left out are calls that no module of the model made, nested tensors, and kernels that are neither of the two
        (flash-attn's and xFormers' functions called directly, linear attention).

    Raises:
        ValueError: a number is below 1.

    Example:
        >>> model = nn.MultiheadAttention(8, num_heads=2, batch_first=True)
        >>> nn.init.zeros_(model.in_proj_weight)[0, 0].item()
        0.0
        >>> x = torch.ones(1, 4, 8)
        >>> with torch.no_grad(), watch_attention(model) as seen:
        ...     _ = model(x, x, x)
        >>> [round(ratio, 4) for ratio in seen[""].entropy_ratio], seen[""].rank
        ([1.0, 1.0], [0.25, 0.25])

    Reference: Qi et al. 2025, attention entropy and rank in benign and malignant collapse; sampling is our choice.
    """
    for name, value in (("samples", samples), ("heads", heads), ("queries", queries)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    interceptor = _Interceptor(model, Sampling(samples=samples, heads=heads, queries=queries))
    seen: dict[str, AttentionStatistics] = {}
    with _sdpa_for_flash(model), interceptor.hooked(), interceptor:
        yield seen
    seen.update(finish(interceptor.calls))


class _Interceptor(TorchFunctionMode):
    """Sees the calls that compute attention, and knows which module makes them.

    While a mode is active, PyTorch's encoder layers and `nn.MultiheadAttention` keep off their fused inference kernels.
    """

    def __init__(self, model: nn.Module, sampling: Sampling) -> None:
        super().__init__()
        self.calls: dict[str, Call] = {}
        self._sampling = sampling
        self._modules = dict(model.named_modules())
        self._known = {name for name, module in self._modules.items() if layout_of(module) is not None}
        self._named = {
            name
            for name, module in self._modules.items()
            if type(module).__name__.lower().endswith(("attention", "attn"))
        }
        self._running: list[str] = []  # modules whose forward pass is going on, outermost first
        self._multihead: list[int] = []  # heads of F.multi_head_attention_forward, while inside

    def hooked(self) -> AbstractContextManager[None]:
        """Follow which modules are running."""
        return hooked(self._modules, self._register)

    def _register(self, name: str, module: nn.Module) -> Iterator[RemovableHandle]:
        yield module.register_forward_pre_hook(functools.partial(_enter, self._running, name))
        # Also when the module raises, for the caller may go on.
        leave = functools.partial(_leave, self._running)
        yield module.register_forward_hook(leave, always_call=True)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self._see_product(*args, **kwargs)
        elif func is F.multi_head_attention_forward:
            return self._look_inside(*args, **kwargs)
        elif func in SOFTMAX:
            self._see_softmax(*args, **kwargs)
        return func(*args, **kwargs)

    def _see_product(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,  # noqa: ARG002 (the map does not depend on it)
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,  # noqa: ARG002 (the map before dropout)
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,  # noqa: ARG002 (the numbers of heads say it)
    ) -> None:
        name = self._layer()
        if name is None or query.is_nested or not min(query.numel(), key.numel()):
            return
        with _exact(query):
            mask = None if attn_mask is None else whole(attn_mask)
            logits, heads = rows_of_product(
                whole(query), whole(key), self._sampling, mask=mask, is_causal=is_causal, scale=scale
            )
            self._add(name, measure_rows(logits, heads))

    def _see_softmax(self, input: Tensor, dim: int | None = None, *_: Any, **__: Any) -> None:  # noqa: A002
        name = self._layer(written_out=True)
        if name is None or not isinstance(input, Tensor) or input.is_nested or not input.numel():
            return
        if dim not in (-1, input.ndim - 1):
            return
        if self._multihead and input.ndim == 3:
            input = input.view(-1, self._multihead[-1], *input.shape[1:])  # noqa: A001 (torch's name)
        if input.ndim < 4 or not input.is_floating_point():
            return
        with _exact(input):
            self._add(name, measure_rows(*rows_of_map(whole(input), self._sampling)))

    def _look_inside(self, *args: Any, **kwargs: Any) -> Any:
        """Run `F.multi_head_attention_forward` so that the calls it makes are seen, too.

        It hands itself over to us because a mode is active, and would do so again and again; a mode is off while it
        handles a call. So we run a copy that does not ask, with the mode on.
        """
        func: Any = F.multi_head_attention_forward
        scope = {**func.__globals__, "has_torch_function": lambda _: False}
        copy = FunctionType(func.__code__, scope, func.__name__, func.__defaults__, func.__closure__)
        self._multihead.append(kwargs["num_heads"] if "num_heads" in kwargs else args[4])
        try:
            with self:
                return copy(*args, **kwargs)
        finally:
            self._multihead.pop()

    def _layer(self, *, written_out: bool = False) -> str | None:
        """Return the name of the layer that is computing; a softmax has to be inside an attention layer."""
        for kind in (self._known, self._named) if written_out else (self._known,):
            for name in reversed(self._running):
                if name in kind:
                    return name
        return self._running[-1] if self._running and not written_out else None

    def _add(self, name: str, call: Call) -> None:
        self.calls[name] = add_calls(self.calls[name], call) if name in self.calls else call


def _enter(running: list[str], name: str, *_: Any) -> None:
    running.append(name)


def _leave(running: list[str], *_: Any) -> None:
    running.pop()


@contextmanager
def _exact(tensor: Tensor) -> Iterator[None]:
    """No graph, and no rounding to half precision by the model's autocast."""
    with torch.no_grad(), torch.autocast(tensor.device.type, enabled=False):
        yield


@contextmanager
def _sdpa_for_flash(model: nn.Module) -> Iterator[None]:
    """Let Hugging Face models that call flash or flex attention themselves call PyTorch's instead."""
    # A configuration sets those inside it, too: outer ones come first, here and when they are put back.
    before: dict[int, tuple[Any, Any]] = {}
    for module in model.modules():
        _collect(getattr(module, "config", None), before)
    fused = any(_is_fused(value) for _, value in before.values())
    try:
        for config, value in before.values() if fused else ():
            config._attn_implementation = "sdpa" if _is_fused(value) else value
        yield
    finally:
        for config, value in before.values() if fused else ():
            config._attn_implementation = value


def _collect(config: Any, found: dict[int, tuple[Any, Any]]) -> None:
    if config is None or id(config) in found or not hasattr(config, "_attn_implementation"):
        return
    found[id(config)] = (config, config._attn_implementation)
    for name in getattr(config, "sub_configs", ()):
        _collect(getattr(config, name, None), found)


def _is_fused(implementation: Any) -> bool:
    return isinstance(implementation, str) and ("flash" in implementation or "flex" in implementation)
