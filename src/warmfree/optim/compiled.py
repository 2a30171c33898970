"""The step of a bucket as one region of torch.compile: the code of the eager step, its numbers as tensors.

Learning rates, decays, betas, counters go in as one tensor, so that schedules, edits of a group and a resumed run
compile nothing anew. What is compiled anew is another structure: other shapes, another role, an option that is not a
number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from warmfree.optim import norms
from warmfree.optim.bucket import Bucket, make_move
from warmfree.optim.control import SizeControl
from warmfree.optim.directions import Direction
from warmfree.optim.move import Layout, Number, Part
from warmfree.optim.sharding import Peers, local

# Options that are numbers and yet decide what is done, not how much.
_STRUCTURE = frozenset({"power_iterations", "out_dim", "split"})

Reports = list[dict[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that a compiled region depends on beside its tensors' shapes and types.

    Attributes:
        direction: makes the updates.
        controls: size them.
        layouts: how each tensor is read.
        parts: what of it is here: all.
        shapes: of the tensors.
        options: the group's options that are not numbers.
        numbers: names of those that are, in the order of the tensor that holds them; of betas name and place.
        scalars: names of what follows: what direction and controls computed from numbers alone.
    """

    direction: Direction
    controls: tuple[SizeControl, ...]
    layouts: tuple[Layout, ...]
    parts: tuple[Part, ...]
    shapes: tuple[torch.Size, ...]
    options: tuple[tuple[str, Any], ...]
    numbers: tuple[tuple[str, int | None], ...]
    scalars: tuple[str, ...]

    def group(self, numbers: Tensor) -> dict[str, Any]:
        """Return the group's options, the numbers as 0-D tensors."""
        group: dict[str, Any] = dict(self.options)
        for (name, place), number in zip(self.numbers, numbers.unbind(), strict=False):
            group[name] = number if place is None else (*group.get(name, ()), number)
        return group

    def named(self, numbers: Tensor) -> dict[str, Number]:
        """Return the scalars as 0-D tensors."""
        return dict(zip(self.scalars, numbers.unbind()[len(self.numbers) :], strict=True))


def takes(bucket: Bucket) -> bool:
    """Return whether a compiled region can make this step; first steps and steps at lr 0 do something of their own."""
    return not bucket.fresh and float(bucket.group["lr"]) != 0


def step(bucket: Bucket, direction: Direction, defaults: Mapping[str, Any]) -> Reports:
    """Step a bucket's parameters and states: the arithmetic of the eager step, here and there rounded otherwise.

    Args:
        bucket: one that `takes` accepts, its counters advanced.
        direction: makes the updates.
        defaults: the optimizer's, whose keys are the options that matter.
    """
    options: list[tuple[str, Any]] = []
    numbers: list[tuple[str, int | None]] = []
    values: list[float] = []
    for name in sorted(defaults.keys() & bucket.group.keys()):
        value: Any = bucket.group[name]
        value = tuple(value) if isinstance(value, list) else value
        if name in _STRUCTURE or not _is_number(value):
            if isinstance(value, tuple) and value and all(map(_is_number, value)) and name not in _STRUCTURE:
                numbers += [(name, place) for place in range(len(value))]
                values += map(float, value)
            else:
                options.append((name, value))
        else:
            numbers.append((name, None))
            values.append(float(value))
    group = {**bucket.group, "lr": float(bucket.group["lr"])}
    scalars = direction.scalars(group, step=bucket.counts["step"])
    scalars |= bucket.scalars(group, momentum=direction.averaging(group))
    values += map(float, scalars.values())
    recipe = Recipe(
        direction,
        bucket.controls,
        tuple(bucket.layouts),
        tuple(bucket.parts),
        tuple(parameter.shape for parameter in bucket.parameters),
        tuple(options),
        tuple(numbers),
        tuple(scalars),
    )
    device = bucket.parameters[0].device
    packed = torch.tensor(values, dtype=norms.scalar_dtype(device)).to(device, non_blocking=True)
    # Detached: a parameter may want gradients of a type that is not its own.
    parameters = [local(parameter).detach() for parameter in bucket.parameters]
    return region_of(recipe)(parameters, bucket.gradients, bucket.states, packed)


@cache
def region_of(
    recipe: Recipe,
) -> Callable[[list[Tensor], list[Tensor], list[dict[str, Any]], Tensor], Reports]:
    """Return the compiled step of a recipe; regions are shared by all optimizers of the process."""

    def advance(
        parameters: list[Tensor], gradients: list[Tensor], states: list[dict[str, Any]], numbers: Tensor
    ) -> Reports:
        group, scalars = recipe.group(numbers), recipe.named(numbers)
        dtype = norms.compute_dtype(parameters[0])
        bucket = Bucket(0, group, recipe.controls, Peers(), {})
        bucket.layouts, bucket.parts, bucket.states = list(recipe.layouts), list(recipe.parts), states
        bucket.gradients = gradients
        wide = bucket.wide_gradients()
        weights = [parameter.to(dtype) for parameter in parameters]
        buffers = {name: [state[name] for state in states] for name in recipe.direction.buffer_names}
        reports = make_move(
            bucket,
            weights,
            recipe.direction(wide, buffers, scalars=scalars, group=group),
            group=group,
            scalars=scalars,
            momentum=recipe.direction.averaging(group),
            decay=group["weight_decay"],
            still=False,
        )
        for parameter, weight in zip(parameters, weights, strict=True):
            if weight is not parameter:
                parameter.copy_(weight)
        return reports

    # torch.compile counts recompilations, and looks regions up, by code: each has its own.
    code = advance.__code__.replace(co_name=f"advance_{abs(hash(recipe))}")
    own = FunctionType(code, advance.__globals__, code.co_name, None, advance.__closure__)
    compiled: Callable[..., Reports] = torch.compile(own, fullgraph=True, dynamic=False)
    return compiled


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1
    return isinstance(value, int | float) and not isinstance(value, bool)
