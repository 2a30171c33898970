"""What ``warmfree theory speedup`` would do, and about how long it takes."""

import math

from rich import box
from rich.console import Console
from rich.table import Table

from warmfree.lab.live import format_duration
from warmfree.report.wording import count, listing, number
from warmfree.theory.speedup import NOISES

__all__ = ["expected_seconds", "preview_speedup"]


def preview_speedup(*, largest_gap: float, longest: int, seeds: int, console: Console) -> None:
    """Print what would be done, and about how long it takes."""
    parts = (
        ("steps to a target against the initial gap", f"gaps 10 to {number(largest_gap)}, two a decade"),
        ("one schedule for a population", f"gaps 10 to {number(min(largest_gap, 1000.0))}"),
        ("errors after T steps, exact gradients", f"T = 64, 128, ... up to {longest:,}"),
        (f"errors after T steps, {listing(list(NOISES))} noise", f"the same T, {count(seeds, 'seed')}"),
        ("powers of the distance", "p = 4 and 6"),
        ("wrong constants", "learning rate and infimum"),
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("what would be measured")
    table.add_column("where")
    for row in parts:
        table.add_row(*row)
    console.print(table)
    seconds = expected_seconds(largest_gap=largest_gap, longest=longest, seeds=seeds)
    console.print(f"In all about {format_duration(seconds)}, on a core that has nothing else to do.")


def expected_seconds(*, largest_gap: float, longest: int, seeds: int) -> float:
    """Return about how long the experiments take: from the processor's time of two settings, and how work grows."""
    by_gap = 3.0 + 12.5 * largest_gap / 1e6
    by_noise = 33.0 * math.pow(longest / 512 * seeds / 8, 1.2)
    return 10.5 + by_gap + 0.7 * longest / 512 + by_noise
