"""How long does a step take, and how much state does it keep, against torch.optim.AdamW?

All optimizers step in turn in one process, so that a machine that slows down slows all of them; each figure is the
median over rounds of the ratio to torch's AdamW in the same round.

    python benchmarks/optimizer_step.py --model lab
    python benchmarks/optimizer_step.py --model gpt2 --rounds 5 --threads 2
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from warmfree import AdamW2, GIAdamW, LionA, LionAR, RotationalAdamW, parameter_groups
from warmfree.lab.models.gpt import GPT, GPTConfig

MODELS = {
    "lab": GPTConfig(vocabulary=256, context=64, layers=4, width=128, heads=4),
    "gpt2": GPTConfig(vocabulary=50257, context=1024, layers=12, width=768, heads=12),
}

OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "torch AdamW (loop)": lambda model: torch.optim.AdamW(model.parameters(), foreach=False),
    "torch AdamW (foreach)": lambda model: torch.optim.AdamW(model.parameters(), foreach=True),
    "torch AdamW (fused)": lambda model: torch.optim.AdamW(model.parameters(), fused=True),
    "torch RAdam": lambda model: torch.optim.RAdam(model.parameters()),
    "AdamW2": lambda model: AdamW2(parameter_groups(model)),
    "AdamW2, 1 power iteration": lambda model: AdamW2(parameter_groups(model), power_iterations=1),
    "GIAdamW": lambda model: GIAdamW(parameter_groups(model)),
    "LionA": lambda model: LionA(parameter_groups(model)),
    "LionAR": lambda model: LionAR(parameter_groups(model)),
    "RotationalAdamW": lambda model: RotationalAdamW(parameter_groups(model)),
}


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    return sum(
        value.numel() * value.element_size()
        for entries in optimizer.state.values()
        for value in entries.values()
        if isinstance(value, torch.Tensor)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="lab", help="whose shapes (default: lab)")
    parser.add_argument("--rounds", type=int, default=20, help="steps of each optimizer (default: 20)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    model = GPT(MODELS[arguments.model])
    count = sum(parameter.numel() for parameter in model.parameters())
    for parameter in model.parameters():
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    optimizers = {name: build(model) for name, build in OPTIMIZERS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in optimizers}
    for _ in range(arguments.rounds + 1):  # the first round creates state
        for name, optimizer in optimizers.items():
            start = time.perf_counter()
            optimizer.step()
            seconds[name].append(time.perf_counter() - start)

    reference = seconds["torch AdamW (loop)"][1:]
    print(
        f"{arguments.model}: {count / 1e6:.2f}M parameters, {arguments.threads} threads, torch {torch.__version__}"
    )
    print(f"{'optimizer':28}{'ms':>9}{'ratio':>8}{'state B/parameter':>20}")
    for name, optimizer in optimizers.items():
        times = seconds[name][1:]
        ratio = statistics.median(a / b for a, b in zip(times, reference, strict=True))
        kept = state_bytes(optimizer) / count
        print(f"{name:28}{1e3 * statistics.median(times):9.2f}{ratio:8.2f}{kept:20.2f}")


if __name__ == "__main__":
    main()
