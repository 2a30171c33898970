"""Where is the critical learning rate of real runs, what does curvature predict, and what does the search cost?

Before steps 0, 5, 20 and 60 of runs with 5 % warmup: the critical learning rate along the steps of five batches; what
the preconditioned sharpness of the first of them makes of it, by the threshold of a single step (early) and that of
training (late); what a quadratic loss along the optimizer's own step makes of it, 2 g.u / (u^T H u), by one Hessian
product; and the paper's own search (Kalra & Barkeshli 2024, algorithms 1 and 2: doubling from 1e-4, then bisection) on
the first batch. Learning rates are in units of the run's.

    python benchmarks/critical_lr.py --json critical_lr.json
    python benchmarks/critical_lr.py --only gpt --seeds 1
"""

import argparse
import math
import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from advice.settings import SETTINGS, Setting, Training
from harness import cpu_name, print_table, save

from warmfree.advice.step_sharpness import measure_sharpness
from warmfree.measure.curvature import Hessian, twice_differentiable
from warmfree.measure.unchanged import unchanged
from warmfree.measure.undisturbed import undisturbed
from warmfree.schedule.critical import critical_lr
from warmfree.schedule.critical.critical import tolerance_of
from warmfree.schedule.critical.trials import StepTrials

NAMES = ("gpt-adamw", "vit-adamw", "resnet-sgd")
PLACES = (0, 5, 20, 60)
BATCHES = 5
WARMUP = 0.05
FIRST = 1e-4  # where the paper's search begins
MOST = 60  # passes that it is given


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was found before one step of one run; learning rates in units of the run's.

    Attributes:
        critical: along the steps of each batch; nan where there is none.
        low: the lowest end of their brackets.
        high: the highest.
        early: by preconditioned sharpness and the threshold of a single step.
        late: by that of training.
        along: by a quadratic loss along the step.
        passes: forward passes of each search.
        seconds: of a search.
        step_seconds: of a training step.
        paper: what the paper's search finds on the first batch.
        paper_passes: its forward passes.
    """

    name: str
    seed: int
    step: int
    lr: float
    loss: float
    critical: list[float]
    low: float
    high: float
    early: float
    late: float
    along: float
    passes: list[int]
    seconds: float
    step_seconds: float
    paper: float
    paper_passes: int


def measure(setting: Setting, run: Training, *, seed: int, step: int, lr: float, step_seconds: float) -> Row:
    """Look at a run as it is; the run does not notice."""
    model, loss_fn, optimizer = run.model, run.loss_fn, run.optimizer
    batches = [run.batch(step + index) for index in range(BATCHES)]
    found = critical_lr(model, loss_fn, batches, optimizer, start=lr, num_steps=BATCHES)
    sharpness = measure_sharpness(model, loss_fn, batches[:1], optimizer, lr=lr)
    paper, paper_passes = by_paper(run, batches[0])
    unit = lr * sharpness.value
    return Row(
        name=setting.name,
        seed=seed,
        step=step,
        lr=lr,
        loss=found.searches[0].initial_loss,
        critical=[math.nan if one.lr is None else one.lr / lr for one in found.searches],
        low=math.nan if found.low is None else found.low / lr,
        high=math.nan if found.high is None else found.high / lr,
        early=(sharpness.early_threshold or math.nan) * lr / unit,
        late=(sharpness.threshold or math.nan) * lr / unit,
        along=along_step(run, batches[0], lr=lr) / lr,
        passes=[one.forward_passes for one in found.searches],
        seconds=found.seconds / BATCHES,
        step_seconds=step_seconds,
        paper=paper / lr,
        paper_passes=paper_passes,
    )


def along_step(run: Training, batch: Any, *, lr: float) -> float:
    """Return where a quadratic loss along the optimizer's step is what it was; inf where it curves downwards."""
    with unchanged(run.model, run.optimizer) as session:
        trials = StepTrials(session, run.model, run.loss_fn, run.optimizer)
        trials.prepare([batch])
        moved = [weight for weight in session.weights if weight.grad is not None]
        gradients = [weight.grad.clone() for weight in moved]
        trials.step(lr)
        step = [(trials.before(weight) - weight.detach()) / lr for weight in moved]
        session.restore()
        with twice_differentiable(run.model), undisturbed(run.model, evaluate=False):
            products = Hessian(lambda: run.loss_fn(run.model, batch), moved)(step)
    descent = sum(float((a * b).sum()) for a, b in zip(gradients, step, strict=True))
    curvature = sum(float((a * b).sum()) for a, b in zip(products, step, strict=True))
    return 2 * descent / curvature if curvature > 0 else math.inf


