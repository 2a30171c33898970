r"""The worst error after T steps from an initial gap proportional to T: the schedule first, the function second.

For each T every family is tuned on the walls of one height and floors of all slopes, for the largest error that a
slope makes; see `warmfree.theory.speedup.slopes`. The learning rates of a schedule that never rises add up to at most
:math:`T a / \sinh a \approx 2 \ln T`: it comes down the floor by no more than that times the slope, however long T is,
and its worst error is :math:`\sim y_0^2 / (8 \ln T)`. Those of the step that follows the gap add up to about T/4 once
the wall is descended, after some logarithm of T: its worst error is :math:`\sim y_0^2 / T` without noise, and
:math:`\sim \sigma y_0 / \sqrt T` with additive noise behind a tuned cap.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from warmfree.theory.noise import ABCNoise
from warmfree.theory.speedup.candidates import NON_INCREASING, Candidates
from warmfree.theory.speedup.law import fit_law
from warmfree.theory.speedup.results import ErrorRow, Errors, Kind, Law
from warmfree.theory.speedup.slopes import SMOOTHNESS, Rates, final_gaps
from warmfree.theory.speedup.tuning import FINE, Tuned, near, non_increasing, tune
from warmfree.theory.speedup.valley import edge, start_of

__all__ = ["error_after"]

Floats = NDArray[np.float64]

_COARSE = (0.03, 0.15)
_RESAMPLES = 200
_TUNED_RUNS, _MEASURED_RUNS = 8, 32  # of each seed
_HEIGHT = 1.0


def error_after(
    *,
    noise: ABCNoise | None = None,
    name: str = "none",
    steps: Sequence[int] | None = None,
    longest: int = 1024,
    gap_per_step: float = 1.0,
    seeds: int = 8,
    loss_noise: float = 0.5,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Errors:
    r"""Measure worst errors after T steps for families tuned for each T.

    The warmup is :math:`\min\{\tfrac12 \min\{1/2, 1/(3\Delta_t)\}, \eta\}`, the cap :math:`\eta` tuned. It sees the
    true gap; "warmup, noisy gap" sees it times a log-normal number of mean 1. "linear warmup" is tuned over its peak
    and length.

    Args:
        noise: of the gradients; None takes the gradients themselves.
        name: of the noise, for tables.
        steps: T, at least three for the exponents; None takes the powers of 2 from 64 to `longest`.
        longest: of those.
        gap_per_step: the wall's initial gap over T.
        seeds: families are tuned on 8 runs of each seed, and their errors are means of 32 other runs of each.
        loss_noise: standard deviation of the logarithm of the noisy gap.
        seed: of everything random.
        progress: called with a line before each T.

    Example:
        >>> found = error_after(steps=[64, 128, 256])
        >>> [round(ratio, 1) for _, ratio in found.ratios]
        [1.5, 2.8, 5.1]

    Reference: the setting is that of Liu et al. 2025, initial gaps proportional to T; the functions are ours.
    """
    if steps is None:
        steps = [2**k for k in range(6, max(6, int(math.log2(longest))) + 1)]
    rows: list[ErrorRow] = []
    samples: dict[tuple[str, int], Floats] = {}
    for number in steps:
        if progress is not None:
            progress(f"worst errors after {number} steps, noise: {name}")
        for row, resampled in _at(
            number, noise=noise, gap=gap_per_step * number, seeds=seeds, loss_noise=loss_noise, seed=seed
        ):
            rows.append(row)
            samples[row.family, number] = resampled
    ratios, laws = _laws(rows, samples, steps, noise=noise, seed=seed)
    constants = (
        {} if noise is None else {"gap": noise.gap, "gradient": noise.gradient, "constant": noise.constant}
    )
    return Errors(
        noise=name,
        constants={"gap": 0.0, "gradient": 0.0, "constant": 0.0} | constants,
        seeds=1 if noise is None else seeds,
        rows=tuple(rows),
        ratios=ratios,
        laws=laws,
    )


def _at(
    steps: int, *, noise: ABCNoise | None, gap: float, seeds: int, loss_noise: float, seed: int
) -> list[tuple[ErrorRow, Floats]]:
    """Return a row for each family at one T, each with its bootstrap samples of the error."""
    start = float(start_of(gap))
    limit = float(edge(start))
    lowest = 0.3 / math.sqrt(steps)
    if noise is None:
        rates, rounds, away = near(limit), 2, FINE
        slopes = np.geomspace(0.05 / steps, 8.0, 31)
    else:  # learning rates below the edge may be better, and those at it are not safe
        slopes = np.geomspace(0.05 / steps, 8.0, 16)
        rates = limit * np.concatenate([np.geomspace(0.03, 0.8, 8), [0.9, 0.97, 0.995, 1.1]])
        rounds, away = 1, _COARSE
    caps = 0.25 * np.geomspace(lowest, 1.0, 12)
    peaks = np.geomspace(0.1 * lowest, 0.8, 9)  # from 1 on, steps at the floor do not come to rest
    lengths = np.maximum(2.0, steps / 2.0 ** np.arange(8))

    def gaps_of(kind: str, candidates: Candidates, slopes: Floats, *, runs: int, seed: int) -> Floats:
        return final_gaps(
            _rates(kind, candidates, loss_noise),
            count=len(candidates),
            start=start,
            height=_HEIGHT,
            slopes=slopes,
            steps=steps,
            noise=noise,
            runs=runs,
            seed=seed,
        )

    found: dict[str, Tuned] = {}
    warmups = ["warmup"] if noise is None else ["warmup", "warmup, noisy gap"]
    groups = [
        non_increasing(rates, horizon=steps),
        [Candidates.of("linear warmup", peaks[:, None], length=lengths)],
    ]
    for group in groups + [[Candidates.of(kind, caps)] for kind in warmups]:
        kind = group[0].names[0]

        def evaluate(candidates: Candidates, kind: str = kind) -> Floats:
            return _worst(gaps_of(kind, candidates, slopes, runs=_TUNED_RUNS * seeds, seed=2 * seed))[0]

        found |= tune(evaluate, group, rounds=rounds, away=away)
    rows = []
    finer = np.geomspace(slopes[0], slopes[-1], 2 * slopes.size - 1)
    generator = np.random.default_rng((seed, steps))
    for family, tuned in found.items():
        gaps = gaps_of(family, tuned.member, finer, runs=_MEASURED_RUNS * seeds, seed=2 * seed + 1)
        error, where = _worst(gaps)
        if not math.isfinite(error[0]):
            continue  # what survived the runs that it was tuned on did not survive these
        draws = generator.integers(0, gaps.shape[2], (_RESAMPLES, gaps.shape[2]))
        resampled = np.array([_worst(gaps[:, :, draw])[0][0] for draw in draws])
        low, high = np.quantile(resampled, (0.025, 0.975), method="inverted_cdf")
        group_kind: Kind = "non-increasing" if family in NON_INCREASING else "warmup"
        row = ErrorRow(
            family=family,
            kind=group_kind,
            steps=steps,
            gap=gap,
            error=float(error[0]),
            low=float(low),
            high=float(high),
            slope=float(finer[where[0]]),
            parameters=tuned.member.parameters(0),
            tried=tuned.tried,
        )
        rows.append((row, resampled))
    return rows


def _rates(kind: str, candidates: Candidates, loss_noise: float) -> Rates:
    """Return the learning rates of schedules, or of warmups whose caps are the candidates' learning rates."""
    if not kind.startswith("warmup"):
        return lambda step, _gap, _draws: candidates.rates(step)[:, None, None]
    caps = candidates.lr[:, None, None]
    if kind == "warmup":
        return lambda _step, gap, _draws: np.minimum(caps, _step_at(gap))

    def noisy(_step: int, gap: Floats, draws: Floats) -> Floats:
        return np.minimum(caps, _step_at(gap * np.exp(loss_noise * draws - 0.5 * loss_noise**2)))

    return noisy


