"""The tables of the speed-up: exponents with their intervals, steps, errors."""

from collections.abc import Iterable

from warmfree.lab.theory.finding import Table
from warmfree.report.wording import number, short
from warmfree.theory.speedup import Law, Speedup

__all__ = ["lay_out_speedup"]

_NONE = "-"


def lay_out_speedup(found: Speedup) -> tuple[Table, ...]:
    """Lay out all tables that have rows."""
    tables = (
        _laws(found),
        _steps(found),
        _errors(found),
        _population(found),
        _power(found),
        _mistakes(found),
    )
    return tuple(table for table in tables if table.rows)


def _laws(found: Speedup) -> Table:
    groups: list[tuple[str, Iterable[Law]]] = [
        ("one function", found.steps.laws),
        ("population", found.population.laws),
    ]
    groups.append(("powers", found.power_laws))
    groups += [
        ("exact gradients" if each.noise == "none" else f"{each.noise} noise", each.laws)
        for each in found.errors
    ]
    rows = []
    for where, laws in groups:
        for law in laws:
            power = "" if law.logs == 1 else f"^{law.logs:g}"
            logs = f" · ln({law.variable}){power}" if law.logs else ""
            form = "" if law.form == "power" else ", per e-fold"
            inside = law.predicted is not None and law.low <= law.predicted <= law.high
            rows.append(
                (
                    f"{law.quantity}{logs}{form}",
                    where,
                    law.variable,
                    f"{law.slope:.3f}",
                    f"{law.low:.3f} to {law.high:.3f}",
                    _NONE if law.predicted is None else f"{law.predicted:.4g}",
                    _NONE if law.predicted is None else "yes" if inside else "no",
                    str(len(law.points)),
                )
            )
    return Table(
        "laws",
        "Exponents",
        "Slopes of straight lines through the measured points, with 95 % bootstrap intervals",
        ("quantity", "where", "against", "slope", "interval", "theory", "inside", "points"),
        tuple(rows),
        words=frozenset({"where", "against"}),
        page_only=frozenset({"against", "points"}),
        brief=tuple(row for row in rows if row[5] != _NONE),
        notes="The slope is an exponent, through both logarithms; per e-fold it is that of the quantity "
        "itself against the natural logarithm. A quantity times a logarithm is for theories that hold up to "
        "one.",
    )


def _steps(found: Speedup) -> Table:
    rows = found.steps.rows
    gaps = sorted({row.gap for row in rows})
    families = dict.fromkeys((row.family, row.kind) for row in rows)
    by_place = {(row.family, row.gap): row for row in rows}
    cells = []
    for family, kind in families:
        here = [by_place.get((family, gap)) for gap in gaps]
        cells.append(
            (family, kind, *(_NONE if row is None or row.steps is None else f"{row.steps:,}" for row in here))
        )
    headers = ("family", "kind", *(number(gap) for gap in gaps))
    spread = {gaps[0], gaps[len(gaps) // 2], gaps[-1]} if gaps else set()
    return Table(
        "steps-table",
        "Steps of every family",
        f"Fewest steps to a gap of {number(found.steps.target)} by initial gap, each family tuned for each",
        headers,
        tuple(cells),
        words=frozenset({"kind"}),
        page_only=frozenset(number(gap) for gap in gaps if gap not in spread),
        notes="A hyphen: not tried at that gap, or no member came there within the limit.",
    )


def _errors(found: Speedup) -> Table:
    rows = tuple(
        (
            row.family,
            errors.noise,
            f"{row.steps:,}",
            number(row.gap),
            number(row.error),
            _NONE if errors.noise == "none" else f"{number(row.low)} to {number(row.high)}",
            number(row.slope),
            _parameters(row.parameters),
            f"{row.tried:,}",
        )
        for errors in found.errors
        for row in errors.rows
    )
    return Table(
        "errors-table",
        "Errors of every family",
        "Error after T steps in the worst case of each family",
        ("family", "noise", "T", "initial gap", "error", "interval", "worst slope", "parameters", "tried"),
        rows,
        words=frozenset({"noise", "parameters"}),
        in_terminal=False,
    )


def _population(found: Speedup) -> Table:
    rows = tuple(
        (
            row.family,
            number(row.gap),
            "all at the target" if row.aim == "all" else "half at the target",
            _NONE if row.steps is None else number(row.steps),
            _NONE if row.low is None or row.high is None else f"{number(row.low)} to {number(row.high)}",
            _parameters(row.parameters),
            f"{row.tried:,}",
        )
        for row in found.population.rows
    )
    return Table(
        "population-table",
        "Steps for the population",
        f"Steps until functions of a population are at a gap of {number(found.population.target)}",
        ("family", "initial gap", "aim", "steps", "interval", "parameters", "tried"),
        rows,
        words=frozenset({"aim", "parameters"}),
        in_terminal=False,
    )


def _power(found: Speedup) -> Table:
    rows = tuple(
        (
            f"|x|^{row.power} / {row.power}",
            number(row.start),
            _NONE if row.constant is None else f"{row.constant:,}",
            short(row.lr),
            _NONE if row.near_edge is None else f"{row.near_edge:,}",
            f"{row.predicted:,.0f}",
            _NONE if row.warmup is None else f"{row.warmup:,}",
        )
        for row in found.power
    )
    return Table(
        "power",
        "Powers",
        "Steps on a power of the distance, by the best constant learning rate and by the warmup",
        ("function", "start", "constant", "its lr", "below the edge", "theory", "warmup"),
        rows,
        notes="The best constant learning rate, those left out that land at the minimum by luck; and 0.95 of "
        "the largest with which the distance does not grow, beside what theory says of that.",
    )


def _mistakes(found: Speedup) -> Table:
    rows = tuple(
        (
            "learning rate times" if row.what == "step" else "infimum moved by",
            number(row.amount),
            number(row.gap),
            "diverged" if row.diverged else _NONE if row.steps is None else f"{row.steps:,}",
        )
        for row in found.mistakes.rows
    )
    return Table(
        "mistakes-table",
        "Wrong constants",
        "Steps of the warmup when its constants are wrong",
        ("mistake", "amount", "initial gap", "steps"),
        rows,
        in_terminal=False,
        notes=f"A hyphen: not at a gap of {number(found.mistakes.target)} within {found.mistakes.limit:,} steps.",
    )


def _parameters(parameters: dict[str, float]) -> str:
    return ", ".join(f"{name} {number(value)}" for name, value in parameters.items()) or _NONE
