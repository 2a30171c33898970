"""The progress bar of a single training run."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["TrainingBar"]


class TrainingBar:
    """Steps, loss, learning rate, tokens per second and time left; pass it to ``train`` as ``on_step``.

    Args:
        steps: of the whole run.
        tokens_per_step: for the speed.
        console: where to draw; None for the terminal.

    Example:
        >>> with TrainingBar(steps=2, tokens_per_step=64, console=Console(quiet=True)) as bar:
        ...     bar(1, 3.2, 1e-3)
        ...     bar(2, 3.1, 1e-3)
    """

    def __init__(self, *, steps: int, tokens_per_step: int, console: Console | None = None) -> None:
        self._tokens_per_step = tokens_per_step
        self._progress = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(
                "loss {task.fields[loss]:.4f}  lr {task.fields[lr]:.2e}  {task.fields[speed]} tokens/s"
            ),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task("", total=steps, loss=float("nan"), lr=0.0, speed="-")
        self._resumed = False

    def __call__(self, step: int, loss: float, lr: float) -> None:
        """Show that ``step`` steps are done."""
        if not self._resumed:
            # A resumed run starts in the middle: what was done before must not count as speed.
            self._progress.reset(self._task, completed=step - 1)
            self._resumed = True
        self._progress.update(self._task, completed=step, loss=loss, lr=lr)
        speed = self._progress.tasks[0].speed
        if speed is not None:
            self._progress.update(self._task, speed=f"{speed * self._tokens_per_step:,.0f}")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
