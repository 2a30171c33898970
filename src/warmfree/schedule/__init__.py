"""Learning-rate schedules, without warmup unless asked for, and where a warmup may start."""

from warmfree.schedule.catapult import CatapultWarmup
from warmfree.schedule.critical import (
    CriticalLR,
    NonDeterministicLossError,
    Search,
    Trial,
    critical_lr,
)
from warmfree.schedule.critical_warmup import CriticalWarmup, critical_warmup
from warmfree.schedule.curves import (
    AdamDWarmup,
    GIAdamWarmup,
    RAdamWarmup,
    UntunedExponential,
    UntunedLinear,
    WarmupCurve,
    adamd_warmup,
    gi_adam_warmup,
    radam_warmup,
    untuned_exponential,
    untuned_linear,
)
from warmfree.schedule.loss_driven import LossDriven
from warmfree.schedule.shapes import (
    Constant,
    Cosine,
    InverseSqrt,
    Shape,
    Trapezoid,
    constant,
    cosine,
    inverse_sqrt,
    linear,
    trapezoid,
)
from warmfree.schedule.smoothness import (
    GapRule,
    InverseGapRule,
    PeakedRule,
    ReciprocalRule,
    SmoothnessRule,
    peak_fraction,
)

__all__ = [
    "AdamDWarmup",
    "CatapultWarmup",
    "Constant",
    "Cosine",
    "CriticalLR",
    "CriticalWarmup",
    "GIAdamWarmup",
    "GapRule",
    "InverseGapRule",
    "InverseSqrt",
    "LossDriven",
    "NonDeterministicLossError",
    "PeakedRule",
    "RAdamWarmup",
    "ReciprocalRule",
    "Search",
    "Shape",
    "SmoothnessRule",
    "Trapezoid",
    "Trial",
    "UntunedExponential",
    "UntunedLinear",
    "WarmupCurve",
    "adamd_warmup",
    "constant",
    "cosine",
    "critical_lr",
    "critical_warmup",
    "gi_adam_warmup",
    "inverse_sqrt",
    "linear",
    "peak_fraction",
    "radam_warmup",
    "trapezoid",
    "untuned_exponential",
    "untuned_linear",
]
