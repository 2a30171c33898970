"""Why warmup works: the smoothness that depends on the loss, gradient descent under it, and its fit to real runs.

The class and its rules are in `smoothness` and `closure`, examples in `functions`, learning rates in `steps` and
`adaptive`, descent with its bounds in `descent`, `noise`, `bounds` and `complexity`, the fit in `fit`, experiments in
`speedup`.
"""

from warmfree.theory.bounds import check_bounds
from warmfree.theory.descent import descend, steps_to
from warmfree.theory.fit import SmoothnessFit, fit_smoothness
from warmfree.theory.function import Function
from warmfree.theory.functions import make_function
from warmfree.theory.path import Path
from warmfree.theory.smoothness import Membership, Smoothness

__all__ = [
    "Function",
    "Membership",
    "Path",
    "Smoothness",
    "SmoothnessFit",
    "check_bounds",
    "descend",
    "fit_smoothness",
    "make_function",
    "steps_to",
]
