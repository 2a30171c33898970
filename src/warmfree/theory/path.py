"""What a descent leaves behind: points, gaps, gradients, curvatures and learning rates of every step."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from warmfree.theory.function import Function
from warmfree.theory.noise import ABCNoise

__all__ = ["Path"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Path:
    """Several runs of (stochastic) gradient descent side by side: n starts, T steps.

    A run that leaves the finite numbers stays where it was, with learning rate 0, and is marked in `diverged`; one that
    has reached its target stays there likewise.

    Attributes:
        function: what was descended.
        points: (T + 1, n, d).
        gaps: (T + 1, n).
        gradients: (T + 1, n, d), true gradients.
        estimates: (T, n, d), the gradients that were stepped along; those without noise.
        learning_rates: (T, n).
        curvatures: (T + 1, n), spectral norm of the Hessian.
        diverged: (n,).
        noise: of the estimates; None if they are the gradients.
    """

    function: Function
    points: Floats
    gaps: Floats
    gradients: Floats
    estimates: Floats
    learning_rates: Floats
    curvatures: Floats
    diverged: NDArray[np.bool_]
    noise: ABCNoise | None = None

    @property
    def steps(self) -> int:
        """T, the number of steps."""
        return len(self.learning_rates)

    def steps_to(self, gap: float) -> Floats:
        """Return how many steps each run took to a gap, of shape (n,); nan for those that did not come there."""
        reached = self.gaps <= gap
        first = reached.argmax(axis=0).astype(np.float64)
        return np.where(reached.any(axis=0), first, np.nan)
