"""Train behind the warmup that a fit implies, and compare with tuned linear warmup and with none.

    python benchmarks/smoothness/train.py docs/smoothness/fits.jsonl docs/smoothness/trained.jsonl [SETTING ...]
        [--rules ...] [--factors 1 2 4] [--seeds 0 1 2] [--grids FILE ...] [--list] [--table] [--workers N]

The rules of the warmup, each followed by `LossDriven` (smoothing 0.9, f* = 0) on the training losses, up to the
learning rate of the run, and multiplied with the grid's linear cooldown over the second half:
    CURVE            SmoothnessRule from the fit of the curvature CURVE (local_p, sharp_p, local, sharp) along the
                     setting's run of seed 0 behind tuned linear warmup, scaled so that its peak is the learning rate
    CURVE/1          lr K0 / (K0 + K_rho gap^rho), likewise scaled: without the paper's factor 3^rho, which a step that
                     descends does not need
    CURVE!, CURVE!/1 the same with the constants of floor and power together where the points do not ask for them
    inverse-gap      InverseGapRule from a tenth of the learning rate at the first loss: no fit
    inverse-gap-F    the same with f* = F
    linear-W         W steps of linear warmup; linear-0 is none
The learning rates are the grid's best behind 10 % linear warmup, and that times the factors. For SGD also the one that
the rule has in its own units, 1 / (2 floor): the same rule, not scaled. Resumable.
"""

import argparse
import math
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from collect import GRIDS, tuned
from fit import SGD
from regimes import REGIMES, warmups
from runs import COOLDOWN, judge, read, run_all
from runs import train as train_linear

from warmfree.schedule.loss_driven import LossDriven
from warmfree.schedule.smoothness import GapRule, InverseGapRule, ReciprocalRule, SmoothnessRule

RULES = ("local_p", "local_p/1", "sharp_p", "sharp_p/1", "inverse-gap")
SHOWN = 20  # multipliers of the learning rate that a row holds, evenly spaced over the first half of the run


