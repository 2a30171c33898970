"""Does this run need warmup: the question, asked of the model, the data and the optimizer themselves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from warmfree.advice.agreement import agreed, of_all_processes
from warmfree.advice.evidence import Evidence, gather_evidence, plain_values
from warmfree.advice.full_lr import at_full_lr
from warmfree.advice.rehearsal import Stage
from warmfree.advice.replacement import Replacement, replacement_for
from warmfree.advice.verdict import (
    Choice,
    Excess,
    derived_warmup,
    measure_excess,
    momentum_memory,
    rehearsal_length,
)
from warmfree.advice.verdict import (
    rehearse as rehearse_beginnings,
)
from warmfree.advice.wording import doubts_of, reasons_of, summary_of
from warmfree.measure.guard import Guard
from warmfree.measure.momentum import unwrapped
from warmfree.measure.unchanged import bare, unchanged
from warmfree.measure.undisturbed import undisturbed
from warmfree.schedule.critical import LossFn, critical_lr
from warmfree.schedule.critical.batches import first_batches
from warmfree.schedule.critical.critical import check_trainable
from warmfree.schedule.critical.trials import learning_rate
from warmfree.schedule.shapes import trapezoid

__all__ = ["Advice", "Kind", "advise"]

Kind = Literal["no warmup", "warmup", "replace", "unknown"]
Confidence = Literal["high", "medium", "low"]

_SEARCHES = 3  # steps along which the critical learning rate is looked for
_LARGEST = 100.0  # of the learning rate: no step beyond it is tried
_BATCH_MEMORY = 2**30  # bytes of batches that are held for the rehearsal


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """Whether a run needs warmup, how much, and why.

    Attributes:
        verdict: "no warmup", "warmup", "replace" (by an optimizer that needs none) or "unknown".
        warmup_steps: of linear warmup; 0 unless the verdict is "warmup".
        start_lr: where the warmup starts; the full learning rate without one.
        lr: the full learning rate, as asked; with "replace" that of the replacement.
        steps: of the run.
        batch_size: samples in a step.
        optimizer: name of the class that was asked about.
        replacement: the optimizer that the verdict names, or that was as good; None if there is none.
        warmup_if_kept: with "replace", the warmup that the run's own optimizer needs instead; else None.
        confidence: "high", "medium" or "low".
        reasons: in plain words, the most important first.
        doubts: why confidence is not higher, and what was not measured.
        evidence: all that was measured.
        seconds: wall time.
    """

    verdict: Kind
    warmup_steps: int
    start_lr: float
    lr: float
    steps: int
    batch_size: int
    optimizer: str
    replacement: Replacement | None
    warmup_if_kept: int | None
    confidence: Confidence
    reasons: tuple[str, ...]
    doubts: tuple[str, ...]
    evidence: Evidence
    seconds: float

    def summary(self) -> str:
        """Return the verdict as a sentence."""
        return summary_of(self)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values; None for numbers that are not finite."""
        values: dict[str, Any] = plain_values(replace(self, evidence=None))  # type: ignore[arg-type]
        return values | {"summary": self.summary(), "evidence": self.evidence.as_dict()}

    def schedule(self, optimizer: Optimizer, *, cooldown: int | float = 0.5) -> LambdaLR:
        """Return the schedule that was advised: its warmup, the full learning rate, a linear cooldown.

        Args:
            optimizer: the one to train with, at the learning rate `lr` and without another schedule.
            cooldown: its length in steps, or as a fraction of the run; no more than the warmup leaves.

        Raises:
            ValueError: the optimizer has another learning rate.
        """
        base = next((rate for rate in map(_base_lr, optimizer.param_groups) if rate > 0), 0.0)
        if not math.isclose(base, self.lr, rel_tol=1e-6):
            raise ValueError(
                f"the advice is for learning rate {self.lr:g}, the schedule would start from {base:g}: make the "
                f"optimizer anew at {self.lr:g}"
            )
        start = self.start_lr / self.lr if self.warmup_steps else 0.0
        left = self.steps - self.warmup_steps
        cooldown = min(round(cooldown * self.steps) if isinstance(cooldown, float) else cooldown, left)
        return trapezoid(
            optimizer, steps=self.steps, warmup=self.warmup_steps, start=start, cooldown=cooldown
        )


