"""Which steps the C++ kernels make, and how a bucket is handed to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from warmfree.optim import kernels
from warmfree.optim.angular import AngularControl
from warmfree.optim.bucket import Bucket, Place
from warmfree.optim.control import SizeControl
from warmfree.optim.directions import Adam, Direction, Lion
from warmfree.optim.spectral import STANDARD_INIT, SpectralBound

Reports = list[dict[str, Tensor]]


def fits(
    parameter: Tensor,
    gradient: Tensor,
    state: dict[str, Any],
    place: Place,
    controls: tuple[SizeControl, ...],
    group: dict[str, Any],
    direction: Direction,
) -> bool:
    """Return whether there is a kernel for a parameter: plain contiguous float32 on the CPU, controls it knows."""
    kinds = tuple(map(type, controls))
    known = not kinds or (
        place.layout.out_dim == 0
        and (
            (kinds == (SpectralBound,) and isinstance(direction, Adam))
            or (kinds == (AngularControl,) and group["per_neuron"] and not group["zero_mean"])
        )
    )
    if not (known and isinstance(direction, Adam | Lion) and place.signature is None):
        return False
    rows, sections = place.part.rows, len(place.part.heights)
    if kinds == (SpectralBound,) and state["weight_vectors"].shape != (sections, place.part.fan_in):
        return False  # the eager code says that `split` was changed
    if kinds == (AngularControl,) and state["kept_norm"].numel() != rows:
        return False  # or `per_neuron`
    return kernels.takes(parameter, gradient, *(state[name] for name in direction.buffer_names))


def lengths(tensors: list[Tensor]) -> Sequence[Tensor]:
    """Return the l2 norm of each tensor, read in one go where there is a kernel for all of them."""
    if all(kernels.takes(tensor, tensor) for tensor in tensors):
        return kernels.square_sums(tensors).sqrt().unbind()
    return torch._foreach_norm(tensors)


def step(bucket: Bucket, direction: Direction) -> Reports | None:
    """Step a bucket of parameters that `fits` accepts; None, and nothing done, if this step is the eager code's.

    First steps are: they iterate longer, and latch norms. So are those at lr 0 of rotations, which turn nothing.
    """
    group, controls = bucket.group, bucket.controls
    lr = float(group["lr"])
    if controls and (bucket.fresh or lr == 0):
        return None
    count, scalars = len(bucket.parameters), direction.scalars(group, step=bucket.counts["step"])
    moments = [[state[name] for state in bucket.states] for name in direction.buffer_names]
    tensors = [bucket.parameters, bucket.gradients, *moments]
    common: dict[str, Any] = {"lr": lr, "maximize": bool(group["maximize"])}
    if isinstance(direction, Adam):
        beta1, beta2 = (float(beta) for beta in group["betas"])
        correction = float(scalars["correction1"]) if direction.correct_momentum else 1.0
        common |= {"beta1": beta1, "beta2": beta2, "eps": float(group["eps"])}
        common |= {"corrections": [correction] * count, "roots": [float(scalars["root2"])] * count}
    else:
        common |= {"momentum": float(group["momentum"]), "nesterov": bool(group["nesterov"])}
    decay = float(group["weight_decay"])
    bucket.advance()
    if not controls:
        (kernels.adam if isinstance(direction, Adam) else kernels.lion)(
            *tensors, weight_decay=decay, **common
        )
        return [{} for _ in range(count)]
    if isinstance(controls[0], SpectralBound):
        params, grads, averages, squares = tensors
        weight_vectors, update_vectors, randoms = (
            [state[name] for state in bucket.states]
            for name in ("weight_vectors", "update_vectors", "random_vector")
        )
        report = kernels.adam_spectral(
            params,
            grads,
            averages,
            squares,
            weight_vectors,
            update_vectors,
            randoms,
            heights=[part.heights for part in bucket.parts],
            weight_decay=decay,
            tau=float(group["tau"]),
            floor_unit=group["spectral_floor"] * STANDARD_INIT,
            power_iterations=group["power_iterations"],
            **common,
        )
        names = ("sigma_weight", "sigma_update", "factor")
        return [dict(zip(names, row.unbind(), strict=True)) for row in report]
    return _turn(bucket, direction, tensors, common)


def _turn(
    bucket: Bucket, direction: Direction, tensors: list[list[Tensor]], common: dict[str, Any]
) -> Reports:
    """Rotate."""
    group, count = {**bucket.group, "lr": common["lr"]}, len(bucket.parameters)
    scalars = bucket.scalars(group, momentum=float(direction.averaging(group)))
    angle, correction = float(scalars["angle"]), float(scalars["angle_correction"])
    turn = kernels.adam_angular if isinstance(direction, Adam) else kernels.lion_angular
    angles = turn(
        *tensors,
        *([state[name] for state in bucket.states] for name in ("kept_norm", "update_norm_sq")),
        angles=[angle * correction] * count,
        update_norm_decay=float(group["update_norm_decay"]),
        average_corrections=[float(scalars["average_correction"])] * count,
        rotational_eps=float(group["rotational_eps"]),
        **common,
    )
    return [{"factor": made.new_tensor(correction), "angle": made} for made in angles.unbind()]
