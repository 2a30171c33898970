"""Does an optimizer at translated settings do in a real run what AdamW does, and how well does it train?

The default task of `warmfree compare`, AdamW at two learning rates, and in its place each optimizer at the settings
that `warmfree.advice.translated` gives. On every fifth step of the second half of training: RMS and neuron angle of
what the step did to the matrices of the blocks, means over these, beside those of AdamW with warmup; and the final
validation loss.

    python benchmarks/translation.py --json translation.json
    python benchmarks/translation.py --lrs 1e-3 --seeds 1
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import cpu_name, print_table, save
from torch import nn
from torch.optim import Optimizer

from warmfree.advice.translated import translated
from warmfree.lab.data import Corpus, load_shakespeare
from warmfree.lab.methods import METHODS
from warmfree.lab.tasks import ByteGPTConfig, prepare_run
from warmfree.measure.updates import UpdateProbe
from warmfree.schedule.shapes import trapezoid

EVERY = 5  # steps between measurements
REFERENCE = "AdamW, 20 % warmup"


def in_place_of(adamw: Optimizer, model: nn.Module, *, to: str, **options: Any) -> Optimizer:
    return translated(adamw, to, model=model, **options)


# None is AdamW itself.
ROWS: dict[str, Callable[[Optimizer, nn.Module], Optimizer] | None] = {
    REFERENCE: None,
    "AdamW": None,
    **{
        name: partial(in_place_of, to=name)
        for name in ("AdamW2", "GIAdamW", "LionA", "LionAR", "RotationalAdamW")
    },
    "LionAR, present": partial(in_place_of, to="LionAR", angle="present"),
    "LionAR, present, momentum 0.95": partial(in_place_of, to="LionAR", angle="present", momentum=0.95),
    "RotationalAdamW, present": partial(in_place_of, to="RotationalAdamW", angle="present"),
}


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run: settings of the first group of matrices, and what it did."""

    row: str
    adamw_lr: float
    seed: int
    lr: float
    weight_decay: float
    rms_per_lr: float
    rms: float
    angle: float
    loss: float


def train(name: str, corpus: Corpus, *, lr: float, seed: int, steps: int) -> Result:
    config = ByteGPTConfig(steps=steps)
    method = METHODS["adamw-warmup" if name == REFERENCE else "adamw"]
    run = prepare_run(config, corpus, method, lr=lr, seed=seed)
    if (replace := ROWS[name]) is not None:
        run.optimizer = replace(run.optimizer, run.model)
        run.schedule = trapezoid(run.optimizer, steps=steps, cooldown=config.cooldown)
    matrices = [
        (key, weight) for key, weight in run.model.named_parameters() if weight.ndim > 1 and "blocks" in key
    ]
    group = next(
        group
        for group in run.optimizer.param_groups
        if any(weight is matrices[0][1] for weight in group["params"])
    )
    probe, seen = UpdateProbe(matrices), []
    run.model.train()
    for step in range(steps):
        run.optimizer.zero_grad()
        run.loss(step).backward()
        measured = 2 * step >= steps and step % EVERY == 0
        if measured:
            probe.snapshot()
        run.optimizer.step()
        if measured:
            updates = probe.compare(lr=float(group["lr"])).values()
            seen.append(
                tuple(
                    statistics.fmean(getattr(update, quantity) for update in updates)
                    for quantity in ("rms_per_lr", "rms", "neuron_angle")
                )
            )
        run.schedule.step()
    run.model.eval()
    with torch.no_grad():
        loss = run.validate()
    rms_per_lr, rms, angle = (statistics.fmean(values) for values in zip(*seen, strict=True))
    return Result(
        row=name,
        adamw_lr=lr,
        seed=seed,
        lr=group["initial_lr"],
        weight_decay=group["weight_decay"],
        rms_per_lr=rms_per_lr,
        rms=rms,
        angle=angle,
        loss=loss,
    )


def print_results(results: list[Result], lr: float) -> None:
    at_lr = [result for result in results if result.adamw_lr == lr]

    def mean(row: str, quantity: str) -> float:
        return statistics.fmean(getattr(result, quantity) for result in at_lr if result.row == row)

    rows = []
    for row in ROWS:
        losses = [result.loss for result in at_lr if result.row == row]
        rows.append(
            (
                row,
                f"{mean(row, 'lr'):.3g}",
                f"{mean(row, 'weight_decay'):.3g}",
                f"{mean(row, 'rms_per_lr'):.3f}",
                f"{mean(row, 'rms') / mean(REFERENCE, 'rms'):.2f}",
                f"{1e3 * mean(row, 'angle'):.2f}",
                f"{mean(row, 'angle') / mean(REFERENCE, 'angle'):.2f}",
                f"{statistics.fmean(losses):.3f}",
                ", ".join(f"{loss:.3f}" for loss in losses),
            )
        )
    print(f"\nAdamW's lr {lr:g}")
    print_table(
        "optimizer | lr | weight decay | RMS / lr | RMS to AdamW's | angle, mrad | angle to AdamW's | loss | seeds",
        rows,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--lrs", type=float, nargs="*", default=(1e-3, 2e-3), help="AdamW's (default: 1e-3 2e-3)"
    )
    parser.add_argument("--seeds", type=int, default=2, help="seeds of each (default: 2)")
    parser.add_argument("--steps", type=int, default=300, help="of a run (default: 300)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    corpus, results = load_shakespeare(), []
    print(f"{cpu_name()}, {arguments.threads} threads, torch {torch.__version__}, {arguments.steps} steps")
    for lr in arguments.lrs:
        for seed in range(arguments.seeds):
            for name in ROWS:
                results.append(train(name, corpus, lr=lr, seed=seed, steps=arguments.steps))
                save(arguments.json, steps=arguments.steps, results=[asdict(result) for result in results])
        print_results(results, lr)


if __name__ == "__main__":
    main()
