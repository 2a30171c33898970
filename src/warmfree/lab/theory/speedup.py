"""``warmfree theory speedup``: how much faster a warmup is than the best schedule that never rises."""

import math
from collections.abc import Sequence

from warmfree import __version__
from warmfree.lab.theory.finding import Finding, Tile
from warmfree.lab.theory.speedup_figures import draw_speedup
from warmfree.lab.theory.speedup_tables import lay_out_speedup
from warmfree.report.wording import count, factor, listing, number
from warmfree.theory.speedup import (
    Errors,
    GapSteps,
    Law,
    Mistakes,
    PopulationSteps,
    PowerRow,
    Speedup,
)

__all__ = ["find_speedup"]

_WARMUP = "warmup, c = 0.5"
_FIXED = ("linear warmup", "geometric warmup")


def find_speedup(found: Speedup, *, seconds: float) -> Finding:
    """Say what the experiments found.

    Args:
        found: what they measured.
        seconds: how long they took.
    """
    steps = found.steps
    gaps = [gap for gap, _ in steps.bounds]
    longest = max((row.steps for errors in found.errors for row in errors.rows), default=0)
    return Finding(
        title="How much faster is a warmup?",
        facts=(
            f"initial gaps {number(min(gaps))} to {number(max(gaps))}",
            f"runs of up to {count(longest, 'step')}",
            count(found.population.instances, "function") + " in the population",
            f"seed {found.seed}",
        ),
        sentences=(
            *_say_steps(steps),
            *_say_population(found.population),
            *(sentence for errors in found.errors for sentence in _say_errors(errors)),
            *_say_power(found.power),
            *_say_mistakes(found.mistakes),
            *_say_laws(_laws(found)),
        ),
        tiles=_tiles(found),
        parts=(*draw_speedup(found), *lay_out_speedup(found)),
        paper=(
            "That gradient descent with warmup is up to Theta(T) faster than any schedule that never rises, "
            "and SGD up to Theta(sqrt T), in specific cases: Liu et al. 2025; and the warmup step, up to its "
            "constant c.",
            "Alimisis' step is that of Alimisis, Islamov & Lucchi 2025; Polyak's, backtracking, clipping and "
            "AdaGrad-norm are those of their authors.",
        ),
        ours=(
            "The functions: 2 (cosh x - 1) + (mu/2) y^2, its populations and its tilted floor. The paper's own "
            "constructions are not reproduced.",
            "c = 1/2 and 1, and 1/l. The lower bound, the exponents that are compared with, and all numbers "
            "are derived or measured here.",
            "The tuning: all families but those that follow the gap are tuned for the very start, the "
            "population or the worst case that they are compared on. A statement about tuned families is not "
            "one about all schedules.",
        ),
        origin={
            "seed": found.seed,
            "target gap": number(steps.target),
            "curvature of the floor (mu)": number(steps.curvature),
            "seeds of the noisy runs": listing(
                [f"{errors.seeds} ({errors.noise})" for errors in found.errors if errors.noise != "none"]
            )
            or "none",
            "seconds": f"{seconds:.0f}",
            "warmfree": __version__,
        },
        data={**found.as_json(), "seconds": seconds},
    )


def _laws(found: Speedup) -> list[Law]:
    laws = [*found.steps.laws, *found.population.laws, *found.power_laws]
    for errors in found.errors:
        laws += errors.laws
    return laws


def _contains(law: Law) -> bool:
    return law.predicted is not None and law.low <= law.predicted <= law.high


