"""The weights that make the queries and keys of an attention layer, head by head; gathered where they are sharded."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from warmfree.measure.attention.layouts import Layout, Projection, layout_of
from warmfree.optim.sharding import whole

__all__ = ["QueryKey", "each_query_key", "query_key_weights"]


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryKey:
    """The weights that make queries and keys of one attention layer; views of the layer's own where they can be.

    Attributes:
        query: (heads, head_dim, model_dim); queries of a head are `query[head] @ x + query_bias[head]`.
        key: (key_heads, head_dim, key_dim); heads is a multiple of key_heads, and head h uses key head
            `h // (heads // key_heads)`. key_dim differs from model_dim in cross-attention only.
        query_bias: (heads, head_dim), or None.
        key_bias: (key_heads, head_dim), or None.
        rotary: queries and keys are rotated by their positions. Then W_q^T R W_k depends on the distance of two
            tokens, and what is computed from these weights alone holds at distance 0.
        qk_norm: queries and keys are normalised before the product, so that its size is not that of the weights:
            their spectrum tells the shape of the logits, not how large they are.
    """

    query: Tensor
    key: Tensor
    query_bias: Tensor | None = None
    key_bias: Tensor | None = None
    rotary: bool = False
    qk_norm: bool = False


def query_key_weights(model: nn.Module) -> dict[str, QueryKey]:
    """Return the query and key weights of every attention layer that a layout is known for.

    Sharded weights (DTensor) are gathered: every process of the mesh has to call this. :func:`each_query_key` holds
    one layer at a time. Adapters around a projection (LoRA) are not added to it.

    Args:
        model: any module; layers are found by their attributes, not by their classes.

    Returns:
        Module name, as in ``model.named_modules()``, -> :class:`QueryKey`. Empty for a model without attention.

    Example:
        >>> layers = query_key_weights(nn.Sequential(nn.MultiheadAttention(8, num_heads=2)))
        >>> layers["0"].query.shape, layers["0"].key_bias.shape
        (torch.Size([2, 4, 8]), torch.Size([2, 4]))
    """
    return dict(each_query_key(model))


def each_query_key(model: nn.Module) -> Iterator[tuple[str, QueryKey]]:
    """Go through the attention layers of a model one by one, as :func:`query_key_weights`."""
    for name, module in model.named_modules():
        layout = layout_of(module)
        if layout is not None:
            yield name, _gather(module, layout)


def _gather(module: nn.Module, layout: Layout) -> QueryKey:
    """Fetch the weights of one layer."""
    same = layout.query.weight is layout.key.weight
    query_weight = whole(layout.query.weight.detach())
    key_weight = query_weight if same else whole(layout.key.weight.detach())
    query, query_bias = _heads(layout.query, query_weight, layout.head_dim)
    key, key_bias = _heads(layout.key, key_weight, layout.head_dim)
    return QueryKey(
        query=query,
        key=key,
        query_bias=query_bias,
        key_bias=key_bias,
        rotary=_is_rotary(module),
        qk_norm=_has_qk_norm(module),
    )


def _heads(projection: Projection, weight: Tensor, size: int) -> tuple[Tensor, Tensor | None]:
    matrix, rows = weight.mT if projection.transposed else weight, projection.rows
    matrix = (matrix if rows is None else matrix[rows]).reshape(-1, size, matrix.shape[1])
    if projection.bias is None:
        return matrix, None
    bias, rows = (
        whole(projection.bias.detach()),
        rows if projection.bias_rows is None else projection.bias_rows,
    )
    return matrix, (bias if rows is None else bias[rows]).reshape(-1, size)


def _is_rotary(module: nn.Module) -> bool:
    """Whether the layer, or the code of its forward pass, names a rotary embedding."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    names = {*vars(module), *dict(module.named_children()), *(code.co_names if code else ())}
    return any({"rotary", "rope"} & set(name.lower().split("_")) for name in names)


def _has_qk_norm(module: nn.Module) -> bool:
    """Whether the layer has a norm for queries or keys of its own, or a cosine's scale (Swin v2)."""
    for name, child in module.named_children():
        words = set(name.lower().split("_"))
        of_query, norm = words & {"q", "k", "qk", "query", "key"}, words & {"norm", "layernorm", "ln"}
        if of_query and norm and not isinstance(child, nn.Identity):
            return True
    return hasattr(module, "logit_scale")
