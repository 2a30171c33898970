"""A scheduler that follows the loss: the learning rate that a rule of the suboptimality gap allows."""

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from warmfree.schedule.saved import SavedShape
from warmfree.schedule.shapes import Shape
from warmfree.schedule.smoothness import GapRule

__all__ = ["LossDriven"]


class LossDriven(LRScheduler):
    r"""Warm up as fast as the loss falls, up to the optimizer's own learning rate; then follow a shape.

    .. math::
        \Delta_t = \max\Big\{\frac{\sum_{s \le t} b^{t-s} L_s}{\sum_{s \le t} b^{t-s}} - f^*,\; 0\Big\}, \qquad
        \eta_t = \min\Big\{\eta,\; \text{rule}\big(\min_{s \le t} \Delta_s\big),\; \eta\,\text{then}(t)\Big\}

    with :math:`L_0` the initial loss, :math:`L_t` what the t-th ``step`` was given, and :math:`\eta` the learning rate
    that the optimizer was made with. Call it as ``ReduceLROnPlateau`` is called, but after every optimizer step::

        optimizer.step()
        scheduler.step(loss)

    The loss of the step just made was computed before that step, so that the learning rate is one step behind the
    loss: on the safe side while the loss falls.

    What the papers leave open is our choice:

    - noise: an average with bias correction; and the running minimum of the gap, so that the learning rate never falls
      because a batch was hard. ``smoothing=0.9`` looks back 10 steps and divides the noise by 4.
    - a loss below ``f_star`` is a gap of 0, where the rule has its peak.
    - a loss that is NaN or infinite is left out: the learning rate stays, the step counts for ``then``.
    - the rule speaks of the first parameter group; the others keep their ratio to it. No group exceeds its own
      learning rate: the peak is the smaller one of the rule's and the optimizer's.
    - ``then`` counts from the first step of the run, not from the end of the warmup, and the smaller one of both
      holds: the rule is a bound of the step, so the decay need not be multiplied with it.
    - a rule that falls again below some gap (`PeakedRule`) stays at its peak there: ``then`` is the decay.

    Under data parallelism every process must hand in the same loss, so the mean over all of them.

    Args:
        optimizer: any; ``lr`` may be a tensor.
        rule: which learning rate a gap allows: `SmoothnessRule`, `ReciprocalRule`, `InverseGapRule`, `PeakedRule` or
            a `GapRule` of yours.
        initial_loss: the loss before the first step, above ``f_star``; the first learning rate follows from it.
        f_star: the infimum of the loss, or the loss that the run should come near to; 0 suits a cross-entropy.
        smoothing: b, decay of the average of the losses, in [0, 1); 0 takes each loss as it is.
        monotone: False lets the learning rate fall when the averaged loss rises.
        then: the shape of the rest of the run, e.g. ``Cosine(steps=10_000)``.

    Raises:
        TypeError: rule is not a `GapRule`, then not a `Shape`, or a step after the first is made without a loss.
        ValueError: an argument is out of range, or the first group's learning rate is 0.

    Example:
        >>> import torch
        >>> from warmfree.schedule.smoothness import InverseGapRule
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
        >>> rule = InverseGapRule.from_start(peak=0.1, start=0.01, initial_gap=4.5)
        >>> scheduler = LossDriven(optimizer, rule, initial_loss=4.5, smoothing=0.0)
        >>> for loss in (4.5, 2.0, 3.0, 0.0):
        ...     print(round(optimizer.param_groups[0]["lr"], 3))
        ...     optimizer.step()
        ...     scheduler.step(loss)
        0.01
        0.01
        0.02
        0.02
        >>> optimizer.param_groups[0]["lr"]
        0.1

    Reference: the rules': Liu et al. 2025, Alimisis et al. 2025, Riabinin et al. 2026.
    """

    then = SavedShape()

    def __init__(
        self,
        optimizer: Optimizer,
        rule: GapRule,
        *,
        initial_loss: float | Tensor,
        f_star: float = 0.0,
        smoothing: float = 0.9,
        monotone: bool = True,
        then: Shape | None = None,
    ) -> None:
        if not isinstance(rule, GapRule):
            raise TypeError(f"rule must be a GapRule, e.g. SmoothnessRule(...), got {type(rule).__name__}")
        if not math.isfinite(f_star):
            raise ValueError(f"f_star must be finite, got {f_star!r}")
        if not 0.0 <= smoothing < 1.0:
            raise ValueError(f"smoothing must be in [0, 1), got {smoothing!r}")
        first = _number(initial_loss)
        if not f_star < first < math.inf:
            raise ValueError(f"initial_loss must be finite and above f_star={f_star:g}, got {first!r}")
        self.rule = rule
        self.f_star = float(f_star)
        self.smoothing = smoothing
        self.monotone = monotone
        self.then = then
        self._average = self._weight = 0.0
        self._gap = math.inf
        self._observe(first)
        super().__init__(optimizer)

    @property
    def gap(self) -> float:
        """The gap that the learning rate follows: of the averaged loss, at least 0; the smallest so far if monotone."""
        return self._gap

    def step(self, loss: float | Tensor | None = None) -> None:
        """Set the learning rate of the next optimizer step.

        Args:
            loss: of the step just made, a number or a tensor of one element. Reading it from a GPU waits for it: hand
                in the number if you have it for a log anyway. Only the constructor's own first step goes without.

        Raises:
            TypeError: there is no loss.
            ValueError: it has more than one element.
        """
        if loss is not None:
            self._observe(_number(loss))
        elif self._step_count > 0:
            raise TypeError("LossDriven.step needs a loss: call scheduler.step(loss) after optimizer.step()")
        super().step()

    def get_lr(self) -> list[float | Tensor]:
        """Return the learning rate of every group."""
        first = float(self.base_lrs[0])
        if not first > 0.0:
            raise ValueError(
                f"the first parameter group must have lr > 0, got {first!r}: the rule is for its learning rate, "
                "the others keep their ratio to it"
            )
        multiplier = min(1.0, self.rule.warmup(self._gap) / first)
        if self.then is not None:
            multiplier = min(multiplier, self.then(self.last_epoch))
        return [base * multiplier for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain values; rule and shape are in it."""
        state: dict[str, Any] = super().state_dict()
        state["rule"] = {"rule": type(self.rule).__qualname__, **asdict(self.rule)}
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue where a state was saved, with the rule, the shape and the settings that were saved.

        Raises:
            ValueError: the state is that of a rule of another class.
        """
        state = dict(state_dict)
        fields = dict(state.pop("rule"))
        name = fields.pop("rule")
        if name != type(self.rule).__qualname__:
            raise ValueError(
                f"the state was saved with a {name}, this scheduler has a {type(self.rule).__qualname__}; make it "
                f"with a {name}"
            )
        self.rule = replace(self.rule, **fields)
        super().load_state_dict(state)

    def _observe(self, loss: float) -> None:
        """Take a loss into the average, unless it is not finite."""
        if not math.isfinite(loss):
            return
        self._average = self.smoothing * self._average + (1.0 - self.smoothing) * loss
        self._weight = self.smoothing * self._weight + (1.0 - self.smoothing)
        gap = max(self._average / self._weight - self.f_star, 0.0)
        self._gap = min(gap, self._gap) if self.monotone else gap


def _number(loss: float | Tensor) -> float:
    if isinstance(loss, Tensor):
        if loss.numel() != 1:
            raise ValueError(f"the loss must be one number, got a tensor of shape {tuple(loss.shape)}")
        return float(loss.detach().item())
    return float(loss)
