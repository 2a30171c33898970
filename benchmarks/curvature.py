"""How many Hessian products, and seconds, does the preconditioned sharpness of the lab's GPT to 1 % take?

Before steps 0, 50, ... of an AdamW run on real text the top eigenvalue of P^-1/2 H P^-1/2 is looked for on the batch
of the step: by Lanczos from random starts, from the eigenvector of ten steps ago and of the previous place, from the
gradient, on finite differences; by plain power iteration; and, if curvlinops is installed, by SciPy's eigsh on its
Hessian. The reference is Lanczos with 200 products. "To 1 %" is the first product after which the estimate is, and
stays, within 1 % of it; "stops" is where the method stops by itself, asked for 1 %.

    python benchmarks/curvature.py --json curvature.json
    python benchmarks/curvature.py --steps 50 --seeds 1 --reference 60
"""

import argparse
import importlib.util
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from harness import cpu_name, print_table, save
from torch import Tensor, nn

from warmfree.lab.data import Batches, load_shakespeare
from warmfree.lab.methods import METHODS
from warmfree.lab.models.gpt import GPT
from warmfree.lab.tasks import ByteGPTConfig, prepare_run
from warmfree.measure.curvature import (
    DifferenceHessian,
    Hessian,
    Operator,
    Preconditioned,
    effective_preconditioner,
    lanczos,
    stability_threshold,
    twice_differentiable,
)
from warmfree.measure.curvature.sharded import Space

GOAL = 0.01
COLD = 20  # products that a cold start is given
AGO = 10  # steps ago that a warm start is from


@dataclass
class Row:
    """How one method did at one place.

    Attributes:
        products: until the estimate is and stays within the goal; None if it never is.
        seconds: of these products and all that goes with them.
        stopped: products after which the method stopped by itself; None if it does not.
        error: relative, of the estimate at which it stopped.
    """

    method: str
    products: int | None
    seconds: float | None
    stopped: int | None
    error: float


