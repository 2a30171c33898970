"""The whole state of a run in one file, written atomically: a resumed run continues bit for bit."""

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["load_checkpoint", "save_checkpoint"]


def save_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: Optimizer,
    schedule: LRScheduler,
    *,
    progress: dict[str, int | float],
) -> None:
    """Write model, optimizer, schedule, random state and progress.

    The file is replaced in one move: a reader sees the old one or the new one, never a part.

    Args:
        path: the file to create or replace.
        model: whose weights and buffers to save.
        optimizer: whose state to save.
        schedule: whose state to save.
        progress: numbers of the loop itself, the next step above all.
    """
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "progress": progress,
    }
    temporary = path.with_name(f".{path.name}.part")
    with open(temporary, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: Optimizer, schedule: LRScheduler
) -> dict[str, Any] | None:
    """Restore what :func:`save_checkpoint` wrote.

    Args:
        path: the file; a missing one leaves everything as it is.
        model: whose weights to overwrite.
        optimizer: whose state to overwrite.
        schedule: whose state to overwrite.

    Returns:
        The saved progress, or None when there is no file.

    Raises:
        ValueError: the file is not a checkpoint of such a model and optimizer.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
    except (RuntimeError, TypeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{path} is not a checkpoint of this run ({reason}); delete it to start from the first step"
        ) from error
    torch.set_rng_state(state["random"])
    if state["random_cuda"]:
        torch.cuda.set_rng_state_all(state["random_cuda"])
    progress: dict[str, Any] = state["progress"]
    return progress