def run_cell(cell: dict[str, Any]) -> dict[str, Any]:
    """Make the run {setting, lr, warmup (the rule), seed, and the rule's constants}."""
    torch.set_num_threads(1)
    setting = REGIMES[cell["setting"]]
    training = setting.start(seed=cell["seed"], lr=cell["lr"])
    if cell["warmup"].startswith("linear-"):
        length = int(cell["warmup"].removeprefix("linear-"))
        return {**cell, **train_linear(training, steps=setting.steps, warmup=length)}
    model, optimizer = training.model, training.optimizer
    model.train()
    multipliers = []
    scheduler = None
    for step in range(setting.steps):
        loss = training.loss_fn(model, training.batch(step))
        if not math.isfinite(loss.item()):
            return {**cell, "loss": None, "accuracy": None, "multipliers": multipliers}
        if scheduler is None:
            peak = optimizer.param_groups[0]["lr"]  # in muP not the global learning rate
            rule = rule_of(cell, peak=peak, initial_loss=loss.item())
            scheduler = LossDriven(optimizer, rule, initial_loss=loss.item(), f_star=infimum(cell))
            shrink(optimizer, step, setting.steps)
        multipliers.append(optimizer.param_groups[0]["lr"] / peak)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step(loss.item())
        shrink(optimizer, step + 1, setting.steps)
    kept = [round(value, 4) for value in multipliers[: setting.steps // 2 : setting.steps // 2 // SHOWN]]
    climbed = [value >= 0.99 for value in multipliers[: setting.steps // 2]]
    return {
        **cell,
        **judge(training),
        "multipliers": kept,
        "full": climbed.index(True) if any(climbed) else None,
    }


def rule_of(cell: dict[str, Any], *, peak: float, initial_loss: float) -> GapRule:
    """Return the rule of a cell whose peak is the learning rate of the first group."""
    if cell["warmup"].startswith("inverse-gap"):
        return InverseGapRule.from_start(peak=peak, start=peak / 10, initial_gap=initial_loss - infimum(cell))
    exponent, growth = cell["exponent"], cell["growth"]
    paper = not cell["warmup"].endswith("/1")
    # A power without a floor has its peak at the least gap of the points, as `SmoothnessFit.rule` has it.
    floor = cell["floor"] or growth * ((3.0 if paper else 1.0) * cell["least_gap"]) ** exponent
    if paper:
        return SmoothnessRule(exponent=exponent, floor=floor, growth=growth, safety=peak * floor)
    return ReciprocalRule(exponent=exponent, floor=cell["floor"], growth=growth, safety=peak * floor)


def infimum(cell: dict[str, Any]) -> float:
    """Return f*: 0, but where the rule's name has it."""
    return (
        float(cell["warmup"].removeprefix("inverse-gap-")) if cell["warmup"][:12] == "inverse-gap-" else 0.0
    )


def shrink(optimizer: torch.optim.Optimizer, step: int, steps: int) -> None:
    """Multiply what the scheduler has set with the grid's cooldown."""
    for group in optimizer.param_groups:
        group["lr"] *= min(1.0, (steps - step) / (COOLDOWN * steps))


def fitted(path: Path, name: str, curve: str) -> dict[str, float] | None:
    """Return the constants of a fit with f* = 0; None where the curvature does not grow with the loss."""
    forced = curve.endswith("!")
    curve = curve.removesuffix("!")
    if name in SGD:
        curve = curve.removesuffix("_p")
    for row in read(path):
        is_it = row["setting"] == name and row["kind"] == "warmup" and row["seed"] == 0
        if is_it and row["curve"] == curve and row["f_star"] == 0.0 and row["points"] == "all":
            if forced:
                return {**row["forced"], "least_gap": row["least_gap"]}
            if row["growth"] == 0.0:
                return None
            return {key: row[key] for key in ("exponent", "floor", "growth", "least_gap")}
    raise SystemExit(f"{path} has no fit of {curve} for {name}: run fit.py first")


def cells_of(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """List the runs: the tuned learning rates first, then their multiples, then SGD's own."""
    cells = []
    for factor in asked.factors:
        for name in asked.settings:
            for rule in asked.rules:
                constants: dict[str, float] | None = {}
                if not rule.startswith(("linear", "inverse-gap")):
                    constants = fitted(asked.fits, name, rule.removesuffix("/1"))
                    if constants is None:
                        continue  # it would be a run without warmup
                lr = tuned(name, asked.grids)
                if factor == "own":
                    if name not in SGD or not constants.get("floor"):
                        continue
                    lr = 0.5 / constants["floor"]
                else:
                    lr *= float(factor)
                cells += [
                    {"setting": name, "lr": lr, "factor": factor, "warmup": rule, "seed": seed, **constants}
                    for seed in asked.seeds
                ]
    return cells


def table(trained: list[dict[str, Any]], grids: list[Path]) -> None:
    """Print each rule beside none and the best linear one of at most 30 % at the same learning rate."""
    factors = {(row["setting"], row["lr"]): row["factor"] for row in trained}
    rows = list(trained)
    for path in grids:
        rows += [
            row | {"warmup": f"linear-{row['warmup']}"}
            for row in read(path)
            if row["setting"] in REGIMES and row["warmup"] in [*warmups(REGIMES[row["setting"]]), 2000]
        ]
    found: dict[tuple[str, float, bool], dict[str, dict[int, dict[str, Any]]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for row in rows:
        found[row["setting"], row["lr"], row["seed"] > 2][row["warmup"]][row["seed"]] = row
    print("| setting | lr | seeds | warmup | loss | +- | accuracy | steps to full lr |")
    print("|" + "---|" * 8)
    names = list(REGIMES)
    for name, lr, fresh in sorted(found, key=lambda key: (names.index(key[0]), key[2], key[1])):
        if (name, lr) not in factors:
            continue
        rules = found[name, lr, fresh]
        lengths = [rule for rule in rules if rule.startswith("linear-") and rule != "linear-0"]
        tuned_ones = [rule for rule in lengths if rule != "linear-2000"]
        shown = tuned_ones if fresh else sorted(tuned_ones, key=lambda rule: score(rules[rule])[0])[:1]
        if factors[name, lr] == "4" and "linear-2000" in lengths:
            shown.append("linear-2000")  # which never reaches its learning rate
        shown = ["linear-0", *shown] if "linear-0" in rules else shown
        for rule in [*shown, *sorted(rule for rule in rules if not rule.startswith("linear"))]:
            loss, spread, accuracy = score(rules[rule])
            full = [str(rules[rule][seed].get("full", "")) for seed in sorted(rules[rule])]
            print(
                f"| {name} | {lr:.4g} ({factors[name, lr]}) | {' '.join(map(str, sorted(rules[rule])))} | {rule} "
                f"| {loss:.4f} | {spread:.4f} | {accuracy} | {' '.join(full)} |"
            )


def score(rows: dict[int, dict[str, Any]]) -> tuple[float, float, str]:
    """Return mean and half range of the held-out loss, and the mean accuracy in percent."""
    losses = [math.inf if row["loss"] is None else row["loss"] for row in rows.values()]
    accuracies = [row["accuracy"] for row in rows.values() if row["accuracy"] is not None]
    shown = f"{100 * mean(accuracies):.2f}" if accuracies else ""
    spread = (max(losses) - min(losses)) / 2 if max(losses) < math.inf else math.inf
    return mean(losses), spread, shown


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("fits", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("settings", nargs="*", default=list(REGIMES), metavar="SETTING")
    parser.add_argument("--rules", nargs="+", default=list(RULES))
    parser.add_argument("--factors", nargs="+", default=["1", "4", "2", "own"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--grids", type=Path, nargs="+", default=list(GRIDS))
    parser.add_argument("--list", action="store_true", dest="listing")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--workers", type=int, default=1)
    asked = parser.parse_intermixed_args()
    if asked.table:
        table(read(asked.out), asked.grids)
        return
    cells = cells_of(asked)
    if asked.listing:
        for cell in cells:
            print(cell)
        return
    run_all(cells, asked.out, workers=asked.workers, run=run_cell)


if __name__ == "__main__":
    main()
