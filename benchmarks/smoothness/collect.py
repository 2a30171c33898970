"""Record loss and curvature along runs of every setting: dense at first, then sparse.

    python benchmarks/smoothness/collect.py docs/smoothness/points.jsonl [SETTING ...] [--seeds 0 1 2] [--kinds ...]
        [--grids FILE ...] [--list] [--workers N]

One row a run. A kind of run is
    warmup    the grid's best learning rate behind 10 % linear warmup, with that warmup and the grid's cooldown
    none      the same without warmup
    small     a tenth of that learning rate, constant
and a row holds, for every recorded step, before the step is made (P: what the optimizer divides by, in it the bias
correction of the first moment and the groups' learning rates):
    step, lr, loss                  of the training batch
    fixed                           loss of a fixed batch, of the training set and as large as a training batch
    gradient, norm                  length of the batch's gradient; of the step
    local, local_p                  |change of the batch's gradient over the step| / |step|, in P's metric likewise
and at every other one of them
    sharp, sharp_p                  top eigenvalue of the fixed batch's Hessian H, and of P^-1/2 H P^-1/2; 8 products,
                                    from the last one's eigenvector
    gradient_fixed                  length of the fixed batch's gradient
Everything in training mode: BatchNorm normalises by the batch. Resumable: runs that the file holds are left out.
"""

import argparse
import functools
import math
import time
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from regimes import REGIMES
from runs import multiplier, read, run_all
from torch import Tensor

from warmfree.measure.curvature import effective_preconditioner, lanczos, twice_differentiable
from warmfree.measure.curvature.operators import Hessian, Preconditioned
from warmfree.measure.undisturbed import undisturbed

KINDS = ("warmup", "none", "small")
DENSE, SPARSE = 24, 64  # first steps that are all recorded; and how many, evenly spaced in the logarithm
PRODUCTS = 8
GRIDS = (Path("docs/advice/grid.jsonl"), Path("docs/smoothness/grid.jsonl"))


def tuned(name: str, grids: tuple[Path, ...] | list[Path] = GRIDS) -> float:
    """Return the learning rate whose held-out loss behind 10 % linear warmup is least in the mean over the seeds."""
    setting, losses = REGIMES[name], defaultdict(list)
    for path in grids:
        for row in read(path):
            if row["setting"] == name and row["warmup"] == round(0.1 * setting.steps):
                losses[row["lr"]].append(math.inf if row["loss"] is None else row["loss"])
    if not losses:
        raise SystemExit(f"no run of {name} in {', '.join(map(str, grids))}: run grid.py first")
    return min(losses, key=lambda lr: mean(losses[lr]))


def recorded(steps: int) -> dict[int, bool]:
    """Return the steps to record, with whether eigenvalues are measured there."""
    late = {round(step) for step in np.geomspace(DENSE, steps - 1, SPARSE)}
    chosen = sorted({*range(DENSE), *late})
    return {step: number % 2 == 0 or step < 6 for number, step in enumerate(chosen)}


