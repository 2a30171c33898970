"""What was measured, a row a quantity: its value, what to hold it against, and what it means."""

import inspect
import math
import textwrap
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from warmfree.advice import Advice, FirstStep, Noise
from warmfree.advice.rehearsal import Rehearsal
from warmfree.advice.verdict import REPRESENTATION_LIMIT
from warmfree.measure.curvature import Sharpness
from warmfree.optim import AdamW2
from warmfree.report.wording import count, factor, number, short
from warmfree.schedule.critical import CriticalLR

__all__ = ["Row", "evidence_rows", "print_evidence", "rehearsal_table"]

_WIDE = 100  # characters for a column of sentences beside the numbers


@dataclass(frozen=True, slots=True)
class Row:
    """A measured quantity in words.

    Attributes:
        quantity: its name.
        value: what was measured.
        reference: what to hold it against, "" if there is nothing.
        meaning: a sentence.
    """

    quantity: str
    value: str
    reference: str
    meaning: str


def print_evidence(advice: Advice, console: Console) -> None:
    """Print a row a quantity; where the console is narrow, what it means goes below."""
    rows = evidence_rows(advice)
    wide = console.width >= _WIDE
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="What was measured", title_justify="left")
    for name in ("quantity", "value", "held against"):
        table.add_column(name, overflow="fold")
    if wide:
        table.add_column("what it means", overflow="fold", ratio=1)
        for row in rows:
            table.add_row(row.quantity, row.value, row.reference, row.meaning)
        console.print(table)
        return
    console.print(Text("What was measured", "bold"))
    for row in rows:
        against = f"   ({row.reference})" if row.reference else ""
        console.print(Text.assemble(f"- {row.quantity}: ", (row.value, "bold"), against))
        for line in textwrap.wrap(row.meaning, max(console.width - 2, 20)):
            console.print(Text(f"  {line}", "dim"))


def rehearsal_table(rehearsal: Rehearsal) -> Table:
    """Return the ways to begin the run that were tried, as a table, the best one marked."""
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title=f"The first {count(rehearsal.length, 'step')}, rehearsed",
        title_justify="left",
    )
    table.add_column("optimizer")
    table.add_column("warmup", justify="right")
    table.add_column("from", justify="right")
    table.add_column("loss at the end", justify="right")
    best = min(one.loss for one in rehearsal.candidates)
    for one in rehearsal.candidates:
        table.add_row(
            one.optimizer,
            count(one.warmup, "step") if one.warmup else "none",
            f"{number(one.start)} lr" if one.warmup else "",
            f"{one.loss:.4g}" if math.isfinite(one.loss) else "diverged",
            style="bold" if one.loss == best and math.isfinite(best) else "",
        )
    return table


def evidence_rows(advice: Advice) -> list[Row]:
    """Return a row for each quantity that was measured, the most telling first."""
    evidence = advice.evidence
    rows = [_critical(evidence.critical)]
    if len(evidence.critical.searches) > 1 and math.isfinite(evidence.critical.spread):
        rows.append(_spread(evidence.critical))
    if evidence.sharpness is not None:
        rows.append(_sharpness(evidence.sharpness, advice.optimizer))
    if evidence.first_step is not None:
        rows += _first_step(evidence.first_step)
    if evidence.noise is not None:
        rows.append(_noise(evidence.noise))
    return rows


def _critical(critical: CriticalLR) -> Row:
    value = {
        "found": lambda: short(critical.lr or math.nan),
        "none": lambda: f"> {short(critical.low)}" if critical.low else "none found",
        "uphill": lambda: f"< {short(critical.high)}" if critical.high else "none found",
    }[critical.outcome]()
    reference = f"target {short(critical.target)}" if critical.target > 0 else ""
    if critical.outcome == "none":
        meaning = "the first step lowers the loss at every learning rate that was tried"
    elif critical.outcome == "uphill":
        meaning = "the first step raises the loss even at the smallest learning rate that was tried"
    elif critical.ratio > 1:
        meaning = (
            f"the first step at the target is {factor(critical.ratio)} times too large: it raises the loss"
        )
    else:
        meaning = (
            f"the first step could be {factor(1 / critical.ratio)} times as large before it raised the loss"
        )
    return Row("critical learning rate", value, reference, meaning)


def _spread(critical: CriticalLR) -> Row:
    found = sum(search.lr is not None for search in critical.searches)
    return Row(
        "its spread",
        f"{factor(critical.spread)} x",
        f"found along {found} of {len(critical.searches)} steps",
        "largest over smallest, each on the batches of another step",
    )


def _sharpness(sharpness: Sharpness, optimizer: str) -> Row:
    parts = []
    if sharpness.early_threshold is not None:
        parts.append(f"{number(sharpness.early_threshold)} for a first step")
    if sharpness.threshold is not None:
        parts.append(f"{number(sharpness.threshold)} later")
    meaning = "curvature as the optimizer's steps see it"
    if math.isfinite(sharpness.ratio):
        meaning += f", {factor(sharpness.ratio)} times what training bears for long"
        if sharpness.ratio > 1 and "Adam" in optimizer:
            meaning += "; Adam's starts high and falls"
    return Row("preconditioned sharpness", number(sharpness.value), ", ".join(parts), meaning)


def _first_step(step: FirstStep) -> list[Row]:
    bound = inspect.signature(AdamW2).parameters["tau"].default
    return [
        Row(
            "first update's RMS",
            number(step.update_rms),
            _settled(step.predicted_rms),
            _times(step.update_rms, step.predicted_rms, "the first update is", "as large as later ones"),
        ),
        Row(
            "first rotation",
            f"{number(math.degrees(step.angle))} deg",
            _settled(None if step.predicted_angle is None else math.degrees(step.predicted_angle), " deg"),
            _times(step.angle, step.predicted_angle, "neurons turn", "as far as they will once settled"),
        ),
        Row(
            "representation change",
            f"{number(100 * step.representation_change)} %",
            f"limit {100 * REPRESENTATION_LIMIT:g} %",
            f"of the output of {step.layer}, the layer that the first step changes most",
        ),
        Row(
            "spectral ratio",
            number(step.spectral_ratio),
            f"{bound:g} in AdamW2",
            f"growth of the largest singular value of {step.spectral_layer}, where it is largest",
        ),
    ]


def _settled(value: float | None, unit: str = "") -> str:
    return "" if value is None else f"{number(value)}{unit} settled"


def _times(value: float, settled: float | None, begin: str, end: str) -> str:
    if settled is None or not settled > 0 or not math.isfinite(value):
        return "what it settles at is not known for this optimizer"
    return f"{begin} {factor(value / settled)} times {end}"


def _noise(noise: Noise) -> Row:
    larger = noise.batch_size > noise.critical_batch_size
    return Row(
        "critical batch size",
        number(noise.critical_batch_size),
        f"batch of {noise.batch_size}",
        "the batch is larger: successive steps agree and add up, which calls for smaller ones"
        if larger
        else "the batch is smaller: noise keeps successive steps from adding up",
    )
