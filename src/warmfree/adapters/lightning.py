"""The monitor as a callback of Lightning's Trainer."""

from typing import Any

try:
    from lightning.pytorch.callbacks import Callback
except ModuleNotFoundError:
    try:
        from pytorch_lightning.callbacks import Callback
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "warmfree.adapters.lightning needs Lightning; run: pip install lightning", name="lightning"
        ) from None

from warmfree.monitor.monitor import Monitor

__all__ = ["MonitorCallback"]


class MonitorCallback(Callback):  # type: ignore[misc, unused-ignore]
    """Watch a Lightning run with a :class:`warmfree.Monitor`.

    The record starts with the fit and ends with it, also when it fails; a run that is resumed from a checkpoint goes
    on at its step. Losses are those of `training_step`.

    Args:
        out: folder of the record; `warmfree` in the Trainer's `default_root_dir` if None.
        **settings: as for :class:`warmfree.Monitor`. The batch for probes has to be given where `training_step` does
            not call the LightningModule itself: `batch=` with `loss_fn=lambda module, batch: ...`.

    Attributes:
        monitor: the running monitor; None before the fit. It stays, detached, when the fit has ended.

    Example:
        >>> trainer = lightning.Trainer(callbacks=[MonitorCallback("runs/x")])  # doctest: +SKIP
    """

    def __init__(self, out: str | None = None, **settings: Any) -> None:
        self.monitor: Monitor | None = None
        self._out, self._settings = out, settings

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach to the module and its optimizers."""
        planned = trainer.estimated_stepping_batches
        left = int(planned) - trainer.global_step if planned not in (-1, float("inf")) else None
        settings = {
            "total_steps": None if left is None else max(left, 1),
            "first_step": trainer.global_step,
            **self._settings,
        }
        out = f"{trainer.default_root_dir}/warmfree" if self._out is None else self._out
        self.monitor = Monitor(pl_module, list(trainer.optimizers), out, **settings).attach()

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:  # noqa: ARG002
        """Take the loss of a micro-batch; Lightning has divided it by the number of accumulated ones."""
        if self.monitor is not None:
            self.monitor.log(loss * trainer.accumulate_grad_batches)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        """Detach."""
        self._detach()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:  # noqa: ARG002
        """Detach, so that the record ends with what happened."""
        self._detach()

    def _detach(self) -> None:
        if self.monitor is not None:
            self.monitor.detach()