def collect(cell: dict[str, Any]) -> dict[str, Any]:
    """Make the run {setting, kind, lr, warmup, seed} and record it."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    setting = REGIMES[cell["setting"]]
    run = setting.start(seed=cell["seed"], lr=cell["lr"])
    model, optimizer = run.model, run.optimizer
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    fixed = run.batch(10**6)  # a step that no run makes
    points: list[dict[str, float]] = []
    vectors: dict[str, Any] = {"sharp": None, "sharp_p": None}
    bases = [group["lr"] for group in optimizer.param_groups]
    when = recorded(setting.steps)
    model.train()
    for step in range(setting.steps):
        factor = 1.0
        if cell["kind"] != "small":
            factor = multiplier(step, steps=setting.steps, warmup=cell["warmup"])
        for group, base in zip(optimizer.param_groups, bases, strict=True):
            group["lr"] = base * factor
        batch = run.batch(step)
        loss = run.loss_fn(model, batch)
        if not math.isfinite(loss.item()):
            break
        optimizer.zero_grad()
        loss.backward()
        if step not in when:
            optimizer.step()
            continue
        point = {"step": step, "lr": cell["lr"] * factor, "loss": loss.item()}
        divisors, _ = effective_preconditioner(optimizer, parameters)
        on_fixed = functools.partial(run.loss_fn, model, fixed)
        if when[step]:
            point |= eigenvalues(model, parameters, on_fixed, divisors, vectors)
        with undisturbed(model, evaluate=False), torch.no_grad():
            point["fixed"] = on_fixed().item()
        gradient = [parameter.grad.detach().clone() for parameter in parameters]
        weights = [parameter.detach().clone() for parameter in parameters]
        optimizer.step()
        with undisturbed(model, evaluate=False):
            after = torch.autograd.grad(run.loss_fn(model, batch), parameters)
        points.append(point | local(weights, parameters, gradient, after, divisors))
    seconds = time.perf_counter() - began
    return {**cell, "seconds": round(seconds, 1), "points": rounded(points)}


def eigenvalues(
    model: torch.nn.Module,
    parameters: list[Tensor],
    loss: Any,
    divisors: list[Tensor],
    vectors: dict[str, Any],
) -> dict[str, float]:
    """Return the top eigenvalues of the Hessian and of the preconditioned one, searched from the last eigenvectors."""
    with undisturbed(model, evaluate=False), twice_differentiable(model):
        hessian = Hessian(loss, parameters)
        operators = {"sharp": hessian, "sharp_p": Preconditioned(hessian, divisors)}
        if all((divisor == 1).all() for divisor in divisors):  # SGD
            del operators["sharp_p"]
        found = {}
        for name, operator in operators.items():
            top = lanczos(operator, max_products=PRODUCTS, tolerance=0.03, start=vectors[name])
            vectors[name] = top.vector
            found[name] = top.values[0]
        found.setdefault("sharp_p", found["sharp"])
        squares = sum(gradient.square().sum() for gradient in torch.autograd.grad(loss(), parameters))
    return found | {"gradient_fixed": float(squares) ** 0.5}


def local(
    before: list[Tensor],
    parameters: list[Tensor],
    gradient: list[Tensor],
    after: tuple[Tensor, ...],
    divisors: list[Tensor],
) -> dict[str, float]:
    """Return the change of the gradient over that of the weights, plain and in the optimizer's metric."""
    sums = torch.zeros(5, dtype=torch.float64)
    with torch.no_grad():
        for old, parameter, first, second, divisor in zip(
            before, parameters, gradient, after, divisors, strict=True
        ):
            step, change = (parameter - old).double(), (second - first).double()
            sums += torch.stack(
                [
                    step.square().sum(),
                    change.square().sum(),
                    (divisor * step.square()).sum(),
                    (change.square() / divisor).sum(),
                    first.double().square().sum(),
                ]
            )
    step, change, step_p, change_p, norm = sums.sqrt().tolist()
    return {"gradient": norm, "norm": step, "local": change / step, "local_p": change_p / step_p}


def rounded(points: list[dict[str, float]]) -> list[dict[str, float]]:
    """Five digits are more than the curvature has."""
    return [
        {name: value if name == "step" else float(f"{value:.5g}") for name, value in point.items()}
        for point in points
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("settings", nargs="*", default=list(REGIMES), metavar="SETTING")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--grids", type=Path, nargs="+", default=list(GRIDS))
    parser.add_argument("--list", action="store_true", dest="listing")
    parser.add_argument("--workers", type=int, default=1)
    asked = parser.parse_intermixed_args()
    cells = []
    for seed in asked.seeds:
        for kind in asked.kinds:
            for name in asked.settings:
                lr, warmup = tuned(name, asked.grids), round(0.1 * REGIMES[name].steps)
                cells.append(
                    {
                        "setting": name,
                        "kind": kind,
                        "lr": lr / 10 if kind == "small" else lr,
                        # None tells a run at the same lr without warmup from one whose lr is constant
                        "warmup": {"warmup": warmup, "none": 0, "small": None}[kind],
                        "seed": seed,
                    }
                )
    if asked.listing:
        for cell in cells:
            print(cell)
        return
    run_all(cells, asked.out, workers=asked.workers, run=collect)


if __name__ == "__main__":
    main()