class Counted:
    """An operator that notes when each of its products was done, and remembers them for a run from the same start."""

    def __init__(self, operator: Operator) -> None:
        self.parameters = operator.parameters
        self.operator = operator
        self.known: list[list[Tensor]] = []
        self.times: list[float] = []
        self.calls = 0

    def __call__(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Make the product, or remember it."""
        self.calls += 1
        if self.calls > len(self.known):
            self.known.append(self.operator(vectors))
            self.times.append(time.perf_counter())
        return self.known[self.calls - 1]

    def again(self) -> "Counted":
        """Begin anew."""
        self.calls = 0
        return self


def settled(estimates: Sequence[float], truth: float) -> int | None:
    """Return the number of products after which all estimates are within the goal."""
    bad = [number for number, value in enumerate(estimates, start=1) if not abs(value / truth - 1) <= GOAL]
    after = bad[-1] + 1 if bad else 1
    return after if after <= len(estimates) else None


def by_lanczos(name: str, operator: Operator, truth: float, **options: Any) -> Row:
    counted = Counted(operator)
    begin = time.perf_counter()
    run = lanczos(counted, tolerance=1e-12, max_products=COLD, **options)
    products = run.products
    estimates = [
        lanczos(counted.again(), tolerance=1e-12, max_products=number, **options).values[0]
        for number in range(1, products + 1)
    ]
    own = lanczos(counted.again(), tolerance=GOAL, max_products=COLD, **options)
    enough = settled(estimates, truth)
    seconds = None if enough is None else counted.times[enough - 1] - begin
    return Row(name, enough, seconds, own.products, own.values[0] / truth - 1)


def by_power(operator: Operator, truth: float, most: int) -> Row:
    """Iterate v <- A v / |A v|, the estimate being v.Av: it finds what is largest in magnitude."""
    space = Space(operator.parameters)
    vector = space.random(0)
    estimates, times = [], []
    begin = time.perf_counter()
    for _ in range(most):
        vector = vector / space.norm(vector)
        image = space.join(operator(space.split(vector)))
        estimates.append(float(space.dots(vector[None], image)[0]))
        times.append(time.perf_counter())
        vector = image
    enough = settled(estimates, truth)
    seconds = None if enough is None else times[enough - 1] - begin
    return Row("power iteration", enough, seconds, None, estimates[-1] / truth - 1)


def by_curvlinops(
    model: nn.Module,
    batch: tuple[Tensor, Tensor],
    weights: list[Tensor],
    divisors: list[Tensor],
    truth: float,
) -> list[Row]:
    """Let SciPy's eigsh find it on an independent library's Hessian."""
    if importlib.util.find_spec("curvlinops") is None:
        return []
    import numpy as np
    from curvlinops import HessianLinearOperator
    from scipy.sparse.linalg import LinearOperator, eigsh

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, tokens: Tensor) -> Tensor:
            """Return logits of single tokens."""
            return self.model(tokens).flatten(0, 1)  # type: ignore[no-any-return]

    tokens, targets = batch
    theirs = HessianLinearOperator(
        Flat(),
        nn.CrossEntropyLoss(),
        weights,
        [(tokens, targets.flatten())],
        check_deterministic=False,
        num_data=len(tokens),  # of the one batch that there is: its mean stays the mean
    )
    hessian = theirs.to_scipy()
    roots = torch.cat([divisor.rsqrt().flatten() for divisor in divisors]).numpy()
    calls = []

    def product(vector: Any) -> Any:
        calls.append(time.perf_counter())
        return roots * (hessian @ (roots * vector.ravel()).astype(np.float32))

    operator = LinearOperator((len(roots), len(roots)), matvec=product, dtype=np.float32)
    start = np.random.default_rng(0).standard_normal(len(roots)).astype(np.float32)
    begin = time.perf_counter()
    (value,) = eigsh(operator, k=1, which="LA", tol=GOAL, v0=start, return_eigenvectors=False)
    good = abs(value / truth - 1) <= GOAL
    seconds = time.perf_counter() - begin if good else None
    products, error = len(calls), float(value / truth - 1)
    return [Row("curvlinops, eigsh", products if good else None, seconds, products, error)]


def all_lanczos(
    model: GPT,
    batch: tuple[Tensor, Tensor],
    weights: list[Tensor],
    divisors: list[Tensor],
    truth: float,
    vectors: dict[str, list[Tensor]],
    seeds: int,
) -> list[Row]:
    def loss() -> Tensor:
        return model.loss(*batch)

    def rough() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model.loss(*batch)

    def exact(**options: bool) -> Operator:
        return Preconditioned(Hessian(loss, weights, **options), divisors)

    # In these coordinates the gradient is P^-1/2 g.
    pairs = zip(divisors, weights, strict=True)
    slope = [divisor.rsqrt() * weight.grad for divisor, weight in pairs if weight.grad is not None]
    starts = {**vectors, "the gradient": slope}
    return [
        *(by_lanczos(f"Lanczos, random start {seed}", exact(), truth, seed=seed) for seed in range(seeds)),
        *(by_lanczos(f"Lanczos, from {name}", exact(), truth, start=start) for name, start in starts.items()),
        by_lanczos("Lanczos, graph not kept", exact(keep_graph=False), truth),
        by_lanczos("Lanczos, differences", Preconditioned(DifferenceHessian(loss, weights), divisors), truth),
        by_lanczos(
            "Lanczos, differences in bfloat16",
            Preconditioned(DifferenceHessian(rough, weights), divisors),
            truth,
        ),
    ]


def measure(
    places: Sequence[int], seeds: int, reference: int, power: int, lr: float
) -> tuple[dict[int, dict[str, float]], dict[int, list[Row]]]:
    """Train, and return what is there and how the methods did at each place."""
    steps = max(places) + 1
    config, corpus = ByteGPTConfig(), load_shakespeare()
    run = prepare_run(config, corpus, METHODS["adamw"], lr=lr, seed=0)
    batches = Batches(corpus, context=config.context, batch_size=config.batch_size, seed=0)  # the run's own
    weights = [weight for group in run.optimizer.param_groups for weight in group["params"]]
    truths, rows = {}, {}
    vectors: dict[str, list[Tensor]] = {}
    for step in range(steps):
        run.optimizer.zero_grad()
        run.loss(step).backward()
        batch = batches.train(step)
        if step in places or step + AGO in places:
            divisors, rate = effective_preconditioner(run.optimizer, weights)
            with twice_differentiable(run.model):
                operator = Preconditioned(Hessian(lambda: run.model.loss(*batch), weights), divisors)  # noqa: B023
                if step in places:
                    begin = time.perf_counter()
                    exact = lanczos(operator, tolerance=1e-12, max_products=reference, memory=2**40)
                    bound = stability_threshold(run.optimizer, weights, lr=rate)
                    truth = exact.values[0]
                    truths[step] = {
                        "eigenvalue": truth,
                        "residual": exact.residuals[0],
                        "ratio": truth / bound.late,
                        "early ratio": truth / bound.early,
                        "seconds": time.perf_counter() - begin,
                    }
                    rows[step] = [by_power(operator, truth, power)]
                    rows[step] += by_curvlinops(run.model, batch, weights, divisors, truth)
                    rows[step] += all_lanczos(run.model, batch, weights, divisors, truth, vectors, seeds)
                    vectors["the previous place"] = exact.vector or []
                else:
                    vectors[f"{AGO} steps ago"] = lanczos(operator, max_products=COLD).vector or []
        run.optimizer.step()
        run.schedule.step()
    return truths, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--steps", type=int, nargs="*", default=(0, 50, 200), help="places (default: 0 50 200)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="random starts (default: 3)")
    parser.add_argument("--reference", type=int, default=200, help="products of the reference (default: 200)")
    parser.add_argument("--power", type=int, default=200, help="products of power iteration (default: 200)")
    parser.add_argument("--lr", type=float, default=2e-3, help="of AdamW (default: 2e-3)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    truths, rows = measure(
        arguments.steps, arguments.seeds, arguments.reference, arguments.power, arguments.lr
    )
    print(f"{cpu_name()}, {arguments.threads} threads, torch {torch.__version__}, lr {arguments.lr}")
    for step, truth in truths.items():
        print(
            f"\nbefore step {step}: {truth['eigenvalue']:.6g}, residual {truth['residual']:.1e}; over the threshold "
            f"{truth['ratio']:.3g}, over the early one {truth['early ratio']:.3g}"
        )
        print_table(
            "method | products to 1 % | seconds | stops | error there",
            [
                (
                    row.method,
                    row.products or "never",
                    "" if row.seconds is None else f"{row.seconds:.2f}",
                    row.stopped or "",
                    f"{100 * row.error:+.2f} %",
                )
                for row in rows[step]
            ],
        )
    save(
        arguments.json,
        threads=arguments.threads,
        lr=arguments.lr,
        places=[
            {"step": step, **truths[step], "rows": [asdict(row) for row in found]}
            for step, found in rows.items()
        ],
    )


if __name__ == "__main__":
    main()