def by_paper(run: Training, batch: Any) -> tuple[float, int]:
    """Search as algorithms 1 and 2 do, from `FIRST`, without a target; return the upper end and the passes."""
    delta = tolerance_of(run.optimizer)
    with unchanged(run.model, run.optimizer) as session:
        trials = StepTrials(session, run.model, run.loss_fn, run.optimizer)
        before = trials.prepare([batch])
        high = FIRST
        while (loss := trials.loss_at(high)) < before and trials.forward_passes < MOST:
            high *= 2
        low = high / 2
        while loss > before * (1 + delta) and trials.forward_passes < MOST:
            middle = (low + high) / 2
            if (found := trials.loss_at(middle)) < before:
                low = middle
            else:
                high, loss = middle, found
        return high, trials.forward_passes


def rows_of(setting: Setting, *, seed: int) -> list[Row]:
    """Train, and look at some places."""
    lr = statistics.median(setting.lrs)
    run = setting.start(seed=seed, lr=lr)
    run.model.train()
    warmup = round(WARMUP * setting.steps)
    rows, seconds = [], [math.nan]
    for step in range(max(PLACES) + 1):
        for group in run.optimizer.param_groups:
            group["lr"] = lr * min((step + 1) / warmup, 1.0)
        if step in PLACES:
            typical = statistics.median(seconds[1:]) if step else math.nan
            rows.append(measure(setting, run, seed=seed, step=step, lr=lr, step_seconds=typical))
            print(f"{setting.name}, seed {seed}, step {step}: {rows[-1]}", flush=True)
        since = time.perf_counter()
        run.optimizer.zero_grad()
        run.loss_fn(run.model, run.batch(step)).backward()
        run.optimizer.step()
        seconds.append(time.perf_counter() - since)
    return rows


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Write the median and the range."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return "none"
    middle, low, high = (
        f"{value:.{digits}g}" for value in (statistics.median(known), min(known), max(known))
    )
    return middle if low == high else f"{middle} ({low}-{high})"


def show(rows: list[Row]) -> None:
    """Print two tables: what was found, and what it cost."""
    places = [(name, step) for name in NAMES for step in PLACES]
    cells = {place: [row for row in rows if (row.name, row.step) == place] for place in places}
    print_table(
        "run | step | loss | critical / lr | lowest to highest bracket | largest / smallest of the batches | "
        "early threshold | late threshold | along the step | the paper's search",
        (
            (
                name,
                step,
                f"{statistics.median(row.loss for row in cell):.2f}",
                spread([statistics.median(row.critical) for row in cell]),
                f"{min(row.low for row in cell):.2g}-{max(row.high for row in cell):.2g}",
                spread([max(row.critical) / min(row.critical) for row in cell]),
                spread([row.early for row in cell]),
                spread([row.late for row in cell]),
                spread([row.along for row in cell]),
                spread([row.paper for row in cell]),
            )
            for (name, step), cell in cells.items()
            if cell
        ),
    )
    print_table(
        "run | step | passes of a search | the paper's passes | seconds of a search | as training steps",
        (
            (
                name,
                step,
                spread([passes for row in cell for passes in row.passes]),
                spread([row.paper_passes for row in cell]),
                f"{statistics.median(row.seconds for row in cell):.2f}",
                ""
                if not step
                else f"{statistics.median(row.seconds / row.step_seconds for row in cell):.1f}",
            )
            for (name, step), cell in cells.items()
            if cell
        ),
    )
    ours = [passes for row in rows for passes in row.passes]
    theirs = [row.paper_passes for row in rows]
    print(f"\n{len(ours)} searches: mean {statistics.mean(ours):.1f} passes, at most {max(ours)}")
    print(f"{len(theirs)} of the paper's: mean {statistics.mean(theirs):.1f} passes, at most {max(theirs)}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", metavar="REGEX", help="runs whose name it is found in")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{cpu_name()}, torch {torch.__version__}, 1 thread")
    chosen = [SETTINGS[name] for name in NAMES if re.search(arguments.only, name)]
    rows = [
        row for setting in chosen for seed in range(arguments.seeds) for row in rows_of(setting, seed=seed)
    ]
    show(rows)
    save(arguments.json, rows=[asdict(row) for row in rows])


if __name__ == "__main__":
    main()
