"""Where measurements go besides the record: TensorBoard, Weights & Biases, or a function."""

import importlib
import os
from collections.abc import Mapping
from typing import Any, Protocol

from warmfree.monitor.alerts import Alert

__all__ = ["Sink", "TensorBoard", "Wandb", "as_scalars"]

Values = Mapping[str, Mapping[str, float | list[float]]]


class Sink(Protocol):
    """Something that takes measurements as they are made."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Take the scalars of a step, named quantity/layer."""

    def alert(self, alert: Alert) -> None:
        """Take an alert that was raised or cleared."""

    def close(self) -> None:
        """Write what is left; nothing comes afterwards."""


def as_scalars(values: Values) -> dict[str, float]:
    """Flatten values to names of the form quantity/layer; of a list, one per head, the smallest and the largest.

    Example:
        >>> as_scalars({"grad_norm": {"": 1.5, "head": 0.5}, "entropy": {"block": [1.0, 3.0]}})
        {'grad_norm': 1.5, 'grad_norm/head': 0.5, 'entropy/block/min': 1.0, 'entropy/block/max': 3.0}
    """
    scalars = {}
    for quantity, layers in values.items():
        for layer, value in layers.items():
            name = f"{quantity}/{layer}" if layer else quantity
            if not isinstance(value, list):
                scalars[name] = value
            elif value:
                scalars[f"{name}/min"], scalars[f"{name}/max"] = min(value), max(value)
    return scalars


class TensorBoard:
    """Write to TensorBoard.

    Args:
        folder: where its event files go, or a `SummaryWriter`, which stays open.
        prefix: of all tags.

    Raises:
        ModuleNotFoundError: tensorboard is not installed.
    """

    def __init__(self, folder: Any, *, prefix: str = "warmfree/") -> None:
        self._prefix = prefix
        self._ours = isinstance(folder, str | os.PathLike)
        self._writer = folder
        if self._ours:
            _require("tensorboard", "the TensorBoard sink")
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(os.fspath(folder))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Add one scalar each."""
        for name, value in scalars.items():
            self._writer.add_scalar(self._prefix + name, value, step)

    def alert(self, alert: Alert) -> None:
        """Add the alert as a text."""
        self._writer.add_text(f"{self._prefix}alerts", f"{alert.state}: {alert.message}", alert.step)

    def close(self) -> None:
        """Flush, and close a writer of our own."""
        self._writer.flush()
        if self._ours:
            self._writer.close()


class Wandb:
    """Log to a Weights & Biases run, beside what the training logs itself.

    Measurements come with their own step, `warmfree/step`, so that they need not be in order with other calls of
    `log`.

    Args:
        run: as returned by `wandb.init()`; None for the current one.
        prefix: of all names.

    Raises:
        ModuleNotFoundError: wandb is not installed, and no run was given.
        RuntimeError: there is no current run.
    """

    def __init__(self, run: Any = None, *, prefix: str = "warmfree/") -> None:
        if run is None:
            run = _require("wandb", "the W&B sink").run
        if run is None:
            raise RuntimeError("the W&B sink needs a run: call wandb.init() first, or pass the run")
        self._run, self._prefix = run, prefix
        run.define_metric(f"{prefix}step")
        run.define_metric(f"{prefix}*", step_metric=f"{prefix}step")

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Log all scalars in one call."""
        named = {self._prefix + name: value for name, value in scalars.items()}
        self._run.log(named | {f"{self._prefix}step": step})

    def alert(self, alert: Alert) -> None:
        """Send an alert that was raised through W&B's own alerts."""
        if alert.state == "raised":
            self._run.alert(title=f"warmfree: {alert.rule}", text=alert.message)

    def close(self) -> None:
        """Leave the run to whoever made it."""


def _require(name: str, what: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"{what} needs {name}; run: pip install {name}", name=name) from None
