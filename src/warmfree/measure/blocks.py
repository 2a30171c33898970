r"""What is watched block by block in a transformer: 15 quantities where norms have biases, 13 where they have none.

Qi et al. 2025 watch 15 quantities per block in ViT and 13 in GPT without biases; the list itself was not found. Ours
has their numbers: sigma_1 of the six matrices and of the three products that act on the residual stream, the norms of
gains (and biases) of the two LayerNorms, of the block's output and of the loss's gradient in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from warmfree.measure.attention.layouts import layout_of
from warmfree.measure.attention.weights import QueryKey, each_query_key
from warmfree.measure.hooks import hooked
from warmfree.measure.inputs import is_conv1d
from warmfree.measure.undisturbed import evaluation, undisturbed
from warmfree.optim.norms import compute_dtype, random_direction
from warmfree.optim.sharding import whole

__all__ = ["BlockQuantities", "find_blocks"]

_FUSED = ("qkv", "c_attn", "Wqkv", "qkv_proj", "in_proj", "query_key_value")
_VALUES = ("v_proj", "value", "v", "wv", "to_v", "v_lin", "value_proj")
_QUERIES_AND_KEYS = (
    "q_proj",
    "k_proj",
    "query",
    "key",
    "q",
    "k",
    "wq",
    "wk",
    "to_q",
    "to_k",
    "q_lin",
    "k_lin",
)


def find_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Find the blocks of a transformer: equal modules in a list, each of which holds one attention layer.

    Args:
        model: any module. A block is a child of a ModuleList or Sequential that has another child of its class or no
            other child, and that holds one attention layer, of those that `warmfree.measure.attention` knows; the
            innermost such child.

    Returns:
        Name, as in `model.named_modules()`, to block, in order. Empty for other models.

    Example:
        >>> layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        >>> list(find_blocks(nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)))
        ['layers.0', 'layers.1', 'layers.2']
    """
    return {place.name: place.block for place in _places(model).values()}


@dataclass(frozen=True, slots=True)
class _Place:
    """A block, and what its attention layer is called within it."""

    name: str
    block: nn.Module
    attention: str


