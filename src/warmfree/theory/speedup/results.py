"""What the experiments on the speed-up by warmup find: rows for tables, points for figures, fitted laws.

All are frozen dataclasses of plain values; `Speedup.as_json` gives dictionaries, lists, numbers, strings and None,
ready for `json.dumps`. None stands for "did not come there".
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

__all__ = [
    "ErrorRow",
    "Errors",
    "GapSteps",
    "Kind",
    "Law",
    "Mistake",
    "Mistakes",
    "PopulationRow",
    "PopulationSteps",
    "PowerRow",
    "Speedup",
    "StepsRow",
]

Kind = Literal["non-increasing", "warmup", "adaptive"]


@dataclass(frozen=True, kw_only=True)
class Law:
    r"""A straight line through measured points.

    Attributes:
        quantity: what was measured, in words, for a table: "steps, best non-increasing".
        variable: what it was measured against: "initial gap", "steps".
        form: "power" for a line through both logarithms, so that `slope` is the exponent; "logarithm" for a line of the
            quantity itself against the natural logarithm of the variable.
        logs: the power of ln(variable) that the quantity was multiplied by before the fit. With 1 the exponent is that
            of quantity * ln(variable), for theories that say "up to a logarithm".
        slope: of the line.
        intercept: of the line.
        low: 2.5 % quantile of the slope over bootstrap samples.
        high: 97.5 % quantile.
        predicted: the slope that theory gives; None where it gives none.
        points: the (variable, quantity) of the fit, before multiplication.
    """

    quantity: str
    variable: str
    form: Literal["power", "logarithm"]
    logs: float
    slope: float
    intercept: float
    low: float
    high: float
    predicted: float | None
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class StepsRow:
    """Fewest steps to the target of one family of step rules, tuned for one start.

    Attributes:
        family: "constant", "1/sqrt(t)", "1/t", "step drop", "warmup, c = 0.5", "Polyak", ...
        kind: what sort of rule it is.
        gap: initial gap.
        start: a, the start along the wall.
        steps: T; None if no member came to the target within `limit`.
        parameters: of the member that took them; of several, that with the smallest learning rate.
        tried: how many members were tried.
        limit: the most steps that were given to a member.
    """

    family: str
    kind: Kind
    gap: float
    start: float
    steps: int | None
    parameters: dict[str, float]
    tried: int
    limit: int


@dataclass(frozen=True, kw_only=True)
class GapSteps:
    """Steps to a target gap against the initial gap, each family tuned for each start.

    Attributes:
        target: eps.
        curvature: mu of the floor.
        rows: by gap, then family.
        bounds: (initial gap, lower bound of the steps of any schedule that never exceeds the edge a / sinh a), of
            `warmfree.theory.complexity.non_increasing_lower_bound`.
        laws: exponents; see `Law`.
    """

    target: float
    curvature: float
    rows: tuple[StepsRow, ...]
    bounds: tuple[tuple[float, float], ...]
    laws: tuple[Law, ...]

    def best(self, kind: Kind) -> tuple[StepsRow, ...]:
        """Return the row with the fewest steps among those of a kind, for each gap that has one."""
        gaps = sorted({row.gap for row in self.rows})
        found = (
            [row for row in self.rows if row.kind == kind and row.gap == gap and row.steps] for gap in gaps
        )
        return tuple(min(rows, key=lambda row: row.steps or 0) for rows in found if rows)


@dataclass(frozen=True, kw_only=True)
class PopulationRow:
    """Steps of one family that was chosen first and then has to bring a population of functions to the target.

    Attributes:
        family: as in `StepsRow`.
        kind: as in `StepsRow`.
        gap: nominal initial gap; those of the instances scatter around it.
        aim: "all": T is that of the slowest instance; "median": of the median one. Each is tuned for its own.
        steps: T; None if no member brought them there.
        low: 2.5 % quantile of T over resampled populations, tuned anew for each.
        high: 97.5 % quantile.
        parameters: of the chosen member; the learning rate is that at the first step.
        tried: how many members were tried.
    """

    family: str
    kind: Kind
    gap: float
    aim: Literal["all", "median"]
    steps: float | None
    low: float | None
    high: float | None
    parameters: dict[str, float]
    tried: int


@dataclass(frozen=True, kw_only=True)
class PopulationSteps:
    """Steps to a target for populations of functions.

    Attributes:
        target: eps.
        instances: how many functions.
        rows: by gap, aim, family.
        laws: exponents, by resampled instances.
    """

    target: float
    instances: int
    rows: tuple[PopulationRow, ...]
    laws: tuple[Law, ...]


@dataclass(frozen=True, kw_only=True)
class ErrorRow:
    """Worst error after T steps of one family, tuned for that worst case.

    Attributes:
        family: "constant", "1/sqrt(t)", "1/t", "step drop", "warmup", "warmup, noisy gap", ...
        kind: as in `StepsRow`.
        steps: T.
        gap: initial gap of the wall, proportional to T.
        error: gap after T steps, mean over the runs, at the worst slope of the floor. A family whose
            member diverges in one of these runs has no row.
        low: 2.5 % quantile over resampled runs; the error itself where nothing is random.
        high: 97.5 % quantile.
        slope: the slope of the floor that is worst.
        parameters: of the chosen member.
        tried: how many members were tried.
    """

    family: str
    kind: Kind
    steps: int
    gap: float
    error: float
    low: float
    high: float
    slope: float
    parameters: dict[str, float]
    tried: int


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Worst errors after T steps from an initial gap proportional to T.

    Attributes:
        noise: "none", "additive", "affine", "ABC".
        constants: of the noise: gap (A), gradient (B), constant (C), all 0 without noise.
        seeds: how many seeds; 8 runs of each are tuned on, and errors are means of 32 others of each.
        rows: by T, then family.
        ratios: (T, error of the best non-increasing family over that of the warmup).
        laws: exponents of the ratio and of both errors.
    """

    noise: str
    constants: dict[str, float]
    seeds: int
    rows: tuple[ErrorRow, ...]
    ratios: tuple[tuple[float, float], ...]
    laws: tuple[Law, ...]


