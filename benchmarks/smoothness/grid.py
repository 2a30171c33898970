"""Tune the linear warmup of the settings in muP: learning rates x warmups x 3 seeds, as the advice's grid has it.

    python benchmarks/smoothness/grid.py docs/smoothness/grid.jsonl [SETTING ...] [--scan] [--list] [--workers N]

Runs what the file does not hold yet. --scan tries seed 0 alone with 10 % warmup at learning rates 4 apart, to place the
grid; --list prints the runs. The grid of the other settings is docs/advice/grid.jsonl.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from regimes import REGIMES, warmups
from runs import run_all, train

SEEDS = (0, 1, 2)


def run_cell(cell: dict[str, Any]) -> dict[str, Any]:
    """Run {setting, lr, warmup in steps, seed} in this process."""
    torch.set_num_threads(1)
    setting = REGIMES[cell["setting"]]
    training = setting.start(seed=cell["seed"], lr=cell["lr"])
    return {**cell, **train(training, steps=setting.steps, warmup=cell["warmup"])}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "settings", nargs="*", default=[name for name in REGIMES if "mup" in name], metavar="SETTING"
    )
    parser.add_argument("--scan", action="store_true")
    parser.add_argument("--list", action="store_true", dest="listing")
    parser.add_argument("--workers", type=int, default=1)
    asked = parser.parse_intermixed_args()
    cells = []
    for seed in (0,) if asked.scan else SEEDS:
        for name in asked.settings:
            setting = REGIMES[name]
            middle = setting.lrs[len(setting.lrs) // 2]
            lrs = [middle * 4.0**power for power in (-2, -1, 0, 1, 2)] if asked.scan else setting.lrs
            lengths = [round(0.1 * setting.steps)] if asked.scan else warmups(setting)
            cells += [
                {"setting": name, "lr": lr, "warmup": warmup, "seed": seed}
                for lr in lrs
                for warmup in lengths
            ]
    # What chooses the learning rate first: collect.py waits for it.
    cells.sort(key=lambda cell: cell["warmup"] != round(0.1 * REGIMES[cell["setting"]].steps))
    if asked.listing:
        for cell in cells:
            print(cell)
        return
    run_all(cells, asked.out, workers=asked.workers, run=run_cell)


if __name__ == "__main__":
    main()
