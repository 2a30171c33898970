"""The monitor as a callback of transformers' Trainer."""

from typing import Any

try:
    from transformers import TrainerCallback
except ModuleNotFoundError:
    raise ModuleNotFoundError(
        "warmfree.adapters.transformers needs transformers; run: pip install transformers accelerate",
        name="transformers",
    ) from None

from warmfree.monitor.monitor import Monitor

__all__ = ["MonitorCallback"]


class MonitorCallback(TrainerCallback):
    """Watch a `transformers.Trainer` run with a :class:`warmfree.Monitor`.

    The record starts with the training and ends with it; a run that is resumed from a checkpoint goes on at the
    checkpoint's step. Losses are those that the model returns. `total_steps` and `batch_size` are the Trainer's.

    Args:
        out: folder of the record; the Trainer's `output_dir` if None.
        **settings: as for :class:`warmfree.Monitor`.

    Attributes:
        monitor: the running monitor; None before the training. It stays, detached, when the training has ended.

    Example:
        >>> from transformers import Trainer  # doctest: +SKIP
        >>> trainer = Trainer(model, args, train_dataset=data, callbacks=[MonitorCallback()])  # doctest: +SKIP
    """

    def __init__(self, out: str | None = None, **settings: Any) -> None:
        self.monitor: Monitor | None = None
        self._out, self._settings = out, settings

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Attach to the model and the optimizer as the Trainer has prepared them."""
        if self.monitor is not None:
            self.monitor.detach()  # of a training that did not come to its end
        accumulated = args.gradient_accumulation_steps * args.per_device_train_batch_size
        settings = {
            "total_steps": max(state.max_steps - state.global_step, 1),
            "batch_size": accumulated * args.world_size,
            "first_step": state.global_step,
            **self._settings,
        }
        out = args.output_dir if self._out is None else self._out
        self.monitor = Monitor(kwargs["model"], kwargs["optimizer"], out, **settings).attach()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Detach."""
        if self.monitor is not None:
            self.monitor.detach()
