"""What would be trained: a model, its loss, its batches and its optimizer, before the first step."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from warmfree.schedule.critical import LossFn

__all__ = ["LAB_TASKS", "Source", "Stream", "check_options", "choose_device", "kind_of", "own_loss"]

LAB_TASKS = ("gpt", "vit")
_RECIPE = ("optimizer", "lr", "weight_decay", "beta1", "beta2", "device")
_APPLIES = {
    "gpt": ("text", *_RECIPE),
    "vit": ("images", *_RECIPE),
    "hf": ("config", "text", "images", "context", *_RECIPE),
    "function": (),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A run before its first step.

    Attributes:
        title: what is trained, in one line.
        model: as it is initialised, in training mode.
        loss_fn: the scalar loss of a batch, ``loss_fn(model, batch)``.
        batches: of the run, in order; can be gone through again.
        optimizer: of the model's parameters, at the full learning rate.
        steps: optimizer steps of the run.
        batch_size: samples in a batch.
    """

    title: str
    model: nn.Module
    loss_fn: LossFn
    batches: Iterable[Any]
    optimizer: Optimizer
    steps: int
    batch_size: int


class Stream:
    """The batches of a run, in order and without end; every iteration begins with the first.

    Args:
        batch: returns the tensors of a step: a tensor, or tuples and dicts of them.
        device: where to put them.

    Example:
        >>> stream = Stream(lambda step: torch.tensor([step]), device=torch.device("cpu"))
        >>> [batch.item() for batch in itertools.islice(stream, 3)]
        [0, 1, 2]
    """

    def __init__(self, batch: Callable[[int], Any], *, device: torch.device) -> None:
        self._batch, self._device = batch, device

    def __iter__(self) -> Iterator[Any]:
        return (_move(self._batch(step), self._device) for step in itertools.count())


def own_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    """Return the loss that a model of the lab computes itself, from the parts of a batch."""
    module: Any = model
    loss: torch.Tensor = module.loss(*batch)
    return loss


def kind_of(name: str) -> str:
    """Return 'gpt', 'vit', 'hf', or 'function' for a name with a colon.

    Raises:
        ValueError: it is none of these.

    Example:
        >>> kind_of("vit"), kind_of("train.py:make")
        ('vit', 'function')
    """
    if ":" in name:
        return "function"
    if name in _APPLIES and name != "function":
        return name
    close = get_close_matches(name, ("gpt", "vit", "hf"), n=1)
    hint = f"did you mean {close[0]!r}? It" if close else "it"
    raise ValueError(
        f"unknown source {name!r}; {hint} is gpt, vit, hf, or a function of yours, as module:function or "
        f"path/to/file.py:function"
    )


def check_options(kind: str, options: Mapping[str, Any]) -> None:
    """Refuse options that would have no effect on a source.

    Args:
        kind: as `kind_of` returns it.
        options: their values by name; None where not given.

    Raises:
        ValueError: one that was given is for another source.
    """
    for name, value in options.items():
        if value is None or name in _APPLIES[kind]:
            continue
        flag = f"--{name.replace('_', '-')}"
        if kind == "function" and name in _RECIPE:
            raise ValueError(
                f"{flag} has no effect: your function returns its own model and optimizer; set it there"
            )
        others = ", ".join(other for other, names in _APPLIES.items() if name in names)
        raise ValueError(f"{flag} is for the source {others}, and has no effect on {kind}; leave it out")


def choose_device(name: str | None) -> torch.device:
    """Return the device of that name; for None CUDA's if there is one, else the CPU.

    Raises:
        ValueError: there is no such device here.

    Example:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used ({reason}); try --device cpu") from None
    return device


def _move(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        return {name: _move(part, device) for name, part in batch.items()}
    return tuple(_move(part, device) for part in batch)
