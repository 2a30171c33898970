"""One measured step: the probes of it, in their stages around the optimizer's step, each at its own cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

from warmfree.measure.undisturbed import undisturbed
from warmfree.monitor.batch import MissingLossError
from warmfree.monitor.probe import Moment, Probe, Values

__all__ = ["Measuring"]


class Measuring:
    """Run probes on one step, and note what each found and took.

    A probe that raises is left out from there on; the training never sees the exception.

    Args:
        moment: the step.
        probes: those that are due.

    Attributes:
        moment: the step.
        found: what each probe found, in the order of the probes.
        seconds: what each probe took.
        failed: the probes that raised, and what.
    """

    def __init__(self, moment: Moment, probes: Sequence[Probe]) -> None:
        self.moment = moment
        self.found: dict[str, Values] = {probe.name: {} for probe in probes}
        self.seconds = dict.fromkeys(self.found, 0.0)
        self.failed: dict[str, Exception] = {}
        self._probes = list(probes)

    def before(self) -> None:
        """Measure what is to be measured before the optimizer's step."""
        self._look()
        for probe in list(self._probes):
            self._stage([probe], partial(self._collect, probe, probe.before))
        users = [probe for probe in self._probes if "snapshot" in probe.needs]
        if users and self.moment.snapshots is not None:
            self._stage(users, self.moment.snapshots.snapshot)

    def after(self) -> None:
        """Measure what is to be measured after it."""
        for probe in list(self._probes):
            self._stage([probe], partial(self._collect, probe, probe.after))

    def _look(self) -> None:
        """Pass the batch through the model once, with every probe watching that wants to."""
        batch, model = self.moment.batch, self.moment.model
        watchers = [probe for probe in self._probes if probe.watches]
        if batch is None or not watchers:
            return

        def look() -> None:
            with undisturbed(model), torch.no_grad(), ExitStack() as stack:
                for probe in watchers:
                    self.moment.seen[probe.name] = stack.enter_context(probe.watch(self.moment))
                with batch.precision():
                    batch.run(model)

        self._stage(watchers, look)

    def _collect(self, probe: Probe, measure: Callable[[Moment], Values]) -> None:
        values = {
            quantity: {layer: _as_numbers(value) for layer, value in layers.items()}
            for quantity, layers in measure(self.moment).items()
        }
        for quantity, layers in values.items():
            self.found[probe.name].setdefault(quantity, {}).update(layers)
            self.moment.found.setdefault(quantity, {}).update(layers)

    def _stage(self, probes: Sequence[Probe], run: Callable[[], object]) -> None:
        begin = time.perf_counter()
        try:
            run()
        except Exception as error:
            again = self._may_try_again(probes, error)
            for probe in probes:
                self._probes.remove(probe)
                if not again:
                    self.failed[probe.name] = error
        for probe in probes:
            self.seconds[probe.name] += (time.perf_counter() - begin) / len(probes)

    def _may_try_again(self, probes: Sequence[Probe], error: Exception) -> bool:
        """Return whether the whole batch may do, on the next occasion, where a part of it did not."""
        batch = self.moment.batch
        ran = any(probe.needs & {"batch", "loss"} for probe in probes)
        return ran and batch is not None and not isinstance(error, MissingLossError) and batch.widen()


def _as_numbers(value: Any) -> float | list[float]:
    """Return a number, or one per head, as the record takes it."""
    return [float(each) for each in value] if isinstance(value, list | tuple) else float(value)
