"""One coming step of an optimizer, tried at any learning rate."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from warmfree.measure.health import gradient_norms
from warmfree.measure.kept import Kept
from warmfree.measure.real import as_real
from warmfree.measure.sums import whole_sums
from warmfree.measure.unchanged import Session, bare
from warmfree.measure.undisturbed import undisturbed
from warmfree.optim.sharding import is_dtensor, local, local_gradient

__all__ = [
    "LossFn",
    "NonDeterministicLossError",
    "StepTrials",
    "groups_of_losses",
    "learning_rate",
    "proportions",
    "set_learning_rate",
]

LossFn = Callable[[nn.Module, Any], Tensor]


class NonDeterministicLossError(ValueError):
    """Two passes with the same weights, batch and random numbers gave different losses."""


class StepTrials:
    """The step that an optimizer would make on given batches, at learning rates of your choice.

    To be used inside of `unchanged`. The gradient is computed once; a trial sets the learning rates of all groups, in
    their proportions, lets the optimizer make its own step from its own state, and puts weights and state back. All
    passes begin with the same random numbers and buffers, in the mode that the modules are in.

    With DistributedDataParallel and FSDP2 all processes have to do the same; the loss is then the mean of theirs.

    Args:
        session: of `unchanged`.
        model: as it is trained, wrappers included.
        loss_fn: `loss_fn(model, batch)` returns the scalar loss of a batch.
        optimizer: of the model's parameters.
        max_grad_norm: clip the gradient to this l2 norm before each step; None to leave it.
        scaler: a GradScaler whose present scale the loss is multiplied by for the backward pass.
        same_draws: begin every pass with the same random numbers and buffers; False to go on with them, as in training.

    Attributes:
        forward_passes: over a step's batches, so far.
        backward_passes: likewise.
    """

    def __init__(
        self,
        session: Session,
        model: nn.Module,
        loss_fn: LossFn,
        optimizer: Optimizer,
        *,
        max_grad_norm: float | None = None,
        scaler: torch.amp.GradScaler | None = None,
        same_draws: bool = True,
    ) -> None:
        self._session, self._same_draws = session, same_draws
        self.model, self._loss_fn, self._optimizer = model, loss_fn, optimizer
        self._max_grad_norm, self._scale = max_grad_norm, scaler.get_scale() if scaler is not None else 1.0
        self._everything = list({id(p): p for p in (*model.parameters(), *session.weights)}.values())
        self._names = {id(weight): name for name, weight in bare(model).named_parameters()}
        self._rates = proportions(optimizer)
        self._groups = groups_of_losses(model, self._everything)
        self._batches: Sequence[Any] = ()
        self._kept: Kept | None = None
        self._gradients: list[tuple[Tensor, Tensor]] = []
        self._kept_gradients = Kept()
        self._clipping = 1.0
        self._slope = math.nan
        self._rounding = 0.0
        self.forward_passes = self.backward_passes = 0

    def prepare(self, batches: Sequence[Any]) -> float:
        """Compute the gradient of a step; return the loss before it.

        Args:
            batches: the micro-batches that the step adds up; one without accumulation.

        Raises:
            ValueError: the loss or the gradient is not finite or zero, or the loss is no scalar with a graph.
        """
        loss_before = self._backward(batches)
        if not math.isfinite(loss_before):
            raise ValueError(
                f"the loss is {loss_before} before any step: nothing can be searched; check the batches, the initial "
                f"weights and loss_fn"
            )
        sizes = gradient_norms(self._named_gradients())
        self._check(sizes)
        self._clip(sizes)
        self._gradients = [
            (weight, weight.grad) for weight in self._session.weights if weight.grad is not None
        ]
        self._kept_gradients = Kept(*(gradient for _, gradient in self._gradients))
        self._kept = self._session.kept_of(self._optimizer)
        self._slope = math.nan
        return loss_before

    def gradient(self, batches: Sequence[Any]) -> float:
        """Leave the gradient of a step in `.grad`, as training would; return the loss, finite or not."""
        loss = self._backward(batches)
        if self._max_grad_norm is not None:
            self._clip(gradient_norms(self._named_gradients()))
        return loss

    def loss_now(self) -> float:
        """Return the loss of the step's batches with the weights as they are."""
        total = 0.0
        for batch in self._batches:
            with self._apart(), torch.no_grad(), self._session.guard.open():
                total += self._loss(batch).item()
        self.forward_passes += 1
        return self._mean(total / len(self._batches))

    def loss_at(self, lr: float) -> float:
        """Try the step with a learning rate; return the loss after it, inf if it is not finite.

        Args:
            lr: of the first group that has one above 0; the others keep their proportions.
        """
        assert self._kept is not None, "prepare() comes first"
        moved = self._session.moved
        try:
            with self._apart():  # an optimizer may draw random numbers, too
                self.step(lr)
            if math.isnan(self._slope):
                self._put_gradients_back()
                self._slope = self._measure_slope(lr)
            loss = self.loss_now()
        finally:
            self._kept.restore()
            self._put_gradients_back()
            self._session.moved = moved
        return loss if math.isfinite(loss) else math.inf

    def slope(self) -> float:
        """Return the derivative of the loss by the learning rate along the first step that moved; nan before it."""
        return self._slope

    def step(self, lr: float) -> None:
        """Make the step, and leave it made."""
        self._session.moved = True
        set_learning_rate(self._optimizer, self._rates, lr)
        with self._session.guard.open():
            self._optimizer.step()

    def before(self, weight: Tensor) -> Tensor:
        """Return a weight, the part of it that is here, as it was before the step."""
        assert self._kept is not None, "prepare() comes first"
        return self._kept.copy_of(weight)

    def noise(self, loss: float) -> float:
        """Return the difference below which losses of this size are not told apart.

        Losses are computed in float32 or better, whatever the weights are, and then rounded to what loss_fn returns.
        """
        dtypes = [weight.dtype for weight in self._everything if weight.is_floating_point()]
        computed = max((torch.finfo(dtype).eps for dtype in dtypes), default=0.0)
        return max(8 * min(computed, torch.finfo(torch.float32).eps), self._rounding) * abs(loss)

    def _backward(self, batches: Sequence[Any]) -> float:
        """Leave the gradient in `.grad`, not clipped yet; return the loss."""
        self._batches = list(batches)
        for weight in self._everything:
            weight.grad = None
        total = 0.0
        for batch in self._batches:
            with self._apart(), torch.enable_grad(), self._session.guard.open():
                loss = self._loss(batch)
                if not loss.requires_grad:
                    raise ValueError(
                        "the loss has no gradient: it depends on no weight that requires one, or loss_fn computes it "
                        "under no_grad or detaches it"
                    )
                # Of a loss that is not finite nothing can be learned; but all processes have to go on alike.
                (loss * (self._scale / len(self._batches))).backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        self.forward_passes += 1
        self.backward_passes += 1
        self._scale_gradients(self._everything, 1 / self._scale)
        return self._mean(total / len(self._batches))

    def _loss(self, batch: Any) -> Tensor:
        """Call loss_fn, with a batch of which it may take things out."""
        torch.clear_autocast_cache()  # casts of the weights before a step
        loss = self._loss_fn(self.model, _containers_copied(batch))
        if not isinstance(loss, Tensor):
            raise TypeError(
                f"loss_fn must return a scalar tensor, got {type(loss).__name__}; return its loss, as in "
                f"lambda model, batch: model(**batch).loss"
            )
        if loss.numel() != 1 or not loss.is_floating_point():
            raise ValueError(
                f"loss_fn must return a real scalar, got {loss.dtype} of shape {tuple(loss.shape)}; take its mean"
            )
        self._rounding = torch.finfo(loss.dtype).eps
        return loss.reshape(())

    def _named_gradients(self) -> list[tuple[str, Tensor]]:
        return [
            (self._names.get(id(weight), f"weight {index} of the optimizer"), weight)
            for index, weight in enumerate(self._session.weights)
            if weight.grad is not None
        ]

    def _clip(self, sizes: Mapping[str, float]) -> None:
        """Clip as torch's clip_grad_norm_ does, which takes no weights on several meshes."""
        self._clipping = 1.0
        if self._max_grad_norm is not None and sizes:
            self._clipping = min(self._max_grad_norm / (sizes[""] + 1e-6), 1.0)  # in this order nan stays nan
            self._scale_gradients(self._session.weights, self._clipping)

    @staticmethod
    def _scale_gradients(weights: Sequence[Tensor], factor: float) -> None:
        gradients = [local(weight.grad) for weight in weights if weight.grad is not None]
        if factor != 1.0 and gradients:
            torch._foreach_mul_(gradients, factor)

    def _put_gradients_back(self) -> None:
        """Undo what the optimizer did to gradients: some write to them, some let go of them."""
        for weight, gradient in self._gradients:
            weight.grad = gradient
        self._kept_gradients.restore()

    def _check(self, sizes: Mapping[str, float]) -> None:
        """Raise unless there is a gradient to follow."""
        if not sizes:
            raise ValueError(
                "no weight of the optimizer has a gradient: the optimizer holds other parameters than loss_fn uses, "
                "or all of them are frozen"
            )
        if bad := [name for name, size in sizes.items() if name and not math.isfinite(size)]:
            scaled = f"; the loss scale {self._scale:g} may be too large for it" if self._scale != 1.0 else ""
            raise ValueError(
                f"the gradient of {bad[0]} is not finite before any step, though the loss is{scaled}"
            )
        if sizes[""] == 0:
            raise ValueError(
                "the loss is constant: its gradient is exactly 0 for every weight of the optimizer, so that no step "
                "changes it; check the initial weights (all zero?) and loss_fn"
            )

    @torch.no_grad()
    def _measure_slope(self, lr: float) -> float:
        """Return the gradient along the step; nan of one that rounding took away, or that leads to infinity."""
        moved, parts = [], []
        for weight, _ in self._gradients:
            change = as_real(local(weight)).double() - as_real(self.before(weight)).double()
            along = (change * as_real(local_gradient(weight)).double()).sum()
            parts.append(torch.stack([along, change.abs().sum()]))
            moved.append(weight)
        rows = whole_sums(parts, moved)
        slope = sum(row[0] for row in rows) / lr / self._clipping
        return slope if math.isfinite(slope) and any(row[1] for row in rows) else math.nan

    def _apart(self) -> AbstractContextManager[None]:
        """Keep a pass from changing the next one."""
        return undisturbed(self.model, evaluate=False) if self._same_draws else nullcontext()

    def _mean(self, loss: float) -> float:
        """Average over processes that see different batches, so that all decide alike."""
        for group in self._groups:
            device = next(local(weight).device for weight in self._everything)
            if dist.get_backend(group) == "nccl":
                device = torch.device("cuda")
            total = torch.tensor(
                loss, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device
            )
            dist.all_reduce(total, group=group)
            loss = total.item() / dist.get_world_size(group)
        return loss


