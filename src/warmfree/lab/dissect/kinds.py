"""What is compared, by which margin, and what differs merely because the learning rates do."""

from typing import Literal

__all__ = [
    "LEFT_OUT",
    "LINEAR_MARGINS",
    "LOG_MARGIN",
    "SET_BY_LR",
    "UNKNOWN_MARGIN",
    "WITHOUT_RANGE",
    "Kind",
    "kind_of",
]

Kind = Literal["cause by construction", "symptom"]

SET_BY_LR = frozenset(
    (
        *("update_l2", "update_rms", "update_rms_per_lr", "update_relative", "update_angle"),
        *("update_angle_tensor", "angle_ratio", "spectral_ratio", "factor", "rrc", "rrc_predicted"),
        *("bounded_ratio", "rotation"),
        *("stability_threshold", "instability", "instability_early"),
    )
)
"""The size of the step, in all its units, and what holds the learning rate: warmup makes these small at first."""

LOG_MARGIN = 1.5
"""Factor beyond the healthy range, of quantities on a logarithmic scale."""

LINEAR_MARGINS: dict[str, float] = {
    "attention_entropy": 0.1,
    "attention_entropy_ratio": 0.05,
    "attention_logit": 1.0,
    "attention_rank": 0.05,
    "collapse": 0.5,
    "dead_units": 0.05,
    "factor": 0.05,
    "nonfinite_output": 0.5,
    "qk_energy": 0.05,
    "qk_stable_rank": 0.5,
    "stable_rank": 0.5,
}
"""Difference beyond the healthy range, in the quantity's own units."""
UNKNOWN_MARGIN = 0.05

LEFT_OUT: dict[str, str] = {
    "curvature_residual": "the accuracy of another quantity",
    "batch_snr": "snr in another unit",
    "critical_batch": "1 / snr",
    "probe_loss": "the loss, which is what failed",
}
"""Not compared, and why."""

WITHOUT_RANGE = frozenset(("nonfinite_output",))
"""Measured only when something is wrong, so that healthy runs have no range of it."""


def kind_of(quantity: str) -> Kind:
    """Return whether a quantity differs by construction between learning rates, or is a symptom."""
    return "cause by construction" if quantity in SET_BY_LR else "symptom"
