"""How long does a step take, and how much memory, against torch.optim.AdamW(fused=True)?

Everything steps in turn in one process on the same weights and gradients; a ratio is the median over rounds of the
ratio to torch's fused AdamW in the same round. With "gpt2", optimizers are made in groups of at most four beside it and
freed after, for memory. The least traffic of an optimizer is to read the gradient once and to read and write weights
and state once: 28 bytes a parameter for AdamW in float32, 20 for Lion; "bandwidth" is how fast that would have gone, in
percent of what torch's fused AdamW gets to. What compiling takes is in "first steps"; with
TORCHINDUCTOR_FORCE_DISABLE_CACHES=1 nothing that an earlier run has left helps. Other packages: pip install
'warmfree[bench]'.

    python benchmarks/optimizer_step.py --model lab
    python benchmarks/optimizer_step.py --model gpt2 --rounds 7 --json step.json
    python benchmarks/optimizer_step.py --only 'AdamW2|Lion'
"""

import argparse
import gc
import importlib.util
import re
from collections.abc import Callable
from typing import Any

import torch
from harness import (
    LR,
    MODES,
    OURS,
    REFERENCE,
    Step,
    add_options,
    as_row,
    cpu_name,
    in_turn,
    peak_bytes,
    print_table,
    reference,
    save,
    size,
    state_bytes,
    with_gradients,
)
from torch import nn
from torch.optim import AdamW, Muon, Optimizer, RAdam

from warmfree import parameter_groups
from warmfree.lab.models.gpt import GPT, GPTConfig

MODELS = {
    "lab": GPTConfig(vocabulary=256, context=64, layers=4, width=128, heads=4),
    "gpt2": GPTConfig(vocabulary=50257, context=1024, layers=12, width=768, heads=12, bias=True),
}

SCHEDULE_FREE = "schedulefree AdamW"  # in a group of its own: it overwrites gradients

Build = Callable[[nn.Module], list[Optimizer]]


def torch_rows() -> list[dict[str, Build]]:
    def adamw(**options: bool) -> Build:
        return lambda model: [AdamW(parameter_groups(model), lr=LR, **options)]

    def muon(model: nn.Module) -> list[Optimizer]:
        groups = parameter_groups(model)
        hidden = [weight for group in groups if group["role"] == "matrix" for _, weight in group["params"]]
        rest = [group for group in groups if group["role"] != "matrix"]
        return [Muon(hidden, lr=LR), AdamW(rest, lr=LR, fused=True)]

    def radam(model: nn.Module) -> list[Optimizer]:
        return [RAdam(parameter_groups(model), lr=LR, decoupled_weight_decay=True)]

    return [
        {"torch AdamW, loop": adamw(foreach=False), "torch AdamW, foreach": adamw(foreach=True)},
        {"torch RAdam": radam, "torch Muon, AdamW for the rest": muon},
    ]


def our_rows() -> list[dict[str, Build]]:
    def ours(name: str, **options: Any) -> Build:
        return lambda model: [OURS[name](model, lr=LR, **options)]

    groups = []
    for name in OURS:
        group = {f"{name}, {mode}": ours(name, **options) for mode, options in MODES.items()}
        # torch's fused AdamW does not look for inf and NaN, ours do: both with and without
        group[f"{name}, fused, unchecked"] = ours(name, fused=True, nonfinite="ignore")
        groups.append(group)
    # at this lr sigma_1 of a matrix would grow by some 5e-5: more than tau here, and each step is shortened
    active: dict[str, Any] = {"tau": 1e-5}
    group = {f"AdamW2, bound active, {mode}": ours("AdamW2", **active, **MODES[mode]) for mode in MODES}
    group["AdamW2, 1 power iteration, fused"] = ours("AdamW2", power_iterations=1, fused=True)
    return [*groups, group]


