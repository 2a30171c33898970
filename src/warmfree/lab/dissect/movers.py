"""Which quantities left the healthy range before the loss did, and how often they do so without any crash."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from warmfree.lab.dissect.envelope import Exit, Key, Range, envelope_of, first_exits, ranges_of
from warmfree.lab.dissect.history import History
from warmfree.lab.dissect.kinds import LEFT_OUT, WITHOUT_RANGE, Kind, kind_of
from warmfree.lab.dissect.losses import LossEvents
from warmfree.report.runs.run import Quantity, Row

__all__ = ["TRUSTED", "Move", "Mover", "find_movers"]

TRUSTED = 0.1


@dataclass(frozen=True, slots=True)
class Move:
    """A quantity left the healthy range in a failing run.

    Attributes:
        run: name of the run.
        exit: its earliest exit, of all its rows.
        together: all rows that left on that step, the furthest outside first.
        rows_before: how many rows left before the first event of the loss.
        lead: steps from the exit to the first event of the loss, > 0 if it came first; None without an event.
        lead_jump: the same to its jump.
        lead_leaves: the same to where it leaves for good.
    """

    run: str
    exit: Exit
    together: tuple[Row, ...]
    rows_before: int
    lead: int | None
    lead_jump: int | None
    lead_leaves: int | None


@dataclass(frozen=True, slots=True)
class Mover:
    """What one quantity did, in the failing runs and in the controls.

    Attributes:
        quantity: which.
        kind: whether it differs by construction.
        healthy_runs: runs that went well and have it.
        failing_runs: failing runs that have it, and in which it can be judged.
        moves: in those of them where it moved.
        run_alarms: by healthy run, the step at which it leaves the range of the others, None if it does not.
        method_alarms: the same for the range of the healthy runs of other methods.
    """

    quantity: Quantity
    kind: Kind
    healthy_runs: int
    failing_runs: int
    moves: tuple[Move, ...] = ()
    run_alarms: Mapping[str, int | None] = field(default_factory=dict)
    method_alarms: Mapping[str, int | None] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the quantity."""
        return self.quantity.name

    @property
    def before(self) -> list[Move]:
        """The moves that came before the loss."""
        return [move for move in self.moves if move.lead is not None and move.lead > 0]

    @property
    def median_lead(self) -> float | None:
        """Over the failing runs in which it moved before the loss."""
        return median(move.lead for move in self.before if move.lead is not None) if self.before else None

    @property
    def false_alarm_rate(self) -> float | None:
        """Fraction of healthy runs that leave the range of the others; None if there are no two to compare."""
        return rate(self.run_alarms)

    @property
    def is_trusted(self) -> bool:
        """Whether it hardly ever moves without a crash: in at most a tenth of the healthy runs."""
        return self.false_alarm_rate is not None and self.false_alarm_rate <= TRUSTED

    def alarms_before(self, step: float) -> int:
        """Return how many healthy runs leave the range of the others before a step."""
        return sum(alarm is not None and alarm < step for alarm in self.run_alarms.values())


def rate(alarms: Mapping[str, int | None]) -> float | None:
    """Return the fraction of runs with an alarm; None of no runs."""
    return sum(step is not None for step in alarms.values()) / len(alarms) if alarms else None


def find_movers(
    failing: Mapping[str, LossEvents], histories: Sequence[History], healthy: Sequence[str]
) -> list[Mover]:
    """Find for each quantity where and when it left the healthy range, and how often healthy runs do.

    The healthy range of a quantity of a layer is all that it ever is in the healthy runs, at any step, with a margin.
    The controls: each healthy run against the others, and against those of other methods only.

    Args:
        failing: when the loss of each failing run went, by name.
        histories: of all these runs.
        healthy: names of the runs that went well, one at least.

    Returns:
        All quantities: those with few false alarms first, then by the number of failing runs in which they moved before
        the loss, then by their median lead.

    Raises:
        ValueError: there is no healthy run.
    """
    if not healthy:
        raise ValueError("no run went well: there is no range to leave")
    by_name = {history.name: history for history in histories}
    ranges = {name: ranges_of(by_name[name].grids) for name in healthy}
    method_of = {name: by_name[name].cell.method for name in healthy}
    envelope = envelope_of(list(ranges.values()))
    movers = []
    for quantity in _quantities(histories):
        exits = {name: _exits(by_name[name], quantity.name, envelope) for name in failing}
        movers.append(
            Mover(
                quantity=quantity,
                kind=kind_of(quantity.name),
                healthy_runs=sum(quantity.name in by_name[name].grids for name in healthy),
                failing_runs=sum(found is not None for found in exits.values()),
                moves=tuple(_move(name, found, failing[name]) for name, found in exits.items() if found),
                run_alarms=_alarms(quantity.name, by_name, ranges, lambda one, other: one != other),
                method_alarms=_alarms(
                    quantity.name, by_name, ranges, lambda one, other: method_of[one] != method_of[other]
                ),
            )
        )
    return sorted(movers, key=_order)


def _order(mover: Mover) -> tuple[bool, int, float, float, str]:
    rate_ = 1.0 if mover.false_alarm_rate is None else mover.false_alarm_rate
    return (not mover.is_trusted, -len(mover.before), -(mover.median_lead or 0.0), rate_, mover.name)


def _quantities(histories: Sequence[History]) -> list[Quantity]:
    found = {name: grid.quantity for history in histories for name, grid in history.grids.items()}
    return [quantity for name, quantity in found.items() if name not in LEFT_OUT]


def _exits(history: History, quantity: str, envelope: Mapping[Key, Range]) -> list[Exit] | None:
    """Return the exits of a run, None if the quantity was not measured or there is nothing to judge it by."""
    grid = history.grids.get(quantity)
    if grid is None:
        return [] if quantity in WITHOUT_RANGE else None
    judged = quantity in WITHOUT_RANGE or any((quantity, row.layer) in envelope for row in grid.rows)
    return first_exits(grid, envelope) if judged else None


def _move(run: str, exits: Sequence[Exit], events: LossEvents) -> Move:
    first = exits[0]

    def lead(event: int | None) -> int | None:
        return None if event is None else event - first.step

    before = 0 if events.first is None else sum(found.step < events.first for found in exits)
    together = tuple(found.row for found in exits if found.step == first.step)
    return Move(run, first, together, before, lead(events.first), lead(events.jump), lead(events.leaves))


def _alarms(
    quantity: str,
    histories: Mapping[str, History],
    ranges: Mapping[str, Mapping[Key, Range]],
    is_against: Callable[[str, str], bool],
) -> dict[str, int | None]:
    """Hold each healthy run against others; return the step of its first exit by run that can be judged."""
    alarms: dict[str, int | None] = {}
    for name in ranges:
        others = [
            {key: seen for key, seen in each.items() if key[0] == quantity}
            for other, each in ranges.items()
            if is_against(name, other)
        ]
        exits = _exits(histories[name], quantity, envelope_of(others)) if others else None
        if exits is not None:
            alarms[name] = exits[0].step if exits else None
    return alarms
