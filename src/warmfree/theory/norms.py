"""Euclidean norms that overflow only if they have to: the squares of a steep function's gradient would."""

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["norms"]

Floats = NDArray[np.float64]


def norms(vectors: Floats) -> Floats:
    """Return the norms along the last axis.

    Args:
        vectors: (..., d).

    Returns:
        Of shape (...); inf for an infinite vector, nan for one with a NaN.

    Example:
        >>> norms(np.array([[3.0, 4.0], [0.0, 1e300]])).tolist()
        [5.0, 1e+300]
    """
    largest = np.abs(vectors).max(axis=-1)
    scale = np.where((largest > 0.0) & (largest < math.inf), largest, 1.0)
    return np.asarray(scale * np.sqrt(np.square(vectors / scale[..., None]).sum(axis=-1)))
