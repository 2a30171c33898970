"""The training loop: seeds outside, records and checkpoints inside, divergence as an outcome.

The loop knows neither the model nor the data: a :class:`Run` brings the loss of a step as a function of the
step alone, so that a resumed run sees what it would have seen.
"""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from warmfree.lab.checkpoint import load_checkpoint, save_checkpoint
from warmfree.lab.interrupt import Interrupted, Interrupts
from warmfree.measure.updates import Update, UpdateProbe
from warmfree.monitor import Monitor
from warmfree.record import RecordWriter

__all__ = ["CHECKPOINT", "RECORD", "Divergence", "Outcome", "Run", "Watch", "train"]

RECORD = "record.jsonl"
CHECKPOINT = "checkpoint.pt"
DENSE_STEPS = 20
PLATEAU = 0.05

OnStep = Callable[[int, float, float], None]


@dataclass(kw_only=True, slots=True)
class Run:
    """What to train, and how often to look at it.

    Attributes:
        model: trained in place.
        optimizer: of the model's parameters.
        schedule: stepped once after every optimizer step.
        loss: training loss, a scalar with a graph, of a step counted from 0; it may depend on nothing but the
            step and the weights.
        validate: validation loss of the model as it is, called without gradients and in eval mode.
        steps: optimizer steps, >= 1.
        useless_loss: a run that ends with this validation loss or more, on a plateau, counts as diverged; e.g. the
            loss of a model that ignores its input.
        eval_every: steps between validations; the last step is always followed by one.
        checkpoint_every: steps between checkpoints.
    """

    model: nn.Module
    optimizer: Optimizer
    schedule: LRScheduler
    loss: Callable[[int], Tensor]
    validate: Callable[[], float]
    steps: int
    useless_loss: float
    eval_every: int
    checkpoint_every: int

    def __post_init__(self) -> None:
        for name in ("steps", "eval_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")

    def is_measured(self, step: int) -> bool:
        """Return whether a step's updates are measured: each of the first 20, then 50 over the run."""
        return step < DENSE_STEPS or step % max(self.steps // 50, 1) == 0 or step == self.steps - 1


Watch = Callable[[Run, int], Monitor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Divergence:
    """How a run failed.

    Attributes:
        step: the first bad step, from 0; None when only the end was bad.
        reason: in words.
        where: the first bad parameter, when a gradient or a weight was not finite.
    """

    step: int | None
    reason: str
    where: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes:
        status: 'finished' or 'diverged'.
        final_val_loss: after the last step; None when the run did not get there or it is not finite.
        seconds: time in the loop, over all its resumptions.
        divergence: why, when diverged.
        skipped_steps: steps that the optimizer refused because of a non-finite gradient.
    """

    status: Literal["finished", "diverged"]
    final_val_loss: float | None
    seconds: float
    divergence: Divergence | None
    skipped_steps: int


@dataclass(slots=True)
class _Progress:
    """The loop's own state."""

    step: int = 0
    skipped_steps: int = 0
    skipped_before: int = 0  # by an earlier process: an optimizer counts its own only
    seconds: float = 0.0
    first_loss: float = math.nan
    val_loss: float = math.nan
    halfway_val_loss: float = math.nan
    since: float = field(default_factory=time.perf_counter)

    def total_seconds(self) -> float:
        return self.seconds + time.perf_counter() - self.since

    def to_save(self) -> dict[str, int | float]:
        numbers = {name: getattr(self, name) for name in _SAVED}
        return numbers | {"seconds": self.total_seconds(), "skipped_before": self.skipped_steps}


_SAVED = ("step", "skipped_steps", "first_loss", "val_loss", "halfway_val_loss")


def train(run: Run, folder: Path, *, on_step: OnStep | None = None, watch: Watch | None = None) -> Outcome:
    """Train to the end, from the folder's checkpoint when there is one.

    Every step is a record in ``record.jsonl``: ``step``, ``loss`` (before the step) and ``lr``, and on
    measured steps the means over matrices (tensors of 2 or more dimensions) of ``update_rms`` (root mean
    square of the weight change, divided by lr), ``angle`` (root mean square over neurons of the rotation,
    radians) and, if the optimizer reports it, over all its tensors of the ``factor`` of its size control.
    Every validation is a record with ``step`` (steps done) and ``val_loss``. A resumed run repeats the
    records since its checkpoint with the same content.

    Args:
        run: what to train.
        folder: where record and checkpoint lie; it exists.
        on_step: called after every step with (steps done, loss, lr).
        watch: makes a monitor, given the run and its first step; it changes no number of the run.

    Returns:
        The outcome; divergence is one, never an exception.

    Raises:
        Interrupted: Ctrl-C or SIGTERM came; the checkpoint is saved.
        ValueError: the folder's checkpoint is of another run.
    """
    checkpoint = folder / CHECKPOINT
    progress = _Progress(**(load_checkpoint(checkpoint, run.model, run.optimizer, run.schedule) or {}))
    probe = UpdateProbe(run.model)
    run.model.train()
    monitor = None if watch is None else watch(run, progress.step)
    with (
        RecordWriter(folder / RECORD) as record,
        Interrupts() as interrupts,
        monitor or contextlib.nullcontext(),
    ):
        while progress.step < run.steps:
            if interrupts.requested:
                _save(checkpoint, run, progress)
                raise Interrupted(
                    f"interrupted after step {progress.step} of {run.steps}, saved in {checkpoint}; "
                    f"run the same command again to resume"
                )
            row, divergence = _step(run, probe, progress, monitor)
            record.write(row)
            if divergence is not None:
                return _diverged(divergence, progress)
            progress.step += 1
            if on_step is not None:
                on_step(progress.step, row["loss"], row["lr"])
            if progress.step % run.eval_every == 0 or progress.step == run.steps:
                progress.val_loss = _validate(run)
                if math.isnan(progress.halfway_val_loss) and run.steps <= 2 * progress.step < 2 * run.steps:
                    progress.halfway_val_loss = progress.val_loss
                record.write({"step": progress.step, "val_loss": progress.val_loss})
            if progress.step % run.checkpoint_every == 0 and progress.step < run.steps:
                _save(checkpoint, run, progress)
    return _judge(run, progress)


def _step(
    run: Run, probe: UpdateProbe, progress: _Progress, monitor: Monitor | None
) -> tuple[dict[str, Any], Divergence | None]:
    """Do one optimizer step; return its record, and the divergence that kept it from happening."""
    step, lr = progress.step, float(run.optimizer.param_groups[0]["lr"])
    loss = run.loss(step)
    row: dict[str, Any] = {"step": step, "loss": loss.item(), "lr": lr}
    if not math.isfinite(row["loss"]):
        return row, Divergence(
            step=step, reason="the training loss is not finite", where=_bad_weight(run.model)
        )
    if step == 0:
        progress.first_loss = row["loss"]
    if monitor is not None:
        monitor.log(row["loss"])
    run.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    bad = _bad_gradient(run.model)
    # An optimizer with a step report refuses a non-finite gradient; any other would write it to the weights.
    if bad is not None and not hasattr(run.optimizer, "step_report"):
        return row, Divergence(step=step, reason="a gradient is not finite", where=bad)
    measured = run.is_measured(step)
    if measured:
        probe.snapshot()
    run.optimizer.step()
    run.schedule.step()
    report = getattr(run.optimizer, "step_report", None)
    if report is not None:
        progress.skipped_steps = progress.skipped_before + report.skipped_steps
    if measured:
        row |= _mean_update(probe.compare(lr=lr), run.model)
        if report is not None:
            row["factor"] = _mean(
                [values["factor"] for values in report.fetch().values() if "factor" in values]
            )
    return row, None


def _mean_update(updates: dict[str, Update], model: nn.Module) -> dict[str, float | None]:
    matrices = [
        updates[name] for name, weight in model.named_parameters() if weight.ndim >= 2 and name in updates
    ]
    return {
        "update_rms": _mean([update.rms_per_lr for update in matrices]),
        "angle": _mean([update.neuron_angle for update in matrices]),
    }


def _mean(values: Sequence[float]) -> float | None:
    """Return the mean of the values that are defined, None when none is."""
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else None


def _bad_gradient(model: nn.Module) -> str | None:
    """Return the name of the first parameter whose gradient is not finite."""
    named = [(name, weight.grad) for name, weight in model.named_parameters() if weight.grad is not None]
    norms = torch.stack(torch._foreach_norm([gradient for _, gradient in named])).tolist()
    for (name, gradient), norm in zip(named, norms, strict=True):
        # Squares of large finite numbers overflow too, so the norm alone does not decide.
        if not math.isfinite(norm) and not bool(gradient.isfinite().all()):
            return name
    return None


def _bad_weight(model: nn.Module) -> str | None:
    """Return the name of the first parameter that is not finite."""
    return next(
        (name for name, weight in model.named_parameters() if not bool(weight.isfinite().all())), None
    )


def _validate(run: Run) -> float:
    run.model.eval()
    with torch.no_grad():
        val_loss = run.validate()
    run.model.train()
    return val_loss


def _save(path: Path, run: Run, progress: _Progress) -> None:
    save_checkpoint(path, run.model, run.optimizer, run.schedule, progress=progress.to_save())


def _diverged(divergence: Divergence, progress: _Progress, val_loss: float | None = None) -> Outcome:
    return Outcome(
        status="diverged",
        final_val_loss=val_loss,
        seconds=progress.total_seconds(),
        divergence=divergence,
        skipped_steps=progress.skipped_steps,
    )


def _judge(run: Run, progress: _Progress) -> Outcome:
    """Judge a run on its end: a spike that heals is no divergence (Kalra & Barkeshli 2024, D.3.4).

    It failed if it ends no better than it began, or on a plateau that is useless. A run that is merely short ends
    useless too, but it made a fair part of its gain in its second half; a run that blew up soon stops gaining.
    """
    first, final = progress.first_loss, progress.val_loss
    if not math.isfinite(final):
        reason = "the final validation loss is not finite"
        return _diverged(Divergence(step=None, reason=reason, where=_bad_weight(run.model)), progress)
    if final >= first:
        reason = f"the final validation loss {final:.4f} is no better than the first loss {first:.4f}"
        return _diverged(Divergence(step=None, reason=reason), progress, final)
    halfway = first if math.isnan(progress.halfway_val_loss) else progress.halfway_val_loss
    if final >= run.useless_loss and halfway - final < PLATEAU * (first - final):
        reason = f"the validation loss stays at {final:.4f}, no better than {run.useless_loss:.4f} without any context"
        return _diverged(Divergence(step=None, reason=reason), progress, final)
    return Outcome(
        status="finished",
        final_val_loss=final,
        seconds=progress.total_seconds(),
        divergence=None,
        skipped_steps=progress.skipped_steps,
    )
