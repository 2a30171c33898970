"""See the calls of a model in training, from outside: their losses, and the first one's arguments."""

from __future__ import annotations

import time
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from warmfree.monitor.batch import ProbeBatch, batch_size_of, loss_in

__all__ = ["Capture"]


class Capture:
    """See the calls of a model in training: keep the first as a probe batch, and each loss in an output.

    A wrapper (torch.compile, DistributedDataParallel) is hooked from outside and a module compiled in place at its
    entry, so nothing that is compiled changes. Nothing that goes wrong here reaches the training. Copies of the
    model, and saved ones, have hooks that do nothing.

    Args:
        model: as it is called in training.
        samples: how many of a batch to keep.
        keep_batch: whether a batch is wanted.

    Attributes:
        batch: the probe batch, None until there is one.
        calls: of the model in training mode, with gradients.
        evaluating: calls in eval mode, with gradients.
        accept_eval: take these for training, too.
        paused: the monitor itself is running the model.
        problem: why there is no batch, in words.
        seconds: what seeing took.
    """

    def __init__(self, model: nn.Module, *, samples: int, keep_batch: bool) -> None:
        self.batch: ProbeBatch | None = None
        self.calls = self.evaluating = 0
        self.accept_eval = self.paused = False
        self.problem: str | None = None
        self.seconds = 0.0
        self._model, self._samples, self._keep_batch = model, samples, keep_batch
        self._losses: list[Tensor] = []
        self._shares = self._fresh = False
        self._entry: Any = getattr(model, "_compiled_call_impl", None)
        self._hooks: list[Any] = []
        if self._entry is None:
            self._hooks = [
                model.register_forward_pre_hook(_Hook(self, "before"), with_kwargs=True),
                model.register_forward_hook(_Hook(self, "after"), with_kwargs=True),
            ]
        else:
            self._ours = self._enter
            model._compiled_call_impl = self._ours

    def close(self) -> None:
        """Leave the model as it was."""
        self.paused = True
        for hook in self._hooks:
            hook.remove()
        if self._entry is not None and self._model._compiled_call_impl is self._ours:
            self._model._compiled_call_impl = self._entry

    def take_losses(self) -> list[Tensor]:
        """Return the losses seen since the last time; one, their sum, where each is only its share of the whole."""
        losses, self._losses, self._fresh = self._losses, [], False
        return [torch.stack(losses).sum()] if losses and self._shares else losses

    @property
    def fresh(self) -> bool:
        """Whether the model was called since `take_losses`."""
        return self._fresh

    def before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """See the arguments of a call before the model does: it may change them."""
        if not self._is_training():
            self.evaluating += not self.paused and torch.is_grad_enabled()
            return
        self.calls += 1
        self._fresh = True
        if not self._keep_batch or self.batch is not None or batch_size_of((args, kwargs)) == 0:
            return
        # So transformers' Trainer has micro-batches divided by the size of the whole batch.
        kwargs = {name: value for name, value in kwargs.items() if name != "num_items_in_batch"}
        kinds = {"cpu", *(weight.device.type for weight in self._model.parameters())} - {"meta"}
        autocast = {kind: torch.get_autocast_dtype(kind) for kind in kinds if torch.is_autocast_enabled(kind)}
        self.batch = ProbeBatch.called(args, kwargs, samples=self._samples, autocast=autocast)

    def after(self, kwargs: dict[str, Any], output: Any) -> None:
        """See the output of a call."""
        if not self._is_training():
            return
        loss = loss_in(output)
        if loss is not None:
            self._losses.append(loss.detach().clone())  # it may be scaled in place
        self._shares = "num_items_in_batch" in kwargs

    def _is_training(self) -> bool:
        """Return whether a call is one of training."""
        if self.paused or not torch.is_grad_enabled() or _is_transformed():
            return False
        return self._model.training or self.accept_eval

    def _enter(self, *args: Any, **kwargs: Any) -> Any:
        _Hook(self, "before")(self._model, args, kwargs)
        output = self._entry(*args, **kwargs)
        _Hook(self, "after")(self._model, args, kwargs, output)
        return output


class _Hook:
    """A hook that never raises, and that does nothing in a copy of the model."""

    def __init__(self, capture: Capture | None, stage: str) -> None:
        self._capture = None if capture is None else weakref.ref(capture)
        self._stage = stage

    def __call__(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any = None
    ) -> None:
        # While torch.compile traces a module that was compiled without our knowing, this must leave no trace.
        if torch.compiler.is_compiling() or self._capture is None:
            return
        capture = self._capture()
        if capture is None:
            return
        begin = time.perf_counter()
        try:
            if self._stage == "before":
                capture.before(args, kwargs)
            else:
                capture.after(kwargs, output)
        except Exception as error:
            capture.problem = f"{type(error).__name__}: {error}"
        capture.seconds += time.perf_counter() - begin

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, (None, self._stage)


def _is_transformed() -> bool:
    """Return whether torch.func is at work: its tensors must not be kept."""
    return torch._C._functorch.peek_interpreter_stack() is not None
