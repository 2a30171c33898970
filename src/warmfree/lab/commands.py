"""The commands of ``warmfree`` as the command line sees them: their options, defaults and help."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.console import Console
from tyro.conf import Positional, arg

from warmfree.lab.advise.command import give_advice
from warmfree.lab.advise.command import preview as preview_advice
from warmfree.lab.advise.figure import check_figure_file
from warmfree.lab.advise.hugging_face import hugging_face_source
from warmfree.lab.advise.lab_tasks import gpt_source, vit_source
from warmfree.lab.advise.recipes import Recipe
from warmfree.lab.advise.source import Source, check_options, kind_of
from warmfree.lab.advise.user_function import function_source
from warmfree.lab.compare import compare, preview
from warmfree.lab.dissect.cases import MODELS, find_case
from warmfree.lab.dissect.command import dissect
from warmfree.lab.dissect.command import preview as preview_dissection
from warmfree.lab.interrupt import Interrupted
from warmfree.lab.plan import DEFAULT_TASK, make_plan
from warmfree.lab.theory.commands import Theory
from warmfree.report.runs import load_run, run_summary, write_run_report

__all__ = ["COMMANDS", "Advise", "Compare", "Dissect", "Report"]


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


@dataclass(kw_only=True)
class Advise:
    """Say whether a run needs learning-rate warmup, how long, and why.

    SOURCE is what would be trained: gpt or vit (the lab's models, on Shakespeare and MNIST), hf (a model of
    transformers, from --config, on --text or --images; nothing is downloaded), or a function of yours without
    arguments that returns (model, loss_fn, batches, optimizer), as module:function or path/to/file.py:function.

    Measures the critical learning rate and what bears on it, and rehearses the first steps; prints the evidence, the
    verdict with its reasons and doubts, and the lines of code that follow it.
    """

    source: Annotated[str, arg(metavar="SOURCE"), Positional]
    """gpt, vit, hf, module:function, or path/to/file.py:function."""
    optimizer: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: adamw)")] = None
    """What it would be trained with: adamw, adam, sgd, muon, lionar, ..."""
    lr: Annotated[float | None, arg(metavar="LR", help_behavior_hint="(default: 1e-3 for adamw)")] = None
    """Full learning rate."""
    weight_decay: Annotated[
        float | None, arg(metavar="X", help_behavior_hint="(default: 0.1 where it is decoupled, else 0)")
    ] = None
    """Weight decay."""
    beta1: Annotated[float | None, arg(metavar="X", help_behavior_hint="(default: 0.9, muon 0.95)")] = None
    """Momentum."""
    beta2: Annotated[float | None, arg(metavar="X", help_behavior_hint="(default: 0.95)")] = None
    """Averaging of squared gradients."""
    steps: Annotated[
        int | None, arg(metavar="N", help_behavior_hint="(default: 300 for gpt and vit; needed for others)")
    ] = None
    """Length of the run."""
    batch_size: Annotated[
        int | None,
        arg(metavar="N", help_behavior_hint="(default: gpt 16, vit 64, hf 16, a function's first batch)"),
    ] = None
    """Samples in a batch."""
    accumulate: Annotated[int, arg(metavar="N")] = 1
    """Batches that one step adds up."""
    max_grad_norm: Annotated[float | None, arg(metavar="X", help_behavior_hint="(default: none)")] = None
    """Norm to which gradients are clipped."""
    config: Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="")] = None
    """Of hf: config.json, or its folder; a tokenizer in it is used, else bytes."""
    text: Annotated[
        Path | None, arg(metavar="PATH", help_behavior_hint="(default: Shakespeare's plays for gpt)")
    ] = None
    """A text file; of hf a folder of them, too."""
    images: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: MNIST for vit)")] = (
        None
    )
    """Of vit: idx files; of hf: a subfolder with images for each class."""
    context: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 128 or the model's)")] = (
        None
    )
    """Of hf with text: tokens per sequence."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Of weights and batches."""
    device: Annotated[
        str | None, arg(metavar="NAME", help_behavior_hint="(default: cuda if there is one)")
    ] = None
    """Where to compute."""
    no_rehearsal: bool = False
    """Train no copies of the first steps: faster, less certain."""
    json: bool = False
    """Print the advice as JSON, and nothing else, on standard output."""
    plot: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    """Write a figure of the search: svg, png or pdf."""
    dry_run: bool = False
    """Say what would be measured and how many passes it takes, and measure nothing."""

    def __call__(self, *, command: str) -> None:  # noqa: ARG002 (what all commands are called with)
        """Give the advice, or preview what it would take."""
        if self.json and self.dry_run:
            raise ValueError("--dry-run gives no advice to print as JSON; leave one of them out")
        if self.plot is not None:
            check_figure_file(self.plot)
        try:
            self._advise()
        except KeyboardInterrupt:
            raise Interrupted("interrupted before a verdict; nothing was kept") from None

    def _advise(self) -> None:
        source = self._open()
        if self.dry_run:
            console = Console(highlight=False)
            preview_advice(
                source, accumulate=self.accumulate, rehearse=not self.no_rehearsal, console=console
            )
            return
        give_advice(
            source,
            accumulate=self.accumulate,
            max_grad_norm=self.max_grad_norm,
            rehearse=not self.no_rehearsal,
            as_json=self.json,
            plot=self.plot,
        )

    def _open(self) -> Source:
        kind = kind_of(self.source)
        recipe = {
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "beta1": self.beta1,
            "beta2": self.beta2,
        }
        data = {"config": self.config, "text": self.text, "images": self.images, "context": self.context}
        check_options(kind, {"optimizer": self.optimizer, "device": self.device, **recipe, **data})
        run: dict[str, Any] = {"steps": self.steps, "batch_size": self.batch_size, "seed": self.seed}
        if kind == "function":
            return function_source(self.source, **run)
        run["device"] = self.device
        built = Recipe(name=self.optimizer, **recipe)
        if kind == "gpt":
            return gpt_source(built, text=self.text, **run)
        if kind == "vit":
            return vit_source(built, images=self.images, **run)
        return hugging_face_source(
            built, config=self.config, text=self.text, images=self.images, context=self.context, **run
        )


COMMANDS: dict[str, Callable[..., Any]] = {
    "advise": Advise,
    "compare": Compare,
    "report": Report,
    "dissect": Dissect,
    "theory": Theory,
}
