"""Rules to warn by: limits for a quantity, and those that hold if nothing else is said."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["DEFAULT_RULES", "Rule"]

_ENOUGH = 5  # measurements, to know their median
_NOISE = 6.0  # robust standard deviations; a normal variable is beyond them once in a billion
_SIGMA = 1.4826  # standard deviation over median absolute deviation, of a normal variable


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    r"""When a quantity of a layer is worth a warning.

    With `relative`, limits are multiples of the median m of the last 25 measurements of the same series that were not
    beyond, and hold from the sixth on. What is beyond has to be so by more than noise, too: with
    :math:`\hat\sigma = 1.4826\, \mathrm{median}\,|x - m|`, a value is beyond above

    .. math::  m + \max\left((\mathrm{limit} - 1)\,|m|,\; 6\hat\sigma\right),

    and inside again up to :math:`m + \max((\mathrm{release} - 1)|m|, 3\hat\sigma)`; a rule for what is below mirrors
    both. So a negative loss has a limit above it, and a series that has always been zero has none at all: nothing says
    what is much. Six and three standard deviations are our choice.

    Attributes:
        name: of the rule, unique.
        quantity: what is watched; `loss` for the training loss.
        limit: an alert is raised when the value is beyond it, `patience` times in a row.
        release: it is cleared when the value is back inside this one, or at it.
        above: whether beyond means above; else below.
        relative: whether the limits are relative to the running median; then both are >= 1 above, <= 1 below.
        patience: consecutive measurements.
        severity: what it means for the run.
        says: the warning in plain words; may use {value}, {limit}, {layer}, {step} and {quantity}.

    Raises:
        ValueError: limits are in the wrong order, patience is below 1, or `says` uses other names.

    Example:
        >>> rule = Rule(name="spike", quantity="loss", limit=1.5, release=1.2, relative=True)
        >>> rule.limits([2.0] * 5), rule.limits([-2.0] * 5), rule.limits([0.0] * 5)
        ((3.0, 2.4), (-1.0, -1.6), None)
    """

    name: str
    quantity: str
    limit: float
    release: float
    above: bool = True
    relative: bool = False
    patience: int = 1
    severity: Literal["warning", "critical"] = "warning"
    says: str = "{quantity} of {layer} is {value:.3g} (limit {limit:.3g})"

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ValueError(f"patience of rule {self.name!r} must be >= 1, got {self.patience}")
        side = "<=" if self.above else ">="
        if not self.is_inside(self.release, self.limit):
            raise ValueError(
                f"release of rule {self.name!r} must be {side} limit={self.limit}, got {self.release}"
            )
        if self.relative and not self.is_inside(1.0, self.release):
            raise ValueError(
                f"release of rule {self.name!r} must be a multiple of the median with 1 {side} release, got "
                f"{self.release}"
            )
        try:
            self.says.format(value=1.0, limit=1.0, layer="layer", step=0, quantity=self.quantity)
        except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
            raise ValueError(
                f"says of rule {self.name!r} must be a text for str.format with {{value}}, {{limit}}, {{layer}}, "
                f"{{step}} and {{quantity}}, got {self.says!r} ({type(error).__name__}: {error})"
            ) from error

    def is_inside(self, value: float, limit: float) -> bool:
        """Return whether a value is not beyond a limit."""
        return value <= limit if self.above else value >= limit

    def limits(self, past: Sequence[float]) -> tuple[float, float] | None:
        """Return limit and release in the quantity's own units, None where nothing can be said.

        Args:
            past: the values remembered; not used by a rule that is not relative.
        """
        if not self.relative:
            return self.limit, self.release
        if len(past) < _ENOUGH:
            return None
        middle = _median(past)
        noise = _SIGMA * _median([abs(value - middle) for value in past])
        if middle == noise == 0:
            return None
        sign = 1.0 if self.above else -1.0
        limit = max(abs(self.limit - 1) * abs(middle), _NOISE * noise)
        release = max(abs(self.release - 1) * abs(middle), _NOISE / 2 * noise)
        return middle + sign * limit, middle + sign * release


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


# Limits are our choice; docs/dissection.md shows what they said about runs that failed.
DEFAULT_RULES: tuple[Rule, ...] = (
    Rule(
        name="loss-spike",
        quantity="loss",
        limit=1.15,
        release=1.05,
        relative=True,
        patience=3,
        says="the loss is {value:.4g}, more than 15 % above its recent median (limit {limit:.4g})",
    ),
    Rule(
        name="gradient-spike",
        quantity="grad_norm",
        limit=10.0,
        release=3.0,
        relative=True,
        says="the gradient of {layer} has norm {value:.3g}, more than ten times its recent median",
    ),
    Rule(
        name="update-spike",
        quantity="update_rms",
        limit=4.0,
        release=2.0,
        relative=True,
        says="the update of {layer} has RMS {value:.3g}, more than four times its recent median",
    ),
    Rule(
        name="nonfinite-output",
        quantity="nonfinite_output",
        limit=0.5,
        release=0.5,
        severity="critical",
        says="the output of {layer} holds inf or NaN, first of all modules",
    ),
    Rule(
        name="entropy-collapse",
        quantity="attention_entropy_ratio",
        limit=0.1,
        release=0.2,
        above=False,
        says="the attention of {layer} has lost its entropy: {value:.3g} of what is possible",
    ),
    Rule(
        name="malignant-collapse",
        quantity="collapse",
        limit=1.5,
        release=1.5,
        severity="critical",
        says="the attention of {layer} is sparse and of low rank (malignant collapse)",
    ),
    Rule(
        name="logit-growth",
        quantity="attention_logit",
        limit=50.0,
        release=30.0,
        says="the largest attention logit of {layer} is {value:.3g}",
    ),
    Rule(
        name="representation-jump",
        quantity="rrc",
        limit=0.5,
        release=0.25,
        says="one step changed what {layer} computes by {value:.0%}",
    ),
    Rule(
        name="instability",
        quantity="instability",
        limit=1.0,
        release=0.8,
        patience=2,
        says="the sharpness is {value:.3g} times the stability threshold of this learning rate",
    ),
    Rule(
        name="dead-units",
        quantity="dead_units",
        limit=0.5,
        release=0.3,
        says="{value:.0%} of the units of {layer} are dead",
    ),
)
