"""How long does a step of each compiled kernel take at GPT-2's shapes, against torch.optim.AdamW(fused=True)?

All step in turn in one process on the same weights and gradients; each figure is the median over rounds of the ratio
in the same round. Vectors are stepped by the plain kernels. lr is so small that weights stay and tau decides whether
the spectral bound is far, near (more than a quarter of what is allowed) or active.

    python benchmarks/kernels.py --threads 2 --rounds 12
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from warmfree.optim import kernels

BLOCK = [(2304, 768), (768, 768), (3072, 768), (768, 3072)]
VECTORS = [(768,), (768,), (2304,), (768,), (3072,), (768,)]
SHAPES = [(50257, 768), (1024, 768), *(BLOCK * 12), *(VECTORS * 12), (768,), (768,)]
LR = 1e-6


class Problem:
    """Weights, gradients and one state per kernel, made when it is first asked for."""

    def __init__(self, shapes: list[tuple[int, ...]]) -> None:
        self.weights = [torch.nn.Parameter(0.02 * torch.randn(shape)) for shape in shapes]
        for weight in self.weights:
            weight.grad = 1e-3 * torch.randn_like(weight)
        self.matrices = [index for index, shape in enumerate(shapes) if len(shape) > 1]
        self.vectors = [index for index, shape in enumerate(shapes) if len(shape) == 1]
        self.states: dict[str, dict[str, list[Tensor]]] = {}

    def state(self, name: str) -> dict[str, list[Tensor]]:
        """Return the lists of a kernel."""
        if name not in self.states:
            data = [weight.detach() for weight in self.weights]
            rows = [torch.randn(weight[0].numel()) for weight in data]
            self.states[name] = {
                "param": data,
                "grad": [weight.grad for weight in self.weights],
                "exp_avg": [torch.zeros_like(weight) for weight in data],
                "exp_avg_sq": [torch.zeros_like(weight) for weight in data],
                "random": [row / row.norm() for row in rows],
                "weight_vector": [(row / row.norm()).unsqueeze(0) for row in rows],
                "update_vector": [(row / row.norm()).unsqueeze(0) for row in rows],
                "kept": [weight.flatten(1).norm(dim=1) if weight.ndim > 1 else weight for weight in data],
                "square": [torch.zeros(len(weight)) for weight in data],
            }
        return self.states[name]

    def lists(self, name: str, indices: list[int], *keys: str) -> list[list[Tensor]]:
        """Return those lists of a kernel that it is called with, for some of the tensors."""
        return [
            [self.state(name)[key][index] for index in indices] for key in ("param", "grad", "exp_avg", *keys)
        ]


def candidates(problem: Problem) -> dict[str, Callable[[], object]]:
    matrices, vectors = problem.matrices, problem.vectors
    everything = sorted([*matrices, *vectors])

    def adam_scalars(indices: list[int]) -> dict:
        count = len(indices)
        scalars = {"lr": LR, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
        return {**scalars, "corrections": [1.0] * count, "roots": [1.0] * count}

    def adam(name: str, indices: list[int]) -> None:
        data = problem.lists(name, indices, "exp_avg_sq")
        kernels.adam(*data, weight_decay=0.01, **adam_scalars(indices))

    def lion(name: str, indices: list[int]) -> None:
        kernels.lion(*problem.lists(name, indices), lr=LR, weight_decay=0.01, momentum=0.95, nesterov=True)

    def spectral(tau: float, iterations: int) -> Callable[[], None]:
        name = f"spectral {tau} {iterations}"

        def step() -> None:
            vectors_of = ("exp_avg_sq", "weight_vector", "update_vector", "random")
            kernels.adam_spectral(
                *problem.lists(name, matrices, *vectors_of),
                heights=[[len(problem.weights[index])] for index in matrices],
                weight_decay=0.01,
                tau=tau,
                floor_unit=0.002,
                power_iterations=iterations,
                **adam_scalars(matrices),
            )
            adam(name, vectors)

        return step

    def turning(name: str) -> None:
        common = {"angles": [1e-4] * len(matrices), "rotational_eps": 1e-8}
        common["average_corrections"] = [1.0] * len(matrices)
        if name == "adam turning":
            data = problem.lists(name, matrices, "exp_avg_sq", "kept", "square")
            kernels.adam_angular(*data, update_norm_decay=0.9, **common, **adam_scalars(matrices))
            adam(name, vectors)
            return
        data = problem.lists(name, matrices, "kept", "square")
        kernels.lion_angular(*data, lr=LR, momentum=0.95, nesterov=True, update_norm_decay=0.0, **common)
        lion(name, vectors)

    # sigma_1 of the update, elements of +-1 here, is 50 times that of the weight: lr * 50 = 5e-5
    return {
        "adam": lambda: adam("adam", everything),
        "lion": lambda: lion("lion", everything),
        "lion_angular": lambda: turning("lion turning"),
        "adam_angular": lambda: turning("adam turning"),
        "adam_spectral, far": spectral(1e-2, 2),
        "adam_spectral, near": spectral(1e-4, 2),
        "adam_spectral, active": spectral(2e-5, 2),
        "adam_spectral, active, 1 iteration": spectral(2.1e-5, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12, help="steps of each kernel (default: 12)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default: 2)")
    parser.add_argument("--cpu-time", action="store_true", help="processor time: steadier on a busy machine")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    clock = time.process_time if arguments.cpu_time else time.perf_counter

    kernels.load()
    problem = Problem(SHAPES)
    fused = torch.optim.AdamW(problem.weights, lr=LR, fused=True)
    steps = {"torch AdamW (fused)": fused.step, **candidates(problem)}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(arguments.rounds + 4):  # the first rounds create state and warm the vectors
        for name, step in steps.items():
            start = clock()
            step()
            seconds[name].append(clock() - start)

    reference = seconds["torch AdamW (fused)"][4:]
    print(f"{'kernel':36}{'ms':>9}{'ratio':>8}   {arguments.threads} threads, torch {torch.__version__}")
    for name, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(times[4:], reference, strict=True))
        print(f"{name:36}{1e3 * statistics.median(times[4:]):9.2f}{ratio:8.2f}")


if __name__ == "__main__":
    main()
