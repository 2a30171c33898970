"""The commands of ``warmfree`` as the command line sees them: their options, defaults and help."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.console import Console
from tyro.conf import Positional, arg

from warmfree.lab.compare import compare, preview
from warmfree.lab.dissect.cases import MODELS, find_case
from warmfree.lab.dissect.command import dissect
from warmfree.lab.dissect.command import preview as preview_dissection
from warmfree.lab.plan import DEFAULT_TASK, make_plan
from warmfree.report.runs import load_run, run_summary, write_run_report

__all__ = ["COMMANDS", "Compare", "Report"]


@dataclass(kw_only=True)
class Compare:
    """Compare optimizers with and without learning-rate warmup on real text.

    Trains a small byte-level GPT with every optimizer at every learning rate, in parallel processes, and
    writes report.html and results.json. Interrupted or killed, the same command goes on where it was.
    """

    quick: bool = False
    """A smaller model and context: under 90 s on 2 cores."""
    optimizers: Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="(default: all)")] = ()
    """Which optimizers to compare."""
    lrs: Annotated[
        tuple[float, ...], arg(metavar="LR ...", help_behavior_hint="(default: each one's own)")
    ] = ()
    """Learning rates for all of them."""
    steps: Annotated[int | None, arg(metavar="N", help_behavior_hint=f"(default: {DEFAULT_TASK.steps})")] = (
        None
    )
    """Optimizer steps of every run."""
    seeds: Annotated[int, arg(metavar="N")] = 1
    """How many seeds: 0, 1, ..."""
    workers: Annotated[int, arg(metavar="N")] = os.cpu_count() or 1
    """Parallel processes, of one thread each."""
    out: Annotated[
        Path | None,
        arg(
            metavar="FOLDER",
            help_behavior_hint="(default: warmfree-compare, with --quick warmfree-compare-quick)",
        ),
    ] = None
    """Results folder."""
    text: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: Shakespeare's plays)")] = (
        None
    )
    """A UTF-8 text to train on."""
    dry_run: bool = False
    """Print the runs and the expected time, and do nothing."""

    def __call__(self, *, command: str) -> None:
        """Run the comparison, or preview it.

        Args:
            command: what was typed, for the report.
        """
        if self.workers < 1:
            raise ValueError(f"workers must be >= 1, got {self.workers}")
        plan = make_plan(
            quick=self.quick,
            optimizers=self.optimizers or None,
            lrs=self.lrs or None,
            steps=self.steps,
            seeds=self.seeds,
            text=self.text,
        )
        out = self.out or Path("warmfree-compare-quick" if self.quick else "warmfree-compare")
        console = Console()
        if self.dry_run:
            preview(plan, out, workers=self.workers, console=console)
        else:
            compare(plan, out, workers=self.workers, command=command, console=console)


@dataclass(kw_only=True)
class Report:
    """Make one page of runs that a monitor watched.

    Each RUN is the folder that `warmfree.Monitor` was given as `out`. The page has the loss with all alerts, every
    quantity of every layer over the steps, and the distance to the stability threshold; it loads nothing.
    """

    runs: Annotated[tuple[Path, ...], arg(metavar="RUN ...", help_behavior_hint=""), Positional]
    """Folders of watched runs."""
    out: Annotated[
        Path | None, arg(metavar="FILE", help_behavior_hint="(default: report.html in the run)")
    ] = None
    """The page, or a folder for it; with several runs the default is report.html here."""

    def __call__(self, *, command: str) -> None:  # noqa: ARG002 (what all commands are called with)
        """Write the page and say what it shows."""
        if not self.runs:
            raise ValueError("name the folder of at least one watched run")
        console = Console(highlight=False)
        for folder in self.runs:
            run = load_run(folder)
            console.print(f"{run.name}", style="bold")
            for sentence in run_summary(run):
                console.print(f"  {sentence}", soft_wrap=True, markup=False)
        alone = self.runs[0] if len(self.runs) == 1 and self.runs[0].is_dir() else Path("report.html")
        page = write_run_report(self.runs, self.out or alone)
        console.print(f"report: {page}", soft_wrap=True, markup=False)


@dataclass(kw_only=True)
class Dissect:
    """Dissect a crash: which quantity of which layer moves first where AdamW without warmup fails.

    Trains a small GPT and a small ViT at a learning rate where AdamW without warmup fails, beside AdamW with warmup and
    optimizers that need none, and watches every run with all probes. Writes results.json, dissection.md and a page
    a seed for each model. Interrupted or killed, the same command goes on where it was.
    """

    model: Annotated[Literal["both", "gpt", "vit"], arg(metavar="{both,gpt,vit}")] = "both"
    """Which model."""
    seeds: Annotated[int, arg(metavar="N")] = 3
    """How many seeds: 0, 1, ..."""
    steps: Annotated[
        int | None, arg(metavar="N", help_behavior_hint="(default: 300 for the GPT, 200 for the ViT)")
    ] = None
    """Optimizer steps of every run."""
    workers: Annotated[int, arg(metavar="N")] = os.cpu_count() or 1
    """Parallel processes, of one thread each."""
    out: Annotated[Path, arg(metavar="FOLDER")] = Path("warmfree-dissect")
    """Results folder, with a folder for each model in it."""
    dry_run: bool = False
    """Print the runs and the expected time, and do nothing."""

    def __call__(self, *, command: str) -> None:
        """Run the dissection, or preview it.

        Args:
            command: what was typed, for the results.
        """
        for name, value in (("workers", self.workers), ("seeds", self.seeds)):
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        names = MODELS if self.model == "both" else (self.model,)
        cases = [find_case(name, steps=self.steps) for name in names]
        console = Console()
        if self.dry_run:
            preview_dissection(cases, self.out, seeds=self.seeds, workers=self.workers, console=console)
        else:
            dissect(cases, self.out, seeds=self.seeds, workers=self.workers, command=command, console=console)


COMMANDS: dict[str, Callable[..., Any]] = {"compare": Compare, "report": Report, "dissect": Dissect}
