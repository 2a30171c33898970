"""The step: gather gradients, go through direction, size controls and write, bucket by bucket."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from warmfree.optim import norms
from warmfree.optim.apply import apply_move
from warmfree.optim.control import NonFinite, NonFiniteGradientError, SizeControl
from warmfree.optim.controlled import ControlledOptimizer, Member, magnitudes_of_gradients
from warmfree.optim.directions import SGD, Adam, Direction, Lion
from warmfree.optim.move import Layout, Move
from warmfree.optim.routing import layout_of

_DIRECTIONS: dict[str, Callable[[], Direction]] = {"adam": Adam, "lion": Lion, "sgd": SGD}


@dataclass(slots=True)
class _Bucket:
    """Parameters of one group that are stepped together."""

    controls: tuple[SizeControl, ...]
    indices: list[int] = field(default_factory=list)
    layouts: list[Layout] = field(default_factory=list)


class SizedOptimizer(ControlledOptimizer):
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

    _carried = (*ControlledOptimizer._carried, "direction", "report_norms")

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
        self.direction = direction
        self.report_norms = False
        defaults = {
            "lr": lr,
            **direction.options(),
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
        }
        super().__init__(params, defaults, controls, nonfinite=nonfinite)

    def _averaging(self, group: Mapping[str, Any]) -> float:
        return self.direction.averaging(group)

    def _validate(self, group: dict[str, Any]) -> None:
        self.direction.validate(group)
        super()._validate(group)

    def _new_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        state = super()._new_state(parameter, group)
        if self.direction.needs_first_gradient:
            state["started"] = torch.tensor(0.0, dtype=torch.float32, device="cpu")
        for name in self.direction.buffer_names:
            state[name] = torch.zeros_like(
                parameter, dtype=norms.compute_dtype(parameter), memory_format=torch.preserve_format
            )
        return state

    @torch.no_grad()
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
        members = self._members()
        if any(self.state[parameter]["started"] != 0 for _, _, parameter in members):
            raise RuntimeError(
                "prime() must be called once, before the first step: a parameter has already started"
            )
        sizes = magnitudes_of_gradients(members)
        if not all(map(math.isfinite, sizes)):
            raise NonFiniteGradientError(
                "non-finite gradient in prime(): call it with the gradients of a sound batch"
            )
        for (_, _, parameter), size in zip(members, sizes, strict=True):
            if size > 0 and parameter.grad is not None:
                self._start([parameter.grad.to(norms.compute_dtype(parameter))], [self.state[parameter]])

    def _make_step(self, members: list[Member], values: dict[str, dict[str, Tensor]]) -> bool:
        needs_first = self.direction.needs_first_gradient
        lr_is_zero = [float(group["lr"]) == 0 for group in self.param_groups]
        sizes = [1.0] * len(members)
        if self.nonfinite != "ignore" or needs_first or any(lr_is_zero):
            sizes = magnitudes_of_gradients(members)
        if self._is_unsound(members, sizes):
            return True
        ready: list[list[int]] = [[] for _ in self.param_groups]
        for (group_index, index, parameter), size in zip(members, sizes, strict=True):
            waits = needs_first and self.state[parameter]["started"] == 0
            if size != 0 or not (lr_is_zero[group_index] or waits):
                ready[group_index].append(index)
        for group_index, indices in enumerate(ready):
            for bucket in self._buckets(self.param_groups[group_index], indices):
                self._step_bucket(group_index, bucket, values)
        return False

    def _buckets(self, group: dict[str, Any], indices: list[int]) -> Iterable[_Bucket]:
        """Split a group's parameters into lists stepped together: alike in device, type and controls."""
        buckets: dict[tuple[Any, ...], _Bucket] = {}
        for index in indices:
            parameter = group["params"][index]
            if parameter.numel() == 0:
                continue
            layout = layout_of(parameter, group)
            controls = tuple(control for control in self.controls if control.claims(parameter, layout, group))
            together = parameter.device.type != "cpu" if group["foreach"] is None else group["foreach"]
            kinds = tuple(map(type, controls))
            key = (parameter.device, parameter.dtype, kinds, None if together else index)
            bucket = buckets.setdefault(key, _Bucket(controls))
            bucket.indices.append(index)
            bucket.layouts.append(layout)
        return buckets.values()

    def _step_bucket(self, group_index: int, bucket: _Bucket, values: dict[str, dict[str, Tensor]]) -> None:
        group = self.param_groups[group_index]
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
            momentum=self._averaging(group),
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
                values[self._name(group_index, index)] = report

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


def _note_norms(move: Move) -> None:
    for index, weight in enumerate(move.weights):
        update = torch.linalg.vector_norm(move.update.dense(index)) / move.update.corrections[index]
        move.note(
            index,
            update_norm=update,
            update_rms=update / weight.numel() ** 0.5,
            weight_norm=torch.linalg.vector_norm(weight),
        )
