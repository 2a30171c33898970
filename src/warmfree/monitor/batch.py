"""The batch that probes look at the network with: the caller's, or the first one that training used."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["Loss", "MissingLossError", "ProbeBatch", "batch_size_of", "copied", "loss_in", "plain"]

Loss = Callable[[nn.Module, Any], Tensor]
_PLAIN = (str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device, torch.Size)


class MissingLossError(ValueError):
    """The output of the model holds no loss, and none was given."""


def plain(model: nn.Module) -> nn.Module:
    """Return the module inside of DistributedDataParallel and torch.compile wrappers."""
    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


class ProbeBatch:
    """What a probe's pass runs, as training ran it.

    Args:
        run: calls the plain model and returns its output.
        loss: calls the plain model and returns a scalar loss with a graph.
        autocast: device types to dtypes of the mixed precision that training was under.
    """

    def __init__(
        self,
        run: Callable[[nn.Module], Any],
        loss: Callable[[nn.Module], Tensor],
        autocast: Mapping[str, torch.dtype] | None = None,
    ) -> None:
        self.run, self.loss = run, loss
        self._autocast = dict(autocast or {})
        self._whole: ProbeBatch | None = None

    @classmethod
    def given(cls, batch: Any, loss_fn: Loss | None, *, samples: int) -> ProbeBatch:
        """Use the caller's batch: as it is if there is a loss function that knows how to take it.

        Without one, a tensor, tuple or dict of tensors is passed to the model.
        """
        if loss_fn is not None:
            return cls(lambda model: loss_fn(model, batch), lambda model: loss_fn(model, batch))
        if isinstance(batch, Mapping):
            return cls.called((), dict(batch), samples=samples)
        return cls.called(tuple(batch) if isinstance(batch, tuple | list) else (batch,), {}, samples=samples)

    @classmethod
    def called(
        cls,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        samples: int,
        autocast: Mapping[str, torch.dtype] | None = None,
    ) -> ProbeBatch:
        """Repeat a call of the model, with copies of its first samples; the output may bring the loss."""
        narrow = cls._repeating(_first((args, dict(kwargs)), samples=samples), autocast)
        narrow._whole = cls._repeating(copied((args, dict(kwargs))), autocast)
        return narrow

    @classmethod
    def _repeating(cls, call: Any, autocast: Mapping[str, torch.dtype] | None) -> ProbeBatch:
        def run(model: nn.Module) -> Any:
            args, kwargs = copied(call)  # a model may change what it is given
            return model(*args, **kwargs)

        def loss(model: nn.Module) -> Tensor:
            found = loss_in(run(model))
            if found is None:
                raise MissingLossError(
                    "curvature needs a loss: pass loss_fn=lambda model, batch: ... and batch=... to the Monitor "
                    "(the output of the model has no loss in it)"
                )
            return found

        return cls(run, loss, autocast)

    def widen(self) -> bool:
        """Use the whole batch from now on, if this is a part of one: some models cannot take a part."""
        if self._whole is None:
            return False
        self.run, self.loss, self._whole = self._whole.run, self._whole.loss, None
        return True

    @contextmanager
    def precision(self) -> Iterator[None]:
        """Be under the mixed precision of training."""
        with ExitStack() as stack:
            for device_type, dtype in self._autocast.items():
                stack.enter_context(torch.autocast(device_type, dtype=dtype))
            yield


def loss_in(output: Any) -> Tensor | None:
    """Return the loss that a model's output is or holds, as in transformers; None if there is none."""
    if isinstance(output, Mapping):
        output = output.get("loss")
    elif not isinstance(output, Tensor):
        output = getattr(output, "loss", None)
    is_scalar = isinstance(output, Tensor) and output.ndim == 0 and output.is_floating_point()
    return cast(Tensor, output) if is_scalar else None


def copied(tree: Any) -> Any:
    """Copy arguments of a model with all that is mutable in them."""
    return _map(tree, lambda leaf: leaf.detach().clone())


def batch_size_of(tree: Any) -> int | None:
    """Return the first dimension of the first tensor that has one; None if there is no such tensor."""
    return next((leaf.shape[0] for leaf in _tensors(tree) if _is_dense(leaf) and leaf.ndim > 0), None)


def _first(tree: Any, *, samples: int) -> Any:
    """Copy the first samples of all tensors that have the batch's size along dimension 0, and all else whole."""
    size = batch_size_of(tree)

    def cut(leaf: Tensor) -> Tensor:
        part = leaf[:samples] if _is_dense(leaf) and leaf.ndim > 0 and leaf.shape[0] == size else leaf
        return part.detach().clone()

    return _map(tree, cut)


def _is_dense(leaf: Tensor) -> bool:
    return leaf.layout == torch.strided and not leaf.is_nested


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for leaf in tree.values():
            yield from _tensors(leaf)
    elif isinstance(tree, tuple | list):
        for leaf in tree:
            yield from _tensors(leaf)


def _map(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, _PLAIN) or callable(tree):
        return tree
    if isinstance(tree, Mapping):
        changed = {key: _map(leaf, change) for key, leaf in tree.items()}
        if type(tree) is dict:
            return changed
        same_kind = copy.copy(tree)
        if hasattr(same_kind, "data") and isinstance(same_kind.data, dict):  # UserDict, BatchEncoding
            same_kind.data = changed
        else:
            cast(Any, same_kind).update(changed)
        return same_kind
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(_map(leaf, change) for leaf in tree))
    if type(tree) in (tuple, list):
        return type(tree)(_map(leaf, change) for leaf in tree)
    return copy.deepcopy(tree)