def advise(
    model: nn.Module,
    loss_fn: LossFn,
    batches: Iterable[Any],
    optimizer: Optimizer,
    *,
    steps: int,
    batch_size: int,
    accumulate: int = 1,
    max_grad_norm: float | None = None,
    scaler: torch.amp.GradScaler | None = None,
    rehearse: bool = True,
    on_progress: Callable[[str], None] | None = None,
) -> Advice:
    """Say whether a run needs warmup, how much, or which optimizer would need none.

    Gathers the evidence, derives a warmup from it (see `verdict`), and rehearses: makes the first 100 to 200 steps of
    the run (half of a short one) with several warmups and with AdamW2 in place of AdamW, and compares the losses.
    Everything is undone: model, optimizer, random numbers and data are as before, to the last bit (see `critical_lr`
    for what that covers and what it costs in memory; the replacement's state comes on top).

    With DistributedDataParallel and FSDP2 all processes call this with their own batches, and get the same verdict.

    Args:
        model: as it will be trained, at its initial weights (or those that the run starts from), in training mode.
        loss_fn: `loss_fn(model, batch)` returns the scalar loss of a batch.
        batches: an iterable of batches, read from its start; best the first ones of the run, in their order. Up to
            1 GiB of them is held; fewer than the rehearsal has steps are used again and again.
        optimizer: at the learning rate that the run is meant to reach; of one that a scheduler holds, the largest that
            the scheduler speaks of counts.
        steps: optimizer steps of the run, >= 1.
        batch_size: samples (sequences, images) in an optimizer step, over all micro-batches and processes, >= 1.
        accumulate: micro-batches that a step adds up, >= 1.
        max_grad_norm: the l2 norm to which training clips gradients; None if it does not.
        scaler: the GradScaler of float16 training.
        rehearse: False for evidence alone: a few passes instead of up to six times the rehearsal's steps. Runs of less
            than 4 steps are not rehearsed.
        on_progress: told in words what is being done.

    Returns:
        The advice, with all evidence.

    Raises:
        ValueError: as for `critical_lr`, or steps or batch_size are out of range.
        TypeError: as for `critical_lr`.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> batches = [torch.randn(16, 4) for _ in range(30)]
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        >>> loss_fn = lambda model, x: (model(x) - x.sum(1)).square().mean()
        >>> advice = advise(model, loss_fn, batches, optimizer, steps=100, batch_size=16)
        >>> advice.verdict, advice.warmup_steps
        ('no warmup', 0)
        >>> scheduler = advice.schedule(optimizer)

    Reference: Kalra & Barkeshli 2024 and Kosson et al. 2024 for the quantities; the rules are ours (docs/advice.md).
    """
    since = time.perf_counter()
    for name, count in (("steps", steps), ("batch_size", batch_size), ("accumulate", accumulate)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} must be an int >= 1, got {count!r}")
    check_trainable(model, optimizer)
    length = rehearsal_length(steps)
    rehearse = rehearse and length > 1  # one step shows nothing
    if on_progress is not None:
        on_progress("reading batches")
    with Guard() as guard, undisturbed(bare(model), evaluate=False), guard.open():
        found = first_batches(
            batches,
            accumulate * max(length if rehearse else 0, _SEARCHES),
            at_least=accumulate,
            memory=_BATCH_MEMORY,
        )
    with at_full_lr(optimizer):
        return _ask(
            model,
            loss_fn,
            found,
            optimizer,
            steps=steps,
            batch_size=batch_size,
            accumulate=accumulate,
            max_grad_norm=max_grad_norm,
            scaler=scaler,
            rehearse=rehearse,
            on_progress=on_progress,
            since=since,
        )


