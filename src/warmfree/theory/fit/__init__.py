"""The smoothness of a real run: an envelope over its points of loss and curvature, and the warmup that it implies."""

from warmfree.theory.fit.fitting import fit_smoothness
from warmfree.theory.fit.implied import Implied, implied
from warmfree.theory.fit.ranks import Phase, Phases
from warmfree.theory.fit.result import SmoothnessFit

__all__ = ["Implied", "Phase", "Phases", "SmoothnessFit", "fit_smoothness", "implied"]
