r"""Numbers that tell a healthy attention head from a collapsed one: pure functions of weights and attention maps."""

import torch
from torch import Tensor

__all__ = [
    "LOW_RANK",
    "SPARSE",
    "attention_entropy",
    "collapse",
    "effective_rank",
    "entropy_ratio",
    "spectral_energy_concentration",
    "spectrum",
    "stable_rank",
]

# Our choice: the paper says "sparse" and "low rank" without a number.
SPARSE = 0.1
LOW_RANK = 0.1


def spectrum(query: Tensor, key: Tensor) -> Tensor:
    r"""Return the singular values of W_q^T W_k of each head.

    With :math:`W_q^\top = Q_q R_q` and :math:`W_k^\top = Q_k R_k` they are those of the small :math:`R_q R_k^\top`,
    so the (model_dim, model_dim) product is never formed. Per head and not of the sum over heads: our choice.

    Args:
        query: (heads, head_dim, model_dim) weights.
        key: (key_heads, head_dim, key_dim) weights; head h uses key head ``h // (heads // key_heads)``.

    Returns:
        (heads, min(head_dim, model_dim, key_dim)), descending, in float32 or wider; NaN for a head with weights
        that are not finite.

    Raises:
        ValueError: the heads of queries and keys do not match.

    Example:
        >>> query = torch.tensor([[[3.0, 0.0, 0.0], [0.0, 0.0, 2.0]]])
        >>> key = torch.tensor([[[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
        >>> spectrum(query, key)
        tensor([[3., 2.]])

    Reference: Qi et al. 2025, the spectrum behind SEC.
    """
    heads, key_heads = query.shape[0], key.shape[0]
    if query.ndim != 3 or key.ndim != 3 or query.shape[1] != key.shape[1] or heads % max(1, key_heads):
        raise ValueError(
            "query and key must be (heads, head_dim, model_dim) with the same head_dim and heads a multiple of the "
            f"key's, got {tuple(query.shape)} and {tuple(key.shape)}"
        )
    precise = torch.promote_types(torch.promote_types(query.dtype, key.dtype), torch.float32)
    query_root = _root(query.detach().to(precise))
    key_root = _root(key.detach().to(precise)).repeat_interleave(heads // max(1, key_heads), 0)
    product = query_root @ key_root.mT
    finite = product.isfinite().all(2).all(1)
    # The solver raises on NaN.
    values = torch.linalg.svdvals(torch.where(finite[:, None, None], product, 0.0))
    return torch.where(finite[:, None], values, torch.nan)


def _root(weight: Tensor) -> Tensor:
    """Return R of the QR decomposition of each head's transposed weight."""
    root: Tensor = torch.linalg.qr(weight.mT, mode="r").R
    return root


def spectral_energy_concentration(singular_values: Tensor, *, num: int | None = 10) -> Tensor:
    r"""Return the share of the energy that the largest singular values hold.

    .. math:: \mathrm{SEC}(d_q, s) = \sum_{i \le s} \sigma_i^2 \Big/ \sum_{i \le d_q} \sigma_i^2

    Args:
        singular_values: (..., d_q) of W_q^T W_k, descending, from :func:`spectrum`.
        num: s >= 1, how many count as largest; None for the whole curve. The paper's s is not known: 10 is our
            choice, after its remark that crashed runs have the energy in fewer than 10 directions.

    Returns:
        (...) in [0, 1], or (..., d_q) for the curve s = 1 ... d_q; NaN where all singular values are zero.

    Raises:
        ValueError: ``num`` is below 1.

    Example:
        >>> spectral_energy_concentration(torch.tensor([2.0, 1.0, 1.0]), num=2)
        tensor(0.8333)

    Reference: Qi et al. 2025, definition of SEC(d_q, s).
    """
    if num is not None and num < 1:
        raise ValueError(f"num must be >= 1, got {num}")
    # Relative to the largest, so that squares neither overflow nor vanish.
    energy = (singular_values / singular_values.amax(-1, keepdim=True)).square()
    total = energy.sum(-1, keepdim=True)
    if num is None:
        return energy.cumsum(-1) / total
    return energy[..., :num].sum(-1) / total.squeeze(-1)


def stable_rank(singular_values: Tensor) -> Tensor:
    r"""Return :math:`\lVert W \rVert_F^2 / \sigma_1^2`, the number of directions that matter.

    Args:
        singular_values: (..., n), in any order.

    Returns:
        (...) in [1, n]; NaN for a zero matrix.

    Example:
        >>> stable_rank(torch.tensor([2.0, 1.0, 1.0]))
        tensor(1.5000)
    """
    return (singular_values / singular_values.amax(-1, keepdim=True)).square().sum(-1)


def attention_entropy(attention: Tensor) -> Tensor:
    r"""Return the entropy of each row of an attention map, :math:`-\sum_j A_{ij} \ln A_{ij}`, with 0 ln 0 = 0.

    Args:
        attention: (..., queries, keys) probabilities.

    Returns:
        (..., queries) in nats, in [0, ln(keys)]; 0 for a row of zeros.

    Example:
        >>> attention_entropy(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
        tensor([0.0000, 0.6931])
    """
    terms: Tensor = torch.special.entr(attention)
    return terms.sum(-1)


def entropy_ratio(entropy: Tensor, visible: Tensor) -> Tensor:
    """Return the entropy relative to that of a query which attends to all it may see alike.

    Args:
        entropy: (...) in nats.
        visible: (...) number of keys that the mask lets the query see.

    Returns:
        (...) in [0, 1]; NaN where fewer than two keys are visible, for there is nothing to choose.

    Example:
        >>> entropy_ratio(torch.tensor([0.0, 0.6931, 0.0]), torch.tensor([4, 4, 1]))
        tensor([0.0000, 0.5000,    nan])
    """
    return torch.where(visible > 1, entropy / visible.clamp(min=2).to(entropy.dtype).log(), torch.nan)


def effective_rank(attention: Tensor) -> Tensor:
    r"""Return the effective rank of each attention map: the participation ratio of its squared singular values.

    .. math:: \Big(\sum_i \sigma_i^2\Big)^2 \Big/ \sum_i \sigma_i^4
              = \lVert A \rVert_F^4 \,/\, \lVert A A^\top \rVert_F^2

    1 for a map whose rows are all alike, n for the identity. Our choice: the paper says "low rank" without a measure,
    and this one is smooth, needs no decomposition and bears NaN.

    Args:
        attention: (..., queries, keys).

    Returns:
        (...) in [1, min(queries, keys)]; NaN for a zero map.

    Example:
        >>> effective_rank(torch.eye(4)), effective_rank(torch.full((4, 4), 0.25))
        (tensor(4.), tensor(1.))
    """
    gram = attention @ attention.mT
    energy = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    return energy.square() / gram.square().sum((-2, -1))


def collapse(ratio: Tensor, rank: Tensor, size: Tensor) -> Tensor:
    """Say whether heads have collapsed, and how.

    A head is sparse if its entropy ratio is at most ``SPARSE`` = 0.1, and of low rank if its effective rank is at most
    1 + ``LOW_RANK`` (size - 1) with ``LOW_RANK`` = 0.1; both thresholds are our choice. A head whose queries all
    attend to the first token (an attention sink, common in trained language models) is sparse and of low rank, too:
    what tells a crash is that heads become so while the loss rises.

    Args:
        ratio: (heads,) entropy ratio.
        rank: (heads,) effective rank of the sampled map.
        size: (heads,) or () the smaller side of the sampled map.

    Returns:
        (heads,) 0.0: none; 1.0: benign, sparse but not of low rank; 2.0: malignant, sparse and of low rank. NaN where
        ratio or rank is, and for maps of one row or column, which have rank 1 whatever they are.

    Example:
        >>> ratio, rank = torch.tensor([0.9, 0.01, 0.01]), torch.tensor([1.0, 15.0, 1.2])
        >>> collapse(ratio, rank, torch.tensor(16.0))
        tensor([0., 1., 2.])

    Reference: Qi et al. 2025, benign and malignant collapse.
    """
    sparse = ratio <= SPARSE
    low_rank = rank <= 1 + LOW_RANK * (size - 1)
    verdict = sparse.to(ratio.dtype) * (1.0 + low_rank.to(ratio.dtype))
    return torch.where((ratio.isnan() | rank.isnan()) | (size <= 1), torch.nan, verdict)
