"""What processes that train together have to know alike, so that they decide alike."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from warmfree.advice.evidence import Evidence
from warmfree.schedule.critical.trials import groups_of_losses

__all__ = ["agreed", "of_all_processes"]


def of_all_processes(value: Any, model: nn.Module, optimizer: Optimizer) -> list[Any]:
    """Return a value of every process that trains the model, in the same order in all of them.

    Args:
        value: of this process; it can be pickled.
        model: with DistributedDataParallel or FSDP2 all processes have to call this.
        optimizer: of its parameters.

    Example:
        >>> import torch
        >>> model = nn.Linear(2, 1)
        >>> of_all_processes(3, model, torch.optim.SGD(model.parameters()))
        [3]
    """
    weights = [
        *model.parameters(),
        *(weight for group in optimizer.param_groups for weight in group["params"]),
    ]
    values = [value]
    for group in groups_of_losses(model, weights):
        found: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(found, values, group=group)
        values = [one for theirs in found for one in theirs]
    return values


def agreed(evidence: Evidence, model: nn.Module, optimizer: Optimizer) -> Evidence:
    """Return evidence of which all that decides is the same in all processes.

    Losses are averaged as they are measured, and with them what is searched by them. The representation change is that
    on a process's own part of the batch: the largest one counts.

    Args:
        evidence: of this process.
        model: as for `of_all_processes`.
        optimizer: likewise.
    """
    first = evidence.first_step
    mine = None if first is None else (first.representation_change, first.layer)
    everyone = of_all_processes(mine, model, optimizer)
    if first is None:
        return evidence
    if None in everyone:
        missing = (*evidence.missing, "the first step was not measured: another process could not")
        return replace(evidence, first_step=None, missing=missing)
    change, layer = max(everyone, key=lambda one: (not math.isnan(one[0]), one))
    return replace(evidence, first_step=replace(first, representation_change=change, layer=layer))
