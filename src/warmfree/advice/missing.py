"""What cannot be measured, and why, in a sentence."""

from __future__ import annotations

import torch

from warmfree.measure.curvature import NotTwiceDifferentiableError, UnsupportedOptimizerError

__all__ = ["EXPECTED", "NotMeasuredError", "reason"]


class NotMeasuredError(RuntimeError):
    """A quantity that this model, optimizer or these batches do not have; the message says why."""


# What a measurement may raise though all is well. Anything else is a mistake, in the caller's code or in ours.
EXPECTED = (
    NotMeasuredError,
    NotTwiceDifferentiableError,
    UnsupportedOptimizerError,
    MemoryError,
    torch.OutOfMemoryError,
    NotImplementedError,  # of torch: no such operation for sparse gradients, say
)


def reason(quantity: str, error: BaseException) -> str:
    """Say in a sentence that a quantity is missing, and why.

    Args:
        quantity: its name.
        error: one of `EXPECTED`.

    Example:
        >>> reason("gradient noise", NotMeasuredError("one batch is not enough; give two or more"))
        'gradient noise was not measured: one batch is not enough; give two or more'
        >>> reason("sharpness", MemoryError())
        'sharpness was not measured: out of memory; smaller batches or a larger accumulate take less'
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        why = "out of memory; smaller batches or a larger accumulate take less"
    else:
        why = str(error).strip().rstrip(".")
    return f"{quantity} was not measured: {why}"
