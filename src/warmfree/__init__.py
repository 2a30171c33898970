"""Train transformers without learning-rate warmup."""

from warmfree import optim, schedule
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

__version__ = "0.1.0"

__all__ = [
    "AdamW2",
    "GIAdamW",
    "LionA",
    "LionAR",
    "Monitor",
    "RotationalAdamW",
    "SizedOptimizer",
    "__version__",
    "optim",
    "parameter_groups",
    "schedule",
    "wrap",
]
