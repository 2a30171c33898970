"""Warnings that name the layer, the quantity and the step; raised and cleared with hysteresis."""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["DEFAULT_RULES", "Alert", "Alerts", "Rule"]

Values = Mapping[str, Mapping[str, float | list[float]]]
MEMORY = 25
ENOUGH = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """When a quantity of a layer is worth a warning.

    With `relative`, limits are multiples of the median of the last 25 measurements of the same series, and hold from
    the sixth on.

    Attributes:
        name: of the rule, unique.
        quantity: what is watched; `loss` for the training loss.
        limit: an alert is raised when the value is beyond it, `patience` times in a row.
        release: it is cleared when the value is back inside this one.
        above: whether beyond means above; else below.
        relative: whether the limits are relative to the running median.
        patience: consecutive measurements.
        severity: what it means for the run.
        says: the warning in plain words; may use {value}, {limit}, {layer} and {step}.
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
        inside = self.release <= self.limit if self.above else self.release >= self.limit
        if not inside:
            side = "<=" if self.above else ">="
            raise ValueError(
                f"release of rule {self.name!r} must be {side} limit={self.limit}, got {self.release}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Alert:
    """One change of state.

    Attributes:
        step: at which it was measured.
        state: raised or cleared.
        rule: name of the rule.
        quantity: what was measured.
        layer: where; empty for the whole network.
        head: which head, None if the quantity is not per head.
        value: what was measured.
        threshold: the limit that was passed.
        severity: of the rule.
        message: in plain words.
    """

    step: int
    state: Literal["raised", "cleared"]
    rule: str
    quantity: str
    layer: str
    head: int | None
    value: float
    threshold: float
    severity: str
    message: str

    def as_record(self) -> dict[str, Any]:
        """Return the alert as a line of the record."""
        return {"kind": "alert", **asdict(self)}


@dataclass(slots=True)
class _Series:
    """What a rule remembers of one quantity in one place."""

    raised: bool = False
    streak: int = 0
    past: deque[float] = field(default_factory=lambda: deque(maxlen=MEMORY))

    def median(self) -> float:
        ordered = sorted(self.past)
        return ordered[len(ordered) // 2]


class Alerts:
    """Check measurements against rules.

    A value that is not finite always counts as beyond, by a rule of its own that no list of rules has to hold.

    Args:
        rules: names must differ.

    Example:
        >>> rule = Rule(name="hot", quantity="logit", limit=50.0, release=30.0)
        >>> alerts = Alerts([rule])
        >>> states = [alert.state for step, value in enumerate([10.0, 60.0, 40.0, 60.0, 20.0])
        ...           for alert in alerts.check(step, {"logit": {"block": value}})]
        >>> states
        ['raised', 'cleared']
    """

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._rules: dict[str, list[Rule]] = {}
        names = set()
        for rule in rules:
            if rule.name in names or rule.name == _NON_FINITE.name:
                raise ValueError(f"two rules are called {rule.name!r}; give each its own name")
            names.add(rule.name)
            self._rules.setdefault(rule.quantity, []).append(rule)
        self._series: dict[tuple[str, str, str, int | None], _Series] = {}

    def check(self, step: int, values: Values) -> list[Alert]:
        """Return what changes with the measurements of a step."""
        changes = []
        for quantity, layer, head, value in _each(values):
            for rule in [_NON_FINITE, *self._rules.get(quantity, ())]:
                if rule is _NON_FINITE and quantity in _MAY_BE_UNDEFINED:
                    continue
                key = (rule.name, quantity, layer, head)
                series = self._series.get(key)
                if series is None:
                    if rule is _NON_FINITE and math.isfinite(value):
                        continue  # no series for what has always been finite
                    series = self._series[key] = _Series()
                change = _judge(rule, series, value)
                if change is not None:
                    changes.append(_alert(rule, change, step, quantity, layer, head, value))
        return changes


def _each(values: Values) -> Iterator[tuple[str, str, int | None, float]]:
    for quantity, layers in values.items():
        for layer, value in layers.items():
            if isinstance(value, list):
                for head, number in enumerate(value):
                    yield quantity, layer, head, number
            else:
                yield quantity, layer, None, value


def _judge(rule: Rule, series: _Series, value: float) -> tuple[bool, float] | None:
    """Return the new state and the limit that was passed, or None if nothing changes."""
    if rule is _NON_FINITE:
        bad = not math.isfinite(value)
        if bad == series.raised:
            return None
        series.raised = bad
        return bad, math.nan
    if not math.isfinite(value):
        return None  # the rule for that has spoken
    scale = 1.0
    if rule.relative:
        if len(series.past) < ENOUGH:
            series.past.append(value)
            return None
        scale = series.median()
    limit = rule.limit * scale
    beyond = value > limit if rule.above else value < limit
    if not series.raised:
        series.streak = series.streak + 1 if beyond else 0
        if series.streak >= rule.patience:
            series.raised, series.streak = True, 0
            return True, limit
        if not beyond:
            series.past.append(value)  # what is beyond must not shift the median that it is compared with
        return None
    release = rule.release * scale
    if value < release if rule.above else value > release:
        series.raised = False
        return False, release
    if rule.relative:
        series.past.append(value)  # a new level that lasts becomes the level
    return None


def _alert(
    rule: Rule,
    change: tuple[bool, float],
    step: int,
    quantity: str,
    layer: str,
    head: int | None,
    value: float,
) -> Alert:
    raised, limit = change
    place = layer or "the network"
    if head is not None:
        place += f", head {head}"
    said = rule.says.format(value=value, limit=limit, layer=place, step=step, quantity=quantity)
    return Alert(
        step=step,
        state="raised" if raised else "cleared",
        rule=rule.name,
        quantity=quantity,
        layer=layer,
        head=head,
        value=value,
        threshold=limit,
        severity=rule.severity,
        message=f"step {step}: {said}"
        if raised
        else f"step {step}: over ({rule.name}): {quantity} of {place}",
    )


_NON_FINITE = Rule(
    name="non-finite",
    quantity="",
    limit=math.inf,
    release=math.inf,
    severity="critical",
    says="{quantity} of {layer} is {value}",
)
# An angle of a weight that is zero, a signal-to-noise ratio of the first step: nan is their value.
_MAY_BE_UNDEFINED = frozenset(
    (
        *("update_angle", "update_angle_tensor", "angle_ratio", "update_relative", "update_rms_per_lr"),
        *("spectral_ratio", "stable_rank", "rrc", "rrc_predicted", "batch_snr", "snr", "critical_batch"),
        *("attention_entropy", "attention_entropy_ratio", "attention_rank", "qk_energy", "qk_stable_rank"),
    )
)

# Limits are our choice; docs/dissection.md shows what they said about runs that failed.
DEFAULT_RULES: tuple[Rule, ...] = (
    Rule(
        name="loss-spike",
        quantity="loss",
        limit=1.15,
        release=1.05,
        relative=True,
        patience=3,
        says="the loss is {value:.4g}, above {limit:.4g}, its recent median by 15 %",
    ),
    Rule(
        name="gradient-spike",
        quantity="grad_norm",
        limit=10.0,
        release=3.0,
        relative=True,
        says="the gradient of {layer} has norm {value:.3g}, ten times its recent median",
    ),
    Rule(
        name="update-spike",
        quantity="update_rms",
        limit=4.0,
        release=2.0,
        relative=True,
        says="the update of {layer} has RMS {value:.3g}, four times its recent median",
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
