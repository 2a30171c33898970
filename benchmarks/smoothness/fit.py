"""Fit (rho, K0, K_rho)-smoothness to the recorded runs, and say what warmup the fits imply.

    python benchmarks/smoothness/fit.py docs/smoothness/points.jsonl docs/smoothness/fits.jsonl [--table]

Every run is fitted once for each curve of curvature (local, local_p over the batch's loss; sharp, sharp_p over the
fixed batch's), with f* = 0 and with f* estimated, from all points and from step 10 on ("settled": by then Adam's
moments have seen ten gradients). A row holds
    slope                    least squares in log-log, as a picture would be read
    rank                     correlation of curvature and loss
    exponent, floor, growth  the constants; and what else `warmfree.theory.fit` says
    start, steps             of the implied warmup, scaled to the run's peak: its first multiplier of the learning
                             rate, and after how many steps it reaches 99 % on this run's losses (None: it does not)
    forced                   constants of floor and power together, even if the points ask for less
    above                    share of the points of the setting's other runs (same seed) that exceed the envelope
Curvature in Adam's metric is taken for the step of the corrected moments: what `collect.py` recorded, times
(1 - beta1^t). SGD's P is 1: its curves with _p are those without. --table prints the rows as Markdown and fits nothing.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from collect import KINDS
from regimes import REGIMES
from runs import read

from warmfree.schedule.loss_driven import LossDriven
from warmfree.schedule.smoothness import SmoothnessRule
from warmfree.theory.fit import SmoothnessFit, fit_smoothness
from warmfree.theory.fit.envelope import fit_sum
from warmfree.theory.fit.points import even_weights

CURVES = {"local": "loss", "local_p": "loss", "sharp": "fixed", "sharp_p": "fixed"}
SETTLED = 10
SGD = ("resnet-sgd", "resnet-mup")


def warmup_of(rule: SmoothnessRule, peak: float, row: dict[str, Any], f_star: float) -> dict[str, Any]:
    """Follow a rule along a run's training losses, between whose records the line is straight."""
    steps = np.arange(REGIMES[row["setting"]].steps)
    points = row["points"]
    losses = np.interp(steps, [point["step"] for point in points], [point["loss"] for point in points])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=peak)
    scheduler = LossDriven(optimizer, rule, initial_loss=max(losses[0], f_star + 1e-9), f_star=f_star)
    start = optimizer.param_groups[0]["lr"] / peak
    for step in steps:
        if optimizer.param_groups[0]["lr"] >= 0.99 * peak:
            return {"start": start, "steps": int(step)}
        optimizer.step()
        scheduler.step(float(losses[step]))
    return {"start": start, "steps": None}


def described(fit: SmoothnessFit) -> dict[str, Any]:
    """Return what is kept of a fit."""
    smoothness = fit.smoothness
    exponents = fit.intervals["exponent"]
    return {
        "verdict": fit.verdict,
        "model": fit.model,
        "exponent": smoothness.exponent,
        "exponent_interval": list(exponents),
        "floor": smoothness.floor,
        "growth": smoothness.growth,
        "infimum": fit.f_star,
        "least_gap": float(fit.gaps.min()),
        "r1": fit.explained,
        "rank": fit.correlation,
        "rank_interval": list(fit.intervals["correlation"]),
        "inflation": fit.inflation,
    }


