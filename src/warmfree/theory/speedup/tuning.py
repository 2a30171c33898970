"""Tuning with the same care for every family: a grid, fine near the edge of stability, then finer around the best."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from warmfree.theory.speedup.candidates import Candidates

__all__ = ["Tuned", "around", "near", "non_increasing", "tune", "warmups"]

Floats = NDArray[np.float64]

FINE: tuple[float, ...] = tuple(np.geomspace(1e-5, 0.1, 9).tolist())


@dataclass(frozen=True, kw_only=True, eq=False)
class Tuned:
    """The best member of one family.

    Attributes:
        family: its name.
        member: alone in its `Candidates`.
        value: what was made small; inf if no member came there.
        tried: how many members of the family were evaluated, in all rounds.
    """

    family: str
    member: Candidates
    value: float
    tried: int


def tune(
    evaluate: Callable[[Candidates], Floats],
    first: Sequence[Candidates],
    *,
    rounds: int = 2,
    away: Sequence[float] = FINE,
) -> dict[str, Tuned]:
    """Find the best member of each family.

    Args:
        evaluate: gives a number for each candidate, the smaller the better; nan is the worst.
        first: the grids of the first round, one for each family, all different in name.
        rounds: how often `around` the best is tried after that.
        away: see `around`.

    Returns:
        By name of the family. Of equally good members that with the smallest learning rate is taken.
    """
    best: dict[str, Tuned] = {}
    grids = list(first)
    for _ in range(rounds + 1):
        values = np.nan_to_num(evaluate(Candidates.joined(grids)), nan=math.inf)
        ends = np.cumsum([len(grid) for grid in grids])
        for grid, found in zip(grids, np.split(values, ends[:-1]), strict=True):
            (name,) = grid.names
            which = int(np.lexsort((grid.lr, found))[0])
            before = best.get(name)
            tried = len(grid) + (before.tried if before else 0)
            if before is None or found[which] < before.value:
                member = grid.take(np.array([which]))
                best[name] = Tuned(family=name, member=member, value=float(found[which]), tried=tried)
            else:
                best[name] = Tuned(family=name, member=before.member, value=before.value, tried=tried)
        grids = [around(best[grid.names[0]].member, within=grid, away=away) for grid in first]
    return best


def near(
    edge: float, *, count: int = 14, closest: float = 1e-7, lowest: float = 0.7, above: int = 5
) -> Floats:
    """Return learning rates around an edge of stability: their distances to it are a geometric sequence.

    Args:
        edge: above which the first step leads farther away.
        count: how many below the edge.
        closest: the smallest distance below it, relative.
        lowest: the smallest learning rate, relative.
        above: how many above the edge, at relative distances from 1e-3 to 2: lucky ones are there to be found too.
    """
    below = 1.0 - np.geomspace(closest, 1.0 - lowest, count)
    return edge * np.concatenate([below[::-1], [1.0], 1.0 + np.geomspace(1e-3, 2.0, above)])


def non_increasing(rates: Floats, *, horizon: float, constants: Floats | None = None) -> list[Candidates]:
    """Return the first grids of the four families of schedules that never rise.

    Members that are all but constant are left out of the other three: each loses at least 2 % of its learning rate by
    the horizon, since constant schedules are a family of their own.

    Args:
        rates: learning rates to begin with.
        horizon: T, about the steps that a constant schedule needs.
        constants: learning rates of the constant schedules; None takes `rates`.
    """
    offsets = np.unique(np.concatenate([[1.0], horizon * np.geomspace(1e-3, 10.0, 5)]))
    periods = np.unique(np.ceil(horizon * np.array([0.1, 0.3, 0.6, 0.9])))
    drops = np.array([0.1, 0.5, 0.8, 0.98])
    return [
        Candidates.of("constant", rates if constants is None else constants),
        Candidates.of("1/sqrt(t)", rates[:, None], offset=offsets),
        Candidates.of("1/t", rates[:, None], offset=offsets),
        Candidates.of("step drop", rates[:, None, None], every=periods[:, None], drop=drops),
    ]


def warmups(edge: float, *, peaks: Floats) -> list[Candidates]:
    """Return the first grids of warmups of a fixed length: linear and geometric.

    Args:
        edge: by which the first learning rates are measured: from a thirtieth of it to thirty times.
        peaks: peak learning rates.
    """
    first = edge * np.geomspace(1 / 30, 30.0, 25)
    lengths = np.maximum(1.0, np.ceil(peaks[:, None] / first))
    factors = np.geomspace(1.05, 4.0, 12)
    steps = 1.0 + np.log(np.maximum(peaks[:, None] / first, 1.0))[..., None] / np.log(factors)
    return [
        Candidates.of("linear warmup", peaks[:, None], length=lengths),
        Candidates.of("geometric warmup", peaks[:, None, None], length=np.ceil(steps), growth=factors),
    ]


def around(member: Candidates, *, within: Candidates, away: Sequence[float] = FINE) -> Candidates:
    """Return members around one, itself included, in all parameters.

    Args:
        member: of one family, alone.
        within: of the same family: no offset, period or drop is larger than its largest, so that a schedule that decays
            stays one.
        away: relative distances of the learning rates, on both sides; up to a tenth by default.
    """
    distances = np.sort(np.asarray(away, np.float64))
    lr = float(member.lr[0]) * np.concatenate([1.0 - distances[::-1], [1.0], 1.0 + distances])
    wide, narrow = np.array([0.6, 0.8, 1.0, 1.25, 1.6]), np.array([0.5, 1.0, 2.0])
    (name,) = member.names
    if math.isfinite(member.offset[0]):
        return Candidates.of(name, lr[:, None], offset=_up_to(within.offset, member.offset[0] * wide))
    if math.isfinite(member.every[0]):
        every = _up_to(within.every, np.ceil(member.every[0] * wide))
        drop = _up_to(within.drop, member.drop[0] ** narrow)
        return Candidates.of(name, lr[:, None, None], every=every[:, None], drop=drop)
    if member.growth[0] > 0.0:
        length = np.unique(np.maximum(1.0, member.length[0] + np.arange(-2.0, 3.0)))
        growth = 1.0 + (member.growth[0] - 1.0) * wide
        return Candidates.of(name, lr[:, None, None], length=length[:, None], growth=growth)
    if member.length[0] > 1.0 or name == "linear warmup":
        length = np.unique(np.maximum(1.0, np.round(member.length[0] * wide)))
        return Candidates.of(name, lr[:, None], length=length)
    return Candidates.of(name, lr)


def _up_to(allowed: Floats, values: Floats) -> Floats:
    return np.unique(np.minimum(values, allowed.max()))
