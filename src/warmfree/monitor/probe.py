"""What a probe is, and what it gets to see."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from warmfree.measure.updates import UpdateProbe
from warmfree.monitor.batch import ProbeBatch

__all__ = ["Moment", "Probe", "Values", "lr_of"]

Values = dict[str, dict[str, float | list[float]]]
Need = Literal["batch", "loss", "snapshot"]


@dataclass(slots=True)
class Moment:
    """One step of training, around the optimizer's step.

    Attributes:
        step: its number, from 0.
        model: without wrappers.
        optimizers: those that step.
        parameters: those of the model that are trainable and that these optimizers step, by name, shared ones once.
        snapshots: has the weights before the step when a probe needs them, None if none ever does.
        batch: what a pass of its own runs, if there is one.
        batch_size: samples in the gradient of this step, if known.
        ranks: processes whose gradients DistributedDataParallel averages.
        group: those processes.
        grad_scale: what the gradients are still multiplied by; 1 unless a GradScaler leaves it to the optimizer.
        seen: what `watch` of each probe gathered during the probe's pass, by name of the probe.
        found: values of this step so far, for probes that go on from others.
    """

    step: int
    model: nn.Module
    optimizers: tuple[Optimizer, ...]
    parameters: dict[str, Tensor]
    snapshots: UpdateProbe | None
    batch: ProbeBatch | None
    batch_size: float | None
    grad_scale: float
    ranks: int = 1
    group: Any = None
    seen: dict[str, Any] = field(default_factory=dict)
    found: Values = field(default_factory=dict)

    def lr_of(self) -> dict[str, float]:
        """Return each parameter's learning rate by name."""
        names = {id(weight): name for name, weight in self.parameters.items()}
        return {
            names[id(weight)]: float(lr_of(group))
            for optimizer in self.optimizers
            for group in optimizer.param_groups
            for weight in group["params"]
            if id(weight) in names
        }

    def reports(self) -> dict[str, dict[str, float]]:
        """Return what warmfree's optimizers noted of the step they just made, by parameter name of the model."""
        names = {id(weight): name for name, weight in self.parameters.items()}
        reports: dict[str, dict[str, float]] = {}
        for optimizer in self.optimizers:
            report = getattr(optimizer, "step_report", None)
            if report is None or report.skipped:
                continue
            fetched = report.fetch()
            for number, group in enumerate(optimizer.param_groups):
                labels = group.get("param_names") or [
                    f"{number}.{index}" for index in range(len(group["params"]))
                ]
                for label, weight in zip(labels, group["params"], strict=True):
                    if label in fetched and id(weight) in names:
                        reports[names[id(weight)]] = fetched[label]
        return reports


def lr_of(group: Mapping[str, Any]) -> float | Tensor:
    """Return a parameter group's learning rate; nan where an optimizer has none, or finds it by itself."""
    lr = group.get("lr")
    return math.nan if lr is None else lr


class Probe:
    """Base of all probes: what to do on a step that is measured. Each stage may do nothing.

    Attributes:
        name: unique among the probes of a monitor.
        every: steps between measurements, at least; early steps are measured more often.
        weight: its share of the budget, relative to the others'.
        quantities: what it can find.
        needs: "batch" for a batch to run, "loss" for one with a loss, "snapshot" for the weights before the step.
        watches: whether it wants to see a pass of the batch through the model.
        ahead: whether it has to know a step in advance that it is due.
    """

    name: str = "probe"
    every: int = 10
    weight: float = 1.0
    quantities: tuple[str, ...] = ()
    needs: frozenset[Need] = frozenset()
    watches: bool = False
    ahead: bool = False

    def begin(self, parameters: Mapping[str, Tensor]) -> None:
        """Get ready: the step to come will be measured. Called for probes with `ahead`, before its backward pass."""

    def end(self) -> None:
        """Undo `begin`, if the step did not come."""

    def watch(self, moment: Moment) -> AbstractContextManager[Any]:  # noqa: ARG002 (stages to fill in)
        """Return a context in which the batch is passed through the model, before the step and without gradients.

        What it yields is in `moment.seen[self.name]` afterwards.
        """
        return nullcontext()

    def before(self, moment: Moment) -> Values:  # noqa: ARG002
        """Measure just before the optimizer's step: gradients are there."""
        return {}

    def after(self, moment: Moment) -> Values:  # noqa: ARG002
        """Measure just after the optimizer's step."""
        return {}
