"""What the parts of a step agree on: the contract of a size control, and of non-finite numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

from torch import Tensor

from warmfree.optim.move import Layout, Move, Number

NonFinite = Literal["skip", "raise", "ignore"]


class SizeControl(Protocol):
    """The contract: options with defaults, state, a change to the move, and perhaps one after it."""

    @property
    def counters(self) -> tuple[str, ...]:
        """Counters of the control's own in a tensor's state; they advance in steps whose learning rate is not 0."""

    def options(self) -> dict[str, Any]:
        """Return the parameter-group options and their defaults."""

    def validate(self, group: dict[str, Any], *, momentum: float) -> None:
        """Raise ValueError if an option of a group, or the direction's momentum, does not do."""

    def check_groups(self, groups: list[dict[str, Any]]) -> None:
        """Raise ValueError if the groups together leave the control nothing to do."""

    def claims(self, parameter: Tensor, layout: Layout, group: dict[str, Any]) -> bool:
        """Whether the control acts on this parameter."""

    def new_state(self, parameter: Tensor, layout: Layout, group: dict[str, Any]) -> dict[str, Tensor]:
        """State of a parameter, before its first step, without its counters."""

    def scalars(
        self, group: Mapping[str, Any], *, counts: Mapping[str, Number], momentum: Number
    ) -> dict[str, Number]:
        """What a step needs that depends on numbers alone; computed outside of compiled code."""

    def __call__(self, move: Move) -> None:
        """Change the step sizes, decays or updates of a move."""

    def restore(self, move: Move) -> None:
        """Change the weights after the write, to keep a norm."""


class NonFiniteGradientError(RuntimeError):
    """A gradient holds inf or NaN, and the optimizer was told to raise. Nothing was changed."""
