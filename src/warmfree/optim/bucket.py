"""Parameters that are stepped together, and the step through direction, size controls and write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from warmfree.optim.apply import apply_move
from warmfree.optim.control import SizeControl
from warmfree.optim.move import Layout, Move, Number, Part, Update
from warmfree.optim.norms import compute_dtype
from warmfree.optim.sharding import Peers, local_state

# A parameter with a gradient: index of its group, its index in the group, the parameter.
Member = tuple[int, int, Tensor]


@dataclass(frozen=True, slots=True)
class Place:
    """How a parameter is read as a matrix, what of it is here, who has the rest, and how that can be compared."""

    layout: Layout
    part: Part
    peers: Peers
    signature: tuple[Any, ...] | None


@dataclass(slots=True)
class Bucket:
    """Parameters of one group, alike in all but shape.

    Attributes:
        group_index: index of their group.
        group: its options.
        controls: the size controls that act on them.
        peers: who holds the other parts.
        counts: their counters in this step, which they have in common: numbers, or tensors while a graph is captured.
        fresh: counters that are 1 in this step.
        treatment: what the optimizer said that they have in common, too.
        indices: places in the group.
        parameters: the parameters as the optimizer got them.
        gradients: local parts of their gradients.
        layouts: how they are read.
        parts: what of them is here.
        states: their state, local parts.
    """

    group_index: int
    group: dict[str, Any]
    controls: tuple[SizeControl, ...]
    peers: Peers
    counts: Mapping[str, Number]
    fresh: frozenset[str] = frozenset()
    treatment: object = None
    indices: list[int] = field(default_factory=list)
    parameters: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)
    layouts: list[Layout] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    states: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self, index: int, parameter: Tensor, gradient: Tensor, place: Place, state: dict[str, Any]
    ) -> None:
        """Add a parameter."""
        self.indices.append(index)
        self.parameters.append(parameter)
        self.gradients.append(gradient)
        self.layouts.append(place.layout)
        self.parts.append(place.part)
        self.states.append(state if place.signature is None else local_state(state))

    def wide_gradients(self) -> list[Tensor]:
        """Return the gradients in the type that updates are computed in, their sign turned to go up if so asked."""
        wide = [gradient.to(compute_dtype(gradient)) for gradient in self.gradients]
        return list(torch._foreach_neg(wide)) if self.group.get("maximize") else wide

    def scalars(self, group: Mapping[str, Any], *, momentum: Number) -> dict[str, Number]:
        """Return what the controls compute from numbers alone."""
        found: dict[str, Number] = {}
        for control in self.controls:
            found |= control.scalars(group, counts=self.counts, momentum=momentum)
        return found

    def advance(self) -> None:
        """Write this step's counters to the states."""
        for state in self.states:
            for name, count in self.counts.items():
                if isinstance(count, Tensor):
                    state[name].add_(1)
                else:
                    state[name].fill_(count)


def make_move(
    bucket: Bucket,
    weights: list[Tensor],
    update: Update,
    *,
    group: Mapping[str, Any],
    scalars: Mapping[str, Number],
    momentum: Number,
    decay: Number,
    still: bool,
    write: Callable[[Move], None] = apply_move,
    report_norms: bool = False,
) -> list[dict[str, Tensor]]:
    """Size the updates of a bucket, write them to the weights, and return what was measured on the way."""
    move = Move(
        weights=weights,
        update=update,
        step_sizes=[group["lr"]] * len(weights),
        decays=[decay] * len(weights),
        states=bucket.states,
        layouts=bucket.layouts,
        parts=bucket.parts,
        peers=bucket.peers,
        scalars=scalars,
        fresh=bucket.fresh,
        group=group,
        lr=group["lr"],
        still=still,
        momentum=momentum,
    )
    if report_norms:
        _note_norms(move)
    for control in bucket.controls:
        control(move)
    write(move)
    for control in bucket.controls:
        control.restore(move)
    return move.reports


def _note_norms(move: Move) -> None:
    """Note norms of updates and weights, over all processes."""
    updates = [move.update.whole(index) for index in range(len(move.weights))]
    squares = [
        torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32)) ** 2
        for tensor in (*updates, *move.weights)
    ]
    sizes = [square.sqrt() for square in move.peers.add(squares)]
    for index, part in enumerate(move.parts):
        update, count = sizes[index], part.rows * part.fan_in
        norm = sizes[len(updates) + index]
        move.note(index, update_norm=update, update_rms=update / count**0.5, weight_norm=norm)
