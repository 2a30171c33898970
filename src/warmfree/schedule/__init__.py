"""Learning-rate schedules, without warmup unless asked for."""

from warmfree.schedule.shapes import (
    Constant,
    Cosine,
    InverseSqrt,
    Shape,
    Trapezoid,
    constant,
    cosine,
    inverse_sqrt,
    linear,
    trapezoid,
)

__all__ = [
    "Constant",
    "Cosine",
    "InverseSqrt",
    "Shape",
    "Trapezoid",
    "constant",
    "cosine",
    "inverse_sqrt",
    "linear",
    "trapezoid",
]
