"""Warnings that name the layer, the quantity and the step; raised and cleared with hysteresis."""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from warmfree.monitor.rules import DEFAULT_RULES, Rule

__all__ = ["DEFAULT_RULES", "Alert", "Alerts", "Rule"]

Layers = Mapping[str, float | list[float]]
Values = Mapping[str, Layers]
MEMORY = 25

_NON_FINITE = Rule(
    name="non-finite",
    quantity="",
    limit=math.inf,
    release=math.inf,
    severity="critical",
    says="{quantity} of {layer} is {value}",
)
# An angle of a weight that is zero, a signal-to-noise ratio of the first step, a stability threshold at learning
# rate 0: nan or inf is their value.
_MAY_BE_UNDEFINED = frozenset(
    (
        *("update_angle", "update_angle_tensor", "angle_ratio", "update_relative", "update_rms_per_lr"),
        *("spectral_ratio", "stable_rank", "rrc", "rrc_predicted", "batch_snr", "snr", "critical_batch"),
        *("attention_entropy", "attention_entropy_ratio", "attention_rank", "qk_energy", "qk_stable_rank"),
        *("stability_threshold", "instability", "instability_early"),
    )
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Alert:
    """One change of state, of one place or of several at once.

    Places (a layer, or a head of it) that go beyond a limit at the same step have one alert together, which is called
    after the one that is furthest beyond. It is cleared, under the same name, when none of them is beyond any more.

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
        others: how many more places the alert is about.
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
    others: int = 0

    def as_record(self) -> dict[str, Any]:
        """Return the alert as a line of the record."""
        return {"kind": "alert", **asdict(self)}


@dataclass(slots=True, eq=False)
class _Series:
    """What a rule remembers of one quantity in one place."""

    rule: Rule
    layer: str
    head: int | None
    raised: bool = False
    told: bool = False  # whether an alert that is not cleared yet is about it
    value: float = math.nan  # the last
    limit: float = math.nan  # the last that was passed
    streak: int = 0
    past: deque[float] = field(default_factory=lambda: deque(maxlen=MEMORY))

    def judge(self, value: float) -> None:
        """Take in a value, and change the state if it says so."""
        if self.rule is _NON_FINITE:
            self.value, self.raised = value, not math.isfinite(value)
            return
        if not math.isfinite(value):
            return  # the rule for that speaks
        self.value = value
        limits = self.rule.limits(self.past)
        if limits is not None and not self.raised and not self.rule.is_inside(value, limits[0]):
            self.streak += 1
            if self.streak >= self.rule.patience:
                self.raised, self.limit = True, limits[0]
            return  # what is beyond must not shift the median that it is compared with
        self.streak = 0
        if limits is not None and self.raised and self.rule.is_inside(value, limits[1]):
            self.raised, self.limit = False, limits[1]
        if self.rule.relative:
            self.past.append(value)  # a new level that lasts becomes the level

    @property
    def excess(self) -> float:
        """How far beyond, in units of the limit."""
        return abs(self.value - self.limit) / (abs(self.limit) or 1.0)


class Alerts:
    """Check measurements against rules.

    A value that is not finite always counts as beyond, by a rule of its own that no list of rules has to hold; of
    several places the alert names the first.

    Args:
        rules: names must differ.

    Example:
        >>> rule = Rule(name="hot", quantity="logit", limit=50.0, release=30.0)
        >>> alerts = Alerts([rule])
        >>> for step, (one, two) in enumerate([(10.0, 9.0), (60.0, 90.0), (40.0, 20.0), (60.0, 9.0), (20.0, 9.0)]):
        ...     for alert in alerts.check(step, {"logit": {"block.0": one, "block.1": two}}):
        ...         print(alert.message)
        step 1: logit of block.1 is 90 (limit 50) (and 1 more)
        step 4: over (hot): logit of block.1 (and 1 more)
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
        # By rule and quantity, the places of each alert that is not cleared, the one that it is called after first.
        self._up: dict[tuple[str, str], list[list[_Series]]] = {}

    def check(self, step: int, values: Values) -> list[Alert]:
        """Return what changes with the measurements of a step."""
        changes: list[Alert] = []
        for quantity, layers in values.items():
            general = [] if quantity in _MAY_BE_UNDEFINED else [_NON_FINITE]
            for rule in [*general, *self._rules.get(quantity, ())]:
                changes += self._check(rule, step, quantity, layers)
        return changes

    def _check(self, rule: Rule, step: int, quantity: str, layers: Layers) -> Iterator[Alert]:
        joined = []
        for layer, head, value in _each(layers):
            key = (rule.name, quantity, layer, head)
            series = self._series.get(key)
            if series is None:
                if rule is _NON_FINITE and math.isfinite(value):
                    continue  # no series for what has always been finite
                series = self._series[key] = _Series(rule, layer, head)
            series.judge(value)
            if series.raised and not series.told:
                joined.append(series)
        up = self._up.get((rule.name, quantity), [])
        for places in [places for places in up if not any(series.raised for series in places)]:
            up.remove(places)
            yield _tell(places, step, quantity)
        if joined:
            worst = max(joined, key=lambda series: series.excess)
            places = [worst, *(series for series in joined if series is not worst)]
            self._up.setdefault((rule.name, quantity), []).append(places)
            yield _tell(places, step, quantity)


def _each(layers: Layers) -> Iterator[tuple[str, int | None, float]]:
    for layer, value in layers.items():
        if isinstance(value, list):
            for head, number in enumerate(value):
                yield layer, head, number
        else:
            yield layer, None, value


def _tell(places: list[_Series], step: int, quantity: str) -> Alert:
    """Write the alert of places that are all new, or all over."""
    first, others = places[0], len(places) - 1
    rule, place = first.rule, first.layer or "the network"
    for series in places:
        series.told = first.raised
    if first.head is not None:
        place += f", head {first.head}"
    said = f"over ({rule.name}): {quantity} of {place}"
    if first.raised:
        said = rule.says.format(
            value=first.value, limit=first.limit, layer=place, step=step, quantity=quantity
        )
    return Alert(
        step=step,
        state="raised" if first.raised else "cleared",
        rule=rule.name,
        quantity=quantity,
        layer=first.layer,
        head=first.head,
        value=first.value,
        threshold=first.limit,
        severity=rule.severity,
        message=f"step {step}: {said}" + (f" (and {others} more)" if others else ""),
        others=others,
    )
