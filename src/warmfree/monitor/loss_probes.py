"""Probes that need a loss on a batch of their own: curvature against its threshold, and Qi's list for each block."""

import math

import torch
from torch import Tensor
from torch.optim import Optimizer

from warmfree.measure.blocks import BlockQuantities
from warmfree.measure.curvature import (
    Sharpness,
    UnsupportedOptimizerError,
    preconditioned_sharpness,
    sharpness,
)
from warmfree.measure.curvature.sharpness import Search
from warmfree.measure.undisturbed import undisturbed
from warmfree.monitor.probe import Moment, Probe, Values

__all__ = ["Blocks", "Curvature"]


class Curvature(Probe):
    """Sharpness as the optimizer sees it, and how far it is from what the learning rate can bear.

    It starts from the eigenvector of the last measurement, of which it keeps one copy (the size of the weights), and
    takes some products with the Hessian, of about four gradients of the probe batch each. Of several optimizers each
    has its own part of the Hessian; the one that is closest to its threshold is reported.

    Args:
        every: steps between measurements.
        products: with the Hessian in one measurement, at most.
        tolerance: relative, at which it stops earlier.
    """

    name = "curvature"
    weight = 6.0
    quantities = (
        *("sharpness", "preconditioned_sharpness", "stability_threshold", "instability"),
        *("instability_early", "curvature_residual"),
    )
    needs = frozenset(("loss",))

    def __init__(self, *, every: int = 100, products: int = 10, tolerance: float = 0.02) -> None:
        self.every, self._products, self._tolerance = every, products, tolerance
        self._vectors: dict[int, list[Tensor]] = {}

    def before(self, moment: Moment) -> Values:
        """Measure with the step's own gradients in place."""
        if moment.grad_scale != 1:
            return {}  # the preconditioner of this step is not known before the optimizer has unscaled its gradients
        found = [(optimizer, self._measure(moment, optimizer)) for optimizer in moment.optimizers]
        optimizer, closest = max(found, key=lambda pair: _order(pair[1]))
        plain = closest.threshold is None or type(optimizer).__name__ == "SGD"
        values: Values = {"sharpness" if plain else "preconditioned_sharpness": {"": closest.value}}
        if closest.value:
            values["curvature_residual"] = {"": closest.residual / abs(closest.value)}
        if closest.threshold is not None and closest.early_threshold is not None:
            values["stability_threshold"] = {"": closest.threshold}
            values["instability"] = {"": closest.ratio}
            values["instability_early"] = {"": closest.value / closest.early_threshold}
        return values

    def _measure(self, moment: Moment, optimizer: Optimizer) -> Sharpness:
        batch, model = moment.batch, moment.model
        assert batch is not None

        def loss() -> Tensor:
            with batch.precision():
                return batch.loss(model)

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
            found = preconditioned_sharpness(model, optimizer, loss, **search)
        except UnsupportedOptimizerError:
            found = sharpness(model, loss, parameters, **search)
        if found.vector is not None and math.isfinite(found.value):
            self._vectors[id(optimizer)] = found.vector
        return found


def _order(found: Sharpness) -> float:
    """Order by distance to the threshold; what is not finite comes first, what has none last."""
    if not math.isfinite(found.value):
        return math.inf
    return -math.inf if found.threshold is None else found.ratio


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
