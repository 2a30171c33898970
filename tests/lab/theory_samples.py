"""A small, made-up outcome of the speed-up experiments: laws that hold exactly, numbers that are easy to find again."""

import math

from warmfree.theory.speedup import (
    ErrorRow,
    Errors,
    GapSteps,
    Law,
    Mistake,
    Mistakes,
    PopulationRow,
    PopulationSteps,
    PowerRow,
    Speedup,
    StepsRow,
)

GAPS = (10.0, 100.0, 1000.0, 10_000.0)
STEPS = (100, 400, 1600)


def _law(
    quantity: str, variable: str, slope: float, predicted: float | None, *, low: float, high: float
) -> Law:
    return Law(
        quantity=quantity,
        variable=variable,
        form="power",
        logs=0.0,
        slope=slope,
        intercept=0.0,
        low=low,
        high=high,
        predicted=predicted,
        points=((1.0, 1.0), (10.0, 10.0)),
    )


def _row(family: str, kind: str, gap: float, steps: int | None) -> StepsRow:
    return StepsRow(
        family=family,
        kind=kind,  # type: ignore[arg-type]
        gap=gap,
        start=math.log(gap),
        steps=steps,
        parameters={"lr": 0.01},
        tried=50,
        limit=100_000,
    )


def _errors(noise: str, power: float) -> Errors:
    rows = []
    for steps in STEPS:
        for family, kind, error in (
            ("constant", "non-increasing", 1.0),
            ("warmup", "warmup", 1.0 / steps**power),
        ):
            rows.append(
                ErrorRow(
                    family=family,
                    kind=kind,  # type: ignore[arg-type]
                    steps=steps,
                    gap=2.0 * steps,
                    error=error,
                    low=0.8 * error if noise != "none" else error,
                    high=1.3 * error if noise != "none" else error,
                    slope=0.5,
                    parameters={"lr": 0.1},
                    tried=40,
                )
            )
    return Errors(
        noise=noise,
        constants={"gap": 0.0, "gradient": 0.0, "constant": 0.0 if noise == "none" else 1.0},
        seeds=4,
        rows=tuple(rows),
        ratios=tuple((float(steps), steps**power) for steps in STEPS),
        laws=(_law("ratio of the errors", "steps", power, power, low=power - 0.1, high=power + 0.1),),
    )


def make_speedup() -> Speedup:
    """Steps in proportion to the gap without rising, to its logarithm with warmup; errors as theory says."""
    rows, bounds = [], []
    for gap in GAPS:
        bounds.append((gap, 0.9 * gap))
        rows += [
            _row("constant", "non-increasing", gap, int(gap)),
            _row("1/t", "non-increasing", gap, int(3 * gap)),
            _row("warmup, c = 0.5", "warmup", gap, int(10 * math.log(gap))),
            _row("linear warmup", "warmup", gap, int(5 * math.sqrt(gap))),
            _row("Polyak", "adaptive", gap, 7),
            _row("AdaGrad-norm", "adaptive", gap, None if gap > 1000 else int(gap)),
        ]
    laws = (
        _law("steps, best that never rises", "initial gap", 1.0, 1.0, low=0.98, high=1.02),
        _law("steps, linear warmup", "initial gap", 0.42, 0.5, low=0.4, high=0.44),
    )
    population = tuple(
        PopulationRow(
            family=family,
            kind=kind,  # type: ignore[arg-type]
            gap=gap,
            aim=aim,  # type: ignore[arg-type]
            steps=steps,
            low=0.9 * steps,
            high=1.2 * steps,
            parameters={"lr": 0.02},
            tried=30,
        )
        for gap in GAPS
        for aim in ("all", "median")
        for family, kind, steps in (("constant", "non-increasing", 2.0 * gap), ("warmup", "warmup", 12.0))
    )
    mistakes = tuple(
        Mistake(what=what, amount=amount, gap=1000.0, steps=steps, diverged=steps is None)  # type: ignore[arg-type]
        for what, amount, steps in (
            ("step", 0.5, 90),
            ("step", 1.0, 50),
            ("step", 8.0, None),
            ("f_star", 0.01, 60),
        )
    )
    return Speedup(
        seed=3,
        steps=GapSteps(target=1e-6, curvature=1.0, rows=tuple(rows), bounds=tuple(bounds), laws=laws),
        population=PopulationSteps(target=1e-4, instances=64, rows=population, laws=()),
        errors=(_errors("none", 1.0), _errors("additive", 0.5)),
        power=(
            PowerRow(power=4, start=10.0, constant=412, lr=0.03, near_edge=401, warmup=37, predicted=395.0),
        ),
        power_laws=(),
        mistakes=Mistakes(target=1e-6, limit=5000, rows=mistakes),
    )
