"""``warmfree theory`` and its three commands as the command line sees them: options, defaults, help."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console
from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, Positional, arg, subcommand

from warmfree.lab.advise.progress import progress
from warmfree.lab.interrupt import Interrupted
from warmfree.lab.theory.descend import find_descent, prepare_descent
from warmfree.lab.theory.fit import FitOptions, find_fit, infimum_of
from warmfree.lab.theory.measured import KINDS, Kind, measured_points, other_points
from warmfree.lab.theory.output import choose_page, publish
from warmfree.lab.theory.rules import DEFAULT_RULES, RULES
from warmfree.lab.theory.speedup import find_speedup
from warmfree.lab.theory.speedup_preview import preview_speedup
from warmfree.theory.functions import FUNCTIONS
from warmfree.theory.speedup import run_speedup

__all__ = ["Descend", "Fit", "Speedup", "Theory"]

MOST_GAP, MOST_STEPS = 1e8, 100_000  # beyond, a run takes days
_OUT_HELP = "(default: warmfree-theory-{}.html here)"


@contextmanager
def _whole_or_nothing() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted("interrupted before it was done; nothing was written") from None


@dataclass(kw_only=True)
class Descend:
    """Draw gradient descent on an example function with known constants, and check the theory's bounds on it.

    Descends by several step rules from one start, and writes a page with the paths on the function's contours, gap and
    learning rate over steps, and each bound of the theory beside what the path did. Learning rates of rules that have
    one are tuned for the very start and number of steps.
    """

    function: Annotated[
        str,
        arg(metavar="FUNCTION", help=f"One of {', '.join(FUNCTIONS)}.", help_behavior_hint=""),
        Positional,
    ]
    start: Annotated[
        tuple[float, ...], arg(metavar="X ...", help_behavior_hint="(default: the function's own)")
    ] = ()
    """Coordinates of the start."""
    rule: Annotated[
        tuple[str, ...],
        arg(
            metavar="RULE ...",
            help="Step rules: " + "; ".join(f"{name} ({rule.meaning})" for name, rule in RULES.items()) + ".",
            help_behavior_hint=f"(default: {' '.join(DEFAULT_RULES)})",
        ),
    ] = DEFAULT_RULES
    lr: Annotated[float | None, arg(metavar="LR", help_behavior_hint="(default: tuned)")] = None
    """Learning rate of the rules that have one."""
    steps: Annotated[int, arg(metavar="N")] = 200
    """Steps of every rule."""
    noise: Annotated[float, arg(metavar="S")] = 0.0
    """Standard deviation of the gradient's noise, all coordinates together."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Of the noise."""
    out: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint=_OUT_HELP.format("descend"))] = None
    """The page, or a folder for it."""
    json: bool = False
    """Print the finding as JSON, and nothing else, on standard output."""

    def __call__(self, *, command: str) -> None:
        """Descend, and write the page."""
        page = choose_page(self.out, Path("warmfree-theory-descend.html"))
        with _whole_or_nothing():
            descent = prepare_descent(
                self.function, self.start or None, steps=self.steps, noise=self.noise, seed=self.seed
            )
            with progress(Console(stderr=True)) as report:
                finding = find_descent(descent, self.rule, lr=self.lr, progress=report)
            publish(finding, page, command=command, as_json=self.json)