@dataclass(frozen=True, kw_only=True)
class PowerRow:
    """Steps on |x|^p / p.

    Attributes:
        power: p.
        start: x0.
        constant: fewest steps of a constant learning rate, lucky landings left out; None if none came there.
        lr: that learning rate.
        near_edge: steps of 0.95 of the learning rate above which |x| grows; None if it did not come there.
        warmup: steps of the warmup, c = 1/2.
        predicted: (x0 / x_eps)^(p - 2) / (2 (p - 2)), the theory's steps at the edge.
    """

    power: int
    start: float
    constant: int | None
    lr: float
    near_edge: int | None
    warmup: int | None
    predicted: float


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """Steps of a warmup whose constants are wrong.

    Attributes:
        what: "step" for a learning rate times `amount`, "f_star" for an infimum moved up by `amount`.
        amount: 1 (step) or 0 (f_star) is no mistake.
        gap: initial gap.
        steps: of the slowest of several starts; None if one did not reach the target.
        diverged: one left the finite numbers.
    """

    what: Literal["step", "f_star"]
    amount: float
    gap: float
    steps: int | None
    diverged: bool


@dataclass(frozen=True, kw_only=True)
class Mistakes:
    """How wrong the warmup's constants may be.

    Attributes:
        target: eps.
        limit: steps after which a run was given up.
        rows: by kind of mistake, gap, amount.
    """

    target: float
    limit: int
    rows: tuple[Mistake, ...]


@dataclass(frozen=True, kw_only=True)
class Speedup:
    """All experiments.

    Attributes:
        seed: of everything random.
        steps: A, steps to a target against the initial gap, one function at a time.
        population: A, for populations of functions.
        errors: B (first, without noise) and C (one for each noise).
        power: D, the power family.
        power_laws: how its steps grow with the start.
        mistakes: E, wrong constants. The other half of E, linear and geometric warmups, are families of `steps`.
    """

    seed: int
    steps: GapSteps
    population: PopulationSteps
    errors: tuple[Errors, ...]
    power: tuple[PowerRow, ...]
    power_laws: tuple[Law, ...]
    mistakes: Mistakes

    def as_json(self) -> dict[str, Any]:
        """Return plain dictionaries, lists and values."""
        return dataclasses.asdict(self)
