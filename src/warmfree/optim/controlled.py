"""What an optimizer with size controls is, whether it makes its own updates or wraps another's."""

from __future__ import annotations

import math
import sys
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, overload

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from warmfree.optim import norms
from warmfree.optim.bucket import Bucket, Member, Place
from warmfree.optim.control import NonFinite, NonFiniteGradientError, SizeControl
from warmfree.optim.move import Number, StepReport
from warmfree.optim.routing import ROUTING_OPTIONS, layout_of
from warmfree.optim.sharding import agreement, local_gradient, part_of, peers_of, signature
from warmfree.optim.state import (
    check_gradient,
    check_state_dict,
    check_supported,
    restore_kinds,
    state_kinds,
    with_frozen_state,
)


def is_capturing() -> bool:
    """Return whether a CUDA graph is being captured, so that nothing may be fetched from the device."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


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
        self._places: dict[Tensor, Place] = {}
        self._had_gradient = False
        self._counted: dict[Tensor, dict[str, int]] = {}
        for control in self.controls:
            if clash := defaults.keys() & control.options().keys():
                again = ", ".join(sorted(clash))
                raise ValueError(
                    f"controls must be of different kinds: {type(control).__name__} sets {again} again"
                )
            defaults.update(control.options())
        defaults.update(ROUTING_OPTIONS)
        self._validate(defaults)
        if defaults.get("peak_lr", 0) is None:
            defaults["peak_lr"] = float(defaults["lr"]) or None
        super().__init__(params, defaults)
        for control in self.controls:
            control.check_groups(self.param_groups)

    @abstractmethod
    def _averaging(self, group: Mapping[str, Any]) -> Number:
        """Constant b of the moving average that updates are made of; 0 if there is none."""

    @abstractmethod
    def _make_step(
        self, members: list[Member], gradients: list[Tensor], values: dict[str, dict[str, Tensor]]
    ) -> bool:
        """Step the parameters by their gradients' local parts, add to the report; return whether it was skipped."""

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
        if isinstance(group["lr"], Tensor) and group["lr"].numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        for key in ("lr", "weight_decay"):
            value = float(group[key])
            if not 0 <= value < math.inf:
                raise ValueError(f"{key} must be finite and >= 0, got {value}")
        for control in self.controls:
            control.validate(group, momentum=float(self._averaging(group)))

    def _new_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """Step counter and the controls' state of one parameter."""
        check_supported(parameter, name=type(self).__name__)
        layout = layout_of(parameter, group)
        state = {"step": torch.tensor(0.0, dtype=torch.float32, device="cpu")}
        for control in self.controls:
            # A tensor that a group option keeps from a control today may be given to it tomorrow.
            if layout.role != "vector":
                state.update({name: torch.zeros_like(state["step"]) for name in control.counters})
                state.update(control.new_state(parameter, layout, group))
        self._place(parameter, group)
        return state

    def _place(self, parameter: Tensor, group: dict[str, Any]) -> Place:
        """Return how a parameter is read and what of it is here.

        Raises:
            RuntimeError: it is no longer spread over processes as it was in the constructor.
        """
        layout, spread = layout_of(parameter, group), signature(parameter)
        place = self._places.get(parameter)
        if place is not None and place.signature != spread:
            raise RuntimeError(
                f"a parameter of shape {tuple(parameter.shape)} was resharded after {type(self).__name__} was made, "
                f"from {place.signature} to {spread}: shard the model first, then make the optimizer"
            )
        if place is None or place.layout != layout:
            place = Place(layout, part_of(parameter, layout), peers_of(parameter, layout), spread)
            self._places[parameter] = place
        return place

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.compiler.disable  # type: ignore[untyped-decorator]
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
        members = self._members()
        self._check_attached(members)
        for group_index, _, parameter in members:
            group = self.param_groups[group_index]
            if parameter not in self.state:
                # It was exchanged for another in the group, or its state thrown away.
                self.state[parameter] = self._new_state(parameter, group)
                present = [other for any_group in self.param_groups for other in any_group["params"]]
                self._places = {other: self._places[other] for other in present if other in self._places}
            self._place(parameter, group)
        gradients = [local_gradient(parameter) for _, _, parameter in members]
        values: dict[str, dict[str, Tensor]] = {}
        self._calls += 1
        skipped = self._make_step(members, gradients, values)
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

    def _check_attached(self, members: list[Member]) -> None:
        """Raise RuntimeError if the model seems to have got other parameters than the optimizer has."""
        self._had_gradient = self._had_gradient or bool(members)
        sharded = "torch.distributed.tensor" in sys.modules and dist.is_initialized()
        if not self._had_gradient and sharded:
            raise RuntimeError(
                f"no parameter of this {type(self).__name__} has a gradient. fully_shard and parallelize_module "
                f"replace a model's parameters: shard the model first, then make the optimizer"
            )

    def _sizes(self, members: list[Member], tensors: Sequence[Tensor]) -> list[float]:
        """Sizes of the members' gradients or weights from their local parts, alike in all processes."""
        peers = [self._places[parameter].peers for _, _, parameter in members]
        agree = agreement([place.peers for place in self._places.values()])
        if agree is None:
            return norms.magnitudes(tensors, lengths=self._lengths)
        sizes = [0.0] * len(members)
        for spread in (True, False):
            chosen = [index for index, theirs in enumerate(peers) if bool(theirs.groups) == spread]
            here = [tensors[index] for index in chosen]
            among = [peers[index] for index in chosen]
            found = norms.magnitudes(here, agree.of(among) if spread else None, self._lengths)
            for index, size in zip(chosen, found, strict=True):
                sizes[index] = size
        plain = [size for size, theirs in zip(sizes, peers, strict=True) if not theirs.groups]
        # Plain tensors need not be the same everywhere (experts of one process), but all have to decide alike.
        has_plain = not all(place.peers.groups for place in self._places.values())
        if has_plain and not agree.all_of(all(map(math.isfinite, plain))):
            return [size if theirs.groups else math.nan for size, theirs in zip(sizes, peers, strict=True)]
        return sizes

    def _lengths(self, tensors: list[Tensor]) -> Sequence[Tensor]:
        return torch._foreach_norm(tensors)

    def _buckets(
        self, members: Sequence[Member], gradients: Sequence[Tensor], *, together: bool | None
    ) -> list[Bucket]:
        """Sort parameters into lists that are stepped together: alike in everything but their shape.

        Args:
            members: parameters with a gradient.
            gradients: the local parts of their gradients.
            together: False for a bucket per plain tensor; None: on the CPU. Sharded tensors go together, always, for
                their sums to be completed in a constant number of all-reduces.
        """
        buckets: dict[tuple[Any, ...], Bucket] = {}
        capturing = is_capturing()
        for member, gradient in zip(members, gradients, strict=True):
            group_index, index, parameter = member
            group = self.param_groups[group_index]
            if parameter.numel() == 0:
                continue
            place, state = self._places[parameter], self.state[parameter]
            controls = tuple(c for c in self.controls if c.claims(parameter, place.layout, group))
            counters = ("step", *(name for control in controls for name in control.counters))
            if capturing:  # in replays all of them go on together from where they are
                if not self._counted.get(parameter, {}).keys() >= set(counters):
                    raise RuntimeError(
                        "a step can be captured after at least one eager step, of each parameter and at lr > 0, since "
                        "the optimizer was made or loaded"
                    )
                counted = {name: self._counted[parameter][name] + 1 for name in counters}
                counts: Mapping[str, Number] = {name: state[name] for name in counters}
            else:
                counters = counters if float(group["lr"]) != 0 else ("step",)
                counts = counted = {name: int(state[name].item()) + 1 for name in counters}
            self._counted[parameter] = {**self._counted.get(parameter, {}), **counted}
            alone = None
            if not place.peers.groups and not (
                parameter.device.type != "cpu" if together is None else together
            ):
                alone = index
            kinds = tuple(map(type, controls))
            fresh = frozenset(name for name, count in counted.items() if count == 1)
            treatment = self._treatment(member, gradient, controls)
            alike = (
                group_index,
                kinds,
                parameter.device,
                parameter.dtype,
                place.signature,
                place.peers,
                *counted.items(),
                treatment,
                alone,
            )
            bucket = buckets.setdefault(
                alike, Bucket(group_index, group, controls, place.peers, counts, fresh, treatment)
            )
            bucket.add(index, parameter, gradient, place, state)
        return list(buckets.values())

    def _treatment(self, member: Member, gradient: Tensor, controls: tuple[SizeControl, ...]) -> object:
        """Return what else parameters of a bucket must have in common."""
        del member, gradient, controls
        return None

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
        if not isinstance(state_dict, dict):
            check_state_dict(self, state_dict)
        kinds, final = state_kinds(self), list[dict[str, Any]]()

        def check(_: Optimizer, hooked: dict[str, Any]) -> dict[str, Any]:
            # The last of the hooks before: it sees what they made of it.
            hooked = with_frozen_state(self, hooked)
            check_state_dict(self, hooked)
            for group in hooked["param_groups"]:
                self._validate(group)
            final.append(hooked)
            return hooked

        def restore(_: Optimizer) -> None:
            # The first of the hooks after: they see the types that will stay.
            restore_kinds(self, final[0], kinds)

        handles = (
            self.register_load_state_dict_pre_hook(check),
            self.register_load_state_dict_post_hook(restore, prepend=True),
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            for handle in handles:
                handle.remove()

    def __getstate__(self) -> dict[str, Any]:
        carried = {name: getattr(self, name) for name in self._carried}
        return {**super().__getstate__(), **carried, "step_report": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._places, self._counted = {}, {}
        self.__dict__.setdefault("_had_gradient", False)
        there = "differentiable" in (state.get("defaults") or self.defaults)
        super().__setstate__(state)
        if not there:  # torch adds an option that a state_dict would then have to have
            del self.defaults["differentiable"]
