"""Train transformers without learning-rate warmup."""

from warmfree import optim, schedule
from warmfree.advice import Advice, Translation, advise, translate_lr, translated
from warmfree.monitor.monitor import Monitor
from warmfree.optim import (
    AdamW2,
    GIAdamW,
    LionA,
    LionAR,
    RotationalAdamW,
    SizedOptimizer,
    parameter_groups,
    wrap,
)
from warmfree.schedule import CriticalLR, critical_lr

__version__ = "0.1.0"

__all__ = [
    "AdamW2",
    "Advice",
    "CriticalLR",
    "GIAdamW",
    "LionA",
    "LionAR",
    "Monitor",
    "RotationalAdamW",
    "SizedOptimizer",
    "Translation",
    "__version__",
    "advise",
    "critical_lr",
    "optim",
    "parameter_groups",
    "schedule",
    "translate_lr",
    "translated",
    "wrap",
]
