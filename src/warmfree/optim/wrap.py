"""A size control around any optimizer of torch.optim's kind: Muon, SGD, a third party's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from warmfree.optim import norms
from warmfree.optim.control import NonFinite, NonFiniteGradientError, SizeControl
from warmfree.optim.move import Move, StepReport, Update
from warmfree.optim.noise import NoiseControl
from warmfree.optim.routing import ROUTING_OPTIONS, layout_of
from warmfree.optim.state import (
    check_gradient,
    check_state_dict,
    check_supported,
    restore_dtypes,
    state_dtypes,
)


def wrap(
    optimizer: Optimizer, controls: Sequence[SizeControl], *, nonfinite: NonFinite = "skip"
) -> WrappedOptimizer:
    """Put size controls around an optimizer.

    The wrapped optimizer makes its own step; what it did to each weight, divided by lr, is the update that the controls
    see, weight decay included, and what they leave of it is written. Where they leave it alone, the weights are the
    optimizer's own to the last bit. Costs a copy of the weights.

    Args:
        optimizer: any optimizer that steps without a closure of its own. Shares its parameter groups with the result;
            use the result in its place, in schedulers, too.
        controls: `SpectralBound`, `AngularControl`. (`NoiseControl` needs to see momentum and is refused.)
        nonfinite: what to do on inf or NaN in a gradient or in the weights after the step: "skip" (weights are restored
            exactly), "raise" NonFiniteGradientError (likewise), or "ignore".

    Returns:
        An optimizer whose state_dict holds the wrapped one's.

    Raises:
        ValueError: a control that cannot work from outside, or an option out of range.
        TypeError: not an optimizer, or a parameter that is complex, sparse or sharded.

    Example:
        >>> from warmfree.optim import SpectralBound
        >>> model = torch.nn.Linear(8, 8)
        >>> optimizer = wrap(torch.optim.SGD(model.parameters(), lr=100.0), [SpectralBound(tau=0.1)])
        >>> scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=10)
        >>> model(torch.ones(4, 8)).square().sum().backward()
        >>> optimizer.step()
        >>> optimizer.step_report.fetch()["0.0"]["factor"] < 1
        True
    """
    return WrappedOptimizer(optimizer, controls, nonfinite=nonfinite)


class WrappedOptimizer(Optimizer):
    """See `wrap`.

    Attributes:
        inner: the wrapped optimizer.
        step_report: scalars of the last step; None before the first.
        skipped_steps: number of steps undone or not made for non-finite numbers.
    """

    def __init__(
        self, inner: Optimizer, controls: Sequence[SizeControl], *, nonfinite: NonFinite = "skip"
    ) -> None:
        if not isinstance(inner, Optimizer):
            raise TypeError(f"wrap() needs a torch.optim.Optimizer, got {type(inner).__name__}")
        for control in controls:
            if isinstance(control, NoiseControl):
                raise ValueError(
                    "NoiseControl needs the direction's momentum; use SizedOptimizer instead of wrap()"
                )
        if nonfinite not in ("skip", "raise", "ignore"):
            raise ValueError(f"nonfinite must be 'skip', 'raise' or 'ignore', got {nonfinite!r}")
        self.inner = inner
        self.controls = tuple(controls)
        self.nonfinite: NonFinite = nonfinite
        self.skipped_steps = 0
        self.step_report: StepReport | None = None
        self._calls = 0
        options: dict[str, Any] = dict(ROUTING_OPTIONS)
        for control in controls:
            options.update(control.options())
        options.setdefault("weight_decay", 0.0)
        super().__init__(inner.param_groups, {**options, **inner.defaults})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to both optimizers."""
        known = any(param_group is group for group in self.inner.param_groups)
        merged = {**self.defaults, **param_group}
        for control in self.controls:
            control.validate(merged)
        if not known:
            self.inner.add_param_group(param_group)
            param_group = self.inner.param_groups[-1]
        if "peak_lr" in self.defaults:
            param_group.setdefault("peak_lr", float(merged["lr"]) or None)
        super().add_param_group(param_group)
        for parameter in param_group["params"]:
            check_supported(parameter, name="wrap()")
            layout = layout_of(parameter, param_group)
            state = {"step": torch.tensor(0.0)}
            for control in self.controls:
                if layout.role != "vector":
                    state.update(control.new_state(parameter, layout, param_group))
            self.state[parameter] = state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Let the wrapped optimizer step, then size what it did.

        Args:
            closure: re-evaluates the model and returns the loss; it is called once, before the step.

        Raises:
            NonFiniteGradientError: with `nonfinite="raise"`; the weights are as before the step.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._calls += 1
        members = [
            (place, index, parameter)
            for place, group in enumerate(self.param_groups)
            for index, parameter in enumerate(group["params"])
            if parameter.grad is not None
        ]
        for _, _, parameter in members:
            check_gradient(parameter, name="wrap()")
        values: dict[str, dict[str, Tensor]] = {}
        bad = self._non_finite([(p, i, parameter.grad) for p, i, parameter in members])
        if not bad:
            old = [parameter.clone() for _, _, parameter in members]
            self.inner.step()
            bad = self._non_finite(members)
            if bad:
                for (_, _, parameter), before in zip(members, old, strict=True):
                    parameter.copy_(before)
            else:
                for (place, index, parameter), before in zip(members, old, strict=True):
                    report = self._size(self.param_groups[place], parameter, before)
                    if report:
                        values[self._name(place, index)] = report
        if bad:
            if self.nonfinite == "raise":
                raise NonFiniteGradientError(f"non-finite gradient or update in {', '.join(bad[:5])}")
            self.skipped_steps += 1
        self.step_report = StepReport(self._calls, bool(bad), self.skipped_steps, values)
        return loss

    def _non_finite(self, members: list[tuple[int, int, Tensor]]) -> list[str]:
        if self.nonfinite == "ignore":
            return []
        sizes = norms.magnitudes([tensor for _, _, tensor in members])
        return [
            self._name(p, i)
            for (p, i, _), size in zip(members, sizes, strict=True)
            if not math.isfinite(size)
        ]

    def _size(self, group: dict[str, Any], parameter: Tensor, before: Tensor) -> dict[str, Tensor]:
        """Let the controls change the step from `before` to the parameter's present value."""
        layout, lr = layout_of(parameter, group), float(group["lr"])
        controls = [control for control in self.controls if control.claims(parameter, layout, group)]
        state = self.state[parameter]
        if not controls or lr == 0:
            return {}
        state["step"] += 1
        dtype = norms.compute_dtype(parameter)
        weight, target = before.to(dtype), parameter.to(dtype)
        move = Move(
            weights=[weight],
            update=Update([(weight - target) / lr], None, [1.0], [], [], []),
            step_sizes=[lr],
            decays=[0.0],
            states=[state],
            layouts=[layout],
            steps=[int(state["step"].item())],
            group=group,
            lr=lr,
            momentum=_averaging(group),
            reports=[{}],
        )
        for control in controls:
            control(move)
        size = move.step_sizes[0]
        sized = weight - size * move.update.numerators[0]
        move.weights[0] = torch.where(torch.as_tensor(size == lr, device=sized.device), target, sized)
        for control in controls:
            control.restore(move)
        parameter.copy_(move.weights[0])
        return move.reports[0]

    def _name(self, place: int, index: int) -> str:
        names = self.param_groups[place].get("param_names")
        return names[index] if names else f"{place}.{index}"

    def state_dict(self) -> dict[str, Any]:
        """Return the controls' state under "state", the wrapped optimizer's state_dict under "inner"."""
        return {**super().state_dict(), "inner": self.inner.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load both states.

        Raises:
            ValueError: it is not the state_dict of a wrapped optimizer, or does not fit; nothing is changed.
        """
        if not isinstance(state_dict, dict) or "inner" not in state_dict:
            raise ValueError("state_dict is not one of a wrapped optimizer: it has no 'inner'")
        check_state_dict(self, state_dict)
        self.inner.load_state_dict(state_dict["inner"])
        dtypes = state_dtypes(self)
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "inner"})
        restore_dtypes(self, state_dict, dtypes)
        self.inner.param_groups = list(self.param_groups)

    def __getstate__(self) -> dict[str, Any]:
        names = ("inner", "controls", "nonfinite", "skipped_steps", "_calls")
        return {
            **super().__getstate__(),
            **{name: getattr(self, name) for name in names},
            "step_report": None,
        }


def _averaging(group: dict[str, Any]) -> float:
    """Momentum constant of the wrapped optimizer, from the names that torch.optim uses; 0 if it has none."""
    if "betas" in group:
        return float(group["betas"][0])
    return float(group.get("momentum", 0.0))
