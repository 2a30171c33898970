"""One run of a setting: trained at a learning rate behind a warmup, judged on held-out data at its end."""

import json
import math
import multiprocessing as mp
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from settings import SETTINGS, Training
from torch.optim import Optimizer

COOLDOWN = 0.5


def multiplier(step: int, *, steps: int, warmup: int, start: float = 0.0) -> float:
    """Linear warmup from `start`, constant, linear cooldown over the second half: of the learning rate, in [0, 1].

    A warmup that outlasts the run (2000 steps of a run of 400) climbs at its own slope, and the cooldown multiplies it.
    """
    climbed = start + (1 - start) * min((step + 1) / warmup, 1.0) if warmup else 1.0
    return climbed * min(1.0, (steps - step) / (COOLDOWN * steps))


def train(
    training: Training,
    *,
    steps: int,
    warmup: int,
    start: float = 0.0,
    optimizer: Optimizer | None = None,
) -> dict[str, float | None]:
    """Train to the end; return the loss and, for images, the accuracy on held-out data (None if not finite)."""
    optimizer = optimizer or training.optimizer
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: multiplier(step, steps=steps, warmup=warmup, start=start) if step < steps else 0.0,
    )
    training.model.train()
    for step in range(steps):
        loss = training.loss_fn(training.model, training.batch(step))
        if not math.isfinite(loss.item()):
            return {"loss": None, "accuracy": None}
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return judge(training)


@torch.no_grad()
def judge(training: Training) -> dict[str, float | None]:
    training.model.eval()
    losses, right, number = 0.0, 0, 0
    for batch in training.validation:
        inputs, targets = batch
        losses += training.loss_fn(training.model, batch).item() * len(targets)
        number += len(targets)
        if targets.ndim == 1:
            right += int((training.model(inputs).argmax(-1) == targets).sum())
    loss = losses / number
    accuracy = right / number if training.validation[0][1].ndim == 1 else None
    return {"loss": loss if math.isfinite(loss) else None, "accuracy": accuracy}


def run_cell(cell: dict[str, Any]) -> dict[str, Any]:
    """Run {setting, lr, warmup in steps, start, seed} in this process."""
    torch.set_num_threads(1)
    setting = SETTINGS[cell["setting"]]
    training = setting.start(seed=cell["seed"], lr=cell["lr"])
    found = train(training, steps=setting.steps, warmup=cell["warmup"], start=cell.get("start", 0.0))
    return {**cell, **found}


def run_all(
    cells: Iterable[dict[str, Any]],
    path: Path,
    *,
    workers: int,
    run: Callable[[dict[str, Any]], dict[str, Any]] = run_cell,
) -> None:
    """Run what the file does not hold yet, and append each result as it is there: killed, it goes on where it was."""
    key = ("setting", "lr", "warmup", "start", "seed")
    done = {tuple(row.get(name) for name in key) for row in read(path)}
    todo = [cell for cell in cells if tuple(cell.get(name) for name in key) not in done]
    with mp.get_context("spawn").Pool(workers) as pool, path.open("a") as file:
        for number, row in enumerate(pool.imap_unordered(run, todo), start=1):
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(f"{number}/{len(todo)}", row, flush=True)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
