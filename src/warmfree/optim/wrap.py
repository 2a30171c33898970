"""A size control around any optimizer of torch.optim's kind: Muon, SGD, a third party's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from warmfree.optim import norms
from warmfree.optim.bucket import Bucket, Member, make_move
from warmfree.optim.control import NonFinite, SizeControl
from warmfree.optim.controlled import ControlledOptimizer
from warmfree.optim.move import Move, Update
from warmfree.optim.noise import NoiseControl
from warmfree.optim.sharding import local
from warmfree.optim.state import check_state_dict

# Entries of the wrapped optimizer's state in the state_dict; those of the controls have no prefix. Their number goes
# with them: a checkpoint that was loaded into the template of an optimizer which had not stepped lacks the entries.
_INNER = "inner."
_COUNT = "inner_entries"


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
        ValueError: a control that cannot work from outside, an option out of range, or an optimizer that has to call
            a closure more than once.
        TypeError: not an optimizer, or a parameter that is complex or sparse.

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


class WrappedOptimizer(ControlledOptimizer):
    """An optimizer with size controls around it; made by `wrap`.

    Attributes:
        inner: the wrapped optimizer; it and this one have the same parameter groups.
        step_report: scalars of the last step; None before the first.
        skipped_steps: number of steps undone or not made for non-finite numbers.
    """

    _carried = (*ControlledOptimizer._carried, "inner", "_adopted")

    def __init__(
        self, inner: Optimizer, controls: Sequence[SizeControl], *, nonfinite: NonFinite = "skip"
    ) -> None:
        if not isinstance(inner, Optimizer):
            raise TypeError(f"wrap() needs a torch.optim.Optimizer, got {type(inner).__name__}")
        if isinstance(inner, torch.optim.LBFGS):
            raise ValueError("wrap() cannot size LBFGS: it moves the weights many times in a step")
        if any(isinstance(control, NoiseControl) for control in controls):
            raise ValueError(
                "NoiseControl needs the direction's momentum; use SizedOptimizer instead of wrap()"
            )
        self.inner = inner
        groups = self._adopted = inner.param_groups
        defaults = {"weight_decay": 0.0, **inner.defaults}
        try:
            super().__init__(groups, defaults, controls, nonfinite=nonfinite)
        except (TypeError, ValueError):
            inner.param_groups = groups
            raise
        self._adopted = []

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The wrapped optimizer's groups."""
        return self.inner.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.inner.param_groups = groups

    def _append_group(self, param_group: dict[str, Any]) -> None:
        for key, value in self.defaults.items():
            param_group.setdefault(key, value)
        if any(param_group is group for group in self._adopted):
            self.param_groups.append(param_group)
        else:
            self.inner.add_param_group(param_group)

    def _averaging(self, group: Mapping[str, Any]) -> float:
        """Momentum constant under the names that torch.optim uses."""
        return float(group["betas"][0]) if "betas" in group else float(group.get("momentum", 0.0))

    def _make_step(
        self, members: list[Member], gradients: list[Tensor], values: dict[str, dict[str, Tensor]]
    ) -> bool:
        if self.nonfinite != "ignore" and self._is_unsound(members, self._sizes(members, gradients)):
            return True
        parameters = [local(parameter) for _, _, parameter in members]
        before = [parameter.clone() for parameter in parameters]
        self.inner.step()
        try:
            undo = self.nonfinite != "ignore" and self._is_unsound(members, self._sizes(members, parameters))
        except RuntimeError:
            _restore(parameters, before)
            raise
        if undo:
            _restore(parameters, before)
            return True
        sized = [
            (member, old)
            for member, old in zip(members, before, strict=True)
            if self._controls_of(member) and float(self.param_groups[member[0]]["lr"]) != 0
        ]
        for bucket in self._buckets(
            [member for member, _ in sized], [old for _, old in sized], together=None
        ):
            for index, report in zip(bucket.indices, self._size(bucket), strict=True):
                values[self._name(bucket.group_index, index)] = report
        return False

    def _controls_of(self, member: Member) -> list[SizeControl]:
        group, parameter = self.param_groups[member[0]], member[2]
        layout = self._places[parameter].layout
        return [control for control in self.controls if control.claims(parameter, layout, group)]

    def _size(self, bucket: Bucket) -> list[dict[str, Tensor]]:
        """Let the controls change the steps from the old values, which stand for gradients, to the present ones."""
        bucket.advance()
        parameters = [local(parameter) for parameter in bucket.parameters]
        dtype, lr = norms.compute_dtype(parameters[0]), float(bucket.group["lr"])
        weights = [old.to(dtype) for old in bucket.gradients]
        targets = [parameter.to(dtype) for parameter in parameters]
        steps = [(weight - target) / lr for weight, target in zip(weights, targets, strict=True)]

        def write(move: Move) -> None:
            for weight, target, update, size in zip(
                weights, targets, move.update.numerators, move.step_sizes, strict=True
            ):
                # A step that is left alone is the wrapped optimizer's own to the last bit.
                whole = torch.as_tensor(size == lr, device=weight.device)
                weight.copy_(torch.where(whole, target, weight - size * update))

        group, momentum = {**bucket.group, "lr": lr}, self._averaging(bucket.group)
        reports = make_move(
            bucket,
            weights,
            Update(steps, None, [1.0] * len(steps), [], [], []),
            group=group,
            scalars=bucket.scalars(group, momentum=momentum),
            momentum=momentum,
            decay=0.0,
            still=False,
            write=write,
        )
        for parameter, weight in zip(parameters, weights, strict=True):
            parameter.copy_(weight)
        return reports

    def state_dict(self) -> dict[str, Any]:
        """Return the state of both; entries of the wrapped optimizer begin with "inner."."""
        packed = super().state_dict()
        inner = self.inner.state_dict()["state"]
        packed["state"] = {
            key: {
                **entries,
                _COUNT: torch.tensor(float(len(inner.get(key, {}))), device="cpu"),
                **{f"{_INNER}{name}": value for name, value in inner.get(key, {}).items()},
            }
            if isinstance(entries, dict)  # what hooks keep there beside the parameters' state is theirs
            else entries
            for key, entries in packed["state"].items()
        }
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load both states.

        Raises:
            ValueError: it is not the state_dict of such a wrapped optimizer, or does not fit; nothing is changed.
        """
        check_state_dict(self, state_dict, passed="inner")
        own: dict[Any, dict[str, Any]] = {}
        inner: dict[Any, dict[str, Any]] = {}
        for key, entries in state_dict["state"].items():
            if not isinstance(entries, dict):
                own[key] = entries
                continue
            own[key] = {name: value for name, value in entries.items() if not name.startswith("inner")}
            found = {name: value for name, value in entries.items() if name.startswith(_INNER)}
            if len(found) != float(entries.get(_COUNT, -1)):
                raise ValueError(
                    f"state_dict lacks entries of the wrapped {type(self.inner).__name__}, which makes its state in "
                    f"its first step: load the whole state_dict, or step before a checkpoint is read into it"
                )
            if found:
                inner[key] = {name.removeprefix(_INNER): value for name, value in found.items()}
        before = self.param_groups, self.state, self.inner.state
        try:
            super().load_state_dict({**state_dict, "state": own})
            self.inner.load_state_dict({**state_dict, "state": inner})
        except Exception:
            self.param_groups, self.state, self.inner.state = before
            raise

    def __setstate__(self, state: dict[str, Any]) -> None:
        # The groups are the wrapped optimizer's, which a copy has to have first.
        groups = state["param_groups"]
        super().__setstate__({key: value for key, value in state.items() if key != "param_groups"})
        self.param_groups = groups


def _restore(parameters: list[Tensor], before: list[Tensor]) -> None:
    for parameter, old in zip(parameters, before, strict=True):
        parameter.copy_(old)
