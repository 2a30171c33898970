"""What a monitor can measure: names, units and one plain sentence each. The record carries them to its readers."""

from dataclasses import asdict, dataclass
from typing import Literal

__all__ = ["QUANTITIES", "Quantity", "describe"]


@dataclass(frozen=True, slots=True)
class Quantity:
    """How to read a number.

    Attributes:
        title: what a person calls it.
        meaning: one sentence.
        scale: how it is drawn.
        unit: empty for a ratio or a number in the network's own units.
    """

    title: str
    meaning: str
    scale: Literal["log", "linear"] = "log"
    unit: str = ""


QUANTITIES: dict[str, Quantity] = {
    "update_l2": Quantity("update norm", "l2 norm of what one step changed."),
    "update_rms": Quantity("update RMS", "Root mean square of what one step changed, over the entries."),
    "update_rms_per_lr": Quantity(
        "update RMS over learning rate", "About 1 in Adam's first step, 0.23 when gradients are noise."
    ),
    "update_relative": Quantity("relative update", "Norm of the change over norm of the weight."),
    "update_angle": Quantity(
        "angular update", "How far one step turned the neurons (rows), root mean square.", unit="rad"
    ),
    "update_angle_tensor": Quantity(
        "angle of the tensor", "How far one step turned the whole tensor.", unit="rad"
    ),
    "angle_ratio": Quantity(
        "angle over equilibrium", "Angular update over the angle at which the optimizer settles in the end."
    ),
    "spectral_ratio": Quantity(
        "spectral ratio", "Largest singular value of the change over that of the weight."
    ),
    "bounded_ratio": Quantity(
        "spectral ratio, reported",
        "The optimizer's own: largest singular value of its step over the weight's.",
    ),
    "rotation": Quantity(
        "rotation, reported", "The optimizer's own: mean angle by which it turned the neurons.", unit="rad"
    ),
    "factor": Quantity(
        "factor of the size control", "What the optimizer's size control left of the step.", "linear"
    ),
    "grad_norm": Quantity("gradient norm", "l2 norm of the gradient; of the whole network: of all of it."),
    "weight_norm": Quantity("weight norm", "Frobenius norm of the weight."),
    "sigma_weight": Quantity("largest singular value", "Largest singular value of the weight as a matrix."),
    "stable_rank": Quantity(
        "stable rank", "Squared Frobenius norm over squared largest singular value of the weight.", "linear"
    ),
    "batch_snr": Quantity(
        "signal-to-noise of the batch", "Squared norm of the mean gradient over the variance of a batch's."
    ),
    "snr": Quantity(
        "gradient signal-to-noise", "Squared norm of the mean gradient over the variance of one sample's."
    ),
    "critical_batch": Quantity(
        "critical batch size", "Batch beyond which more samples hardly improve the gradient.", unit="samples"
    ),
    "rrc": Quantity(
        "representation change", "How far one step moved the layer's output on the same inputs, relative."
    ),
    "rrc_predicted": Quantity(
        "predicted representation change",
        "The same from update size, fan-in, batch size and signal-to-noise.",
    ),
    "attention_entropy": Quantity(
        "attention entropy", "Mean entropy of the attention rows.", "linear", unit="nats"
    ),
    "attention_entropy_ratio": Quantity(
        "attention entropy, relative", "Entropy over that of attention spread evenly over all keys.", "linear"
    ),
    "attention_logit": Quantity("largest attention logit", "Largest argument of the softmax.", "linear"),
    "attention_rank": Quantity(
        "rank of the attention map", "Effective rank of the attention map over its size.", "linear"
    ),
    "collapse": Quantity(
        "attention collapse",
        "0 none, 1 benign (sparse, not of low rank), 2 malignant (sparse and low rank).",
        "linear",
    ),
    "qk_energy": Quantity(
        "spectral energy concentration", "Energy of W_q^T W_k in its ten largest directions.", "linear"
    ),
    "qk_stable_rank": Quantity(
        "stable rank of W_q^T W_k", "Squared Frobenius over squared largest.", "linear"
    ),
    "qk_sigma": Quantity("largest singular value of W_q^T W_k", "It bounds the attention logits."),
    "dead_units": Quantity(
        "dead units", "Fraction of units whose activation passes no gradient on any token.", "linear"
    ),
    "nonfinite_output": Quantity(
        "output not finite", "First module whose output holds inf or NaN.", "linear"
    ),
    "sharpness": Quantity("sharpness", "Largest eigenvalue of the Hessian of the loss."),
    "preconditioned_sharpness": Quantity(
        "preconditioned sharpness", "Largest eigenvalue of the Hessian as the optimizer's steps see it."
    ),
    "stability_threshold": Quantity(
        "stability threshold", "Sharpness above which steps of this learning rate grow instead of shrink."
    ),
    "instability": Quantity(
        "instability", "Sharpness over its stability threshold; above 1 the loss can rise step by step."
    ),
    "instability_early": Quantity(
        "instability of one step", "Sharpness over what a single first step can bear; above 1 it overshoots."
    ),
    "local_smoothness": Quantity(
        "local smoothness",
        "Change of the probe batch's gradient in one step over the length of the step: at most the largest curvature "
        "on the way.",
    ),
    "preconditioned_local_smoothness": Quantity(
        "preconditioned local smoothness",
        "The same as the optimizer's steps see it, in 1 / learning rate.",
    ),
    "smoothness_rounding": Quantity(
        "rounding in the local smoothness",
        "The share of it that rounding alone may make; from 1 on it tells nothing.",
    ),
    "probe_loss": Quantity(
        "loss of the probe batch", "Before the step, in eval mode: goes with the curvature there.", "linear"
    ),
    "sigma_query": Quantity("largest singular value of W_q", "Of all heads together."),
    "sigma_key": Quantity("largest singular value of W_k", "Of all heads together."),
    "sigma_value": Quantity("largest singular value of W_v", "Of all heads together."),
    "sigma_out": Quantity("largest singular value of W_o", "The attention's output projection."),
    "sigma_up": Quantity("largest singular value of W_1", "The first matrix of the MLP."),
    "sigma_down": Quantity("largest singular value of W_2", "The last matrix of the MLP."),
    "sigma_query_key": Quantity("largest singular value of W_q^T W_k", "Of the largest head."),
    "sigma_out_value": Quantity("largest singular value of W_o W_v", "What attention adds at most."),
    "sigma_down_up": Quantity(
        "largest singular value of W_2 W_1", "What the MLP adds, without its activation."
    ),
    "gain_1": Quantity("gain of the first norm", "l2 norm of the gains."),
    "gain_2": Quantity("gain of the second norm", "l2 norm of the gains."),
    "shift_1": Quantity("shift of the first norm", "l2 norm of the biases."),
    "shift_2": Quantity("shift of the second norm", "l2 norm of the biases."),
    "output_norm": Quantity("norm of the block's output", "Root mean square over tokens."),
    "output_gradient_norm": Quantity(
        "gradient in the block's output", "l2 norm of the loss's gradient in it, over the batch."
    ),
    "curvature_residual": Quantity(
        "residual of the eigenvalue", "Bound on the error of the sharpness, relative to it."
    ),
}


def describe(name: str) -> dict[str, str]:
    """Return how to read a quantity as plain JSON; one that is not known is its own title."""
    return asdict(QUANTITIES.get(name, Quantity(name.replace("_", " "), "")))
