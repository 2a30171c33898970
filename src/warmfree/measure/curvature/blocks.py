"""Parameters by the block of the model that they are in, for curvature per block."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["blocks"]


def blocks(model: nn.Module) -> dict[str, list[Tensor]]:
    """Group the parameters that require a gradient by block.

    A block is what a module list numbers ("blocks.0", "transformer.h.11"), the outermost if lists are nested; what is
    in no list goes by its own module ("tokens", "norm"), parameters of the model itself by "". Tied weights are where
    they appear first.

    Args:
        model: any module.

    Returns:
        Block name to parameters, in the model's order; to be given to `Hessian` or `sharpness`, one at a time.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> {name: len(parameters) for name, parameters in blocks(model).items()}
        {'0': 2, '1': 2}
    """
    grouped: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            grouped.setdefault(_block(name), []).append(parameter)
    return grouped


def _block(name: str) -> str:
    parts = name.split(".")[:-1]
    for depth, part in enumerate(parts, start=1):
        if part.isdigit():
            return ".".join(parts[:depth])
    return ".".join(parts)
