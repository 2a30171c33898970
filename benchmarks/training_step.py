"""How much of a whole training step is the optimizer's, at the default task of `warmfree compare`?

Each row trains a GPT of its own, forward, backward and step, from the same weights on the same batches, in turn with
all others. "Overhead" is how much longer the optimizer takes than torch.optim.AdamW(fused=True), in percent of a whole
training step with the latter; "whole step" is what the same comes to if whole steps are compared, which forward and
backward passes of uneven length blur. Both are medians over rounds of what was found in the same round.

    python benchmarks/training_step.py --json training.json
    python benchmarks/training_step.py --threads 2 --only 'AdamW2' --rounds 10
"""

import argparse
import dataclasses
import itertools
import random
import re
import statistics
import time

import torch
from harness import (
    MODES,
    OURS,
    REFERENCE,
    WARMUP,
    add_options,
    cpu_name,
    print_table,
    quartiles,
    save,
)
from torch import nn
from torch.optim import AdamW, Optimizer

from warmfree import parameter_groups
from warmfree.lab.data import Corpus, load_shakespeare
from warmfree.lab.methods import METHODS, Build
from warmfree.lab.plan import DEFAULT_TASK
from warmfree.lab.tasks import prepare_run
from warmfree.lab.train import Run

# Our optimizers and what the lab calls them, which decides the learning rate.
METHOD = {
    "AdamW2": "adamw2",
    "GIAdamW": "gi-adamw",
    "LionA": "liona",
    "LionAR": "lionar",
    "RotationalAdamW": "rotational-adamw",
}


def fused_adamw(model: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float]) -> Optimizer:
    return AdamW(parameter_groups(model, weight_decay=weight_decay), lr=lr, betas=betas, fused=True)


def ours(name: str, options: dict[str, bool]) -> Build:
    """Return what makes one of our optimizers as the lab does, in one of its modes."""

    def build(model: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float]) -> Optimizer:
        del weight_decay  # the groups have it
        return OURS[name](model, lr=lr, **options, **({"betas": betas} if "Adam" in name else {}))

    return build


def prepare(corpus: Corpus, *, only: str) -> dict[str, Run]:
    """Return the runs to time, each at a learning rate from the middle of those that the lab tries."""
    rows: dict[str, tuple[str, Build]] = {
        REFERENCE: ("adamw", fused_adamw),
        "torch AdamW, loop": ("adamw", METHODS["adamw"].build),
    }
    for name, mode in itertools.product(OURS, MODES):
        rows[f"{name}, {mode}"] = (METHOD[name], ours(name, MODES[mode]))
    runs = {}
    for row, (known_as, build) in rows.items():
        if row == REFERENCE or re.search(only, row):
            method = dataclasses.replace(METHODS[known_as], build=build)
            lr = method.lrs[len(method.lrs) // 2]
            runs[row] = prepare_run(DEFAULT_TASK, corpus, method, lr=lr, seed=0)
    return runs


def one_step(run: Run, step: int) -> tuple[float, float]:
    """Do one training step; return the seconds of the optimizer and of everything."""
    start = time.perf_counter()
    run.optimizer.zero_grad()
    run.loss(step).backward()
    half = time.perf_counter()
    run.optimizer.step()
    end = time.perf_counter()
    run.schedule.step()
    return end - half, end - start


def measure(corpus: Corpus, *, only: str, rounds: int) -> dict[str, dict[str, float]]:
    """Train all rows in turn, in an order drawn anew for every step."""
    runs = prepare(corpus, only=only)
    order = list(runs)
    shuffle = random.Random(0).shuffle
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for step in range(WARMUP + rounds):
        shuffle(order)
        for name in order:
            times[name].append(one_step(runs[name], step))
    base = times[REFERENCE][WARMUP:]
    rows = {}
    for name, found in times.items():
        pairs = list(zip(found[WARMUP:], base, strict=True))
        low, overhead, high = quartiles([(mine - its) / whole for (mine, _), (its, whole) in pairs])
        rows[name] = {
            "optimizer_seconds": statistics.median(mine for (mine, _), _ in pairs),
            "seconds": statistics.median(all_of_it for (_, all_of_it), _ in pairs),
            "share": statistics.median(mine / all_of_it for (mine, all_of_it), _ in pairs),
            "overhead": overhead,
            "overhead_low": low,
            "overhead_high": high,
            "overhead_whole": statistics.median(mine / its for (_, mine), (_, its) in pairs) - 1,
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=(1, 2), help="torch threads (default: 1 2)")
    add_options(parser, rounds=40)
    arguments = parser.parse_args()
    if not 1 <= arguments.rounds <= DEFAULT_TASK.steps - WARMUP:
        parser.error(f"--rounds must be from 1 to {DEFAULT_TASK.steps - WARMUP}: a run has no more steps")
    corpus = load_shakespeare()

    print(f"{cpu_name()}, torch {torch.__version__}, {arguments.rounds} rounds")
    results = {}
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        rows = measure(corpus, only=arguments.only, rounds=arguments.rounds)
        results[str(threads)] = rows
        print_table(
            f"{threads} threads | optimizer, ms | training, ms | share, % | overhead, % | quartiles | whole step, %",
            [
                (
                    name,
                    f"{1e3 * row['optimizer_seconds']:.3g}",
                    f"{1e3 * row['seconds']:.3g}",
                    f"{100 * row['share']:.1f}",
                    f"{100 * row['overhead']:.1f}",
                    f"{100 * row['overhead_low']:.1f} to {100 * row['overhead_high']:.1f}",
                    f"{100 * row['overhead_whole']:.1f}",
                )
                for name, row in rows.items()
            ],
        )
    save(arguments.json, task=dataclasses.asdict(DEFAULT_TASK), threads=results)


if __name__ == "__main__":
    main()
