"""Optimizers: a direction, its size controls, and the write."""

from warmfree.optim.angular import AngularControl
from warmfree.optim.base import SizedOptimizer
from warmfree.optim.control import NonFiniteGradientError, SizeControl
from warmfree.optim.directions import SGD, Adam, Lion
from warmfree.optim.move import StepReport
from warmfree.optim.noise import NoiseControl, representation_change_factor
from warmfree.optim.precision import Precision
from warmfree.optim.presets import AdamW2, GIAdamW, LionA, LionAR, RotationalAdamW
from warmfree.optim.routing import parameter_groups
from warmfree.optim.spectral import SpectralBound
from warmfree.optim.wrap import WrappedOptimizer, wrap

__all__ = [
    "SGD",
    "Adam",
    "AdamW2",
    "AngularControl",
    "GIAdamW",
    "Lion",
    "LionA",
    "LionAR",
    "NoiseControl",
    "NonFiniteGradientError",
    "Precision",
    "RotationalAdamW",
    "SizeControl",
    "SizedOptimizer",
    "SpectralBound",
    "StepReport",
    "WrappedOptimizer",
    "parameter_groups",
    "representation_change_factor",
    "wrap",
]
