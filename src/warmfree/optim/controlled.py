"""What an optimizer with size controls is, whether it makes its own updates or wraps another's."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from warmfree.optim import norms
from warmfree.optim.control import NonFinite, NonFiniteGradientError, SizeControl
from warmfree.optim.move import StepReport
from warmfree.optim.routing import ROUTING_OPTIONS, layout_of
from warmfree.optim.state import (
    check_gradient,
    check_state_dict,
    check_supported,
    restore_dtypes,
    state_dtypes,
)

# A parameter with a gradient: index of its group, its index in the group, the parameter.
Member = tuple[int, int, Tensor]


class ControlledOptimizer(Optimizer):
    """Groups, checks, state and reports of an optimizer with size controls; subclasses make the step.

    Attributes:
        step_report: scalars of the last step, see `StepReport`; None before the first.
        skipped_steps: number of steps skipped by this object for non-finite numbers.
    """

    # What copies and pickles carry beside torch's own; schedulers leave attributes that they must not.
    _carried: ClassVar[tuple[str, ...]] = ("controls", "nonfinite", "skipped_steps", "_calls")

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        controls: Sequence[SizeControl],
        *,
        nonfinite: NonFinite,
    ) -> None:
        if nonfinite not in ("skip", "raise", "ignore"):
            raise ValueError(f"nonfinite must be 'skip', 'raise' or 'ignore', got {nonfinite!r}")
        self.controls = tuple(controls)
        self.nonfinite: NonFinite = nonfinite
        self.skipped_steps = 0
        self.step_report: StepReport | None = None
        self._calls = 0
        for control in self.controls:
            if clash := defaults.keys() & control.options().keys():
                again = ", ".join(sorted(clash))
                raise ValueError(
                    f"controls must be of different kinds: {type(control).__name__} sets {again} again"
                )
            defaults.update(control.options())
        if defaults.get("peak_lr", 0) is None:
            defaults["peak_lr"] = float(defaults["lr"]) or None
        defaults.update(ROUTING_OPTIONS)
        self._validate(defaults)
        super().__init__(params, defaults)
        for control in self.controls:
            control.check_groups(self.param_groups)

    @abstractmethod
    def _averaging(self, group: Mapping[str, Any]) -> float:
        """Constant b of the moving average that updates are made of; 0 if there is none."""

    @abstractmethod
    def _make_step(self, members: list[Member], values: dict[str, dict[str, Tensor]]) -> bool:
        """Step the parameters, add to the report; return whether the step was skipped."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group and create its state; see torch.optim.Optimizer.add_param_group."""
        self._validate({**self.defaults, **param_group})
        if "peak_lr" in self.defaults and "lr" in param_group:
            peak = param_group.get("initial_lr", param_group["lr"])  # a scheduler may have lowered lr already
            param_group.setdefault("peak_lr", float(peak) or None)
        self._append_group(param_group)
        added = self.param_groups[-1]
        try:
            states = {parameter: self._new_state(parameter, added) for parameter in added["params"]}
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise
        self.state.update(states)

    def _append_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)

    def _validate(self, group: dict[str, Any]) -> None:
        """Raise ValueError if an option is out of range."""
        for key in ("lr", "weight_decay"):
            value = float(group[key])
            if not 0 <= value < math.inf:
                raise ValueError(f"{key} must be finite and >= 0, got {value}")
        for control in self.controls:
            control.validate(group, momentum=self._averaging(group))

    def _new_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """Step counter and the controls' state of one parameter."""
        check_supported(parameter, name=type(self).__name__)
        layout = layout_of(parameter, group)
        state = {"step": torch.tensor(0.0, dtype=torch.float32, device="cpu")}
        for control in self.controls:
            # A tensor that a group option keeps from a control today may be given to it tomorrow.
            if layout.role != "vector":
                state.update(control.new_state(parameter, layout, group))
        return state

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make one step.

        Args:
            closure: re-evaluates the model and returns the loss; called once, before the step.

        Returns:
            The closure's loss, None without a closure.

        Raises:
            NonFiniteGradientError: with `nonfinite="raise"`, if a gradient holds inf or NaN; nothing was changed.
            TypeError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._calls += 1
        members = self._members()
        values: dict[str, dict[str, Tensor]] = {}
        skipped = self._make_step(members, values)
        self.skipped_steps += skipped
        self.step_report = StepReport(self._calls, skipped, self.skipped_steps, values)
        return loss

    def _members(self) -> list[Member]:
        """List the parameters that have a gradient."""
        members = [
            (group_index, index, parameter)
            for group_index, group in enumerate(self.param_groups)
            for index, parameter in enumerate(group["params"])
            if parameter.grad is not None
        ]
        for _, _, parameter in members:
            check_gradient(parameter, name=type(self).__name__)
        return members

    def _is_unsound(self, members: list[Member], sizes: Sequence[float]) -> bool:
        """Return whether a size is not finite, or raise, or ignore it, as the option says."""
        if self.nonfinite == "ignore" or all(map(math.isfinite, sizes)):
            return False
        if self.nonfinite == "raise":
            bad = [
                self._name(group_index, index)
                for (group_index, index, _), size in zip(members, sizes, strict=True)
                if not math.isfinite(size)
            ]
            raise NonFiniteGradientError(
                f"non-finite gradient or update in {', '.join(bad[:5])} ({len(bad)} of {len(members)} parameters)"
            )
        return True

    def _name(self, group_index: int, index: int) -> str:
        """Return the parameter's name if the optimizer was given names, else "group.index"."""
        names = self.param_groups[group_index].get("param_names")
        return names[index] if names else f"{group_index}.{index}"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state_dict of the same composition.

        Raises:
            ValueError: entries are missing, have other shapes or belong to another optimizer, or an option is out of
                range; nothing was changed.
        """
        check_state_dict(self, state_dict)
        for group in state_dict["param_groups"]:
            self._validate(group)
        dtypes = state_dtypes(self)
        super().load_state_dict(state_dict)
        restore_dtypes(self, state_dict, dtypes)

    def __getstate__(self) -> dict[str, Any]:
        carried = {name: getattr(self, name) for name in self._carried}
        return {**super().__getstate__(), **carried, "step_report": None}


def magnitudes_of_gradients(members: list[Member]) -> list[float]:
    """Sizes of the members' gradients, see `norms.magnitudes`."""
    return norms.magnitudes([parameter.grad for _, _, parameter in members if parameter.grad is not None])