def _tiles(found: Speedup) -> tuple[Tile, ...]:
    tiles = []
    pair = _largest(found.steps)
    if pair:
        gap, slow, fast = pair
        tiles.append(
            Tile(
                f"Steps without rising over steps with warmup, from a gap of {number(gap)}",
                f"×{factor(slow / fast)}",
                f"{slow:,} against {fast:,} to a gap of {number(found.steps.target)}",
            )
        )
    for errors in found.errors:
        if errors.ratios and errors.noise in ("none", "additive"):
            steps, ratio = errors.ratios[-1]
            law = _ratio_law(errors)
            note = ""
            if law is not None:
                times = (
                    "" if not law.logs else "times ln(T) " if law.logs == 1 else f"times ln(T)^{law.logs:g} "
                )
                note = f"{times}it grows as T^{law.slope:.2f} ({law.low:.2f} to {law.high:.2f})"
            noise = "without noise" if errors.noise == "none" else f"with {errors.noise} noise"
            tiles.append(
                Tile(
                    f"Error without rising over error with warmup, {noise}, T = {steps:,.0f}",
                    f"×{factor(ratio)}",
                    note,
                )
            )
    return tuple(tiles)


def _largest(steps: GapSteps) -> tuple[float, int, int] | None:
    """The largest gap with steps of both, the fewest steps without rising, and those of the warmup with c = 1/2."""
    slow = {row.gap: row.steps for row in steps.best("non-increasing") if row.steps}
    fast = {row.gap: row.steps for row in steps.rows if row.family == _WARMUP and row.steps}
    both = sorted(slow.keys() & fast.keys())
    return (both[-1], slow[both[-1]], fast[both[-1]]) if both else None


def _ratio_law(errors: Errors) -> Law | None:
    """The law of the errors' ratio; of several that for which theory has a slope."""
    laws = [law for law in errors.laws if "ratio" in law.quantity]
    return next((law for law in laws if law.predicted is not None), laws[0] if laws else None)


def _say_steps(steps: GapSteps) -> list[str]:
    pair = _largest(steps)
    if pair is None:
        return ["No gap was reached both by a schedule that never rises and by the warmup."]
    gap, slow, fast = pair
    best = next(row for row in steps.best("non-increasing") if row.gap == gap)
    bound = next(bound for at, bound in steps.bounds if at == gap)
    said = [
        f"From an initial gap of {number(gap)} the best schedule that never rises ({best.family}, of "
        f"{sum(row.tried for row in steps.rows if row.gap == gap and row.kind == 'non-increasing'):,} tried) "
        f"came to a gap of {number(steps.target)} in {count(slow, 'step')}, the warmup with c = 1/2 in "
        f"{fast:,}: {_fewer(slow, fast)}. No schedule that stays below the edge of stability can "
        f"need fewer than {bound:,.0f}."
    ]
    fixed = [row for row in steps.rows if row.gap == gap and row.family in _FIXED and row.steps]
    if fixed:
        found = min(fixed, key=lambda row: row.steps or 0)
        said.append(
            f"A warmup that knows nothing of the gap, but is tuned to this start among {found.tried:,}, does it "
            f"too: the {found.family} took {count(found.steps or 0, 'step')}."
        )
    adaptive = next((row for row in steps.best("adaptive") if row.gap == gap), None)
    if adaptive is not None and adaptive.steps:
        trials = ", each with several evaluations of the loss" if adaptive.family == "backtracking" else ""
        said.append(
            f"Warmup is not the only way: the best of the adaptive rules there, {adaptive.family}, took "
            f"{count(adaptive.steps, 'step')}{trials}."
        )
    return said


def _fewer(slow: int, fast: int) -> str:
    return f"{factor(slow / fast)} times fewer" if fast < slow else f"{factor(fast / slow)} times as many"


