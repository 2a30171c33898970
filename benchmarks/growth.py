"""How does the time of a step grow with depth and width of a GPT, against torch.optim.AdamW(fused=True)?

Each shape is measured on its own: an optimizer's modes and the reference step in turn on the same weights and
gradients, and a ratio is the median over rounds of the ratio in the same round. Time that grows with the number of
parameters and nothing else shows as a constant number of nanoseconds a parameter. Another width compiles anew, another
depth does not.

    python benchmarks/growth.py --json growth.json
    python benchmarks/growth.py --depths 2 8 --widths 128 512 --only 'LionA.*fused' --rounds 5
"""

import argparse
import gc
import re
from collections.abc import Callable

import torch
from harness import (
    LR,
    MODES,
    OURS,
    REFERENCE,
    Timing,
    add_options,
    as_row,
    cpu_name,
    in_turn,
    print_table,
    reference,
    save,
    size,
    with_gradients,
)
from torch.optim import Optimizer

from warmfree.lab.models.gpt import GPT, GPTConfig

DEPTH, WIDTH = 4, 256  # of the shapes that differ in the other


def measure(depth: int, width: int, *, only: str, rounds: int) -> tuple[int, dict[str, Timing]]:
    """Return the number of parameters and how long each row takes."""
    model = with_gradients(
        GPT(GPTConfig(vocabulary=256, context=64, layers=depth, width=width, heads=width // 32))
    )
    timings: dict[str, Timing] = {}
    for name in OURS:
        chosen = {
            f"{name}, {mode}": options
            for mode, options in MODES.items()
            if re.search(only, f"{name}, {mode}")
        }
        if chosen:
            optimizers: dict[str, Optimizer] = {REFERENCE: reference(model)}
            optimizers |= {row: OURS[name](model, lr=LR, **options) for row, options in chosen.items()}
            steps = {row: optimizer.step for row, optimizer in optimizers.items()}
            for row, timing in in_turn(steps, rounds=rounds).items():
                timings.setdefault(row, timing)
            del optimizers, steps
            gc.collect()
    return size(model), timings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    depths, widths = (2, 4, 8, 16), (64, 128, 256, 512, 1024)
    parser.add_argument(
        "--depths", type=int, nargs="*", default=depths, help=f"blocks at width {WIDTH} (default: 2 to 16)"
    )
    parser.add_argument(
        "--widths",
        type=int,
        nargs="*",
        default=widths,
        help=f"widths at {DEPTH} blocks (default: 64 to 1024)",
    )
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default: 2)")
    add_options(parser, rounds=20)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    shapes = [
        *((depth, WIDTH) for depth in arguments.depths),
        *((DEPTH, width) for width in arguments.widths),
    ]
    shapes = list(dict.fromkeys(shapes))
    results = {
        shape: measure(*shape, only=arguments.only, rounds=arguments.rounds)
        for shape in sorted(shapes, key=lambda shape: (shape[1] != WIDTH, shape))
    }

    def table(title: str, cell: Callable[[int, Timing], str]) -> None:
        first = next(iter(results.values()))[1]
        columns = [f"{depth} x {width}, {count / 1e6:.2g}M" for (depth, width), (count, _) in results.items()]
        rows = [[row, *(cell(count, found[row]) for count, found in results.values())] for row in first]
        print_table(" | ".join([title, *columns]), rows)

    print(f"{cpu_name()}, {arguments.threads} threads, torch {torch.__version__}, {arguments.rounds} rounds")
    table("ratio", lambda _, timing: f"{timing.ratio:.2f}")
    table("ns a parameter", lambda count, timing: f"{1e9 * timing.seconds / count:.3g}")
    save(
        arguments.json,
        threads=arguments.threads,
        shapes=[
            {
                "depth": depth,
                "width": width,
                "parameters": count,
                "rows": {row: as_row(timing) for row, timing in found.items()},
            }
            for (depth, width), (count, found) in results.items()
        ],
    )


if __name__ == "__main__":
    main()
