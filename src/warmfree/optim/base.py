"""The step: gather gradients, go through direction, size controls and write, bucket by bucket."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor

from warmfree.optim import compiled, kernels, norms
from warmfree.optim import fused as fused_step
from warmfree.optim.bucket import Bucket, Member, make_move
from warmfree.optim.control import NonFinite, NonFiniteGradientError, SizeControl
from warmfree.optim.controlled import ControlledOptimizer, is_capturing
from warmfree.optim.directions import SGD, Adam, Direction, Lion
from warmfree.optim.move import Number
from warmfree.optim.precision import Precision, round_stochastically, widened
from warmfree.optim.sharding import local, local_gradient

_DIRECTIONS: dict[str, Callable[[], Direction]] = {"adam": Adam, "lion": Lion, "sgd": SGD}


class Execution(TypedDict, total=False):
    """How a named optimizer is executed: options that `SizedOptimizer` documents and all of them take."""

    maximize: bool
    foreach: bool | None
    compile: bool
    fused: bool
    capturable: bool
    precision: Precision | None
    nonfinite: NonFinite


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
        compile: make the step by torch.compile, one region for a bucket. Schedules, edits of a group and a resumed run
            compile nothing anew. First steps, steps at lr 0, sharded parameters and a `precision` with rounding of its
            own take the eager step.
        fused: make the step by C++ kernels on the CPU, where they take it: float32, contiguous, the controls of the
            named optimizers. Built at first use, which needs a C++ compiler and ninja (`pip install warmfree[fused]`).
        capturable: keep counters on the parameters' device, so that a step can be captured in a CUDA graph after one or
            more eager steps. Needs `nonfinite="ignore"`; let lr be a Tensor on the device if replays are to change it.
        precision: how weights and state narrower than float32 are kept; None: as said above.
        nonfinite: what to do on inf or NaN in a gradient: "skip" the whole step, "raise"
            NonFiniteGradientError, or "ignore" and save the check.

    Attributes:
        step_report: scalars of the last step, see `StepReport`; None before the first.
        report_norms: set to True to add update and weight norms to the report, which costs a pass over both.
        skipped_steps: number of steps skipped by this object for non-finite gradients.

    Raises:
        ValueError: an option out of range, no parameters, or two controls of a kind.
        TypeError: a complex or sparse parameter.

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

    _carried = (
        *ControlledOptimizer._carried,
        *("direction", "report_norms", "precision", "compile", "fused", "capturable"),
    )

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
        compile: bool = False,  # noqa: A002 (torch's word)
        fused: bool = False,
        capturable: bool = False,
        precision: Precision | None = None,
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
        self.precision = precision or Precision()
        # How a step is made is not state: a resumed run chooses anew.
        self.compile, self.fused, self.capturable = compile, fused, capturable
        if compile and fused:
            raise ValueError("compile and fused are two ways to make the same step: choose one")
        if capturable and (nonfinite != "ignore" or not self.precision.plain):
            raise ValueError(
                "capturable needs nonfinite='ignore', since to skip a step is decided on the host, and no precision of "
                "its own"
            )
        if fused:
            kernels.load()  # what is missing is said now, and nothing is built in the middle of a step
        super().__init__(params, defaults, controls, nonfinite=nonfinite)

    def _averaging(self, group: Mapping[str, Any]) -> Number:
        return self.direction.averaging(group)

    def _validate(self, group: dict[str, Any]) -> None:
        self.direction.validate(group)
        super()._validate(group)

    def _new_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        state = super()._new_state(parameter, group)
        if self.capturable:
            for name in ("step", *(name for control in self.controls for name in control.counters)):
                if name in state:
                    state[name] = state[name].to(parameter.device)
        if self.direction.needs_first_gradient:
            state["started"] = torch.tensor(0.0, dtype=torch.float32, device="cpu")
        dtype = norms.compute_dtype(parameter)
        kept = torch.bfloat16 if self.precision.bf16_moments and dtype == torch.float32 else dtype
        for name in self.direction.buffer_names:
            state[name] = torch.zeros_like(parameter, dtype=kept, memory_format=torch.preserve_format)
        if self.precision.keeps_master(parameter):
            state["master_weight"] = parameter.detach().to(dtype, copy=True)
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
        for group_index, _, parameter in members:
            self._place(parameter, self.param_groups[group_index])
        if any(self.state[parameter]["started"] != 0 for _, _, parameter in members):
            raise RuntimeError(
                "prime() must be called once, before the first step: a parameter has already started"
            )
        gradients = [local_gradient(parameter) for _, _, parameter in members]
        sizes = self._sizes(members, gradients)
        if not all(map(math.isfinite, sizes)):
            raise NonFiniteGradientError(
                "non-finite gradient in prime(): call it with the gradients of a sound batch"
            )
        sound = [index for index, size in enumerate(sizes) if size > 0]
        chosen = [members[index] for index in sound], [gradients[index] for index in sound]
        for bucket in self._buckets(*chosen, together=False):
            buffers = self._buffers(bucket)
            self._start(bucket, buffers)
            self._keep(bucket, buffers)

    def _make_step(
        self, members: list[Member], gradients: list[Tensor], values: dict[str, dict[str, Tensor]]
    ) -> bool:
        waits, lr_is_zero = [False] * len(members), [False] * len(self.param_groups)
        if not self._capturing():  # all of them start before, and lr is not fetched
            lr_is_zero = [float(group["lr"]) == 0 for group in self.param_groups]
            if self.direction.needs_first_gradient:
                waits = [bool(self.state[parameter]["started"] == 0) for _, _, parameter in members]
        sizes = [1.0] * len(members)
        if self.nonfinite != "ignore" or any(waits) or any(lr_is_zero):
            sizes = self._sizes(members, gradients)
        if self._is_unsound(members, sizes):
            return True
        ready: list[list[tuple[Member, Tensor]]] = [[] for _ in self.param_groups]
        for member, gradient, size, first in zip(members, gradients, sizes, waits, strict=True):
            if size != 0 or not (lr_is_zero[member[0]] or first):
                ready[member[0]].append((member, gradient))
        for group, chosen in zip(self.param_groups, ready, strict=True):
            some, theirs = [member for member, _ in chosen], [gradient for _, gradient in chosen]
            for bucket in self._buckets(some, theirs, together=True if self.fused else group["foreach"]):
                for index, report in zip(bucket.indices, self._step_bucket(bucket), strict=True):
                    if report:
                        values[self._name(bucket.group_index, index)] = report
        return False

    def _step_bucket(self, bucket: Bucket) -> list[dict[str, Tensor]]:
        capturing = self._capturing()
        fast = self.precision.plain and not (self.report_norms or capturing or bucket.peers.groups)
        if self.compile and fast and compiled.takes(bucket):
            bucket.advance()
            return compiled.step(bucket, self.direction, self.defaults)
        if self.fused and fast and bucket.treatment:
            self._start(bucket, self._buffers(bucket))
            if (reports := fused_step.step(bucket, self.direction)) is not None:
                return reports
        group = bucket.group if capturing else {**bucket.group, "lr": float(bucket.group["lr"])}
        gradients, buffers = bucket.wide_gradients(), self._buffers(bucket)
        self._start(bucket, buffers)
        bucket.advance()
        parameters = [local(parameter) for parameter in bucket.parameters]
        weights = [
            state.get("master_weight", parameter).to(gradient.dtype)
            for state, parameter, gradient in zip(bucket.states, parameters, gradients, strict=True)
        ]
        momentum = self._averaging(group)
        scalars = self.direction.scalars(group, step=bucket.counts["step"])
        reports = make_move(
            bucket,
            weights,
            self.direction(gradients, buffers, scalars=scalars, group=group),
            group=group,
            scalars=bucket.scalars(group, momentum=momentum),
            momentum=momentum,
            decay=float(group["weight_decay"]),
            still=not capturing and group["lr"] == 0,
            report_norms=self.report_norms,
        )
        self._keep(bucket, buffers)
        for index, parameter, weight in zip(bucket.indices, parameters, weights, strict=True):
            self.precision.write(parameter, weight, seed=0 if self.precision.plain else _seed(bucket, index))
        return reports

    def _treatment(self, member: Member, gradient: Tensor, controls: tuple[SizeControl, ...]) -> object:
        """Return whether the kernels can step a parameter."""
        group, parameter = self.param_groups[member[0]], member[2]
        place, state = self._places[parameter], self.state[parameter]
        return self.fused and fused_step.fits(
            parameter, gradient, state, place, controls, group, self.direction
        )

    def _lengths(self, tensors: list[Tensor]) -> Sequence[Tensor]:
        return fused_step.lengths(tensors) if self.fused else super()._lengths(tensors)

    def _capturing(self) -> bool:
        return self.capturable and is_capturing()

    def _buffers(self, bucket: Bucket) -> dict[str, list[Tensor]]:
        """Return the direction's buffers, those that are kept in bfloat16 as float32 copies."""
        names = self.direction.buffer_names
        return {name: widened([state[name] for state in bucket.states]) for name in names}

    def _keep(self, bucket: Bucket, buffers: dict[str, list[Tensor]]) -> None:
        """Write copies of buffers back, rounded so that what changes by less than a bit still changes."""
        for place, (name, tensors) in enumerate(buffers.items()):
            for index, state, tensor in zip(bucket.indices, bucket.states, tensors, strict=True):
                if tensor is not state[name]:
                    seed = _seed(bucket, index, place + 1)
                    state[name].copy_(round_stochastically(tensor, seed=seed))

    def _start(self, bucket: Bucket, buffers: dict[str, list[Tensor]]) -> None:
        """Let the direction see the first gradient of the parameters that have not started."""
        if not self.direction.needs_first_gradient or self._capturing():
            return
        fresh = [index for index, state in enumerate(bucket.states) if state["started"] == 0]
        if not fresh:
            return
        gradients = bucket.wide_gradients()
        self.direction.start(
            [gradients[index] for index in fresh],
            {name: [tensors[index] for index in fresh] for name, tensors in buffers.items()},
        )
        for index in fresh:
            bucket.states[index]["started"].fill_(1.0)


def _seed(bucket: Bucket, index: int, buffer: int = 0) -> int:
    """Return a seed for the rounding of one parameter, or of one of its buffers, in one step."""
    where = bucket.parts[bucket.indices.index(index)].where
    return hash((bucket.group_index, index, buffer, int(bucket.counts["step"]), *where))
