r"""Learning-rate schedules as plain functions of the step, and as torch ``LambdaLR`` factories.

Steps count from 0: ``shape(0)`` is the multiplier of the first optimizer step, ``shape(steps - 1)`` that of
the last one. Two conventions keep every step useful:

* warmup over ``W`` steps multiplies by ``(step + 1) / W``: the first step already moves, step ``W - 1`` is
  the first one at the full learning rate, and ``W = 1`` is no warmup at all;
* a decay over ``D`` steps multiplies by ``(steps - step) / D``: the last step still moves, and ``end`` is
  reached only after it, at ``step == steps``, where the multiplier stays.

A length (``warmup``, ``cooldown``) is an ``int``, a number of steps, or a ``float`` in [0, 1], a fraction of
``steps``
rounded down to a whole step: ``1`` is one step and ``1.0`` is the whole run.

Reference: Kosson et al. 2024 (trapezoid); Kalra & Barkeshli 2024 (the ``step + 1`` of the warmup).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

__all__ = [
    "Constant",
    "Cosine",
    "InverseSqrt",
    "Shape",
    "Trapezoid",
    "constant",
    "cosine",
    "inverse_sqrt",
    "linear",
    "trapezoid",
]


@dataclass(frozen=True, kw_only=True)
class Shape(ABC):
    r"""A linear warmup, then a decay: the multiplier of the learning rate as a function of the step.

    .. math:: m(t) = s + (1 - s)\,\frac{t + 1}{W} \quad (t < W), \qquad m(t) = \text{decay}(t) \quad (t \ge W)

    A shape is immutable, callable and picklable, and its fields are what ``LambdaLR.state_dict`` saves.

    Args:
        warmup: steps (int >= 0) of linear warmup.
        start: the multiplier that the warmup starts from (that of the step before the first), in [0, 1].
    """

    warmup: int | float = 0
    start: float = 0.0

    # Not slots: LambdaLR saves and loads a callable through its __dict__.

    def __post_init__(self) -> None:
        _check_multiplier("start", self.start)

    def __call__(self, step: int) -> float:
        """Return the multiplier, in [0, 1], of the learning rate at ``step`` (0 is the first step)."""
        if step < 0:
            raise ValueError(f"step must be >= 0, got {step}")
        if step < self.warmup:
            return _lift((step + 1) / self.warmup, floor=self.start)
        return self._decay(step)

    @abstractmethod
    def _decay(self, step: int) -> float:
        """Return the multiplier after the warmup."""


@dataclass(frozen=True, kw_only=True)
class _FiniteShape(Shape):
    """A shape with a last step, in which lengths may be fractions of the run."""

    steps: int
    end: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.steps, bool) or not isinstance(self.steps, int):
            raise TypeError(f"steps must be an int, got {self.steps!r}")
        if self.steps < 1:
            raise ValueError(f"steps must be >= 1, got {self.steps}")
        _check_multiplier("end", self.end)
        self._resolve("warmup")

    def _resolve(self, name: str) -> None:
        """Replace a length given as a fraction by its number of steps."""
        # The class is frozen; this is the constructor's own write.
        object.__setattr__(self, name, _length_in_steps(name, getattr(self, name), self.steps))


@dataclass(frozen=True, kw_only=True)
class Trapezoid(_FiniteShape):
    r"""Linear warmup, constant, linear cooldown.

    .. math:: m(t) = \min\!\left(\frac{t + 1}{W},\; 1,\; \frac{T - t}{C}\right)

    with ``W`` warmup, ``T`` steps, ``C`` cooldown (for ``start = end = 0``).

    Args:
        steps: length of the run, int >= 1.
        warmup: int steps or float fraction of ``steps``.
        cooldown: int steps or float fraction of ``steps``; warmup and cooldown may not overlap.
        start: the multiplier that the warmup starts from, in [0, 1].
        end: the multiplier at and after ``steps``, in [0, 1].

    Raises:
        TypeError: a length is a bool or not a number.
        ValueError: a length or a multiplier is out of range, or warmup and cooldown overlap.

    Example:
        >>> shape = Trapezoid(steps=8, warmup=2, cooldown=0.5)
        >>> [shape(step) for step in range(9)]
        [0.5, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    """

    cooldown: int | float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._resolve("cooldown")
        if self.warmup + self.cooldown > self.steps:
            raise ValueError(
                f"warmup and cooldown must fit into the run: {self.warmup} + {self.cooldown} steps "
                f"is more than steps={self.steps}; shorten one of them"
            )

    def _decay(self, step: int) -> float:
        left = max(self.steps - step, 0)
        if left >= self.cooldown:  # a cooldown of 0 steps stays at the full learning rate
            return 1.0
        return _lift(left / self.cooldown, floor=self.end)


@dataclass(frozen=True, kw_only=True)
class Cosine(_FiniteShape):
    r"""Linear warmup, then half a cosine from 1 to ``end``.

    .. math:: m(t) = e + (1 - e)\,\tfrac12\left(1 + \cos\frac{\pi (t - W)}{T - W}\right)

    Args:
        steps: length of the run, int >= 1.
        warmup: int steps or float fraction of ``steps``.
        start: the multiplier that the warmup starts from, in [0, 1].
        end: the multiplier at and after ``steps``, in [0, 1].

    Example:
        >>> shape = Cosine(steps=4)
        >>> [round(shape(step), 3) for step in range(5)]
        [1.0, 0.854, 0.5, 0.146, 0.0]
    """

    def _decay(self, step: int) -> float:
        if step >= self.steps:
            return self.end
        progress = (step - self.warmup) / (self.steps - self.warmup)
        return _lift(0.5 * (1.0 + math.cos(math.pi * progress)), floor=self.end)


@dataclass(frozen=True, kw_only=True)
class InverseSqrt(Shape):
    r"""Linear warmup, then a decay with the square root of the step, without an end.

    .. math:: m(t) = \sqrt{\frac{\tau}{\tau + t + 1 - \max(W, 1)}}

    With ``timescale`` equal to ``warmup`` (the default) this is the schedule of the first transformer,
    ``min((t + 1) / W, sqrt(W / (t + 1)))``.

    Args:
        warmup: int steps.
        timescale: steps after which the decay has reached ``sqrt(1/2)``, int >= 1; None takes ``max(warmup,
            1)``.
        start: the multiplier that the warmup starts from, in [0, 1].

    Example:
        >>> shape = InverseSqrt(warmup=4)
        >>> [shape(step) for step in (0, 3, 15)]
        [0.25, 1.0, 0.5]
    """

    timescale: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_steps("warmup", self.warmup)
        if self.timescale is None:
            object.__setattr__(self, "timescale", max(int(self.warmup), 1))
        _check_steps("timescale", self.timescale, at_least=1)

    def _decay(self, step: int) -> float:
        assert self.timescale is not None  # set in __post_init__
        return math.sqrt(self.timescale / (self.timescale + step + 1 - max(self.warmup, 1)))


@dataclass(frozen=True, kw_only=True)
class Constant(Shape):
    """Linear warmup, then the full learning rate for ever.

    Args:
        warmup: int steps.
        start: the multiplier that the warmup starts from, in [0, 1].

    Example:
        >>> [Constant(warmup=2)(step) for step in range(3)]
        [0.5, 1.0, 1.0]
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_steps("warmup", self.warmup)

    def _decay(self, step: int) -> float:  # noqa: ARG002 (the same at every step)
        return 1.0


def trapezoid(
    optimizer: Optimizer,
    *,
    steps: int,
    warmup: int | float = 0,
    cooldown: int | float = 0.5,
    start: float = 0.0,
    end: float = 0.0,
    last_epoch: int = -1,
) -> LambdaLR:
    """Return a scheduler with linear warmup, constant, linear cooldown; see :class:`Trapezoid`.

    Call ``scheduler.step()`` once after every ``optimizer.step()``. Saved and loaded through ``state_dict``,
    it continues with the lengths that were saved.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = torch.optim.SGD([weight], lr=0.5)
        >>> scheduler = trapezoid(optimizer, steps=100, warmup=10)
        >>> optimizer.param_groups[0]["lr"]
        0.05
    """
    shape = Trapezoid(steps=steps, warmup=warmup, cooldown=cooldown, start=start, end=end)
    return LambdaLR(optimizer, shape, last_epoch=last_epoch)


def cosine(
    optimizer: Optimizer,
    *,
    steps: int,
    warmup: int | float = 0,
    start: float = 0.0,
    end: float = 0.0,
    last_epoch: int = -1,
) -> LambdaLR:
    """Return a scheduler with linear warmup and half a cosine down to ``end``; see :class:`Cosine`."""
    return LambdaLR(
        optimizer, Cosine(steps=steps, warmup=warmup, start=start, end=end), last_epoch=last_epoch
    )


def linear(
    optimizer: Optimizer,
    *,
    steps: int,
    warmup: int | float = 0,
    start: float = 0.0,
    end: float = 0.0,
    last_epoch: int = -1,
) -> LambdaLR:
    """Return a scheduler with linear warmup and decay: a :class:`Trapezoid` without its constant part."""
    warmup = _length_in_steps("warmup", warmup, Cosine(steps=steps).steps)  # steps is checked by the shape
    return trapezoid(
        optimizer,
        steps=steps,
        warmup=warmup,
        cooldown=steps - warmup,
        start=start,
        end=end,
        last_epoch=last_epoch,
    )


def inverse_sqrt(
    optimizer: Optimizer,
    *,
    warmup: int = 0,
    timescale: int | None = None,
    start: float = 0.0,
    last_epoch: int = -1,
) -> LambdaLR:
    """Return a scheduler with linear warmup and decay as 1/sqrt(step); see :class:`InverseSqrt`."""
    return LambdaLR(
        optimizer, InverseSqrt(warmup=warmup, timescale=timescale, start=start), last_epoch=last_epoch
    )


def constant(optimizer: Optimizer, *, warmup: int = 0, start: float = 0.0, last_epoch: int = -1) -> LambdaLR:
    """Return a scheduler with linear warmup and then the full learning rate; see :class:`Constant`."""
    return LambdaLR(optimizer, Constant(warmup=warmup, start=start), last_epoch=last_epoch)


def _lift(value: float, *, floor: float) -> float:
    """Map [0, 1] linearly onto [floor, 1]; in this form 1 stays exactly 1, whatever the rounding."""
    return value + floor * (1.0 - value)


def _check_multiplier(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must be in [0, 1] (a multiple of the learning rate), got {value!r}")


def _check_steps(name: str, value: object, *, at_least: int = 0) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int (a number of steps), got {value!r}")
    if value < at_least:
        raise ValueError(f"{name} must be >= {at_least}, got {value}")


def _length_in_steps(name: str, value: object, steps: int) -> int:
    """Return a length in steps from an int (steps) or a float in [0, 1] (fraction of ``steps``)."""
    if isinstance(value, float):
        if not 0.0 <= value <= 1.0:
            raise ValueError(
                f"{name} as a fraction of the run must be in [0, 1], got {value!r}; pass an int for steps"
            )
        # Down, so that fractions that fill the run still do; 0.29 * 100 is 28.999999999999996 and means 29.
        return math.floor(value * steps + 1e-9)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"{name} must be an int (steps) or a float in [0, 1] (fraction of steps), got {value!r}"
        )
    if not 0 <= value <= steps:
        raise ValueError(f"{name} must be between 0 and steps={steps}, got {value}")
    return value
