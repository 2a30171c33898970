"""``warmfree advise``: measure, and show evidence, search, verdict and the code that follows it."""

import inspect
import io
import json
import math
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from warmfree.advice import Advice, advise
from warmfree.advice.gradient_noise import measure_noise
from warmfree.advice.step_sharpness import measure_sharpness
from warmfree.advice.verdict import rehearsal_length
from warmfree.lab.advise.curve import curve_of
from warmfree.lab.advise.evidence_table import print_evidence, rehearsal_table
from warmfree.lab.advise.figure import check_figure_file, write_figure
from warmfree.lab.advise.paste import code_for
from warmfree.lab.advise.plot import LEAST_WIDTH, draw
from warmfree.lab.advise.progress import progress
from warmfree.lab.advise.source import Source
from warmfree.lab.live import format_duration
from warmfree.report.wording import count, short
from warmfree.schedule.critical import critical_lr

__all__ = ["give_advice", "preview", "show"]

# As `advise` has them: searches for the critical learning rate, and ways to begin that it rehearses at most.
SEARCHES, BEGINNINGS = 3, 6
_STYLES = {"no warmup": "bold green", "warmup": "bold yellow", "replace": "bold magenta", "unknown": "bold"}


def give_advice(
    source: Source,
    *,
    accumulate: int,
    max_grad_norm: float | None,
    rehearse: bool,
    as_json: bool,
    plot: Path | None,
) -> Advice:
    """Measure what a run needs, and print it.

    Args:
        source: the run before its first step; left as it was.
        accumulate: batches that one optimizer step adds up, >= 1.
        max_grad_norm: the norm to which training clips gradients; None if it does not.
        rehearse: whether to train copies of the first steps, to see how long the warmup must be.
        as_json: print the advice as JSON, and nothing else, on standard output.
        plot: a figure of the search to write, in svg, png or pdf; None for none.

    Raises:
        ValueError: an argument is out of range, or the run cannot be measured.
    """
    _check(source, accumulate, max_grad_norm)
    if plot is not None:
        check_figure_file(plot)
    errors = Console(stderr=True)
    try:
        with progress(errors) as report:
            report(f"looking at {_describe(source)}")
            advice = advise(
                source.model,
                source.loss_fn,
                source.batches,
                source.optimizer,
                steps=source.steps,
                batch_size=source.batch_size * accumulate,
                accumulate=accumulate,
                max_grad_norm=max_grad_norm,
                rehearse=rehearse,
                on_progress=report,
            )
    except torch.OutOfMemoryError:
        raise ValueError(
            f"{source.title}: out of memory; try a smaller --batch-size, or --device cpu"
        ) from None
    curve = curve_of(advice.evidence.critical)
    if as_json:
        print(json.dumps(advice.as_dict(), indent=2, allow_nan=False))
    else:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a terminal without Unicode shows what it can
        show(advice, _describe(source), Console(highlight=False))
    if plot is not None:
        if curve is None:
            errors.print(f"no plot: too few learning rates were tried, {plot} is not written", soft_wrap=True)
        else:
            write_figure(curve, source.title, plot)
            errors.print(f"plot: {escape(str(plot))}", highlight=False, soft_wrap=True)
    return advice


