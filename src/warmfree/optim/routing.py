"""Which tensor is a matrix, an embedding, a head or a vector; how fused projections fall apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from warmfree.optim.move import Layout

ROLES = ("matrix", "embedding", "head", "vector")
ROUTING_OPTIONS: dict[str, Any] = {"role": None, "out_dim": 0, "split": None}

# Projections whose output is q, k, v one after the other. Interleaved ones (GPT-NeoX's query_key_value) cannot be split
# by rows and are not here.
_FUSED_QKV = ("qkv", "c_attn", "in_proj_weight", "Wqkv")


def layout_of(parameter: Tensor, group: Mapping[str, Any]) -> Layout:
    """Decide how a parameter is read, from its shape and the options of its group.

    Options: `role` is one of "matrix", "embedding", "head", "vector", or None for "matrix" from two dimensions
    on and "vector" below; `out_dim` is the dimension that counts output neurons (1 for transposed layouts such as
    transformers' Conv1D); `split` is a number of equal sections or a sequence of sizes along `out_dim`, each bounded
    as a matrix of its own (3 for a fused q, k, v projection).

    Raises:
        ValueError: unknown role, dimension out of range, or sections that do not fit the tensor.

    Example:
        >>> import torch
        >>> layout_of(torch.zeros(12, 4), {"role": None, "out_dim": 0, "split": 3})
        Layout(role='matrix', out_dim=0, sections=(4, 4, 4))
    """
    role = group["role"]
    if role is None:
        role = "matrix" if parameter.ndim >= 2 else "vector"
    elif role not in ROLES:
        raise ValueError(f"role must be one of {', '.join(ROLES)} or None, got {role!r}")
    if role == "vector" or parameter.ndim < 2 or parameter.numel() == 0:
        return Layout("vector")

    out_dim = group["out_dim"]
    if not -parameter.ndim <= out_dim < parameter.ndim:
        raise ValueError(
            f"out_dim must be a dimension of a tensor of shape {tuple(parameter.shape)}, got {out_dim}"
        )
    out_dim %= parameter.ndim
    split, size = group["split"], parameter.shape[out_dim]
    if split is None:
        return Layout(role, out_dim)
    if isinstance(split, int):
        if split < 1 or size % split:
            raise ValueError(
                f"split must divide the {size} outputs of shape {tuple(parameter.shape)}, got {split}"
            )
        return Layout(role, out_dim, (size // split,) * split)
    sections = tuple(split)
    if sum(sections) != size or any(section < 1 for section in sections):
        raise ValueError(
            f"split must add up to the {size} outputs of shape {tuple(parameter.shape)}, got {sections}"
        )
    return Layout(role, out_dim, sections)


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float = 0.1,
    embedding_decay: float | None = None,
    split_qkv: bool = False,
    **options: Any,
) -> list[dict[str, Any]]:
    """Sort a model's parameters into groups for any optimizer of this package.

    Matrices and the head get `weight_decay`, embeddings `embedding_decay`, vectors (biases, gains) none. Embeddings
    are the weights of `nn.Embedding`; the head is what `model.get_output_embeddings()` returns (transformers), else
    the last `nn.Linear`, unless it is tied to an embedding. Modules named Conv1D (transformers) are read transposed.

    Args:
        model: any module; shared parameters are listed once, frozen ones (requires_grad=False) not at all.
        weight_decay: of matrices and the head, at least 0.
        embedding_decay: of embeddings, tied heads included; None for `weight_decay`. 0 keeps the rotational optimizers
            from turning them.
        split_qkv: bound q, k and v of fused projections on their own. Recognised by the names qkv, c_attn,
            in_proj_weight and Wqkv, when their outputs fall into three equal parts.
        options: further options for every group, such as lr.

    Returns:
        Groups with "params", "param_names", "role", "weight_decay", and "out_dim" or "split" where not the default.

    Raises:
        ValueError: the model has no trainable parameter.

    Example:
        >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 10))
        >>> for group in parameter_groups(model):
        ...     print(group["role"], group["weight_decay"], [name for name, _ in group["params"]])
        embedding 0.1 ['0.weight']
        matrix 0.1 ['1.weight']
        head 0.1 ['3.weight']
        vector 0.0 ['1.bias', '2.weight', '2.bias', '3.bias']
    """
    roles = _roles(model)
    decays = {"vector": 0.0, "embedding": weight_decay if embedding_decay is None else embedding_decay}
    groups: dict[tuple[str, int, int | None], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        role, out_dim = roles.get(id(parameter), ("matrix", 0))
        if parameter.ndim < 2:
            role, out_dim = "vector", 0
        fused = any(part in _FUSED_QKV for part in name.split("."))
        split = (
            3
            if split_qkv and role in ("matrix", "head") and fused and parameter.shape[out_dim] % 3 == 0
            else None
        )
        group = groups.setdefault((role, out_dim, split), {"params": [], "role": role})
        group["params"].append((name, parameter))
        group.update(out_dim=out_dim, split=split, **options)
        group["weight_decay"] = decays.get(role, weight_decay)
    if not groups:
        raise ValueError("the model has no trainable parameter: nothing to optimize")
    order = {role: place for place, role in enumerate(("embedding", "matrix", "head", "vector"))}
    return [groups[key] for key in sorted(groups, key=lambda key: (order[key[0]], key[1], key[2] or 0))]


def _roles(model: nn.Module) -> dict[int, tuple[str, int]]:
    """Map the id of parameters that are no plain matrix to role and out_dim."""
    roles: dict[int, tuple[str, int]] = {}
    head: Any = None
    for module in model.modules():
        if type(module).__name__ == "Conv1D":
            roles[id(module.weight)] = ("matrix", 1)
        elif isinstance(module, nn.Linear):
            head = module
        elif isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            roles[id(module.weight)] = ("matrix", 1)
    output = getattr(model, "get_output_embeddings", None)
    head = (output() if callable(output) else None) or head
    if head is not None:
        roles[id(head.weight)] = ("head", 0)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            roles[id(module.weight)] = ("embedding", 0)
    return roles
