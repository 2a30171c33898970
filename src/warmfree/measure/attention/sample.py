"""A few rows of an attention map: recomputed from queries and keys, and reduced at once to sums per head."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from warmfree.measure.attention.quantities import attention_entropy, collapse, effective_rank, entropy_ratio

__all__ = [
    "AttentionStatistics",
    "Sampling",
    "add_calls",
    "finish",
    "measure_rows",
    "rows_of_map",
    "rows_of_product",
]

# A logit below this is a mask and not a score: masks are -inf, the dtype's minimum, or -1e9 in older code.
MASKED = -1e8


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """At most how many samples of the batch, heads, and queries of a sample are looked at, evenly spaced."""

    samples: int
    heads: int
    queries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionStatistics:
    """The attention map of one layer; lists hold one number per head that was looked at.

    Attributes:
        heads: which heads, counted from 0. Under tensor parallelism those of this process, counted from 0.
        entropy: in nats, the mean over the sampled queries that see a key; NaN if none does.
        entropy_ratio: the mean of entropy / ln(visible keys) over the sampled queries that see two keys or more.
        logit: the largest logit, with scale and additive mask, of the sampled queries and all their visible keys.
        rank: effective rank of the map of the sampled queries and all keys / its size (the smaller of queries and
            keys), from 1 / size to 1, the mean over the samples.
        collapse: 0 none, 1 benign, 2 malignant; :func:`~warmfree.measure.attention.collapse` of the means.
    """

    heads: list[int]
    entropy: list[float]
    entropy_ratio: list[float]
    logit: list[float]
    rank: list[float]
    collapse: list[float]


@dataclass(frozen=True, slots=True)
class Call:
    """What one attention call adds up to: the heads, and (7 sums and a maximum, heads) numbers."""

    heads: list[int]
    sums: Tensor


def spaced(total: int, count: int) -> list[int]:
    """Return at most `count` of the numbers below `total`, evenly spaced, the last one among them."""
    if total <= count:
        return list(range(total))
    return [(index + 1) * total // count - 1 for index in range(count)]


def rows_of_product(
    query: Tensor,
    key: Tensor,
    sampling: Sampling,
    *,
    mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
) -> tuple[Tensor, list[int]]:
    """Return the logits of sampled queries and all keys, from what `scaled_dot_product_attention` is called with.

    Args:
        query: (..., heads, queries, head_dim); without a dimension for heads, (batch, queries, head_dim).
        key: (..., key_heads, keys, head_dim).
        sampling: how much to look at.
        mask: broadcasts to (..., heads, queries, keys): boolean, True where a query sees a key, or added to logits.
        is_causal: query i sees keys 0 ... i only.
        scale: of the logits; None for 1 / sqrt(head_dim).

    Returns:
        (samples, sampled heads, sampled queries, keys) logits in float32 or wider, -inf where a mask hides the key,
        and the sampled heads.
    """
    if query.ndim == 3:
        query, key = query.unsqueeze(1), key.unsqueeze(-3)
        mask = mask if mask is None or mask.ndim < 3 else mask.unsqueeze(-3)
    batch = torch.Size(torch.broadcast_shapes(query.shape[:-3], key.shape[:-3]))  # type: ignore[no-untyped-call]
    num_heads, num_queries, num_keys = query.shape[-3], query.shape[-2], key.shape[-2]
    heads, rows = spaced(num_heads, sampling.heads), spaced(num_queries, sampling.queries)
    precise = torch.promote_types(query.dtype, torch.float32)
    key_heads = [head * key.shape[-3] // num_heads for head in heads]
    some_queries = _take(_samples(query, batch, sampling), heads, rows).to(precise)
    some_keys = _take(_samples(key, batch, sampling), key_heads, None).to(precise)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    logits = (some_queries * factor) @ some_keys.mT
    if mask is not None:
        mask = mask.expand(*mask.shape[:-2], num_queries, num_keys)
        mask = mask.expand(*batch, num_heads, num_queries, num_keys)
        mask = _take(_samples(mask, batch, sampling), heads, rows)
        logits = (
            logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else _hide(logits + mask, mask)
        )
    if is_causal:
        later = torch.arange(num_keys, device=logits.device) > _index(rows, logits)[:, None]
        logits = logits.masked_fill(later, -math.inf)
    return logits, heads


def rows_of_map(logits: Tensor, sampling: Sampling) -> tuple[Tensor, list[int]]:
    """Return sampled rows of the logits that a softmax is called with, as :func:`rows_of_product`.

    Args:
        logits: (..., heads, queries, keys), masks added.
        sampling: how much to look at.
    """
    heads, rows = spaced(logits.shape[-3], sampling.heads), spaced(logits.shape[-2], sampling.queries)
    some = _take(_samples(logits, logits.shape[:-3], sampling), heads, rows)
    return _hide(some.to(torch.promote_types(some.dtype, torch.float32)), some), heads


def measure_rows(logits: Tensor, heads: list[int]) -> Call:
    """Reduce sampled logits to what adds up over calls.

    Args:
        logits: (samples, heads, queries, keys), -inf where a key is hidden.
        heads: which heads these are.
    """
    visible = logits != -math.inf  # NaN is visible, and makes what it is part of NaN
    num_visible = visible.sum(-1)
    sees = num_visible > 0
    attention = torch.where(sees.unsqueeze(-1), logits.softmax(-1), 0.0)
    entropy = attention_entropy(attention)
    ratio = entropy_ratio(entropy, num_visible)
    size = sees.sum(-1).clamp(max=logits.shape[-1])
    exists = size > 0
    sums = [
        entropy.sum((0, 2)),  # 0 where nothing is visible
        sees.sum((0, 2)),
        torch.where(num_visible > 1, ratio, 0.0).sum((0, 2)),
        (num_visible > 1).sum((0, 2)),
        torch.where(exists, effective_rank(attention) / size, 0.0).sum(0),
        size.sum(0),
        exists.sum(0),
        logits.amax((0, 2, 3)),
    ]
    return Call(heads, torch.stack([values.to(logits.dtype) for values in sums]))


def add_calls(first: Call, second: Call) -> Call:
    """Put together two calls of one layer; one with other heads than the first is left out."""
    if first.heads != second.heads:
        return first
    total, largest = first.sums[:-1] + second.sums[:-1], torch.maximum(first.sums[-1], second.sums[-1])
    return Call(first.heads, torch.cat([total, largest.unsqueeze(0)]))


def finish(calls: dict[str, Call]) -> dict[str, AttentionStatistics]:
    """Turn the sums of all layers into means, and fetch them in one go."""
    if not calls:
        return {}
    means = [_means(call.sums) for call in calls.values()]
    device, dtype = means[0].device, max((mean.dtype for mean in means), key=lambda kind: kind.itemsize)
    # Side by side, so that an accelerator is waited for once and not once a layer.
    columns = torch.cat([mean.to(device, dtype) for mean in means], dim=1).tolist()
    statistics, start = {}, 0
    for name, call in calls.items():
        end = start + len(call.heads)
        entropy, ratio, logit, rank, verdict = (column[start:end] for column in columns)
        statistics[name] = AttentionStatistics(
            heads=call.heads, entropy=entropy, entropy_ratio=ratio, logit=logit, rank=rank, collapse=verdict
        )
        start = end
    return statistics


def _means(sums: Tensor) -> Tensor:
    entropy, rows, ratio, choices, rank, size, maps, logit = (
        sums  # 0 / 0 = NaN where nothing was there to measure
    )
    size, rank, ratio = size / maps, rank / maps, ratio / choices
    logit = torch.where(logit == -math.inf, torch.nan, logit)
    return torch.stack([entropy / rows, ratio, logit, rank, collapse(ratio, rank * size, size)])


def _samples(tensor: Tensor, batch: torch.Size, sampling: Sampling) -> Tensor:
    """Return evenly spaced samples, (samples, heads, rows, columns), of (..., heads, rows, columns)."""
    tensor = tensor.expand(*batch, *tensor.shape[-3:])
    total = batch.numel()
    if len(batch) == 1 and total <= sampling.samples:
        return tensor
    # Not flattened before: a mask that is expanded over the batch would be copied whole.
    index = torch.tensor(spaced(total, sampling.samples), device=tensor.device)
    return tensor[torch.unravel_index(index, batch)] if batch else tensor.unsqueeze(0)


def _take(tensor: Tensor, heads: list[int], rows: list[int] | None) -> Tensor:
    if heads != list(range(tensor.shape[1])):
        tensor = tensor.index_select(1, _index(heads, tensor))
    if rows is not None and len(rows) < tensor.shape[2]:
        tensor = tensor.index_select(2, _index(rows, tensor))
    return tensor


def _index(numbers: list[int], like: Tensor) -> Tensor:
    return torch.tensor(numbers, device=like.device)


def _hide(logits: Tensor, mask: Tensor) -> Tensor:
    """Make -inf what an additive mask of a dtype has hidden."""
    return logits.masked_fill(logits <= max(MASKED, torch.finfo(mask.dtype).min / 2), -math.inf)