def peer_rows() -> list[dict[str, Build]]:
    """Return the nearest relatives in other packages, each in its default mode, as far as they are installed."""
    rows: list[dict[str, Build]] = []
    missing = []
    if importlib.util.find_spec("schedulefree"):
        from schedulefree import AdamWScheduleFree

        def schedule_free(model: nn.Module) -> list[Optimizer]:
            optimizer = AdamWScheduleFree(parameter_groups(model), lr=LR)
            optimizer.train()
            return [optimizer]

        rows.append({SCHEDULE_FREE: schedule_free})
    else:
        missing.append("schedulefree")
    if importlib.util.find_spec("pytorch_optimizer"):
        import pytorch_optimizer

        def theirs(name: str) -> Build:
            kind = getattr(pytorch_optimizer, name)
            return lambda model: [kind(model.parameters(), lr=LR, weight_decay=0.1)]

        names = ("StableAdamW", "Lion", "AdamP", "Lamb")
        rows.append({f"pytorch-optimizer {name}": theirs(name) for name in names})
    else:
        missing.append("pytorch-optimizer")
    if missing:
        print(
            f"Not installed, so not in the table: {', '.join(missing)} (pip install 'warmfree[bench]')",
            flush=True,
        )
    return rows


def together(groups: list[dict[str, Build]]) -> list[dict[str, Build]]:
    """Return one group of all that can be in one: in small models the company decides some percent of a time."""
    apart = [group for group in groups if SCHEDULE_FREE in group]
    return [{row: build for group in groups if group not in apart for row, build in group.items()}, *apart]


def stepping(optimizers: list[Optimizer]) -> Step:
    return lambda: [optimizer.step() for optimizer in optimizers]


def measure(model: nn.Module, builds: dict[str, Build], *, rounds: int) -> dict[str, dict[str, float]]:
    """Time some optimizers in turn with the reference, then count what a step of each allocates."""
    optimizers = {name: build(model) for name, build in builds.items()}
    steps = {name: stepping(made) for name, made in optimizers.items()}
    timings = in_turn(steps, rounds=rounds)
    count = size(model)
    found = {}
    for name, step in steps.items():
        kept = state_bytes(optimizers[name]) / count
        least = 4 + 2 * (4 + kept)
        found[name] = {
            **as_row(timings[name]),
            "peak_bytes_per_parameter": peak_bytes(step) / count,
            "state_bytes_per_parameter": kept,
            "least_bytes_per_parameter": least,
        }
    for numbers in found.values():
        share = numbers["least_bytes_per_parameter"] / found[REFERENCE]["least_bytes_per_parameter"]
        numbers["bandwidth"] = share / numbers["ratio"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="lab", help="whose shapes (default: lab)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default: 2)")
    add_options(parser, rounds=20)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    model = GPT(MODELS[arguments.model])
    rows: dict[str, dict[str, float]] = {}
    print(f"{arguments.model}: {size(model) / 1e6:.2f}M parameters, {arguments.rounds} rounds")
    print(f"{cpu_name()}, {arguments.threads} threads, torch {torch.__version__}")
    groups = [*torch_rows(), *our_rows(), *peer_rows()]
    for group in together(groups) if arguments.model == "lab" else groups:
        chosen = {name: build for name, build in group.items() if re.search(arguments.only, name)}
        if chosen:
            everybody = {REFERENCE: lambda model: [reference(model)], **chosen}
            for name, row in measure(with_gradients(model), everybody, rounds=arguments.rounds).items():
                rows.setdefault(name, row)
            gc.collect()
    print_table(
        "optimizer | ms | ratio | quartiles | bandwidth, % | peak, B | state, B | first steps, s",
        [
            (
                name,
                f"{1e3 * row['seconds']:.3g}",
                f"{row['ratio']:.2f}",
                f"{row['low']:.2f}-{row['high']:.2f}",
                f"{100 * row['bandwidth']:.0f}",
                f"{row['peak_bytes_per_parameter']:.2f}",
                f"{row['state_bytes_per_parameter']:.2f}",
                f"{row['first']:.1f}",
            )
            for name, row in rows.items()
        ],
    )
    print("\npeak: held beyond weights, gradients and state during a step; B: bytes a parameter")
    save(arguments.json, model=arguments.model, parameters=size(model), threads=arguments.threads, rows=rows)


if __name__ == "__main__":
    main()