def _say_errors(errors: Errors) -> list[str]:
    if not errors.ratios:
        return []
    steps, ratio = errors.ratios[-1]
    noise = (
        "With exact gradients"
        if errors.noise == "none"
        else f"With {errors.noise} noise ({errors.seeds} seeds)"
    )
    said = (
        f"{noise} and an initial gap in proportion to the number of steps T, the best tuned schedule that never "
        f"rises has {factor(ratio)} times the error of the warmup at T = {steps:,.0f}"
    )
    last = {row.family: row.error for row in errors.rows if row.steps == steps}
    others = [
        f"a tuned {family} has {factor(error / last['warmup'])} times its error"
        for family, error in last.items()
        if family in _FIXED and last.get("warmup")
    ]
    said += f" ({listing(others)})" if others else ""
    law = _ratio_law(errors)
    if law is None:
        return [f"{said}."]
    theory = ""
    if law.predicted is not None:
        theory = f"; theory says T^{law.predicted:g}{'' if _contains(law) else ', which is outside of that interval'}"
    logs = f" times ln(T){'' if law.logs == 1 else f'^{law.logs:g}'}" if law.logs else ""
    grows = f"the ratio{logs} grows as T^{law.slope:.2f} (95 % interval {law.low:.2f} to {law.high:.2f})"
    return [f"{said}; {grows}{theory}."]


def _say_population(population: PopulationSteps) -> list[str]:
    rows = [row for row in population.rows if row.aim == "all" and row.steps]
    gaps = sorted({row.gap for row in rows})
    falling = [row for row in rows if row.kind == "non-increasing" and row.gap == gaps[-1]]
    warm = next((row for row in rows if row.family == _WARMUP and row.gap == gaps[-1]), None)
    if not falling or warm is None or warm.steps is None:
        return []
    slow = min(falling, key=lambda row: row.steps or math.inf)
    return [
        f"Chosen before the functions are known, for {population.instances} of them with initial gaps near "
        f"{number(gaps[-1])}, the best schedule that never rises ({slow.family}) brings all to a gap of "
        f"{number(population.target)} in {number(slow.steps or math.nan)} steps, the warmup with c = 1/2 in "
        f"{number(warm.steps)}."
    ]


def _say_power(rows: Sequence[PowerRow]) -> list[str]:
    farthest = {
        row.power: row for row in sorted(rows, key=lambda row: row.start) if row.constant and row.warmup
    }
    if not farthest:
        return []
    parts = listing(
        [
            f"{row.constant:,} against {row.warmup:,} (p = {power}, from {number(row.start)})"
            for power, row in farthest.items()
        ]
    )
    return [f"On |x|^p / p the best constant learning rate needs {parts} steps of the warmup."]


def _say_mistakes(mistakes: Mistakes) -> list[str]:
    said = []
    for what, name in (("step", "learning rate of the warmup times"), ("f_star", "infimum moved by")):
        rows = [row for row in mistakes.rows if row.what == what]
        failed = sorted({row.amount for row in rows if row.steps is None})
        fine = sorted({row.amount for row in rows} - set(failed))
        if not rows:
            continue
        kept, lost = (listing([number(amount) for amount in amounts]) for amounts in (fine, failed))
        ends = (
            f"with {kept} it comes to the target from every gap that was tried"
            if fine
            else "it never gets there"
        )
        fails = f", with {lost} not from all" if fine and failed else ""
        said.append(f"Wrong constants, {name}: {ends}{fails}.")
    return said


def _say_laws(laws: Sequence[Law]) -> list[str]:
    predicted = [law for law in laws if law.predicted is not None]
    if not predicted:
        return []
    outside = [law for law in predicted if not _contains(law)]
    inside = len(predicted) - len(outside)
    said = (
        f"Of {count(len(predicted), 'slope')} that theory gives, {inside} lie in the measured 95 % interval"
    )
    if outside:
        worst = max(outside, key=_distance)
        said += (
            f"; of the others the farthest is that of {worst.quantity}, {worst.slope:.3g} where theory says "
        )
        said += f"{worst.predicted:.3g}"
    return [f"{said}."]


def _distance(law: Law) -> float:
    """How far a slope is from the theory's, relative to it where it is large."""
    predicted = law.predicted or 0.0
    return abs(law.slope - predicted) / max(abs(predicted), 1.0)
