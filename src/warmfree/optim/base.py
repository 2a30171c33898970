"""The step: gather gradients, go through direction, size controls and write, bucket by bucket."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from warmfree.optim import norms
from warmfree.optim.apply import apply_move
from warmfree.optim.control import NonFinite, NonFiniteGradientError, SizeControl
from warmfree.optim.directions import SGD, Adam, Direction, Lion
from warmfree.optim.move import Layout, Move, StepReport
from warmfree.optim.routing import ROUTING_OPTIONS, layout_of
from warmfree.optim.state import (
    HOST_ENTRIES,
    check_gradient,
    check_state_dict,
    check_supported,
    restore_dtypes,
    state_dtypes,
)

_DIRECTIONS: dict[str, Callable[[], Direction]] = {"adam": Adam, "lion": Lion, "sgd": SGD}


@dataclass(slots=True)
class _Bucket:
    """Parameters of one group that are stepped together."""

    controls: tuple[SizeControl, ...]
    indices: list[int] = field(default_factory=list)
    layouts: list[Layout] = field(default_factory=list)


class SizedOptimizer(Optimizer):
    """A direction, size controls in the order in which they act, decoupled weight decay.

    Behaves as any optimizer of torch.optim: parameter groups with any option per group, Tensor lr, schedulers,
    hooks, state_dict. State exists after the constructor. A step whose gradient is zero and whose lr is 0 leaves a
    parameter and its state untouched. Steps with a non-finite gradient in any parameter are skipped whole.

    Weights in bfloat16 or float16 keep their state in float32 and are rounded once a step.

    Args:
        params: parameters, named parameters, or groups. See `parameter_groups` for a model's.
        direction: "adam", "lion", "sgd", or an `Adam`, `Lion`, `SGD` with its options.
        controls: size controls such as `NoiseControl`, `AngularControl`, `SpectralBound`. One of a kind.
        lr: learning rate, a float >= 0 or a 0-D Tensor.
        weight_decay: decoupled weight decay, multiplied by the learning rate; at least 0.
        maximize: go up instead of down.
        foreach: take the tensors of a group together (None: on anything but the CPU).
        nonfinite: what to do on inf or NaN in a gradient: "skip" the whole step, "raise"
            NonFiniteGradientError, or "ignore" and save the check.

    Attributes:
        step_report: scalars of the last step, see `StepReport`; None before the first.
        report_norms: set to True to add update and weight norms to the report, which costs a pass over both.
        skipped_steps: number of steps skipped by this object for non-finite gradients.

    Raises:
        ValueError: an option out of range, no parameters, or two controls of a kind.
        TypeError: a complex, sparse or sharded (DTensor) parameter.

    Example:
        >>> from warmfree.optim import NoiseControl, SpectralBound
        >>> model = torch.nn.Linear(4, 3)
        >>> controls = [NoiseControl(batch_size=8), SpectralBound(tau=0.05)]
        >>> optimizer = SizedOptimizer(model.parameters(), Adam(betas=(0.9, 0.95)), controls, lr=1e-2)
        >>> model(torch.ones(8, 4)).square().mean().backward()
        >>> optimizer.step()
        >>> sorted(optimizer.step_report.fetch()["0.0"])
        ['factor', 'sigma_update', 'sigma_weight', 'snr']
    """

    def __init__(
        self,
        params: Any,
        direction: str | Direction = "adam",
        controls: Sequence[SizeControl] = (),
        *,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.0,
        maximize: bool = False,
        foreach: bool | None = None,
        nonfinite: NonFinite = "skip",
    ) -> None:
        if isinstance(direction, str):
            if direction not in _DIRECTIONS:
                raise ValueError(f"direction must be one of {', '.join(_DIRECTIONS)}, got {direction!r}")
            direction = _DIRECTIONS[direction]()
        if nonfinite not in ("skip", "raise", "ignore"):
            raise ValueError(f"nonfinite must be 'skip', 'raise' or 'ignore', got {nonfinite!r}")
        self.direction = direction
        self.controls = tuple(controls)
        self.nonfinite: NonFinite = nonfinite
        self.report_norms = False
        self.skipped_steps = 0
        self.step_report: StepReport | None = None
        self._calls = 0
        defaults: dict[str, Any] = {"lr": lr, **direction.options(), "weight_decay": weight_decay}
        for control in self.controls:
            if clash := defaults.keys() & control.options().keys():
                again = ", ".join(sorted(clash))
                raise ValueError(
                    f"controls must be of different kinds: {type(control).__name__} sets {again} again"
                )
            defaults.update(control.options())
        if defaults.get("peak_lr", 0) is None:
            defaults["peak_lr"] = float(lr) or None
        defaults.update(ROUTING_OPTIONS, maximize=maximize, foreach=foreach)
        self._validate(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group and create its state; see torch.optim.Optimizer.add_param_group."""
        self._validate({**self.defaults, **param_group})
        if "peak_lr" in self.defaults and "lr" in param_group:
            param_group.setdefault("peak_lr", float(param_group["lr"]) or None)
        super().add_param_group(param_group)
        added = self.param_groups[-1]
        try:
            states = {parameter: self._new_state(parameter, added) for parameter in added["params"]}
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise
        self.state.update(states)

    def _validate(self, group: dict[str, Any]) -> None:
        """Raise ValueError if an option is out of range."""
        for key in ("lr", "weight_decay"):
            value = float(group[key])
            if not 0 <= value < math.inf:
                raise ValueError(f"{key} must be finite and >= 0, got {value}")
        self.direction.validate(group)
        for control in self.controls:
            control.validate(group)

    def _new_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """Counter, buffers and the controls' state of one parameter."""
        check_supported(parameter, name=type(self).__name__)
        layout = layout_of(parameter, group)
        counters = HOST_ENTRIES if self.direction.needs_first_gradient else HOST_ENTRIES[:1]
        state = {name: torch.tensor(0.0, dtype=torch.float32) for name in counters}
        for name in self.direction.buffer_names:
            state[name] = torch.zeros_like(
                parameter, dtype=norms.compute_dtype(parameter), memory_format=torch.preserve_format
            )
        for control in self.controls:
            # A tensor that a group option keeps from a control today may be given to it tomorrow.
            if layout.role != "vector":
                state.update(control.new_state(parameter, layout, group))
        return state

    def prime(self) -> None:
        """Let the direction start from the gradients of a separate batch; weights and counters stay.

        Call it once, before the first step, with the batch's gradients in place; zero them afterwards. Parameters
        without a gradient, or with a zero one, start at their first one instead.

        Raises:
            RuntimeError: the direction takes nothing from the first gradient, or a parameter has already started.
            NonFiniteGradientError: a gradient holds inf or NaN; nothing was changed.
        """
        if not self.direction.needs_first_gradient:
            raise RuntimeError(
                f"{type(self).__name__} takes nothing from the first gradient: there is nothing to prime"
            )
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if any(self.state[parameter]["started"] != 0 for parameter in parameters):
            raise RuntimeError(
                "prime() must be called once, before the first step: a parameter has already started"
            )
        largest = norms.magnitudes([parameter.grad for parameter in parameters])
        if not all(map(math.isfinite, largest)):
            raise NonFiniteGradientError(
                "non-finite gradient in prime(): call it with the gradients of a sound batch"
            )
        for parameter, size in zip(parameters, largest, strict=True):
            if size > 0:
                self._start([parameter.grad.to(norms.compute_dtype(parameter))], [self.state[parameter]])

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make one step.

        Args:
            closure: re-evaluates the model and returns the loss.

        Returns:
            The closure's loss, None without a closure.

        Raises:
            NonFiniteGradientError: with `nonfinite="raise"`, if a gradient holds inf or NaN.
            TypeError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._calls += 1
        values: dict[str, dict[str, Tensor]] = {}
        ready = self._ready()
        if ready is None:
            self.skipped_steps += 1
        else:
            for place, members in enumerate(ready):
                for bucket in self._buckets(self.param_groups[place], members):
                    self._step_bucket(place, bucket, values)
        self.step_report = StepReport(self._calls, ready is None, self.skipped_steps, values)
        return loss

    def _ready(self) -> list[list[int]] | None:
        """For each group the indices of parameters to step, or None if the step is to be skipped."""
        found = [
            (place, index, parameter)
            for place, group in enumerate(self.param_groups)
            for index, parameter in enumerate(group["params"])
            if parameter.grad is not None
        ]
        for _, _, parameter in found:
            check_gradient(parameter, name=type(self).__name__)
        ready: list[list[int]] = [[] for _ in self.param_groups]
        first_matters = self.direction.needs_first_gradient
        still = [float(group["lr"]) == 0 for group in self.param_groups]
        largest = [1.0] * len(found)
        if self.nonfinite != "ignore" or first_matters or any(still):
            largest = norms.magnitudes([parameter.grad for _, _, parameter in found])
        if self.nonfinite != "ignore" and not all(map(math.isfinite, largest)):
            if self.nonfinite == "raise":
                bad = [
                    self._name(p, i)
                    for (p, i, _), size in zip(found, largest, strict=True)
                    if not math.isfinite(size)
                ]
                raise NonFiniteGradientError(
                    f"non-finite gradient in {', '.join(bad[:5])} ({len(bad)} parameters)"
                )
            return None
        for (place, index, parameter), size in zip(found, largest, strict=True):
            waiting = first_matters and self.state[parameter]["started"] == 0
            if size == 0 and (still[place] or waiting):
                continue
            ready[place].append(index)
        return ready

    def _buckets(self, group: dict[str, Any], members: list[int]) -> Iterable[_Bucket]:
        """Split a group's parameters into lists that are stepped together: alike in device, type and controls."""
        buckets: dict[tuple[Any, ...], _Bucket] = {}
        for index in members:
            parameter = group["params"][index]
            if parameter.numel() == 0:
                continue
            layout = layout_of(parameter, group)
            controls = tuple(control for control in self.controls if control.claims(parameter, layout, group))
            together = parameter.device.type != "cpu" if group["foreach"] is None else group["foreach"]
            key = (parameter.device, parameter.dtype, controls, None if together else index)
            bucket = buckets.setdefault(key, _Bucket(controls))
            bucket.indices.append(index)
            bucket.layouts.append(layout)
        return buckets.values()

    def _step_bucket(self, place: int, bucket: _Bucket, values: dict[str, dict[str, Tensor]]) -> None:
        group = self.param_groups[place]
        parameters: list[Tensor] = [group["params"][index] for index in bucket.indices]
        states = [self.state[parameter] for parameter in parameters]
        dtype = norms.compute_dtype(parameters[0])
        gradients = [parameter.grad.to(dtype) for parameter in parameters if parameter.grad is not None]
        if group["maximize"]:
            gradients = list(torch._foreach_neg(gradients))
        self._start(gradients, states)
        for state in states:
            state["step"] += 1
        steps = [int(state["step"].item()) for state in states]
        buffers = {name: [state[name] for state in states] for name in self.direction.buffer_names}
        lr = float(group["lr"])
        move = Move(
            weights=[parameter.to(dtype) for parameter in parameters],
            update=self.direction(gradients, buffers, steps=steps, group=group),
            step_sizes=[lr] * len(states),
            decays=[float(group["weight_decay"])] * len(states),
            states=states,
            layouts=bucket.layouts,
            steps=steps,
            group=group,
            lr=lr,
            momentum=self.direction.averaging(group),
            reports=[{} for _ in states],
        )
        if self.report_norms:
            _note_norms(move)
        for control in bucket.controls:
            control(move)
        apply_move(move)
        for control in bucket.controls:
            control.restore(move)
        for index, parameter, weight, report in zip(
            bucket.indices, parameters, move.weights, move.reports, strict=True
        ):
            if weight is not parameter:
                parameter.copy_(weight)
            if report:
                values[self._name(place, index)] = report

    def _start(self, gradients: list[Tensor], states: list[dict[str, Tensor]]) -> None:
        """Let the direction see the first gradient of the parameters that have not started."""
        if not self.direction.needs_first_gradient:
            return
        fresh = [index for index, state in enumerate(states) if state["started"] == 0]
        if not fresh:
            return
        buffers = {name: [states[index][name] for index in fresh] for name in self.direction.buffer_names}
        self.direction.start([gradients[index] for index in fresh], buffers)
        for index in fresh:
            states[index]["started"].fill_(1.0)

    def _name(self, place: int, index: int) -> str:
        """Return the parameter's name if the optimizer was given names, else "group.index"."""
        names = self.param_groups[place].get("param_names")
        return names[index] if names else f"{place}.{index}"

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
        names = ("direction", "controls", "nonfinite", "report_norms", "skipped_steps", "_calls")
        return {
            **super().__getstate__(),
            **{name: getattr(self, name) for name in names},
            "step_report": None,
        }


def _note_norms(move: Move) -> None:
    for index, weight in enumerate(move.weights):
        update = torch.linalg.vector_norm(move.update.dense(index)) / move.update.corrections[index]
        move.note(
            index,
            update_norm=update,
            update_rms=update / weight.numel() ** 0.5,
            weight_norm=torch.linalg.vector_norm(weight),
        )
