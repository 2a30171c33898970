"""The commands of ``warmfree`` as the command line sees them: their options, defaults and help."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console
from tyro.conf import arg

from warmfree.lab.compare import compare, preview
from warmfree.lab.plan import DEFAULT_TASK, make_plan

__all__ = ["COMMANDS", "Compare"]


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


COMMANDS: dict[str, Callable[..., Compare]] = {"compare": Compare}
