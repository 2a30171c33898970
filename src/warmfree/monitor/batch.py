"""The batch that probes look at the network with: the caller's, or the first one that training used."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["Capture", "ProbeBatch", "loss_in", "plain"]

Loss = Callable[[nn.Module, Any], Tensor]


def plain(model: nn.Module) -> nn.Module:
    """Return the module inside of DistributedDataParallel and torch.compile wrappers."""
    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


@dataclass(frozen=True, slots=True)
class ProbeBatch:
    """What a probe's pass runs, as training ran it.

    Attributes:
        run: calls the plain model and returns its output.
        loss: calls the plain model and returns a scalar loss with a graph, None if nothing is known of one.
        autocast: device types to dtypes of mixed precision that training was under.
    """

    run: Callable[[nn.Module], Any]
    loss: Callable[[nn.Module], Tensor] | None
    autocast: Mapping[str, torch.dtype] = field(default_factory=dict)

    @classmethod
    def given(cls, batch: Any, loss: Loss | None, *, samples: int) -> "ProbeBatch":
        """Use the caller's batch: whole if there is a loss function that knows how to take it, which may be any object.

        Without one, a tensor, tuple or dict of tensors is passed to the model.
        """
        if loss is not None:
            with_loss = loss
            return cls(lambda model: with_loss(model, batch), lambda model: with_loss(model, batch))
        if isinstance(batch, Mapping):
            return cls.called((), dict(batch), samples=samples)
        return cls.called(tuple(batch) if isinstance(batch, tuple | list) else (batch,), {}, samples=samples)

    @classmethod
    def called(
        cls,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        samples: int,
        autocast: Mapping[str, torch.dtype] | None = None,
    ) -> "ProbeBatch":
        """Repeat a call of the model with copies of its first samples; the output may bring the loss."""
        args, kwargs = _first((args, kwargs), samples=samples)

        def loss(model: nn.Module) -> Tensor:
            found = loss_in(model(*args, **kwargs))
            if found is None:
                raise ValueError(
                    "curvature needs a loss: pass loss=lambda model, batch: ... and batch=... to the Monitor "
                    "(the output of the model has no loss in it)"
                )
            return found

        return cls(lambda model: model(*args, **kwargs), loss, autocast or {})

    @contextmanager
    def precision(self) -> Iterator[None]:
        """Be under the mixed precision of training."""
        with ExitStack() as stack:
            for device_type, dtype in self.autocast.items():
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


class Capture:
    """See the calls of a model in training: keep the first as a probe batch, and each loss in an output.

    A wrapper (torch.compile, DistributedDataParallel) is hooked from outside and a module compiled in place at its
    entry, so nothing that is compiled changes.

    Args:
        model: as it is called in training.
        samples: how many of a batch to keep.
        keep_batch: whether a batch is wanted.
    """

    def __init__(self, model: nn.Module, *, samples: int, keep_batch: bool) -> None:
        self.batch: ProbeBatch | None = None
        self.calls = 0
        self._model, self._samples, self._keep_batch = model, samples, keep_batch
        self._losses: list[Tensor] = []
        self._shares = False
        self._entry: Callable[..., Any] | None = getattr(model, "_compiled_call_impl", None)
        self._hook: Any = None
        if self._entry is None:
            self._hook = model.register_forward_hook(self._see, with_kwargs=True)
        else:
            model._compiled_call_impl = self._enter

    def close(self) -> None:
        """Leave the model as it was."""
        if self._hook is not None:
            self._hook.remove()
        elif self._model._compiled_call_impl == self._enter:
            self._model._compiled_call_impl = self._entry

    def take_losses(self) -> list[Tensor]:
        """Return the losses seen since the last time; one, their sum, where each is only its share of the whole."""
        losses, self._losses = self._losses, []
        return [torch.stack(losses).sum()] if losses and self._shares else losses

    def _enter(self, *args: Any, **kwargs: Any) -> Any:
        assert self._entry is not None
        output = self._entry(*args, **kwargs)
        self._see(self._model, args, kwargs, output)
        return output

    def _see(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        # While torch.compile traces a module that was compiled without our knowing, this must leave no trace.
        if torch.compiler.is_compiling() or not model.training or not torch.is_grad_enabled():
            return
        self.calls += 1
        loss = loss_in(output)
        if loss is not None:
            self._losses.append(loss.detach())
        # So transformers' Trainer has micro-batches divided by the size of the whole batch.
        self._shares = "num_items_in_batch" in kwargs
        if self._keep_batch and self.batch is None:
            autocast = {
                kind: torch.get_autocast_dtype(kind)
                for kind in {"cpu", *(weight.device.type for weight in model.parameters())} - {"meta"}
                if torch.is_autocast_enabled(kind)
            }
            kwargs = {name: value for name, value in kwargs.items() if name != "num_items_in_batch"}
            self.batch = ProbeBatch.called(args, kwargs, samples=self._samples, autocast=autocast)


def _first(tree: Any, *, samples: int) -> Any:
    """Copy the first samples of all tensors that have the batch's size along dimension 0, and all other tensors."""
    leaves = list(_tensors(tree))
    size = next((leaf.shape[0] for leaf in leaves if leaf.ndim > 0), 0)

    def cut(leaf: Tensor) -> Tensor:
        part = leaf[:samples] if leaf.ndim > 0 and leaf.shape[0] == size else leaf
        return part.detach().clone()

    return _map(tree, cut)


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        yield from itertools.chain.from_iterable(_tensors(leaf) for leaf in tree.values())
    elif isinstance(tree, tuple | list):
        yield from itertools.chain.from_iterable(_tensors(leaf) for leaf in tree)


def _map(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(tree, Tensor):
        return change(tree)
    if type(tree) is dict:
        return {key: _map(leaf, change) for key, leaf in tree.items()}
    if type(tree) in (tuple, list):
        return type(tree)(_map(leaf, change) for leaf in tree)
    return tree