def _step_at(gap: Floats) -> Floats:
    """Return `SMOOTHNESS.step`, without its checks: a run that has diverged may have any gap."""
    return 0.5 / np.maximum(SMOOTHNESS.floor, 3.0 * SMOOTHNESS.growth * gap)


def _worst(gaps: Floats) -> tuple[Floats, NDArray[np.intp]]:
    """Return the largest mean over the seeds and the number of its slope, (n, s, r) to (n,)."""
    with np.errstate(all="ignore"):
        means = np.nan_to_num(gaps, nan=math.inf, posinf=math.inf).mean(axis=2)
    return means.max(axis=1), means.argmax(axis=1)


def _laws(
    rows: Sequence[ErrorRow],
    samples: dict[tuple[str, int], Floats],
    steps: Sequence[int],
    *,
    noise: ABCNoise | None,
    seed: int,
) -> tuple[tuple[tuple[float, float], ...], tuple[Law, ...]]:
    """Return the ratios and the exponents."""
    error = {(row.family, row.steps): row.error for row in rows}
    known, best, best_samples, warm, warm_samples = [], [], [], [], []
    for number in steps:
        family = min(NON_INCREASING, key=lambda name: error.get((name, number), math.inf))
        if (family, number) not in error or ("warmup", number) not in error:
            continue
        known.append(number)
        best.append(error[family, number])
        best_samples.append(samples[family, number])
        warm.append(error["warmup", number])
        warm_samples.append(samples["warmup", number])
    falling, rising = np.array(best), np.array(warm)
    drawn, drawn_warm = np.array(best_samples).T, np.array(warm_samples).T
    ratios = tuple((float(n), float(r)) for n, r in zip(known, falling / rising, strict=True))
    exponent = 1.0 if noise is None else 0.5
    # noise in proportion to the wall's gradient scatters y by the square root of ln(T): it eats what the slow
    # schedules gain by sum(lr) ~ ln(T)
    logs = 0 if noise is not None and noise.gradient > 0.0 else 1
    laws = []
    counts = np.asarray(known, np.float64)
    for which, words in ((counts > 0, ""), (counts >= max(known, default=0) / 8, ", largest T")):
        if which.sum() < 3 or (words and which.all()):
            continue
        for quantity, values, resampled, power, predicted in (
            ("error ratio", falling / rising, drawn / drawn_warm, logs, exponent),
            ("error ratio", falling / rising, drawn / drawn_warm, 1 - logs, None),
            ("error, best that never rises", falling, drawn, logs, 0.0),
            ("error, warmup", rising, drawn_warm, 0, -exponent),
        ):
            laws.append(
                fit_law(
                    counts[which],
                    values[which],
                    names=(quantity + words, "steps"),
                    logs=power,
                    predicted=predicted,
                    samples=resampled[:, which],
                    seed=seed,
                )
            )
    return ratios, tuple(laws)
