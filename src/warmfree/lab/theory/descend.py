"""``warmfree theory descend``: a path down a landscape under several step rules, and the bounds beside it."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from warmfree import __version__
from warmfree.lab.theory.bounds_table import bounds_data, bounds_table
from warmfree.lab.theory.descend_parts import Runs, landscape, over_steps, place, rules_table, steps_to
from warmfree.lab.theory.finding import Finding, Tile
from warmfree.lab.theory.plotting import positive
from warmfree.lab.theory.rules import RULES, Chosen, Descent, choose_rule, has_learning_rate
from warmfree.report.wording import count, listing, number, short
from warmfree.theory.descent import descend
from warmfree.theory.functions import make_function
from warmfree.theory.noise import ABCNoise
from warmfree.theory.path import Path

__all__ = ["MOST_STEPS", "find_descent", "prepare_descent"]

Floats = NDArray[np.float64]

MOST_STEPS = 10_000
_THOUSANDTH = 1e-3
_FEW = 4
_LANDED = (
    1e-4  # of a gap left by one step: no rate of convergence, but a step that happens to end at the bottom
)
# Where a landscape shows what it is about: high on its walls, away from its axes.
_STARTS: dict[str, tuple[float, ...]] = {
    "cosh": (6.0, 1.0),
    "power4": (10.0,),
    "power6": (10.0,),
    "exponential": (5.0,),
    "exponential-sum": (5.0, 2.0),
    "logistic": (-3.0, -5.0),
    "logistic-overlapping": (4.0, -5.0),
    "two-layer": (4.0, 4.0),
    "regularised-two-layer": (5.0, 2.0),
    "river-valley": (6.0, 6.0),
    "curved-river-valley": (5.0, 6.0),
}


def prepare_descent(
    name: str, start: Sequence[float] | None, *, steps: int, noise: float, seed: int
) -> Descent:
    """Check what is asked for, before any work.

    Args:
        name: of the function.
        start: its coordinates; None for the function's own.
        steps: T, 1 to `MOST_STEPS`.
        noise: standard deviation of the gradient's noise, all coordinates together; 0 for none.
        seed: of the noise.

    Raises:
        ValueError: an unknown name, a number out of range, or a start that does not suit the function.
    """
    function = make_function(name)
    if not 1 <= steps <= MOST_STEPS:
        raise ValueError(f"steps must be 1 to {MOST_STEPS:,}, got {steps:,}")
    if not 0.0 <= noise < np.inf:
        raise ValueError(f"noise must be finite and >= 0, got {noise}")
    variance = noise * noise  # not a power: that would raise where it overflows
    if variance == np.inf:
        raise ValueError(f"noise must be below 1e154 for its variance to be finite, got {noise}")
    if seed < 0:
        raise ValueError(f"seed must be >= 0, got {seed}")
    if start is None:
        start = _STARTS.get(name, (2.0,) * function.dimension)
    if len(start) != function.dimension:
        raise ValueError(
            f"{name} has {count(function.dimension, 'variable')}: --start needs as many numbers, got {len(start)}"
        )
    point = np.array(start, np.float64)
    function.check(point)
    gap = float(function.gap(point))
    if not 0.0 < gap < np.inf:
        raise ValueError(
            f"the gap at the start {place(point)} is {gap}: choose a start from which there is a way down"
        )
    return Descent(function, point, steps, ABCNoise.additive(variance=variance) if noise else None, seed)


def find_descent(
    descent: Descent,
    rules: Sequence[str],
    *,
    lr: float | None,
    progress: Callable[[str], None] | None = None,
) -> Finding:
    """Descend by every rule, and say what came of it.

    Args:
        descent: what, from where, for how long.
        rules: names in `RULES`, at least one, none twice.
        lr: learning rate of the rules that have one; None tunes it for each.
        progress: called with what is being done.

    Raises:
        ValueError: a rule is not known or given twice, or the learning rate is not > 0.
    """
    _check(rules, lr)
    runs = []
    for name in rules:
        if progress is not None:
            progress(f"descending by {RULES[name].label}")
        chosen = choose_rule(name, descent, lr=lr)
        runs.append((chosen, _run(descent, chosen)))
    function, first_gap = descent.function, float(descent.function.gap(descent.start))
    smooth = function.smoothness
    constants = (
        f"rho = {short(smooth.exponent)}, K0 = {number(smooth.floor)}, K_rho = {number(smooth.growth)}"
    )
    noise = [f"noise of variance {number(descent.noise.constant)}"] if descent.noise else []
    return Finding(
        title=f"Gradient descent: {function.name}",
        facts=(
            f"from {place(descent.start)}",
            f"gap {number(first_gap)} at the start",
            count(descent.steps, "step"),
            count(len(runs), "step rule"),
            constants,
            *noise,
        ),
        sentences=_sentences(descent, runs, lr),
        tiles=_tiles(runs, first_gap),
        parts=(
            landscape(descent, runs),
            over_steps(descent, runs),
            rules_table(runs, target=_THOUSANDTH * first_gap),
            bounds_table(runs),
        ),
        paper=(
            "(rho, K0, K_rho)-smoothness, the warmup step up to its constant, and the descent inequality with "
            "the bound on the smallest gradient that follows from it are those of Liu et al. 2025.",
        ),
        ours=(
            "The function, its constants, c = 1/2, and every bound that the table marks as ours.",
            "Learning rates are tuned for this very start and number of steps, so that no rule that has one is held "
            "back; the warmup is not tuned.",
        ),
        origin={
            "function": function.name,
            "start": place(descent.start),
            "smoothness": constants,
            "seed": descent.seed if descent.noise else "nothing is random",
            "warmfree": __version__,
        },
        data=_data(descent, runs),
    )


def _check(rules: Sequence[str], lr: float | None) -> None:
    if not rules:
        raise ValueError(f"name at least one rule of {', '.join(RULES)}")
    for name in rules:
        if name not in RULES:
            raise ValueError(f"unknown rule {name!r}; there are {', '.join(RULES)}")
        if rules.count(name) > 1:
            raise ValueError(f"rule {name!r} is given twice")
    if lr is not None and not 0.0 < lr < np.inf:
        raise ValueError(f"lr must be finite and > 0, got {lr}")
    if lr is not None and not any(map(has_learning_rate, rules)):
        raise ValueError(
            f"--lr is for {', '.join(filter(has_learning_rate, RULES))}; none of them is asked for"
        )


def _run(descent: Descent, chosen: Chosen) -> Path:
    return descend(
        descent.function,
        descent.start,
        chosen.rule,
        steps=descent.steps,
        noise=descent.noise,
        seed=descent.seed,
    )


def _end(path: Path) -> float:
    return float(path.gaps[-1, 0])


def _sentences(descent: Descent, runs: Runs, lr: float | None) -> tuple[str, ...]:
    first_gap = float(descent.function.gap(descent.start))
    gone = [chosen.label for chosen, path in runs if path.diverged[0]]
    kept = sorted((run for run in runs if not run[1].diverged[0]), key=lambda run: _end(run[1]))
    named = kept if len(kept) <= _FEW else [kept[0], kept[-1]]
    which = "" if len(kept) <= _FEW else f", of {len(kept)} rules the lowest and the highest"
    found = []
    if kept:
        ends = listing([f"{number(_end(path))} ({chosen.label})" for chosen, path in named])
        found.append(
            f"From {place(descent.start)}, where the gap is {number(first_gap)}, {count(descent.steps, 'step')} "
            f"came to a gap of {ends}{which}."
        )
        target = _THOUSANDTH * first_gap
        reached = listing([f"{steps_to(path, target)} ({chosen.label})" for chosen, path in named])
        found.append(f"Steps to a thousandth of the gap at the start, {number(target)}: {reached}.")
    if gone:
        found.append(f"{listing(gone)} left the finite numbers.")
    for chosen, path in runs:
        rates = positive(path.learning_rates[:, 0])
        if chosen.name in ("warmup", "reciprocal") and rates.size:
            times = float(rates.max() / rates[0])
            found.append(
                f"The learning rate of {chosen.label} rose from {short(float(rates[0]))} to "
                f"{short(float(rates.max()))}, {number(times)} times as much, while the gap fell."
            )
    landed = [chosen.label for chosen, path in runs if has_learning_rate(chosen.name) and _has_landed(path)]
    if lr is None and landed:
        found.append(
            f"{listing(landed)} took a step that left less than {number(_LANDED)} of the gap: tuned for this "
            "very start, it lands at the bottom by luck, and would not from a start nearby."
        )
    if not descent.function.contains(np.concatenate([path.points[:, 0] for _, path in runs])).all():
        found.append(
            "A path left the domain on which the function has its constants; bounds are not checked there."
        )
    return tuple(found)


def _has_landed(path: Path) -> bool:
    before, after = path.gaps[:-1, 0], path.gaps[1:, 0]
    return bool((after < _LANDED * before).any())


def _tiles(runs: Runs, first_gap: float) -> tuple[Tile, ...]:
    finite = sorted((run for run in runs if not run[1].diverged[0]), key=lambda run: _end(run[1]))
    return tuple(
        Tile(
            f"Gap at the end, {chosen.label}",
            number(_end(path)),
            f"steps to a thousandth of the start's: {steps_to(path, _THOUSANDTH * first_gap)}",
        )
        for chosen, path in finite[:3]
    )


def _data(descent: Descent, runs: Runs) -> dict[str, object]:
    smooth = descent.function.smoothness
    return {
        "function": descent.function.name,
        "start": descent.start,
        "steps": descent.steps,
        "noise_variance": descent.noise.constant if descent.noise else 0.0,
        "seed": descent.seed,
        "smoothness": {"exponent": smooth.exponent, "floor": smooth.floor, "growth": smooth.growth},
        "runs": [
            {
                "rule": chosen.name,
                "label": chosen.label,
                "learning_rate_from": chosen.how,
                "diverged": bool(path.diverged[0]),
                "points": path.points[:, 0],
                "gaps": path.gaps[:, 0],
                "learning_rates": path.learning_rates[:, 0],
                "curvatures": path.curvatures[:, 0],
                "bounds": bounds_data(path),
            }
            for chosen, path in runs
        ],
    }