def _ask(
    model: nn.Module,
    loss_fn: LossFn,
    found: list[Any],
    optimizer: Optimizer,
    *,
    steps: int,
    batch_size: int,
    accumulate: int,
    max_grad_norm: float | None,
    scaler: torch.amp.GradScaler | None,
    rehearse: bool,
    on_progress: Callable[[str], None] | None,
    since: float,
) -> Advice:
    lr, length = learning_rate(optimizer), rehearsal_length(steps)
    number = min(of_all_processes(len(found) // accumulate, model, optimizer))
    found = found[: number * accumulate]
    if on_progress is not None:
        on_progress("looking for the critical learning rate")
    options: dict[str, Any] = {"accumulate": accumulate, "max_grad_norm": max_grad_norm, "scaler": scaler}
    critical = critical_lr(
        model, loss_fn, found, optimizer, num_steps=min(number, _SEARCHES), max_lr=_LARGEST * lr, **options
    )
    evidence = gather_evidence(
        model,
        loss_fn,
        found,
        optimizer,
        critical=critical,
        lr=lr,
        batch_size=batch_size,
        on_progress=on_progress,
        **options,
    )
    evidence = agreed(evidence, model, optimizer)
    excess = measure_excess(evidence)
    derived = derived_warmup(excess.value, momentum_memory(optimizer), steps=steps)
    # From more than half, a warmup would hardly be one, and its rehearsal would say nothing.
    start = 1 / excess.value if excess.value >= 2 else 0.0
    alternative, choice = None, None
    if rehearse:
        alternative = replacement_for(optimizer, bare(model))
        with unchanged(model, optimizer) as session:
            stage = Stage(
                session,
                model,
                loss_fn,
                optimizer,
                [found[first : first + accumulate] for first in range(0, len(found), accumulate)],
                length=length,
                max_grad_norm=max_grad_norm,
                scaler=scaler,
                on_progress=on_progress,
            )
            choice = rehearse_beginnings(
                stage,
                derived,
                start=start,
                length=length,
                steps=steps,
                replacement=None if alternative is None else alternative.build,
            )
            evidence = replace(evidence, rehearsal=stage.result())
    return _advice(
        optimizer,
        evidence,
        excess,
        choice,
        derived=derived,
        start=start,
        lr=lr,
        steps=steps,
        batch_size=batch_size,
        replacement=None if alternative is None else alternative.replacement,
        since=since,
    )


def _advice(
    optimizer: Optimizer,
    evidence: Evidence,
    excess: Excess,
    choice: Choice | None,
    *,
    derived: int,
    start: float,
    lr: float,
    steps: int,
    batch_size: int,
    replacement: Replacement | None,
    since: float,
) -> Advice:
    verdict, warmup = _decide(choice, excess, derived)
    kept = None
    if verdict == "replace":
        assert replacement is not None
        kept = choice.warmup.warmup if choice is not None and choice.warmup is not None else None
    elif choice is None or not choice.replaces:
        replacement = None
    return Advice(
        verdict=verdict,
        warmup_steps=warmup,
        start_lr=lr * start if verdict == "warmup" else lr,
        lr=replacement.lr if verdict == "replace" and replacement is not None else lr,
        steps=steps,
        batch_size=batch_size,
        optimizer=type(unwrapped(optimizer)).__name__,
        replacement=replacement,
        warmup_if_kept=kept,
        confidence=_confidence(verdict, warmup, evidence, excess, choice),
        reasons=reasons_of(evidence, excess, choice, derived=derived, lr=lr),
        doubts=doubts_of(evidence, choice, warmup=kept or warmup, steps=steps),
        evidence=evidence,
        seconds=time.perf_counter() - since,
    )


def _decide(choice: Choice | None, excess: Excess, derived: int) -> tuple[Kind, int]:
    if choice is None:
        if math.isnan(excess.value):
            return "unknown", 0
        return ("warmup", derived) if derived else ("no warmup", 0)
    if choice.best is None:
        return "unknown", 0
    if choice.replaces:
        return "replace", 0
    assert choice.warmup is not None  # else the best one is the replacement
    return ("warmup", choice.warmup.warmup) if choice.warmup.warmup else ("no warmup", 0)


def _confidence(
    verdict: Kind, warmup: int, evidence: Evidence, excess: Excess, choice: Choice | None
) -> Confidence:
    if verdict == "unknown" or choice is None:
        return "low"
    rehearsal = evidence.rehearsal
    assert rehearsal is not None
    agrees = (verdict == "no warmup") == (excess.value <= 1.0)
    if choice.clear and rehearsal.repeated <= 1 and warmup <= rehearsal.length and agrees:
        return "high"
    return "medium" if choice.clear or rehearsal.repeated <= 1 else "low"


def _base_lr(group: Mapping[str, Any]) -> float:
    """Return the learning rate that LambdaLR multiplies."""
    return float(group.get("initial_lr", group["lr"]))