def show(advice: Advice, what: str, console: Console) -> None:
    """Print advice for people.

    Args:
        advice: to print.
        what: is trained, in a line.
        console: where to; narrow ones get no plot.
    """
    console.print(Text(what, "bold"))
    console.print()
    curve = curve_of(advice.evidence.critical)
    if curve is not None and console.width >= LEAST_WIDTH:
        console.print(draw(curve, width=console.width, ascii_only=console.options.ascii_only))
        console.print()
    print_evidence(advice, console)
    if advice.evidence.rehearsal is not None and advice.evidence.rehearsal.candidates:
        console.print()
        console.print(rehearsal_table(advice.evidence.rehearsal))
    verdict = (advice.verdict, _STYLES[advice.verdict])
    console.print(Text.assemble(("Verdict: ", "bold"), verdict, f" ({advice.confidence} confidence)"))
    console.print(Text(advice.summary()))
    for heading, sentences in (("Because", advice.reasons), ("But", advice.doubts)):
        if sentences:
            console.print()
            console.print(Text(heading, "bold"))
            for sentence in sentences:
                _point(console, sentence)
    for heading, code in code_for(advice):
        console.print()
        console.print(Text(heading, "bold"))
        for line in code:
            console.print(Text(f"    {line}"), soft_wrap=True)  # to be pasted
    console.print()
    critical = advice.evidence.critical
    console.print(
        Text(
            f"measured in {format_duration(advice.seconds)}; the search alone took "
            f"{count(critical.forward_passes, 'forward pass')} and "
            f"{count(critical.backward_passes, 'backward pass')}",
            "dim",
        )
    )


def preview(source: Source, *, accumulate: int, rehearse: bool, console: Console) -> None:
    """Print what would be measured and how many passes it takes, one over the batches of a step each; do nothing.

    Args:
        source: the run before its first step.
        accumulate: batches that one optimizer step adds up, >= 1.
        rehearse: whether the first steps would be rehearsed.
        console: where to.
    """
    _check(source, accumulate)
    console.print(Text(_describe(source), "bold"))
    trials = _default(critical_lr, "max_passes")
    noise, products = _default(measure_noise, "most"), _default(measure_sharpness, "max_products")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("what would be measured", overflow="fold")
    table.add_column("forward passes", justify="right")
    table.add_column("backward passes", justify="right")
    table.add_row(
        f"critical learning rate, along {SEARCHES} steps", f"up to {SEARCHES * trials}", f"{SEARCHES}"
    )
    table.add_row("size of the first step", "1", "1")
    noise = math.ceil(noise / accumulate)
    table.add_row("noise of the gradient", f"up to {noise}", f"up to {noise}")
    table.add_row("sharpness (not for all optimizers)", f"up to {products + 1}", f"up to {2 * products + 1}")
    total = SEARCHES * trials + noise + products + 2
    if rehearse:
        length = rehearsal_length(source.steps)
        total += BEGINNINGS * length
        table.add_row(
            f"the first {count(length, 'step')}, rehearsed in up to {BEGINNINGS} ways",
            f"up to {BEGINNINGS * length}",
            f"up to {BEGINNINGS * length}",
        )
    console.print(table)
    console.print(
        Text(
            f"In all up to {total:,} forward passes, most with a backward pass; the run itself has {source.steps:,}."
        )
    )


def _check(source: Source, accumulate: int, max_grad_norm: float | None = None) -> None:
    for name, value in (
        ("steps", source.steps),
        ("batch_size", source.batch_size),
        ("accumulate", accumulate),
    ):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    if max_grad_norm is not None and not max_grad_norm > 0:
        raise ValueError(f"max_grad_norm must be > 0, got {max_grad_norm}")


def _default(function: Callable[..., Any], name: str) -> int:
    value: int = inspect.signature(function).parameters[name].default
    return value


def _describe(source: Source) -> str:
    """Say in a line what is trained, how, and for how long."""
    parameters = sum(weight.numel() for weight in source.model.parameters() if weight.requires_grad)
    lr = float(source.optimizer.param_groups[0]["lr"])
    return (
        f"{source.title}: {count(parameters, 'parameter')}, {type(source.optimizer).__name__} at lr {short(lr)}, "
        f"{count(source.steps, 'step')} of {count(source.batch_size, 'sample')}"
    )


def _point(console: Console, sentence: str) -> None:
    for index, line in enumerate(textwrap.wrap(sentence, max(console.width - 2, 20))):
        console.print(Text(f"{'- ' if index == 0 else '  '}{line}"))
