"""Attention: the spectrum of its query and key weights, and the entropy, logits and rank of its maps."""

from warmfree.measure.attention.layouts import Layout, Projection, register_layout
from warmfree.measure.attention.quantities import (
    LOW_RANK,
    SPARSE,
    attention_entropy,
    collapse,
    effective_rank,
    entropy_ratio,
    spectral_energy_concentration,
    spectrum,
    stable_rank,
)
from warmfree.measure.attention.sample import AttentionStatistics
from warmfree.measure.attention.watch import watch_attention
from warmfree.measure.attention.weights import QueryKey, each_query_key, query_key_weights

__all__ = [
    "LOW_RANK",
    "SPARSE",
    "AttentionStatistics",
    "Layout",
    "Projection",
    "QueryKey",
    "attention_entropy",
    "collapse",
    "each_query_key",
    "effective_rank",
    "entropy_ratio",
    "query_key_weights",
    "register_layout",
    "spectral_energy_concentration",
    "spectrum",
    "stable_rank",
    "watch_attention",
]
