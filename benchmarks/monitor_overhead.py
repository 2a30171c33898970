"""What it costs to watch a run: the same training with and without a monitor, step by step in turn in one process.

    python benchmarks/monitor_overhead.py --model lab --steps 1000
    python benchmarks/monitor_overhead.py --model gpt2 --steps 60
    python benchmarks/monitor_overhead.py --model lab --steps 30 --memory

Two copies of a run make the same steps from the same weights on the same batches, ten at a time in turn. The overhead
has two parts: what steps without a measurement take longer (median of the ratios to the same step of the copy that is
not watched), and what measured steps take beyond the same steps of that copy, first measurements included. The sum of
all steps over that of the other copy is shown, too; on a shared machine it is the noisiest.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from harness import print_table, save
from torch import nn

import warmfree
from warmfree.lab.data import Batches, Corpus, load_shakespeare
from warmfree.lab.methods import METHODS
from warmfree.lab.tasks import ByteGPTConfig, prepare_run
from warmfree.monitor.journal import RECORD
from warmfree.record import read_records

# The budget of "all" is what the documentation promises for it.
BUDGETS = {"none": 0.0, "default": 0.02, "all": 0.05}
TURN = 10


@dataclass
class Copy:
    """One of the runs: what a step is, and what it took."""

    model: nn.Module
    step: Callable[[int], None]
    monitor: warmfree.Monitor | None
    out: Path
    seconds: list[float] = field(default_factory=list)

    def measured(self) -> set[int]:
        """Return the steps on which something was measured."""
        return {record["step"] for record in read_records(self.out / RECORD) if record["kind"] == "values"}


def lab(probes: str, *, steps: int) -> Copy:
    """The GPT of the lab on Shakespeare's plays."""
    corpus = load_shakespeare()
    run = prepare_run(ByteGPTConfig(steps=steps), corpus, METHODS["adamw"], lr=5e-4, seed=0)
    loss_of = {"batch": _held_out(corpus), "loss_fn": lambda model, batch: model.loss(*batch)}
    out = Path(tempfile.mkdtemp())
    monitor = _monitor(run.model, run.optimizer, out, probes, steps=steps, batch_size=16, **loss_of)

    def step(number: int) -> None:
        loss = run.loss(number)
        run.optimizer.zero_grad()
        loss.backward()
        run.optimizer.step()
        run.schedule.step()
        if monitor is not None:
            monitor.log(loss)

    return Copy(run.model, step, monitor, out)


def gpt2(probes: str, *, steps: int) -> Copy:
    """GPT-2 small of transformers, 124M parameters, batches of 4 x 128 tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(use_cache=False))
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, weight_decay=0.1, fused=True)
    out = Path(tempfile.mkdtemp())
    monitor = _monitor(model, optimizer, out, probes, steps=steps, batch_size=4)

    def step(number: int) -> None:
        tokens = torch.randint(50257, (4, 128), generator=torch.Generator().manual_seed(number))
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return Copy(model, step, monitor, out)


def _held_out(corpus: Corpus) -> tuple[torch.Tensor, torch.Tensor]:
    batches = Batches(corpus, context=64, batch_size=4, seed=99, validation_sequences=4)
    return batches.train(0)


def _monitor(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    out: Path,
    probes: str,
    *,
    steps: int,
    **settings: Any,
) -> warmfree.Monitor | None:
    if probes == "none":
        return None
    budget = BUDGETS[probes]
    return warmfree.Monitor(
        model, optimizer, out, probes=probes, budget=budget, total_steps=steps, **settings
    ).attach()


def measure(make: Callable[..., Copy], *, steps: int, kinds: Sequence[str]) -> dict[str, Copy]:
    """Make the steps of the copies in turn, some at a time: what a measurement leaves behind is its own copy's."""
    copies = {kind: make(kind, steps=steps) for kind in kinds}
    for copy in copies.values():
        copy.model.train()
    for first in range(0, steps, TURN):
        for copy in list(copies.values())[:: 1 if first // TURN % 2 else -1]:
            if copy.monitor is not None:
                copy.monitor._since = time.perf_counter()  # the other copy's steps are not this one's time
            for number in range(first, min(first + TURN, steps)):
                start = time.perf_counter()
                copy.step(number)
                copy.seconds.append(time.perf_counter() - start)
    for copy in copies.values():
        if copy.monitor is not None:
            copy.monitor.detach()
    return copies


def report(copies: dict[str, Copy], *, steps: int) -> list[list[str]]:
    """Return one row a copy."""
    bare = copies["none"].seconds
    typical = statistics.median(bare)
    rows = []
    for kind, copy in copies.items():
        if copy.monitor is None:
            continue
        measured = copy.measured()
        others = [step for step in range(steps) if step not in measured]
        idle = statistics.median(copy.seconds[step] / bare[step] for step in others) - 1
        excess = sum(copy.seconds[step] - bare[step] for step in measured) / sum(bare)
        rows.append(
            [
                kind,
                f"{1e3 * typical:.1f}",
                f"{100 * idle:+.2f} %",
                f"{100 * excess:+.2f} %",
                f"{100 * copy.monitor.overhead:.2f} %",
                f"{100 * (sum(copy.seconds) / sum(bare) - 1):+.1f} %",
                f"{copy.seconds[0] / typical - 1:.1f}",
                ", ".join(f"{name} {each['runs']}" for name, each in copy.monitor.costs.items()),
            ]
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=("lab", "gpt2"), default="lab")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--probes", nargs="+", choices=list(BUDGETS), default=["default", "all"])
    parser.add_argument("--memory", action="store_true", help="peak memory of one process each instead")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory and not arguments.child:
        for kind in arguments.probes:
            options = ["--model", arguments.model, "--steps", str(arguments.steps), "--probes", kind]
            subprocess.run([sys.executable, __file__, *options, "--memory", "--child"], check=True)
        return
    make = {"lab": lab, "gpt2": gpt2}[arguments.model]
    if arguments.memory:
        measure(make, steps=arguments.steps, kinds=arguments.probes)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{arguments.model}, probes {arguments.probes[0]}: peak {peak:.0f} MB")
        return
    rows = []
    for kind in arguments.probes:
        rows += report(measure(make, steps=arguments.steps, kinds=("none", kind)), steps=arguments.steps)
    print_table(
        "probes | ms, median step without | other steps | measured steps | its own account | sum of all | "
        "first step costs, in steps | runs",
        rows,
    )
    save(arguments.json, options={**vars(arguments), "json": None}, rows=rows)


if __name__ == "__main__":
    main()
