"""Probes of the step itself: how far it went, what the gradients were, and how much of them was noise."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from warmfree.measure.equilibrium import predicted_equilibrium
from warmfree.measure.health import gradient_norms
from warmfree.measure.microbatches import MicrobatchGradients
from warmfree.measure.noise import GradientNoise, MomentumNoise, NoiseAverages
from warmfree.measure.updates import updates_from_report
from warmfree.monitor.probe import Moment, Probe, Values

__all__ = ["Gradients", "Microbatches", "Noise", "StepReports", "Updates"]


class StepReports(Probe):
    """What warmfree's own optimizers know of their step anyway: factor, singular values, angle. It costs a fetch."""

    name = "report"
    every = 5
    weight = 0.5
    quantities = ("factor", "sigma_weight", "bounded_ratio", "rotation")

    def after(self, moment: Moment) -> Values:
        """Read the report of the step that was just made."""
        reports = moment.reports()
        values: Values = {}
        for quantity in ("factor", "sigma_weight"):
            values[quantity] = {name: each[quantity] for name, each in reports.items() if quantity in each}
        for name, update in updates_from_report(reports, lr=moment.lr_of()).items():
            for quantity, value in (
                ("spectral_ratio", update.spectral_ratio),
                ("update_angle", update.angle),
            ):
                if not math.isnan(value):
                    values.setdefault(quantity, {})[name] = value
        return {quantity: found for quantity, found in values.items() if found}


class Updates(Probe):
    """Size, angle and spectral ratio of the step of any optimizer, from a copy of the weights before it.

    Args:
        every: steps between measurements.
        spectral: measure the spectral ratio, too, by a few power iterations.
    """

    name = "updates"
    weight = 2.0
    quantities = (
        *("update_l2", "update_rms", "update_rms_per_lr", "update_relative", "update_angle"),
        *("update_angle_tensor", "angle_ratio", "weight_norm", "spectral_ratio"),
    )
    needs = frozenset(("snapshot",))

    def __init__(self, *, every: int = 10, spectral: bool = True) -> None:
        self.every, self.spectral = every, spectral

    def after(self, moment: Moment) -> Values:
        """Compare the weights with the copy."""
        angles = {
            name: equilibrium.angle
            for optimizer in moment.optimizers
            for name, equilibrium in predicted_equilibrium(optimizer, model=moment.model).items()
        }
        values: Values = {quantity: {} for quantity in self.quantities}
        assert moment.snapshots is not None
        for name, update in moment.snapshots.compare(lr=moment.lr_of()).items():
            if name not in moment.parameters:
                continue  # another optimizer's
            values["update_l2"][name] = update.l2
            values["update_rms"][name] = update.rms
            values["update_rms_per_lr"][name] = update.rms_per_lr
            values["update_relative"][name] = update.relative
            values["update_angle_tensor"][name] = update.angle
            values["weight_norm"][name] = update.weight_norm
            is_matrix = moment.parameters[name].ndim > 1
            if is_matrix:
                values["update_angle"][name] = update.neuron_angle
                if self.spectral:
                    values["spectral_ratio"][name] = update.spectral_ratio
            settles = angles.get(name)
            if settles:
                values["angle_ratio"][name] = (update.neuron_angle if is_matrix else update.angle) / settles
        return {quantity: found for quantity, found in values.items() if found}


class Gradients(Probe):
    """Norm of the gradient of each parameter, and of all together.

    Args:
        every: steps between measurements.
    """

    name = "gradients"
    quantities = ("grad_norm",)

    def __init__(self, *, every: int = 10) -> None:
        self.every = every

    def before(self, moment: Moment) -> Values:
        """Measure gradients as the optimizer sees them: averaged, clipped, unscaled."""
        norms = gradient_norms(moment.parameters.items())
        return (
            {"grad_norm": {name: norm / moment.grad_scale for name, norm in norms.items()}} if norms else {}
        )


class Noise(Probe):
    """Signal-to-noise ratio and critical batch size from the optimizer's momentum.

    Args:
        every: steps between measurements.
        smoothing: of the averages over measurements, see `warmfree.measure.noise.NoiseAverages`.
    """

    name = "noise"
    quantities = ("batch_snr", "snr", "critical_batch")

    def __init__(self, *, every: int = 10, smoothing: float = 0.9) -> None:
        self.every, self._smoothing = every, smoothing
        self._meters: dict[int, MomentumNoise] = {}

    def before(self, moment: Moment) -> Values:
        """Measure before the momentum takes in the gradient."""
        if moment.grad_scale != 1:
            return {}  # gradients and momentum are in different units until the optimizer has unscaled them
        found: dict[str, GradientNoise] = {}
        for optimizer in moment.optimizers:
            meter = self._meters.setdefault(
                id(optimizer), MomentumNoise(batch_size=1, smoothing=self._smoothing)
            )
            found |= meter.measure(optimizer, moment.parameters.items(), steps=moment.step)
        return _noise(found, batch_size=moment.batch_size)


class Microbatches(Probe):
    """The same from the micro-batches and ranks that one step adds up; it needs two or more of equal size.

    Meant to be used instead of :class:`Noise`, where there are many micro-batches or ranks; not under FSDP2.

    Args:
        every: steps between measurements.
        smoothing: of the averages over measurements.
    """

    name = "microbatches"
    quantities = ("batch_snr", "snr", "critical_batch")
    ahead = True

    def __init__(self, *, every: int = 10, smoothing: float = 0.9) -> None:
        self.every = every
        self._averages = NoiseAverages(smoothing=smoothing)
        self._seen: MicrobatchGradients | None = None

    def begin(self, parameters: Mapping[str, Tensor]) -> None:
        """Watch the backward passes of the step to come."""
        self._seen = MicrobatchGradients(parameters.items())

    def end(self) -> None:
        """Stop watching."""
        if self._seen is not None:
            self._seen.close()
            self._seen = None

    def before(self, moment: Moment) -> Values:
        """Compare the gradients of the micro-batches with their sum."""
        seen = self._seen
        assert seen is not None
        seen.close()
        passes = seen.passes * moment.ranks
        if passes < 2:
            return {}
        samples = 1 / passes  # of the batch: the unit in which batch_snr counts
        estimate = seen.estimate(samples=samples, group=moment.group, loss_scale=moment.grad_scale)
        return _noise(self._averages.add(estimate), batch_size=moment.batch_size)


def _noise(found: Mapping[str, GradientNoise], *, batch_size: float | None) -> Values:
    """Return ratios for whole batches, and for samples if it is known how many make a batch."""
    if not found:
        return {}
    of_parameters = [noise for name, noise in found.items() if name]
    whole = GradientNoise(
        math.fsum(noise.signal for noise in of_parameters), math.fsum(noise.noise for noise in of_parameters)
    )
    snrs: dict[str, Any] = {name: noise.snr for name, noise in found.items()} | {"": whole.snr}
    values: Values = {"batch_snr": snrs}
    if batch_size is not None:
        values["snr"] = {name: snr / batch_size for name, snr in snrs.items()}
        values["critical_batch"] = {
            name: batch_size / snr if snr else math.inf for name, snr in snrs.items() if not math.isnan(snr)
        }
    return values
