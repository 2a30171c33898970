"""Print the tables of docs/smoothness.md from what was recorded and fitted.

    python benchmarks/smoothness/report.py docs/smoothness/points.jsonl docs/smoothness/fits.jsonl

1. slopes: least squares in log-log and rank correlations of curvature with loss, by kind of run; seed 0, and in
   brackets the range over the seeds where there are several
2. edge: median over the steps from 10 % to 50 % of the run of curvature, and of lr * curvature over its threshold, in
   the optimizer's metric: (2 + 2b) / (1 - b) for Adam, (2 + 2b) / (1 + 2b) for SGD with Nesterov momentum b
3. fits of the runs behind tuned linear warmup
4. fits of the three kinds of runs of seed 0 together
"""

import argparse
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from collect import KINDS
from fit import SGD, curve_of
from regimes import REGIMES
from runs import read

from warmfree.theory.fit import fit_smoothness

ORDER = ("gpt-adamw", "gpt-mup", "vit-adamw", "vit-mup", "resnet-adamw", "resnet-sgd", "resnet-mup")
SHARE = {
    "gpt-mup": 0.5,
    "vit-mup": 0.5,
}  # the largest learning rate of a group, which P is for, over the global one


def number(values: list[float]) -> str:
    """Return the first, and the range if there are others."""
    said = f"{values[0]:.2f}"
    return said if len(values) == 1 else f"{said} ({min(values):.2f} to {max(values):.2f})"


def slopes(fits: list[dict[str, Any]]) -> None:
    print("| setting | curve | " + " | ".join(f"{kind}: slope, rank" for kind in KINDS) + " |")
    print("|---|---|" + "---|" * len(KINDS))
    for name in ORDER:
        for curve in ("local", "local_p", "sharp", "sharp_p"):
            found: dict[str, list[dict[str, Any]]] = defaultdict(list)
            for fit in sorted(fits, key=lambda fit: fit["seed"]):
                if (fit["setting"], fit["curve"], fit["points"], fit["f_star"]) == (name, curve, "all", 0.0):
                    found[fit["kind"]].append(fit)
            if found:
                cells = [
                    "; ".join(number([fit[key] for fit in found[kind]]) for key in ("slope", "rank"))
                    if kind in found
                    else ""
                    for kind in KINDS
                ]
                print(f"| {name} | {curve} | " + " | ".join(cells) + " |")


def edge(rows: list[dict[str, Any]]) -> None:
    print(
        "| setting | run | lr | sharpness at step 0 | at 5 % | largest | median | preconditioned | over threshold |"
    )
    print("|" + "---|" * 9)
    for name in ORDER:
        for kind in KINDS:
            for row in rows:
                if (row["setting"], row["kind"], row["seed"]) == (name, kind, 0):
                    points = [point for point in row["points"] if "sharp" in point]
                    steps = REGIMES[name].steps
                    late = [point for point in points if 0.1 * steps <= point["step"] < 0.5 * steps]
                    threshold = 3.8 / 2.8 if name in SGD else 38.0
                    over = median(
                        SHARE.get(name, 1.0) * point["lr"] * point["sharp_p"] / threshold for point in late
                    )
                    soon = min(points, key=lambda point: abs(point["step"] - 0.05 * steps))
                    print(
                        f"| {name} | {kind} | {row['lr']:g} | {points[0]['sharp']:.3g} | {soon['sharp']:.3g} "
                        f"| {max(point['sharp'] for point in points):.3g} "
                        f"| {median(point['sharp'] for point in late):.3g} "
                        f"| {median(point['sharp_p'] for point in late):.3g} | {over:.2f} |"
                    )


def fitted(fits: list[dict[str, Any]]) -> None:
    print(
        "| setting | curve | seeds | verdict | model | rho | K0 | K_rho | R1 | start | steps "
        "| above: none | above: small |"
    )
    print("|" + "---|" * 13)
    for name in ORDER:
        for curve in ("local", "local_p", "sharp", "sharp_p"):
            found = [
                fit
                for fit in sorted(fits, key=lambda fit: fit["seed"])
                if (fit["setting"], fit["curve"], fit["points"], fit["f_star"]) == (name, curve, "all", 0.0)
                and fit["kind"] == "warmup"
            ]
            if not found:
                continue
            first, above = found[0], found[0]["above"]
            low, high = first["exponent_interval"]
            exponent = f"{first['exponent']:.2f} ({low:.2f} to {high:.2f})" if first["growth"] else ""
            print(
                f"| {name} | {curve} | {len(found)} | {', '.join(fit['verdict'] for fit in found)} "
                f"| {', '.join(fit['model'] for fit in found)} "
                f"| {exponent} "
                f"| {first['floor']:.3g} | {first['growth']:.3g} | {first['r1']:.2f} | {first['start']:.3f} "
                f"| {first['steps']} | {above.get('none', float('nan')):.0%} "
                f"| {above.get('small', float('nan')):.0%} |"
            )


def pooled(rows: list[dict[str, Any]]) -> None:
    print("| setting | curve | verdict | model | rho | R1 | rank |")
    print("|" + "---|" * 7)
    for name in ORDER:
        runs = [row for row in rows if (row["setting"], row["seed"]) == (name, 0)]
        for curve in ("local", "local_p", "sharp", "sharp_p"):
            if curve.endswith("_p") and name in SGD:
                continue
            parts = [
                curve_of(row, curve, 0) for row in sorted(runs, key=lambda row: KINDS.index(row["kind"]))
            ]
            losses, curvatures = (np.concatenate([part[place] for part in parts]) for place in (0, 1))
            fit = fit_smoothness(losses, curvatures, resamples=100)
            exponent = "" if fit.model == "floor" else f"{fit.smoothness.exponent:.2f}"
            print(
                f"| {name} | {curve} | {fit.verdict} | {fit.model} | {exponent} | {fit.explained:.2f} "
                f"| {fit.correlation:.2f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("points", type=Path)
    parser.add_argument("fits", type=Path)
    asked = parser.parse_args()
    fits = read(asked.fits)
    slopes(fits)
    print()
    edge(read(asked.points))
    print()
    fitted(fits)
    print()
    pooled(read(asked.points))


if __name__ == "__main__":
    main()
