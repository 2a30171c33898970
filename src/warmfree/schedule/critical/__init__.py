"""The critical learning rate, found by trying the optimizer's own next step."""

from warmfree.schedule.critical.critical import critical_lr
from warmfree.schedule.critical.results import CriticalLR, Search, Trial
from warmfree.schedule.critical.trials import LossFn, NonDeterministicLossError

__all__ = ["CriticalLR", "LossFn", "NonDeterministicLossError", "Search", "Trial", "critical_lr"]
