"""Probes that need a loss on a batch of their own: curvature, smoothness along the step, Qi's list of each block."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.optim import Optimizer

from warmfree.measure.blocks import BlockQuantities
from warmfree.measure.curvature import (
    LocalSmoothness,
    Sharpness,
    UnsupportedOptimizerError,
    preconditioned_sharpness,
    sharpness,
)
from warmfree.measure.curvature.loss_and_gradient import mean_over_processes
from warmfree.measure.curvature.sharpness import Search
from warmfree.measure.undisturbed import undisturbed
from warmfree.monitor.probe import Moment, Probe, Values
from warmfree.optim.sharding import whole

__all__ = ["Blocks", "Curvature", "Smoothness"]


class Curvature(Probe):
    """Sharpness as the optimizer sees it, and how far it is from what the learning rate can bear.

    It starts from the eigenvector of the last measurement, of which it keeps one copy (the size of the weights), and
    takes some products with the Hessian, of about four gradients of the probe batch each. Of several optimizers each
    has its own part of the Hessian; the one that is closest to its threshold is reported. The loss of the batch, which
    is computed anyway, is reported beside it.

    Args:
        every: steps between measurements.
        products: with the Hessian in one measurement, at most.
        tolerance: relative, at which it stops earlier.
    """

    name = "curvature"
    weight = 6.0
    quantities = (
        *("sharpness", "preconditioned_sharpness", "stability_threshold", "instability"),
        *("instability_early", "curvature_residual", "probe_loss"),
    )
    needs = frozenset(("loss",))

    def __init__(self, *, every: int = 100, products: int = 10, tolerance: float = 0.02) -> None:
        self.every, self._products, self._tolerance = every, products, tolerance
        self._vectors: dict[int, list[Tensor]] = {}

    def before(self, moment: Moment) -> Values:
        """Measure with the step's own gradients in place."""
        if moment.grad_scale != 1:
            return {}  # the preconditioner of this step is not known before the optimizer has unscaled its gradients
        losses: list[Tensor] = []  # the first is at the weights as they are, whatever differences move later
        loss = partial(_noted, _loss_of(moment), losses)
        found = [(optimizer, self._measure(moment, optimizer, loss)) for optimizer in moment.optimizers]
        optimizer, closest = max(found, key=lambda pair: _order(pair[1]))
        plain = closest.threshold is None or type(optimizer).__name__ == "SGD"
        values: Values = {"sharpness" if plain else "preconditioned_sharpness": {"": closest.value}}
        weights = list(moment.parameters.values())
        values["probe_loss"] = {"": mean_over_processes(whole(losses[0]).item(), weights, moment.group)}
        if closest.value:
            values["curvature_residual"] = {"": closest.residual / abs(closest.value)}
        if closest.threshold is not None and closest.early_threshold is not None:
            values["stability_threshold"] = {"": closest.threshold}
            values["instability"] = {"": closest.ratio}
            values["instability_early"] = {"": closest.value / closest.early_threshold}
        return values

    def _measure(self, moment: Moment, optimizer: Optimizer, loss: Callable[[], Tensor]) -> Sharpness:
        vector = self._vectors.get(id(optimizer))
        owned = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
        parameters = [weight for weight in moment.parameters.values() if id(weight) in owned]
        if vector is not None and [v.shape for v in vector] != [p.shape for p in parameters]:
            vector = None  # parameters came or went
        search: Search = {
            "start": vector,
            "max_products": self._products,
            "tolerance": self._tolerance,
            "process_group": moment.group,
        }
        try:
            found = preconditioned_sharpness(moment.model, optimizer, loss, **search)
        except UnsupportedOptimizerError:
            found = sharpness(moment.model, loss, parameters, **search)
        if found.vector is not None and math.isfinite(found.value):
            self._vectors[id(optimizer)] = found.vector
        return found


def _order(found: Sharpness) -> float:
    """Order by distance to the threshold; what is not finite comes first, what has none last."""
    if not math.isfinite(found.value):
        return math.inf
    return -math.inf if found.threshold is None else found.ratio


class Smoothness(Probe):
    """Smoothness of the loss along the step, plain and as the optimizer sees it: see `LocalSmoothness`.

    It takes two gradients of the probe batch, and from before the step to after it copies of the weights, of the
    gradient and of the preconditioner. The second kind is there if all optimizers have a preconditioner that is known.
    A step that moves nothing has no smoothness; the loss of the batch, before the step, is there in any case.

    Args:
        every: steps between measurements.
    """

    name = "smoothness"
    weight = 2.0
    quantities = (
        *("local_smoothness", "preconditioned_local_smoothness", "smoothness_rounding", "probe_loss"),
    )
    needs = frozenset(("loss",))

    def __init__(self, *, every: int = 10) -> None:
        self.every = every
        self._measured: LocalSmoothness | None = None

    def before(self, moment: Moment) -> Values:
        """Keep weights and gradient of the probe batch."""
        measure = partial(
            LocalSmoothness,
            moment.model,
            _loss_of(moment),
            parameters=list(moment.parameters.values()),
            process_group=moment.group,
        )
        try:
            # The preconditioner is not known before the optimizer has unscaled its gradients.
            self._measured = measure(moment.optimizers if moment.grad_scale == 1 else None)
        except UnsupportedOptimizerError:
            self._measured = measure()
        self._measured.before()
        return {}

    def after(self, moment: Moment) -> Values:  # noqa: ARG002 (a stage)
        """Compare with those after the step."""
        assert self._measured is not None
        found = self._measured.after()
        self._measured = None
        values: Values = {"probe_loss": {"": found.loss}}
        if found.step_norm != 0:
            values["local_smoothness"] = {"": found.value}
            values["smoothness_rounding"] = {"": found.rounding}
            if found.preconditioned is not None:
                values["preconditioned_local_smoothness"] = {"": found.preconditioned}
        return values

    def end(self) -> None:
        """Let go of the copies."""
        self._measured = None


class Blocks(Probe):
    """Qi's list: 15 quantities of each transformer block, 13 where norms have no biases.

    Args:
        every: steps between measurements.
    """

    name = "blocks"
    weight = 2.0
    quantities = (
        *("sigma_query", "sigma_key", "sigma_value", "sigma_out", "sigma_up", "sigma_down"),
        *("sigma_query_key", "sigma_out_value", "sigma_down_up", "gain_1", "gain_2", "shift_1", "shift_2"),
        *("output_norm", "output_gradient_norm"),
    )
    needs = frozenset(("loss",))

    def __init__(self, *, every: int = 50) -> None:
        self.every = every
        self._blocks: BlockQuantities | None = None

    def before(self, moment: Moment) -> Values:
        """Measure weights, and outputs and their gradients in a pass of the batch."""
        batch, model = moment.batch, moment.model
        assert batch is not None
        self._blocks = self._blocks or BlockQuantities(model)
        with undisturbed(model), torch.enable_grad(), batch.precision():
            found = self._blocks.measure(lambda: batch.loss(model))
        return {quantity: dict(values) for quantity, values in found.items()}


def _loss_of(moment: Moment) -> Callable[[], Tensor]:
    """Return the loss of the probe batch, as the batch is at this moment."""
    assert moment.batch is not None
    model, precision, of_batch = moment.model, moment.batch.precision, moment.batch.loss

    def loss() -> Tensor:
        with precision():
            return of_batch(model)

    return loss


def _noted(loss: Callable[[], Tensor], values: list[Tensor]) -> Tensor:
    """Return a loss, and note its first value."""
    value = loss()
    if not values:
        values.append(value.detach())
    return value
