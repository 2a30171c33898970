"""What the benchmarks share: optimizers by name, timing in turn, memory of a step, tables and files of numbers."""

import argparse
import os
import platform
import random
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# Or the profiler writes lines of its own between those of a table.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch
from torch import nn
from torch.optim import Optimizer

from warmfree import AdamW2, GIAdamW, LionA, LionAR, RotationalAdamW, parameter_groups
from warmfree.lab.models.gpt import GPT
from warmfree.record import write_json

Step = Callable[[], object]

REFERENCE = "torch AdamW, fused"
WARMUP = 4  # steps: the first creates state and takes the eager path, the second compiles, the rest warm up

CACHES = 2**27  # bytes, more than they hold

# Weights stay where they are, so that all rounds, and all optimizers on the same weights, have the same to do. AdamW2's
# bound is then far from active.
LR = 1e-6

MODES: dict[str, dict[str, bool]] = {"eager": {}, "compiled": {"compile": True}, "fused": {"fused": True}}


def _turning(model: nn.Module) -> list[dict[str, Any]]:
    """Return groups as the rotational optimizers want them: embeddings, tied to the head here, are not turned."""
    return parameter_groups(model, weight_decay=1.0, embedding_decay=0.0)


OURS: dict[str, Callable[..., Optimizer]] = {
    "AdamW2": lambda model, **options: AdamW2(parameter_groups(model), **options),
    "GIAdamW": lambda model, **options: GIAdamW(parameter_groups(model), **options),
    "LionA": lambda model, **options: LionA(parameter_groups(model), **options),
    "LionAR": lambda model, **options: LionAR(_turning(model), **options),
    "RotationalAdamW": lambda model, **options: RotationalAdamW(_turning(model), **options),
}


def reference(model: nn.Module) -> Optimizer:
    """Return what everything is compared to: the fastest AdamW of torch."""
    return torch.optim.AdamW(parameter_groups(model), lr=LR, fused=True)


def with_gradients(model: GPT) -> GPT:
    """Give every parameter a small random gradient."""
    for parameter in model.parameters():
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    return model


def size(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """How long steps took, in seconds, and against the reference in the same round: median and quartiles."""

    seconds: float
    ratio: float
    low: float
    high: float
    first: float  # what the first steps took beyond later ones: compilation, mostly


def in_turn(steps: Mapping[str, Step], *, rounds: int, against: str = REFERENCE) -> dict[str, Timing]:
    """Time steps in turn, in an order drawn anew for every round.

    A machine that slows down slows all of them, so that it is the ratios within a round that mean something. Caches are
    overwritten before every step, as by the forward and backward pass that lie between two steps of a training run:
    else a small model's state would lie in them or not by who was there before.
    """
    elsewhere = torch.zeros(CACHES // 4)
    times: dict[str, list[float]] = {name: [] for name in steps}
    shuffle = random.Random(0).shuffle
    order = list(steps)
    for number in range(WARMUP + rounds):
        if number >= WARMUP:
            shuffle(order)
        for name in order:
            elsewhere.add_(1.0)
            start = time.perf_counter()
            steps[name]()
            times[name].append(time.perf_counter() - start)
    timings = {}
    for name, all_of_them in times.items():
        later, seconds = all_of_them[WARMUP:], statistics.median(all_of_them[WARMUP:])
        low, ratio, high = quartiles([a / b for a, b in zip(later, times[against][WARMUP:], strict=True)])
        first = max(0.0, sum(all_of_them[:WARMUP]) - WARMUP * seconds)
        timings[name] = Timing(seconds=seconds, ratio=ratio, low=low, high=high, first=first)
    return timings


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def peak_bytes(step: Step) -> int:
    """Return the most memory that a step holds at once beyond what was there before it.

    Counted from torch's allocations on this thread, to the byte: the resident size of the process sees neither what
    the C library keeps for reuse nor what is small. Scratch that the C++ kernels keep on their stacks is not in it.
    """
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def state_bytes(optimizers: Iterable[Optimizer]) -> int:
    """Return the bytes of all tensors in the states of optimizers."""
    return sum(
        value.numel() * value.element_size()
        for optimizer in optimizers
        for entries in optimizer.state.values()
        for value in entries.values()
        if isinstance(value, torch.Tensor)
    )


def add_options(parser: argparse.ArgumentParser, *, rounds: int) -> None:
    """Add the options that all timings have."""
    parser.add_argument("--rounds", type=int, default=rounds, help=f"timed steps of each (default: {rounds})")
    parser.add_argument("--only", default="", metavar="REGEX", help="rows whose name it is found in")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers to this file")


def print_table(header: str, rows: Iterable[Sequence[object]]) -> None:
    """Print a Markdown table with such a first line, the first column aligned to the left."""
    print(f"\n| {header} |\n|---{'|---:' * header.count(' | ')}|")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")


def save(path: Path | None, **content: Any) -> None:
    """Write numbers with date, machine, versions and command, if there is a path."""
    if path is None:
        return
    about = {
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    write_json(path, {**about, **content})


def as_row(timing: Timing) -> dict[str, float]:
    """Return a timing as JSON values."""
    return asdict(timing)


def cpu_name() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
