r"""Warmup that starts at the critical learning rate and not at zero.

Below the critical learning rate the first step lowers the loss, so that a warmup has nothing to do there: it may begin
at it, and keep its slope.
"""

import math
from dataclasses import dataclass
from typing import Protocol, Self, cast

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from warmfree.schedule.shapes import Trapezoid

__all__ = ["CriticalWarmup", "FoundCritical", "critical_warmup"]

_PASSES_A_STEP = 2.0  # what the paper counts for a training step, forward and backward


class FoundCritical(Protocol):
    """What is needed of the result of a search for the critical learning rate.

    Attributes:
        lr: the critical learning rate; None if the search found none.
        low: the largest learning rate tried at which the loss falls; None if none does.
        forward_passes: over a step's batches, that the search took.
    """

    @property
    def lr(self) -> float | None: ...  # noqa: D102 (the class says it)
    @property
    def low(self) -> float | None: ...  # noqa: D102
    @property
    def forward_passes(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True, slots=True)
class CriticalWarmup:
    """A linear warmup from the critical learning rate; ``warmup`` and ``start`` are arguments of every shape.

    Attributes:
        warmup: steps, at least 0.
        start: the multiplier of the target learning rate that it starts from, in (0, 1].
        saved: steps less than the conventional warmup.
        net_saved: the same, not rounded, minus the cost of the search in steps; negative where the search costs more.
    """

    warmup: int
    start: float
    saved: int
    net_saved: float

    @classmethod
    def plan(cls, critical: float | FoundCritical, *, lr: float, warmup: int) -> Self:
        r"""Return the warmup that a critical learning rate leaves over.

        .. math::
            s = \min\{\eta_c / \eta, 1\}, \qquad T_{\text{reach}} = \lceil W (1 - s) \rceil, \qquad
            T_{\text{save}} = W s - T_{\text{fp}} / 2

        The slope stays that of the conventional warmup but for the rounding, and as in every shape the first step is
        one increment above the start. Where the target is not above the critical learning rate no step is left over:
        the paper speaks of one step, which in a shape is the same as none.

        Args:
            critical: the critical learning rate, > 0, or the result of a search for it. A search in which the loss
                still fell at the largest learning rate tried counts as that learning rate.
            lr: the target learning rate, > 0.
            warmup: length of the conventional warmup from zero, in steps, at least 0.

        Raises:
            TypeError: warmup is not an int.
            ValueError: a learning rate is not > 0, or the search found no step size that lowers the loss.

        Example:
            >>> CriticalWarmup.plan(0.25, lr=1.0, warmup=1000)
            CriticalWarmup(warmup=750, start=0.25, saved=250, net_saved=250.0)

        Reference: Kalra & Barkeshli 2024, section 6.1; a training step counts as 2 forward passes there.
        """
        if isinstance(warmup, bool) or not isinstance(warmup, int):
            raise TypeError(f"warmup must be an int (a number of steps), got {warmup!r}")
        if warmup < 0:
            raise ValueError(f"warmup must be >= 0, got {warmup}")
        if not 0.0 < lr < math.inf:
            raise ValueError(f"lr must be > 0 (the target learning rate), got {lr!r}")
        start = min(_learning_rate(critical) / lr, 1.0)
        # 1000 * (1 - 0.7) is 300.00000000000006 and means 300.
        left = math.ceil(warmup * (1.0 - start) - 1e-9)
        passes = 0 if _is_number(critical) else cast(FoundCritical, critical).forward_passes
        return cls(
            warmup=left, start=start, saved=warmup - left, net_saved=warmup * start - passes / _PASSES_A_STEP
        )


def critical_warmup(
    optimizer: Optimizer,
    critical: float | FoundCritical,
    *,
    steps: int,
    warmup: int | float,
    cooldown: int | float = 0.5,
    end: float = 0.0,
    last_epoch: int = -1,
) -> LambdaLR:
    """Return a trapezoid whose warmup starts at the critical learning rate; see :class:`CriticalWarmup`.

    The target is the learning rate of the first parameter group; the other groups have the same multiplier. For
    another decay hand ``warmup`` and ``start`` of ``CriticalWarmup.plan(...)`` to its shape. On resuming the saved
    lengths win, as with every shape.

    Args:
        optimizer: whose learning rates are the targets.
        critical: the critical learning rate, or the result of a search for it.
        steps: length of the run.
        warmup: the conventional warmup: int steps or float fraction of ``steps``.
        cooldown: int steps or float fraction of ``steps``.
        end: the multiplier at and after ``steps``.
        last_epoch: as in torch's schedulers.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
        >>> scheduler = critical_warmup(optimizer, 0.6, steps=100, warmup=10)
        >>> for _ in range(4):
        ...     print(round(optimizer.param_groups[0]["lr"], 3))
        ...     optimizer.step()
        ...     scheduler.step()
        0.7
        0.8
        0.9
        1.0
    """
    conventional = Trapezoid(steps=steps, warmup=warmup, cooldown=cooldown, end=end)
    group = optimizer.param_groups[0]
    target = float(group.get("initial_lr", group["lr"]))
    plan = CriticalWarmup.plan(critical, lr=target, warmup=int(conventional.warmup))
    shape = Trapezoid(
        steps=steps, warmup=plan.warmup, start=plan.start, cooldown=conventional.cooldown, end=end
    )
    return LambdaLR(optimizer, shape, last_epoch=last_epoch)


def _is_number(critical: object) -> bool:
    """Return whether a critical learning rate is given as a number: of Python, NumPy, or in a tensor."""
    return hasattr(critical, "__float__")


def _learning_rate(critical: float | FoundCritical) -> float:
    if _is_number(critical):
        lr: float | None = float(cast(float, critical))
    else:
        found = cast(FoundCritical, critical)
        lr = found.lr if found.lr is not None else found.low
    if lr is None:
        raise ValueError(
            "the search found no learning rate at which the loss falls, so no warmup can start at it: the step goes "
            "uphill; look for the cause, or warm up from zero"
        )
    if not 0.0 < lr < math.inf:
        raise ValueError(f"critical must be a finite learning rate > 0, got {lr!r}")
    return float(lr)
