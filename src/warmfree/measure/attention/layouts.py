"""Ways of writing attention, each recognised by the attributes of the module and not by its class.

A layout says where queries and keys come from without touching the weights, so that asking is cheap and gathers nothing
where they are sharded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from warmfree.measure.inputs import is_conv1d
from warmfree.measure.undisturbed import evaluation

__all__ = ["Layout", "Projection", "layout_of", "register_layout"]


@dataclass(frozen=True, slots=True)
class Projection:
    """The rows of one weight that make queries, or keys.

    Attributes:
        weight: (outputs, inputs), or (inputs, outputs) if transposed.
        bias: (outputs,), or None.
        rows: which outputs, a slice or a tensor of indices, head by head; None for all.
        transposed: the weight multiplies from the right, as in Hugging Face's Conv1D.
        bias_rows: which entries of the bias, if others than of the weight.
    """

    weight: Tensor
    bias: Tensor | None = None
    rows: slice | Tensor | None = None
    transposed: bool = False
    bias_rows: slice | Tensor | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """Where an attention layer has its queries and keys, and how many rows make one head."""

    query: Projection
    key: Projection
    head_dim: int


LayoutFunction = Callable[[nn.Module], Layout | None]


def register_layout(layout: LayoutFunction) -> LayoutFunction:
    """Teach all probes one more way of writing attention; also a decorator.

    Args:
        layout: takes a module and returns where its queries and keys are, or None if the module is something else.
            It is asked before the layouts that are built in, and should read attributes only.

    Returns:
        The function itself.

    Example:
        >>> class Mine(nn.Module):
        ...     def __init__(self) -> None:
        ...         super().__init__()
        ...         self.ask, self.answer = nn.Linear(8, 8), nn.Linear(8, 8)
        >>> @register_layout
        ... def mine(module: nn.Module) -> Layout | None:
        ...     if not isinstance(module, Mine):
        ...         return None
        ...     return Layout(Projection(module.ask.weight), Projection(module.answer.weight), head_dim=2)
        >>> layout_of(Mine()).head_dim
        2
        >>> LAYOUTS.remove(mine)
    """
    LAYOUTS.insert(0, layout)
    return layout


def layout_of(module: nn.Module) -> Layout | None:
    """Return where a module has its queries and keys, or None if it is no attention layer that is known.

    Weights that are parametrised are read as in eval mode. Modules of TorchScript are not known.
    """
    if isinstance(module, torch.jit.ScriptModule):
        return None
    return next((found for layout in LAYOUTS if (found := _ask(layout, module)) is not None), None)


def _ask(layout: LayoutFunction, module: nn.Module) -> Layout | None:
    if (
        layout in BUILT_IN
    ):  # which see to the mode where they read weights: every module is asked, it has to be quick
        return layout(module)
    with evaluation(module):
        return layout(module)


def _multihead(module: nn.Module) -> Layout | None:
    """`nn.MultiheadAttention`: one matrix for queries, keys and values, or three if they differ in width."""
    if not isinstance(module, nn.MultiheadAttention):
        return None
    width, bias = module.embed_dim, module.in_proj_bias
    queries, keys = slice(0, width), slice(width, 2 * width)
    with evaluation(module):
        both, separate = module.in_proj_weight, (module.q_proj_weight, module.k_proj_weight)
    if both is not None:
        return Layout(Projection(both, bias, queries), Projection(both, bias, keys), module.head_dim)
    query, key = (
        Projection(weight, bias, bias_rows=rows)
        for weight, rows in zip(separate, (queries, keys), strict=True)
    )
    return Layout(query, key, module.head_dim)


def _cross(module: nn.Module) -> Layout | None:
    """Hugging Face's GPT-2 as a decoder: queries alone, keys and values fused."""
    query, pair = _matrix(module, "q_attn"), _matrix(module, "c_attn")
    if query is None or pair is None:
        return None
    width, heads = _outputs(query), _number(module, HEADS)
    if not heads or _outputs(pair) != 2 * width:
        return None
    return Layout(query, _rows(pair, slice(0, width)), width // heads)


def _fused(module: nn.Module) -> Layout | None:
    """One Linear or Conv1D whose outputs are all queries, then all keys, then all values.

    warmfree's and timm's `qkv`, nanoGPT's and GPT-2's `c_attn`, Phi's `qkv_proj` with fewer keys than queries.
    """
    for name in ("qkv", "c_attn", "Wqkv", "qkv_proj"):
        fused = _matrix(module, name)
        heads = fused and _num_heads(module)
        if fused is None or not heads or getattr(module, "multi_query", True) is False:
            continue
        outputs = _outputs(fused)
        size = _number(module, HEAD_DIM) or (outputs // (3 * heads))
        key_heads, left = divmod(outputs - heads * size, max(1, 2 * size))
        # Elsewhere `qkv_proj` is cut into pieces that lie otherwise (CodeGen).
        if (
            not size
            or left
            or key_heads < 1
            or heads % key_heads
            or (name == "qkv_proj" and not _number(module, KEYS))
        ):
            return None
        ends = heads * size, (heads + key_heads) * size
        return Layout(_rows(fused, slice(0, ends[0])), _rows(fused, slice(*ends)), size)
    return None


def _interleaved(module: nn.Module) -> Layout | None:
    """One Linear whose outputs are query, key and value of the first head, then of the second (NeoX, BLOOM)."""
    fused = _matrix(module, "query_key_value")
    heads = fused and _num_heads(module)
    if fused is None or not heads or _outputs(fused) % (3 * heads) or getattr(module, "multi_query", False):
        return None
    rows = torch.arange(_outputs(fused)).view(heads, 3, -1)
    return Layout(_rows(fused, rows[:, 0].flatten()), _rows(fused, rows[:, 1].flatten()), rows.shape[2])


def _separate(module: nn.Module) -> Layout | None:
    """A Linear for queries and one for keys: Llama, Mistral, Qwen, ViT, Swin, BERT, T5, DistilBERT, diffusers."""
    for names in SEPARATE:
        query, key = (_matrix(module, name) for name in names)
        if query is None or key is None:
            continue
        heads = _num_heads(module)
        size = _number(module, HEAD_DIM) or (heads and _outputs(query) // heads)
        if not size or _outputs(query) % size or _outputs(key) % size:
            return None
        found, key_heads = _outputs(query) // size, _outputs(key) // size
        # More rows than heads: something else is made along with the queries (a gate in Qwen3-Next).
        of_config = _number(getattr(module, "config", None), ("num_attention_heads",))
        if found % key_heads or (of_config and _number(module, HEADS) is None and found != of_config):
            return None
        return Layout(query, key, size)
    return None


# Asked in this order; the first that knows a module has it.
BUILT_IN = (_multihead, _cross, _fused, _interleaved, _separate)
LAYOUTS: list[LayoutFunction] = [*BUILT_IN]
HEADS = ("heads", "num_heads", "n_head", "n_heads", "num_attention_heads", "nheads")
KEYS = ("num_key_value_heads", "n_kv_heads", "num_kv_heads")
HEAD_DIM = ("head_dim", "attention_head_size", "head_size", "key_value_proj_dim")
SEPARATE = (
    ("q_proj", "k_proj"),
    ("query", "key"),
    ("q", "k"),
    ("wq", "wk"),
    ("to_q", "to_k"),
    ("q_lin", "k_lin"),
    ("query_proj", "key_proj"),
)


def _matrix(module: nn.Module, name: str) -> Projection | None:
    """Return a child's weight and bias if it is a linear map; quantised and convolutional weights are not."""
    child = module._modules.get(name)  # getattr is slow where there is nothing, and every module is asked
    if child is None:
        return None
    with evaluation(child):
        weight = getattr(child, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or not weight.is_floating_point():
        return None
    bias: Any = getattr(child, "bias", None)
    return Projection(weight, bias, transposed=is_conv1d(child))


def _outputs(projection: Projection) -> int:
    return projection.weight.shape[1 if projection.transposed else 0]


def _rows(projection: Projection, rows: slice | Tensor) -> Projection:
    return Projection(projection.weight, projection.bias, rows, projection.transposed)


def _num_heads(module: nn.Module) -> int | None:
    return _number(module, HEADS) or _number(getattr(module, "config", None), HEADS)


def _number(owner: object, names: tuple[str, ...]) -> int | None:
    """Return the first attribute that is a whole number."""
    values = (getattr(owner, name, None) for name in names)
    return next((value for value in values if isinstance(value, int) and not isinstance(value, bool)), None)