@dataclass(kw_only=True)
class Speedup:
    """Measure how much faster a warmup is than the best schedule that never rises.

    Counts steps of gradient descent to a target against the initial gap, and errors after T steps from a gap in
    proportion to T, with exact and with noisy gradients; every other family is tuned for what it is compared on.
    Writes a page with the figures, the exponents with their intervals beside the theory's, and all rows.
    """

    largest_gap: Annotated[float, arg(metavar="GAP")] = 1e6
    """Largest initial gap; steps without warmup grow in proportion to it."""
    longest_run: Annotated[int, arg(metavar="T")] = 512
    """Steps of the longest run whose error is measured."""
    seeds: Annotated[int, arg(metavar="N")] = 8
    """Of runs with noise: for each, 8 runs are tuned on, and errors are means of 32 others."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Of everything random."""
    out: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint=_OUT_HELP.format("speedup"))] = None
    """The page, or a folder for it."""
    json: bool = False
    """Print the finding as JSON, and nothing else, on standard output."""
    dry_run: bool = False
    """Print the work and the expected time, and do nothing."""

    def __call__(self, *, command: str) -> None:
        """Run the experiments, or preview them."""
        if self.json and self.dry_run:
            raise ValueError("--dry-run finds nothing to print as JSON; leave one of them out")
        self._check()
        page = choose_page(self.out, Path("warmfree-theory-speedup.html"))
        if self.dry_run:
            preview_speedup(
                largest_gap=self.largest_gap,
                longest=self.longest_run,
                seeds=self.seeds,
                console=Console(highlight=False),
            )
            return
        with _whole_or_nothing():
            began = time.monotonic()
            with progress(Console(stderr=True)) as report:
                found = run_speedup(
                    largest_gap=self.largest_gap,
                    longest=self.longest_run,
                    seeds=self.seeds,
                    seed=self.seed,
                    progress=report,
                )
            finding = find_speedup(found, seconds=time.monotonic() - began)
            publish(finding, page, command=command, as_json=self.json)

    def _check(self) -> None:
        if not 10.0 <= self.largest_gap <= MOST_GAP:
            raise ValueError(f"--largest-gap must be 10 to {MOST_GAP:g}, got {self.largest_gap:g}")
        if not 64 <= self.longest_run <= MOST_STEPS:
            raise ValueError(f"--longest-run must be 64 to {MOST_STEPS:,} steps, got {self.longest_run:,}")
        for name, least in (("seeds", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be >= {least}, got {getattr(self, name)}")


@dataclass(kw_only=True)
class Fit:
    """Fit the theory's constants to a run, and say which warmup they imply.

    RUN is the folder of a run that `warmfree.Monitor` watched with the probe "smoothness" or "curvature", or a CSV or
    JSONL file of points with columns loss and curvature, and optionally step and lr. Says whether curvature falls with
    the loss as the theory has it, and how sure that is; writes a page, and prints lines of Python that use the fit.
    """

    run: Annotated[Path, arg(metavar="RUN", help_behavior_hint=""), Positional]
    """Folder of a watched run, or a file of points."""
    curvature: Annotated[
        Kind | None,
        arg(
            metavar="KIND",
            help=f"Which curvature of the run: {', '.join(KINDS)}.",
            help_behavior_hint="(default: as the optimizer's steps see it, if it was measured)",
        ),
    ] = None
    f_star: Annotated[str, arg(metavar="X")] = "0"
    """Infimum of the loss, a number or `estimate`; 0 suits a cross-entropy."""
    quantile: Annotated[float, arg(metavar="Q")] = 0.95
    """Share of the points under the envelope."""
    peak: Annotated[
        float | None, arg(metavar="LR", help_behavior_hint="(default: the largest that the run used)")
    ] = None
    """Learning rate that the implied warmup goes up to."""
    safety: Annotated[float, arg(metavar="C")] = 0.5
    """Share of the reciprocal curvature that a step may have."""
    out: Annotated[
        Path | None,
        arg(metavar="FILE", help_behavior_hint="(default: warmfree-theory-fit.html in the run)"),
    ] = None
    """The page, or a folder for it."""
    json: bool = False
    """Print the finding as JSON, and nothing else, on standard output."""

    def __call__(self, *, command: str) -> None:
        """Fit, and write the page."""
        with _whole_or_nothing():
            measured = measured_points(self.run, kind=self.curvature)
            folder = self.run if self.run.is_dir() else self.run.parent
            page = choose_page(self.out, folder / "warmfree-theory-fit.html")
            options = FitOptions(
                f_star=infimum_of(self.f_star), quantile=self.quantile, peak=self.peak, safety=self.safety
            )
            with progress(Console(stderr=True)) as report:
                finding = find_fit(measured, other_points(self.run, measured), options, progress=report)
            publish(finding, page, command=command, as_json=self.json)


@dataclass(kw_only=True)
class Theory:
    """Put the theory of warmup to the test: the speed-up it proves, the constants of a run, a descent drawn.

    The theory is that of losses whose curvature is bounded by their distance to the infimum, K0 + K_rho gap^rho: the
    step may grow as the loss falls, which is a warmup without a length. Each command prints what it finds and writes
    one page that loads nothing.
    """

    what: OmitArgPrefixes[
        OmitSubcommandPrefixes[
            Annotated[Speedup, subcommand("speedup")]
            | Annotated[Fit, subcommand("fit")]
            | Annotated[Descend, subcommand("descend")]
        ]
    ]

    def __call__(self, *, command: str) -> None:
        """Do it."""
        self.what(command=command)