def curve_of(row: dict[str, Any], curve: str, first: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return losses, curvatures and steps of a run's points from a step on."""
    points = [
        point
        for point in row["points"]
        if point["step"] >= first and point.get(curve, 0.0) > 0.0 and point[curve] < float("inf")
    ]
    steps = np.array([point["step"] for point in points])
    curvatures = np.array([point[curve] for point in points])
    if curve.endswith("_p") and row["setting"] not in SGD:
        curvatures = curvatures * (1.0 - 0.9 ** (steps + 1.0))
    return np.array([point[CURVES[curve]] for point in points]), curvatures, steps


def fit_run(row: dict[str, Any], *, resamples: int) -> list[dict[str, Any]]:
    """Fit all curves of a run."""
    found = []
    for curve in CURVES:
        if curve.endswith("_p") and row["setting"] in SGD:
            continue
        for points, first in (("all", 0), ("settled", SETTLED)):
            losses, curvatures, steps = curve_of(row, curve, first)
            logs = np.log(losses), np.log(curvatures)
            base = {name: row[name] for name in ("setting", "kind", "seed", "lr")} | {
                "curve": curve,
                "points": points,
                "number": len(steps),
                "losses": [float(losses.min()), float(losses.max())],
                "slope": float(np.polyfit(*logs, 1)[0]),
            }
            for f_star in (0.0, "estimate"):
                fit = fit_smoothness(losses, curvatures, steps=steps, f_star=f_star, resamples=resamples)
                implied: dict[str, Any] = {"start": 1.0, "steps": 0}
                if fit.model != "floor":
                    implied = warmup_of(fit.rule(peak=row["lr"]), row["lr"], row, fit.f_star)
                found.append(base | {"f_star": f_star} | described(fit) | implied)
    return found


def transfer(rows: list[dict[str, Any]], fits: list[dict[str, Any]]) -> None:
    """Add to each fit how large a share of the points of the other runs of the same setting and seed is above it."""
    runs = {(row["setting"], row["kind"], row["seed"]): row for row in rows}
    for fit in fits:
        first = SETTLED if fit["points"] == "settled" else 0
        fit["above"] = {}
        for kind in KINDS:
            row = runs.get((fit["setting"], kind, fit["seed"]))
            if row is None or fit["f_star"] != 0.0:
                continue
            losses, curvatures, _ = curve_of(row, fit["curve"], first)
            bound = fit["floor"] + fit["growth"] * losses ** fit["exponent"]
            fit["above"][kind] = float((curvatures > bound).mean())


def force(rows: list[dict[str, Any]], fits: list[dict[str, Any]]) -> None:
    """Add to each fit with f* = 0 the constants of floor and power together, whether or not the points ask for both."""
    runs = {(row["setting"], row["kind"], row["seed"]): row for row in rows}
    for fit in fits:
        if fit["f_star"] == 0.0 and "forced" not in fit:
            row = runs[fit["setting"], fit["kind"], fit["seed"]]
            losses, curvatures, _ = curve_of(row, fit["curve"], SETTLED if fit["points"] == "settled" else 0)
            weights = even_weights(losses)[None]
            found = fit_sum(np.log(losses), np.log(curvatures), weights, quantile=0.95, refinements=20)
            names = ("exponent", "floor", "growth")
            fit["forced"] = {name: float(getattr(found, name)[0]) for name in names}


def table(fits: list[dict[str, Any]]) -> None:
    """Print all fits with f* = 0 as Markdown."""
    columns = "setting run seed curve points loss slope rank verdict rho K0 K_rho R1 start steps above"
    print("| " + columns.replace(" ", " | ") + " |")
    print("|" + "---|" * len(columns.split()))
    for fit in fits:
        if fit["f_star"] != 0.0:
            continue
        low, high = fit["losses"]
        print(
            f"| {fit['setting']} | {fit['kind']} | {fit['seed']} | {fit['curve']} | {fit['points']} "
            f"| {high:.3g} to {low:.2g} | {fit['slope']:.2f} | {fit['rank']:.2f} | {fit['verdict']} "
            f"| {fit['exponent']:.2f} | {fit['floor']:.3g} | {fit['growth']:.3g} | {fit['r1']:.2f} "
            f"| {fit['start']:.3f} | {fit['steps']} "
            f"| {' '.join(f'{kind} {share:.0%}' for kind, share in fit['above'].items())} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("points", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--resamples", type=int, default=100)
    asked = parser.parse_args()
    if asked.table:
        table(read(asked.out))
        return
    torch.set_num_threads(1)
    rows = read(asked.points)
    known = {(fit["setting"], fit["kind"], fit["seed"], fit["lr"]): [] for fit in read(asked.out)}
    for fit in read(asked.out):
        known[fit["setting"], fit["kind"], fit["seed"], fit["lr"]].append(fit)
    fits = []
    for row in rows:
        key = (row["setting"], row["kind"], row["seed"], row["lr"])
        fits += known[key] if key in known else fit_run(row, resamples=asked.resamples)
        print(key, flush=True)
    transfer(rows, fits)
    force(rows, fits)
    asked.out.write_text("".join(json.dumps(fit) + "\n" for fit in fits))


if __name__ == "__main__":
    main()
