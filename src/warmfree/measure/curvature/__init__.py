"""Curvature of the loss, and where it stands against what the optimizer can bear."""

from warmfree.measure.curvature.blocks import blocks
from warmfree.measure.curvature.differences import DifferenceHessian
from warmfree.measure.curvature.differentiable import twice_differentiable
from warmfree.measure.curvature.gauss_newton import GaussNewton
from warmfree.measure.curvature.lanczos import Eigenvalues, lanczos
from warmfree.measure.curvature.local_smoothness import LocalSmoothness, StepSmoothness
from warmfree.measure.curvature.operators import (
    Averaged,
    Hessian,
    NotTwiceDifferentiableError,
    Operator,
    Preconditioned,
)
from warmfree.measure.curvature.optimizers import UnsupportedOptimizerError
from warmfree.measure.curvature.preconditioner import adam_preconditioner, effective_preconditioner
from warmfree.measure.curvature.sharpness import Sharpness, preconditioned_sharpness, sharpness
from warmfree.measure.curvature.stability import Momentum, Threshold, regime, stability_threshold

__all__ = [
    "Averaged",
    "DifferenceHessian",
    "Eigenvalues",
    "GaussNewton",
    "Hessian",
    "LocalSmoothness",
    "Momentum",
    "NotTwiceDifferentiableError",
    "Operator",
    "Preconditioned",
    "Sharpness",
    "StepSmoothness",
    "Threshold",
    "UnsupportedOptimizerError",
    "adam_preconditioner",
    "blocks",
    "effective_preconditioner",
    "lanczos",
    "preconditioned_sharpness",
    "regime",
    "sharpness",
    "stability_threshold",
    "twice_differentiable",
]
