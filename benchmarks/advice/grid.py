"""Train every setting at every learning rate with every warmup, three seeds: what the advice is measured against.

    python benchmarks/advice/grid.py OUT.jsonl [SETTING ...] [--scan] [--workers N]

With --scan only one seed, 10 % warmup and learning rates 4 apart, to place the grid.
"""

import argparse
from pathlib import Path

from runs import run_all
from settings import SETTINGS, Setting

SEEDS = (0, 1, 2)


def warmups(setting: Setting) -> dict[str, int]:
    """Return the folklore's warmups, and a long one, in steps."""
    fractions = {"0": 0.0, "1 %": 0.01, "5 %": 0.05, "10 %": 0.1, "30 %": 0.3}
    return {name: round(fraction * setting.steps) for name, fraction in fractions.items()} | {
        "2000 steps": 2000
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("settings", nargs="*", default=list(SETTINGS))
    parser.add_argument("--scan", action="store_true")
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    for name in asked.settings:
        setting = SETTINGS[name]
        if asked.scan:
            middle = setting.lrs[len(setting.lrs) // 2]
            lrs, lengths, seeds = [middle * 4**power for power in (-2, -1, 0, 1)], [setting.steps // 10], [0]
        else:
            lrs, lengths, seeds = setting.lrs, list(warmups(setting).values()), SEEDS
        cells = [
            {"setting": name, "lr": lr, "warmup": warmup, "seed": seed}
            for seed in seeds
            for lr in lrs
            for warmup in lengths
        ]
        run_all(cells, asked.out, workers=asked.workers)


if __name__ == "__main__":
    main()
