"""The step rules of ``warmfree theory descend`` by name, each with the learning rate it deserves."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from warmfree.lab.theory.tuning import Make, Tuned, Unit, largest_stable, tune
from warmfree.report.wording import number, short
from warmfree.theory.adaptive import AdaGradNorm, Backtracking, Clipped, Normalised, Polyak
from warmfree.theory.function import Function
from warmfree.theory.noise import ABCNoise
from warmfree.theory.steps import (
    Constant,
    InverseSqrt,
    InverseTime,
    LinearWarmup,
    Reciprocal,
    StepRule,
    Warmup,
)

__all__ = ["DEFAULT_RULES", "RULES", "Chosen", "Descent", "choose_rule", "has_learning_rate"]

Floats = NDArray[np.float64]
_SHARES = (
    0.01,
    0.1,
    1.0,
)  # of the steps, of the way, or of the first gradient: second parameters that are tuned along
_EDGE = "; at the edge of those"


@dataclass(frozen=True, slots=True)
class Descent:
    """What is descended, from where, for how long."""

    function: Function
    start: Floats
    steps: int
    noise: ABCNoise | None
    seed: int

    @property
    def way(self) -> float:
        """The distance to the minimiser; that to the origin, or 1, where there is none."""
        to = np.zeros_like(self.start) if self.function.minimiser is None else self.function.minimiser
        return float(np.linalg.norm(self.start - to)) or 1.0


@dataclass(frozen=True, slots=True)
class Chosen:
    """A rule that is ready to run, and how its learning rate was come by."""

    name: str
    label: str
    rule: StepRule
    how: str


@dataclass(frozen=True, slots=True)
class Named:
    """A rule by name.

    It is made from the function's constants (`known`), or from a learning rate in any of several `variants` of a second
    parameter, with what each is called.
    """

    label: str
    meaning: str
    known: Callable[[Function], StepRule] | None = None
    variants: Callable[[Descent], Sequence[tuple[str, Make]]] | None = None
    unit: Unit = "curvature"


def _inverse_sqrt(descent: Descent) -> list[tuple[str, Make]]:
    offsets = [max(share * descent.steps, 1.0) for share in _SHARES]
    return [(f"offset {short(k)}", partial(InverseSqrt, offset=k)) for k in offsets]


def _inverse_time(descent: Descent) -> list[tuple[str, Make]]:
    offsets = [max(share * descent.steps, 1.0) for share in _SHARES]
    return [(f"offset {short(k)}", partial(InverseTime, offset=k)) for k in offsets]


def _linear_warmup(descent: Descent) -> list[tuple[str, Make]]:
    lengths = sorted({max(round(share * descent.steps), 1) for share in (0.02, 0.05, 0.1, 0.2, 0.5)})
    return [(f"{k:,} steps", partial(LinearWarmup, steps=k)) for k in lengths]


def _clipped(descent: Descent) -> list[tuple[str, Make]]:
    lengths = [descent.way / 2**power for power in range(8)]
    return [(f"at {number(k)}", partial(Clipped, threshold=k)) for k in lengths]


def _adagrad(descent: Descent) -> list[tuple[str, Make]]:
    norm = float(np.linalg.norm(descent.function.gradient(descent.start))) or 1.0
    return [
        (f"initial {number(k)}", partial(AdaGradNorm, initial=k))
        for k in (1e-8, *(share * norm for share in _SHARES))
    ]


RULES: dict[str, Named] = {
    "warmup": Named(
        "warmup, c = 1/2",
        "the step of the function's own constants, c min(1/K0, 1/(K_rho (3 gap)^rho)), c = 1/2",
        known=lambda function: Warmup(function.smoothness),
    ),
    "reciprocal": Named(
        "1/l(gap)",
        "the reciprocal of the curvature's bound, 1/(K0 + K_rho gap^rho)",
        known=lambda function: Reciprocal(function.smoothness),
    ),
    "constant": Named("constant", "one learning rate, tuned", variants=lambda _: [("", Constant)]),
    "stable": Named("constant, never climbs", "the largest constant learning rate with which no step climbs"),
    "inverse-sqrt": Named("1/sqrt(t)", "falls as 1/sqrt(1 + t/k), both tuned", variants=_inverse_sqrt),
    "inverse-time": Named("1/t", "falls as 1/(1 + t/k), both tuned", variants=_inverse_time),
    "linear-warmup": Named("linear warmup", "rises linearly and stays, both tuned", variants=_linear_warmup),
    "polyak": Named("Polyak", "gap over squared gradient; knows the infimum", known=lambda _: Polyak()),
    "clipped": Named("clipped", "constant, with a longest step, both tuned", variants=_clipped),
    "normalised": Named(
        "normalised",
        "steps of one length, tuned",
        variants=lambda _: [("", Normalised)],
        unit="length",
    ),
    "adagrad-norm": Named(
        "AdaGrad-norm", "AdaGrad with one learning rate, tuned", variants=_adagrad, unit="length"
    ),
    "backtracking": Named(
        "backtracking",
        "halves until the loss falls enough, the first trial tuned; evaluates the loss",
        variants=lambda _: [("", Backtracking)],
    ),
}
DEFAULT_RULES = ("warmup", "constant", "stable")


def has_learning_rate(name: str) -> bool:
    """Return whether a rule has a learning rate that is tuned, or given."""
    return RULES[name].variants is not None


def choose_rule(name: str, descent: Descent, *, lr: float | None) -> Chosen:
    """Return a rule for a descent.

    Args:
        name: a key of `RULES`.
        descent: for which it is tuned.
        lr: the learning rate of the rules that have one; None tunes it for this very descent.
    """
    named = RULES[name]
    if named.known is not None:
        return Chosen(name, named.label, named.known(descent.function), "the function's constants")
    if named.variants is None:
        stable = largest_stable(descent.function, descent.start, steps=descent.steps)
        how = f"largest with which no step climbs, of {stable.tried:,}{_EDGE if stable.at_edge else ''}"
        return Chosen(name, f"{named.label}, lr {short(stable.lr)}", Constant(stable.lr), how)
    variants = named.variants(descent)
    found = [
        (_tune(descent, make, named.unit, lr=lr, draws=4 if len(variants) > 1 else 8), text, make)
        for text, make in variants
    ]
    tuned, text, make = min(found, key=lambda entry: entry[0].gap)
    label = ", ".join(filter(None, (named.label, f"lr {short(tuned.lr)}", text)))
    tried = sum(entry.tried for entry, _, _ in found)
    how = "as given" if tried == len(found) == 1 else f"lowest gap at the end, of {tried:,}"
    if tuned.at_edge:
        how += _EDGE
    return Chosen(name, label, make(np.array([tuned.lr])), how)


def _tune(descent: Descent, make: Make, unit: Unit, *, lr: float | None, draws: int) -> Tuned:
    return tune(
        descent.function,
        descent.start,
        make,
        steps=descent.steps,
        noise=descent.noise,
        seed=descent.seed,
        unit=unit,
        way=descent.way,
        draws=draws,
        lr=lr,
    )
