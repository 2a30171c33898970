"""Ask for advice before runs of the settings, follow it to the end, and compare with the grid.

    python benchmarks/advice/advised.py GRID.jsonl OUT.jsonl [SETTING ...] [--workers N]
    python benchmarks/advice/advised.py GRID.jsonl OUT.jsonl --table

Advice is asked at the learning rate that is best behind 10 % warmup, as a tuned recipe has it, and at twice that. Every
seed asks for itself, with its own weights and first batches.
"""

import argparse
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from grid import SEEDS, warmups
from runs import read, run_all, train
from settings import SETTINGS, Setting

from warmfree.advice import advise, translated


def score(row: dict[str, Any]) -> float:
    """Return what is to be small: the loss of a text, the error rate of images; inf for a run that failed."""
    if row["loss"] is None:
        return math.inf
    return row["loss"] if row["accuracy"] is None else 1 - row["accuracy"]


def regret(value: float, best: float, setting: Setting) -> float:
    """Return how much worse a value is: relative for losses, in points of accuracy for images; in percent."""
    return 100 * (value / best - 1) if setting.text else 100 * (value - best)


def mean_scores(rows: Iterable[dict[str, Any]]) -> dict[tuple[float, int], float]:
    """Return the mean score over seeds of each cell (lr, warmup)."""
    cells: dict[tuple[float, int], list[float]] = {}
    for row in rows:
        cells.setdefault((row["lr"], row["warmup"]), []).append(score(row))
    return {cell: statistics.fmean(scores) for cell, scores in cells.items()}


def tuned_lr(setting: Setting, rows: list[dict[str, Any]]) -> float:
    cells = mean_scores(row for row in rows if row["setting"] == setting.name)
    return min(setting.lrs, key=lambda lr: cells[lr, warmups(setting)["10 %"]])


def run_advised(cell: dict[str, Any]) -> dict[str, Any]:
    """Ask for advice, and train as it says."""
    torch.set_num_threads(1)
    setting = SETTINGS[cell["setting"]]
    training = setting.start(seed=cell["seed"], lr=cell["lr"])
    training.model.train()
    batches = [training.batch(step) for step in range(200)]
    advice = advise(
        training.model,
        training.loss_fn,
        batches,
        training.optimizer,
        steps=setting.steps,
        batch_size=setting.batch_size,
    )
    replaces = advice.verdict == "replace"
    found = train(
        training,
        steps=setting.steps,
        warmup=advice.warmup_steps,
        start=advice.start_lr / advice.lr if advice.warmup_steps else 0.0,
        optimizer=translated(training.optimizer, advice.replacement.optimizer) if replaces else None,
    )
    return {
        **cell,
        **found,
        "verdict": advice.verdict,
        "advised": advice.warmup_steps,
        "kept": advice.warmup_if_kept,
        "confidence": advice.confidence,
        "seconds": round(advice.seconds, 1),
        "reasons": advice.reasons,
        "doubts": advice.doubts,
    }


def table(grid: list[dict[str, Any]], advised: list[dict[str, Any]]) -> None:
    """Print a row for each setting and learning rate, and what they come to."""
    names = list(warmups(next(iter(SETTINGS.values()))))
    print("| setting | lr | advice, by seed | advised | best cell | regret |", " | ".join(names), "| saved |")
    print("|" + "---|" * (7 + len(names)))
    regrets: dict[str, list[float]] = {"advised": [], **{name: [] for name in names}}
    saved = []
    for setting in SETTINGS.values():
        cells = mean_scores(row for row in grid if row["setting"] == setting.name)
        mine = [row for row in advised if row["setting"] == setting.name]
        best_cell = min(cells, key=lambda cell: cells[cell])
        for lr in sorted({row["lr"] for row in mine}):
            rows = sorted((row for row in mine if row["lr"] == lr), key=lambda row: row["seed"])
            value = statistics.fmean(map(score, rows))
            spread = max(map(score, rows)) - min(map(score, rows))
            by_name = {
                name: regret(cells[lr, warmup], cells[best_cell], setting)
                for name, warmup in warmups(setting).items()
            }
            default = warmups(setting)["10 %"]
            saved.append(1 - statistics.fmean(row["advised"] for row in rows) / default)
            mark = "" if setting.held_out else "*"
            own = regret(value, cells[best_cell], setting)
            regrets["advised"].append(own)
            for name in names:
                regrets[name].append(by_name[name])
            print(
                f"| {setting.name}{mark} | {lr:g} | {', '.join(_words(row) for row in rows)} | "
                f"{value:.4f} ± {spread / 2:.4f} | "
                f"{cells[best_cell]:.4f} (lr {best_cell[0]:g}, {best_cell[1]} steps) | {own:+.1f} | "
                + " | ".join(f"{by_name[name]:+.1f}" for name in names)
                + f" | {saved[-1]:.0%} |"
            )
    for name, values in regrets.items():
        print(f"{name}: median {statistics.median(values):+.2f}, worst {max(values):+.2f}")
    print(
        f"warmup saved against 10 %: {statistics.fmean(saved):.0%} on average, median {statistics.median(saved):.0%}"
    )


def _words(row: dict[str, Any]) -> str:
    return (
        "AdamW2"
        if row["verdict"] == "replace"
        else str(row["advised"])
        if row["verdict"] != "unknown"
        else "?"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("grid", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("settings", nargs="*", default=list(SETTINGS))
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    grid = read(asked.grid)
    if asked.table:
        table(grid, read(asked.out))
        return
    for name in asked.settings:
        setting = SETTINGS[name]
        lr = tuned_lr(setting, grid)
        cells = [
            {"setting": name, "lr": lr * factor, "warmup": None, "seed": s}
            for factor in (1, 2)
            for s in SEEDS
        ]
        run_all(
            [cell for cell in cells if cell["lr"] in setting.lrs],
            asked.out,
            workers=asked.workers,
            run=run_advised,
        )


if __name__ == "__main__":
    main()
