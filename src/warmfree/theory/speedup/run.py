"""All experiments on the speed-up, in one call."""

import math
from collections.abc import Callable

from warmfree.theory.noise import ABCNoise
from warmfree.theory.speedup.errors import error_after
from warmfree.theory.speedup.gap_steps import steps_by_gap
from warmfree.theory.speedup.mistakes import mistakes
from warmfree.theory.speedup.population import population_steps
from warmfree.theory.speedup.power import power_laws, power_steps
from warmfree.theory.speedup.results import Speedup

__all__ = ["NOISES", "run_speedup"]

NOISES: dict[str, ABCNoise] = {
    "additive": ABCNoise.additive(variance=0.1),
    "affine": ABCNoise.affine(relative=0.5, variance=0.1),
    "ABC": ABCNoise(gap=1.0, gradient=0.5, constant=0.1),
}
"""Of the noisy experiments; the variance is small enough for the square root of T to show from a few hundred steps."""


def run_speedup(
    *,
    largest_gap: float = 1e5,
    longest: int = 512,
    seeds: int = 8,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Speedup:
    """Run the experiments A to E; the defaults take less than a minute of one core.

    Args:
        largest_gap: largest initial gap of A, at least 10; constant schedules need about half as many steps. Up to 1e6
            all families are tuned, beyond it of the four only the constant ones. Populations go up to 1000.
        longest: largest number of steps of B and C, at least 64; powers of 2 up to it are measured.
        seeds: of C, at least 1; see `Errors.seeds`.
        seed: of everything random. The same numbers give the same results.
        progress: called with a line before each part, of which there are about forty.

    Raises:
        ValueError: a number is out of its range.

    Reference: the claims are those of Liu et al. 2025, the experiments ours.
    """
    if not 10.0 <= largest_gap < math.inf:
        raise ValueError(f"largest_gap must be finite and at least 10, got {largest_gap!r}")
    if longest < 64:
        raise ValueError(f"longest must be at least 64 steps, got {longest!r}")
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds!r}")
    noises: dict[str, ABCNoise | None] = {"none": None, **NOISES}
    power = power_steps(progress=progress)
    return Speedup(
        seed=seed,
        steps=steps_by_gap(largest=largest_gap, seed=seed, progress=progress),
        population=population_steps(largest=min(largest_gap, 1e3), seed=seed, progress=progress),
        errors=tuple(
            error_after(noise=noise, name=name, longest=longest, seeds=seeds, seed=seed, progress=progress)
            for name, noise in noises.items()
        ),
        power=power,
        power_laws=power_laws(power),
        mistakes=mistakes(seed=seed, progress=progress),
    )