class BlockQuantities:
    r"""Measure every block of a transformer. The object keeps the vectors of its power iterations.

    | quantity | of a block |
    |---|---|
    | `sigma_query`, `sigma_key`, `sigma_value`, `sigma_out` | :math:`\sigma_1` of W_q, W_k, W_v, W_o, all heads |
    | `sigma_up`, `sigma_down` | of the MLP's W_1 and W_2 (beside a gate: the matrix it is multiplied with) |
    | `sigma_query_key` | of :math:`W_q^\top W_k`, the largest head |
    | `sigma_out_value`, `sigma_down_up` | of :math:`W_o W_v` and :math:`W_2 W_1` |
    | `gain_1`, `gain_2`, `shift_1`, `shift_2` | l2 norms of the LayerNorms' gains and biases, in order |
    | `output_norm` | of the output x: root mean square over tokens of the l2 norm |
    | `output_gradient_norm` | l2 norm of :math:`\partial L/\partial x` over the whole batch |

    A block that lacks a part lacks its quantities; one with four norms (Gemma) has `gain_3` and `gain_4`, too. Weights
    that are sharded are gathered, a block at a time.

    Args:
        model: a transformer, neither compiled nor wrapped by DistributedDataParallel.
        first: power iterations of the first measurement, at least 1. Estimates are from below.
        later: power iterations of every one after it, at least 1.

    Raises:
        ValueError: the model has no blocks that are known, or a number of iterations is out of range.

    Example:
        >>> model = nn.Sequential(*[nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(2)])
        >>> inputs = torch.randn(3, 5, 16)
        >>> found = BlockQuantities(model).measure(lambda: model(inputs).square().mean())
        >>> len(found), sorted(found["gain_1"])
        (15, ['0', '1'])

    Reference: Qi et al. 2025, section 3, for the number of quantities and the products; the list is our reading.
    """

    def __init__(self, model: nn.Module, *, first: int = 20, later: int = 3) -> None:
        for name, count in (("first", first), ("later", later)):
            if count < 1:
                raise ValueError(f"{name} must be >= 1 power iterations, got {count}")
        if not find_blocks(model):
            raise ValueError(
                "found no transformer blocks: expected a ModuleList or Sequential of equal modules with an attention "
                "layer each; teach `warmfree.measure.attention.register_layout` the layer if it is of another kind"
            )
        self._model, self._first, self._later = model, first, later
        self._vectors: dict[tuple[str, str], Tensor] = {}

    def measure(self, loss: Callable[[], Tensor] | None = None) -> dict[str, dict[str, float]]:
        """Measure the weights, and with a loss the outputs.

        Args:
            loss: runs the model on a batch and returns the mean loss, with a graph; it is called with the model in eval
                mode, see `undisturbed`. It is differentiated in the outputs alone: no gradient of a parameter is
                computed or changed. None leaves `output_norm` and `output_gradient_norm` out.

        Returns:
            Quantity to block name to value.
        """
        found: dict[str, dict[str, Tensor]] = {}
        with torch.no_grad(), evaluation(self._model):
            places = _places(self._model)
            for layer, heads in each_query_key(self._model):
                if layer in places:
                    for quantity, value in self._of_weights(places[layer], heads).items():
                        found.setdefault(quantity, {})[places[layer].name] = value
        if loss is not None:
            with undisturbed(self._model):
                found |= _of_outputs(find_blocks(self._model), loss)
        return {quantity: _fetched(values) for quantity, values in found.items() if values}

    def _of_weights(self, place: _Place, heads: QueryKey) -> dict[str, Tensor]:
        parts = _parts(place, heads)
        query, key = (_wide(weights) for weights in (heads.query, heads.key))
        keys_per_query = key.repeat_interleave(query.shape[0] // key.shape[0], 0)
        chains: dict[str, list[Tensor | None]] = {
            "query": [query.flatten(0, 1)],
            "key": [key.flatten(0, 1)],
            "value": [parts.value],
            "out": [parts.out],
            "up": [parts.up],
            "down": [parts.down],
            # As (heads, ...): the product of every head, one beside the other.
            "query_key": [query.mT, keys_per_query] if query.shape[2] == key.shape[2] else [None],
            "out_value": [parts.out, parts.value_per_query(query.shape[0], key.shape[0])],
            "down_up": [parts.down, parts.up],
        }
        values = {}
        for quantity, chain in chains.items():
            factors = [factor for factor in chain if factor is not None]
            if len(factors) == len(chain):
                values[f"sigma_{quantity}"] = self._sigma((place.name, quantity), factors)
        for index, norm in enumerate(parts.norms, 1):
            for quantity, vector in (("gain", norm.weight), ("shift", getattr(norm, "bias", None))):
                if vector is not None:
                    values[f"{quantity}_{index}"] = torch.linalg.vector_norm(whole(vector.detach()).double())
        return values

    def _sigma(self, key: tuple[str, str], factors: Sequence[Tensor]) -> Tensor:
        """Power iteration on a product that is not formed, of matrices or of stacks of them: the largest."""
        width = factors[-1].shape[-1]
        start = random_direction(width, device=factors[-1].device, dtype=factors[-1].dtype)
        start = start.expand(*factors[-1].shape[:-2], width).unsqueeze(-1)
        last = self._vectors.get(key)
        # A little of a random vector beside the last one: a direction that is new must not be orthogonal to the start.
        vector = start if last is None else last + 0.1 * start
        sigma = vector.new_zeros(())
        for _ in range(self._first if last is None else self._later):
            vector = vector / _length(vector)
            image = vector
            for factor in reversed(factors):
                image = factor @ image
            sigma = torch.linalg.vector_norm(image, dim=-2)
            vector = image / _length(image)
            for factor in factors:
                vector = factor.mT @ vector
        self._vectors[key] = vector / _length(vector)
        return sigma.max()


@dataclass(slots=True)
class _Parts:
    """The weights of a block as (out, in) matrices, and its norms."""

    value: Tensor | None = None
    out: Tensor | None = None
    up: Tensor | None = None
    down: Tensor | None = None
    norms: list[Any] = field(default_factory=list)

    def value_per_query(self, heads: int, key_heads: int) -> Tensor | None:
        """Return the values' matrix with a copy of each head for every query head that it serves."""
        if self.value is None or self.value.shape[0] % key_heads:
            return None
        by_head = self.value.reshape(key_heads, -1, self.value.shape[1])
        stacked = by_head.repeat_interleave(heads // key_heads, 0).flatten(0, 1)
        return stacked if self.out is not None and self.out.shape[1] == stacked.shape[0] else None


def _places(model: nn.Module) -> dict[str, _Place]:
    """Return the block around every attention layer that is in one, by the layer's name."""
    modules = dict(model.named_modules())
    layers = [name for name, module in modules.items() if layout_of(module) is not None]
    found: dict[str, _Place] = {}
    for name, container in modules.items():  # from the outside to the inside: the innermost block is kept
        if not isinstance(container, nn.ModuleList | nn.Sequential):
            continue
        kinds = [type(child) for child in container.children()]
        for child_name, child in container.named_children():
            block = f"{name}.{child_name}".lstrip(".")
            inside = [layer for layer in layers if layer.startswith(block + ".")]
            if len(inside) == 1 and (kinds.count(type(child)) > 1 or len(kinds) == 1):
                found[inside[0]] = _Place(block, child, inside[0].removeprefix(block + "."))
    return {layer: found[layer] for layer in layers if layer in found}


def _parts(place: _Place, heads: QueryKey) -> _Parts:
    parts = _Parts()
    around = (
        place.attention.split(".")[0] + "."
    )  # BERT keeps W_o beside the attention layer, in a module around both
    rows = heads.query.shape[:2].numel(), heads.key.shape[:2].numel()
    mlp = []
    for name, matrix in _matrices(place.block):
        leaf = name.rsplit(".", 1)[-1]
        if not name.startswith(around):
            mlp.append((name, matrix))
        elif leaf in _FUSED:
            parts.value = _fused_values(leaf, matrix, rows, heads)
        elif leaf in _VALUES:
            parts.value = matrix
        elif leaf not in _QUERIES_AND_KEYS and matrix.shape[1] == rows[0]:
            parts.out = matrix
    ungated = [matrix for name, matrix in mlp if "gate" not in name.rsplit(".", 1)[-1]]
    if len(ungated) == 2:  # experts are many
        parts.up, parts.down = ungated
    width = heads.query.shape[2]
    parts.norms = [
        module
        for module in place.block.modules()
        if "Norm" in type(module).__name__
        and isinstance(weight := getattr(module, "weight", None), Tensor)
        and weight.is_floating_point()
        and weight.shape == (width,)
    ]
    return parts


def _matrices(block: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield linear maps by their module's name, as (out, in)."""
    for name, module in block.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            if module.in_proj_weight is not None:
                yield f"{name}.in_proj", _wide(module.in_proj_weight)
            else:
                yield f"{name}.v_proj", _wide(module.v_proj_weight)
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim != 2 or not weight.is_floating_point():
            continue
        if not isinstance(module, nn.Embedding):
            yield name, _wide(weight).mT if is_conv1d(module) else _wide(weight)


def _fused_values(leaf: str, matrix: Tensor, rows: tuple[int, int], heads: QueryKey) -> Tensor | None:
    queries, keys = rows
    if matrix.shape[0] != queries + 2 * keys:
        return None
    if leaf == "query_key_value":  # head by head
        return matrix.view(heads.query.shape[0], 3, -1, matrix.shape[1])[:, 2].flatten(0, 1)
    return matrix[queries + keys :]


def _wide(weight: Tensor) -> Tensor:
    full = whole(weight.detach())
    return full.to(compute_dtype(full))


def _length(vector: Tensor) -> Tensor:
    """Return the length of column vectors; 1 for zero ones."""
    length = torch.linalg.vector_norm(vector, dim=-2, keepdim=True)
    return torch.where(length > 0, length, 1.0)


@contextmanager
def _recorded(blocks: dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Keep each block's output, the last if it runs several times."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            del module, inputs
            outputs[name] = next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))

        return hook

    def register(name: str, block: nn.Module) -> Iterator[RemovableHandle]:
        yield block.register_forward_hook(keep(name))

    with hooked(blocks, register):
        yield outputs


def _of_outputs(blocks: dict[str, nn.Module], loss: Callable[[], Tensor]) -> dict[str, dict[str, Tensor]]:
    with torch.enable_grad(), _recorded(blocks) as outputs:
        value = loss()
    names = list(outputs)
    gradients = torch.autograd.grad(value, [outputs[name] for name in names], allow_unused=True)
    return {
        "output_norm": {
            name: torch.linalg.vector_norm(output.detach().double())
            / math.sqrt(output.numel() // output.shape[-1])
            for name, output in outputs.items()
        },
        "output_gradient_norm": {
            name: torch.linalg.vector_norm(gradient.double())
            for name, gradient in zip(names, gradients, strict=True)
            if gradient is not None
        },
    }


def _fetched(values: dict[str, Tensor]) -> dict[str, float]:
    """Bring the values of one quantity to the host, in one transfer."""
    device = next(iter(values.values())).device
    numbers = torch.stack([value.to(device).double() for value in values.values()]).tolist()
    return dict(zip(values, numbers, strict=True))
