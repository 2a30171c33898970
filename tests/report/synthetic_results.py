"""Synthetic results: made from formulas, never from a training run.

They have the shape of real ones, and known answers.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

STEPS = 300
START = 5.55


@dataclass(frozen=True)
class Recipe:
    """A parabola in log lr: `floor` at `best_lr`, `steepness` per squared decade; runs above `limit` diverge."""

    name: str
    label: str
    kind: str
    lrs: tuple[float, ...]
    floor: float
    best_lr: float
    steepness: float = 0.35
    limit: float = math.inf
    warmup: float = 0.0
    early_size: float = 1.0
    factor_start: float | None = None
    measures: bool = True


_ADAM = (3e-4, 1e-3, 2e-3, 3e-3, 1e-2)
_LION = (1e-2, 3e-2, 1e-1, 3e-1)
RECIPES = (
    Recipe("adamw", "AdamW, no warmup", "baseline", _ADAM, 2.085, 1e-3, 0.5, limit=5e-3, early_size=3.0),
    Recipe("adamw-warmup", "AdamW, 20 % warmup", "baseline", _ADAM, 1.955, 2.8e-3, 0.6, warmup=0.2),
    Recipe("radam", "RAdam", "baseline", _ADAM, 2.01, 2e-3, 0.7, early_size=0.3),
    Recipe("adamd", "AdamD", "baseline", _ADAM, 2.03, 1.8e-3, 0.6, limit=5e-3, early_size=0.5),
    Recipe("adamw2", "AdamW²", "warmup-free", _ADAM, 2.04, 3e-3, 0.3, factor_start=0.06),
    Recipe("gi-adamw", "GI-AdamW", "warmup-free", _ADAM, 2.12, 1.5e-3, 0.4, limit=5e-3, early_size=1.6),
    Recipe("liona", "LionA", "warmup-free", (1e-4, 3e-4, 1e-3, 3e-3), 2.00, 4e-4, 0.4, early_size=0.8),
    Recipe("lionar", "LionAR", "warmup-free", _LION, 1.962, 9e-2, 0.28, factor_start=0.35),
    Recipe("rotational-adamw", "RotationalAdamW", "warmup-free", _LION, 1.985, 5e-2, 0.3, factor_start=0.6),
)


def make_results(
    recipes: tuple[Recipe, ...] = RECIPES, seeds: tuple[int, ...] = (0, 1, 2), noise: float = 0.006
) -> Any:
    """Results as `json.load` would give them."""
    return {
        "format": 1,
        "command": f"warmfree compare --seeds {len(seeds)} --out runs/synthetic",
        "created": "2025-01-01T12:00:00+00:00",
        "versions": {"python": "3.11.7", "torch": "2.13.0", "warmfree": "0.1.0", "numpy": "2.1.0"},
        "machine": {"cpu": "Synthetic CPU @ 2.70GHz", "cores": 2},
        "task": {
            "name": "byte GPT",
            "steps": STEPS,
            "batch_size": 16,
            "context": 64,
            "parameters": 842_496,
            "tokens": 5_318_730,
            "corpus": {"name": "Synthetic plays", "sha256": "0123456789abcdef" * 4},
            "betas": [0.9, 0.95],
            "weight_decay": 0.1,
            "cooldown": 0.5,
        },
        "methods": [_method(recipe) for recipe in recipes],
        "cells": [
            _cell(recipe, lr, seed, noise) for recipe in recipes for lr in recipe.lrs for seed in seeds
        ],
    }


def make_exact(losses: Mapping[str, Mapping[float, Sequence[float | None]]]) -> Any:
    """Results with given final losses: by method name and learning rate, one a seed; None is a diverged run.

    The names are those of `RECIPES`, and lend label, kind and curves.
    """
    known = {recipe.name: recipe for recipe in RECIPES}
    results = make_results(
        tuple(replace(known[name], lrs=tuple(by_lr)) for name, by_lr in losses.items()), ()
    )
    for name, by_lr in losses.items():
        for lr, values in by_lr.items():
            for seed, loss in enumerate(values):
                recipe = replace(known[name], limit=0.0 if loss is None else math.inf)
                results["cells"].append(_cell(recipe, lr, seed, 0.0) | {"final_val_loss": loss})
    return results


def _method(recipe: Recipe) -> dict[str, Any]:
    return {
        "name": recipe.name,
        "label": recipe.label,
        "kind": recipe.kind,
        "warmup_fraction": recipe.warmup,
        "description": f"A synthetic stand-in for {recipe.label}.",
        "lrs": list(recipe.lrs),
    }


def _cell(recipe: Recipe, lr: float, seed: int, noise: float) -> dict[str, Any]:
    rng = random.Random(f"{recipe.name}/{lr}/{seed}")
    diverged = lr > recipe.limit
    loss = recipe.floor + recipe.steepness * math.log10(lr / recipe.best_lr) ** 2 + rng.gauss(0, noise)
    steps = list(range(1, 41 if diverged else STEPS + 1))
    return {
        "method": recipe.name,
        "lr": lr,
        "seed": seed,
        "status": "diverged" if diverged else "finished",
        "final_val_loss": None if diverged else loss,
        "seconds": 8 + rng.random(),
        "divergence": {"step": 40, "reason": "the loss is not finite", "where": None} if diverged else None,
        "skipped_steps": 0,
        "curve": _curve(recipe, lr, loss, steps, rng),
        "evals": {"step": [STEPS], "val_loss": [loss]},
    }


def _curve(recipe: Recipe, lr: float, loss: float, steps: list[int], rng: random.Random) -> dict[str, Any]:
    schedule = [_trapezoid(step, recipe.warmup) for step in steps]
    factors = [_factor(recipe, step) for step in steps]
    sizes = [0.25 + recipe.early_size * math.exp(-step / 12) for step in steps]
    return {
        "step": steps,
        "loss": [
            loss + (START - loss) * math.exp(-((step / 14) ** 0.62)) + rng.gauss(0, 0.05) for step in steps
        ],
        "lr": [lr * value for value in schedule],
        "update_rms": [
            size * (f or 1) if recipe.measures else None for size, f in zip(sizes, factors, strict=True)
        ],
        "angle": [
            lr * 9 * share * size * (f or 1) * (0.02 if recipe.best_lr > 0.02 else 1)
            for share, size, f in zip(schedule, sizes, factors, strict=True)
        ],
        "factor": factors,
    }


def _trapezoid(step: int, warmup: float) -> float:
    up = step / (warmup * STEPS) if warmup else 1.0
    return max(min(1.0, up, (STEPS - step + 1) / (0.5 * STEPS)), 0.0)


def _factor(recipe: Recipe, step: int) -> float | None:
    if recipe.factor_start is None:
        return None
    return 1 - (1 - recipe.factor_start) * math.exp(-step / 35)