def _containers_copied(batch: Any) -> Any:
    """Copy what a batch is held in, through mappings, lists and tuples, but not the tensors."""
    if isinstance(batch, MutableMapping):
        copied = copy.copy(batch)
        for key, item in batch.items():
            copied[key] = _containers_copied(item)
        return copied
    if type(batch) in (list, tuple):
        return type(batch)(map(_containers_copied, batch))
    return batch


def learning_rate(optimizer: Optimizer) -> float:
    """Return the learning rate that an optimizer is to reach: that of its first group that has one above 0.

    That is the present one, or, where a schedule has all of them at 0 now, the one that the schedule started from.

    Raises:
        ValueError: there is none, or it is 0.
    """
    return _first(proportions(optimizer))


def set_learning_rate(optimizer: Optimizer, rates: Sequence[float], lr: float) -> None:
    """Set the learning rate of the first group that has one above 0, and the others in proportion to `rates`."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        scaled = lr * (rate / _first(rates))
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(scaled)
        else:
            group["lr"] = scaled


def _first(rates: Sequence[float]) -> float:
    return next(rate for rate in rates if rate > 0)


def proportions(optimizer: Optimizer) -> list[float]:
    """Return the groups' learning rates, those that a schedule started from if all are 0 now.

    Raises:
        ValueError: one is missing or not finite, or all are 0.
    """
    if not optimizer.param_groups or any(group.get("lr") is None for group in optimizer.param_groups):
        raise ValueError(
            f"{type(optimizer).__name__} has a parameter group without a learning rate, or finds it by itself: give it "
            f"one (of transformers' Adafactor: relative_step=False, lr=...)"
        )
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    if not any(rates):  # a warmup's first step
        rates = [float(group.get("initial_lr", 0.0)) for group in optimizer.param_groups]
    if not any(rate > 0 for rate in rates) or not all(math.isfinite(rate) and rate >= 0 for rate in rates):
        raise ValueError(
            f"the optimizer's learning rates must be finite, >= 0 and not all 0 to be tried at multiples of them, got "
            f"{', '.join(f'{rate:g}' for rate in rates)}; set group['lr'] to the learning rate you mean to use"
        )
    return rates


def groups_of_losses(model: nn.Module, weights: Sequence[Tensor]) -> list[Any]:
    """Return the process groups whose members may see different batches."""
    if not (dist.is_available() and dist.is_initialized()):
        return []
    replicas = [module for module in model.modules() if isinstance(module, DistributedDataParallel)]
    groups = [module.process_group for module in replicas]
    meshes = dict.fromkeys(cast(Any, weight).device_mesh for weight in weights if is_dtensor(weight))
    groups += [mesh.get_group(axis) for mesh in meshes for axis in range(mesh.ndim) if mesh.size(axis) > 1]
    return list(dict.fromkeys(groups))
