"""Where a convex sum of losses of linear forms has its minimum, if it has one."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["matrix_of", "minimiser_of"]

Floats = NDArray[np.float64]

_ITERATIONS = 1000
_SHALLOW, _ROUNDED, _REACHED = 1e-10, 1e-14, 1e-28  # of the squared Newton decrement over the loss


def matrix_of(rows: ArrayLike, name: str) -> Floats:
    """Return rows as a matrix of float64.

    Raises:
        ValueError: they are no matrix with a number other than 0, or not finite.
    """
    matrix = np.asarray(rows, np.float64)
    if matrix.ndim != 2 or not matrix.size:
        raise ValueError(f"{name} must have shape (n, d) with n and d at least 1, got {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise ValueError(f"{name} must be finite")
    if not matrix.any():
        raise ValueError(f"{name} are all 0: the function would be constant")
    return matrix


def minimiser_of(
    derivatives: Callable[[Floats], tuple[float, Floats, Floats]], vectors: Floats, *, vanishing: float
) -> Floats | None:
    """Return the minimiser of smallest norm of sum_i phi_i(<a_i, x>), phi_i strictly convex and positive; or None.

    Newton's method with halved steps, in the span of the vectors. At a minimum it converges quadratically. Towards an
    infimum at infinity it moves the exponents by about 1 a step: either the loss falls below a level that proves the
    infimum 0, or it stays above with a decrement that falls no faster than that.

    Args:
        derivatives: value, gradient and Hessian at a point.
        vectors: a, of shape (n, d).
        vanishing: if the loss falls below this, its infimum is 0.

    Returns:
        The minimiser, of shape (d,); None if the infimum is 0.

    Raises:
        ValueError: the infimum is positive and not attained, or too far away for this arithmetic.
    """
    _, singular, rows = np.linalg.svd(vectors, full_matrices=False)
    span = rows[singular > 1e-10 * singular[0]].T
    place = np.zeros(span.shape[1])
    value, gradient, hessian = derivatives(span @ place)
    previous = np.inf
    for _ in range(_ITERATIONS):
        if value < vanishing:
            return None
        slope = span.T @ gradient
        try:
            direction = np.linalg.solve(span.T @ hessian @ span, -slope)
        except np.linalg.LinAlgError:
            break
        decrement = float(-slope @ direction) / value
        if decrement <= _REACHED:
            return np.asarray(span @ (place + direction))
        if previous <= _SHALLOW and not decrement <= 0.1 * previous:  # no quadratic convergence
            if decrement <= _ROUNDED:
                return np.asarray(span @ place)
            break
        size, found = 1.0, derivatives(span @ (place + direction))
        # Below 1e-12 the fall of the loss drowns in its rounding.
        while decrement > 1e-12 and not found[0] <= value * (1.0 - 0.25 * size * decrement):
            size *= 0.5
            found = derivatives(span @ (place + size * direction))
        previous, place = decrement, place + size * direction
        value, gradient, hessian = found
    raise ValueError(
        "the infimum is positive and not attained (or beyond the reach of float64): the constants of the smoothness "
        "would not be known. Leave out the terms that can vanish, or add more that cannot"
    )
