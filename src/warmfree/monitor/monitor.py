"""Watch a training run: measure on some steps, keep a record, warn; and leave the run as it would have been."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from warmfree.measure.updates import UpdateProbe
from warmfree.monitor.alerts import DEFAULT_RULES, Alert, Rule
from warmfree.monitor.batch import Loss, ProbeBatch, plain
from warmfree.monitor.budget import Budget
from warmfree.monitor.capture import Capture
from warmfree.monitor.losses import Losses
from warmfree.monitor.measuring import Measuring
from warmfree.monitor.outlet import Outlet
from warmfree.monitor.probe import Moment, Probe, Values, lr_of
from warmfree.monitor.probes import resolve
from warmfree.monitor.quantities import describe
from warmfree.monitor.ranks import Ranks
from warmfree.monitor.sinks import Sink
from warmfree.monitor.stepping import StepHooks, unwrapped

__all__ = ["Monitor"]

EARLY = frozenset((0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89))
EARLY_STEPS = 200
PATIENCE = 2
VERSION = 1
_RUNS = frozenset(("batch", "loss"))


class Monitor:
    r"""Watch a training run: measure on some steps, keep a record, warn; and leave the run as it would have been.

    The monitor hooks itself before and after `optimizer.step()`. Steps 0, 1, 2, 3, 5, 8, ..., 89 and then every n-th of
    each probe are measured, as far as the `budget` allows: the monitor times itself, and a probe that has used up
    its share waits. Probes that have to run the network do so on a batch of their own, in eval mode, on a copy of
    the random numbers' state: weights, gradients, buffers, random numbers, training flags and compiled code are left as
    they are, so that the run is the same, bit for bit, with and without a monitor. What goes wrong in a probe
    switches the probe off, with a warning, and never the training.

    It reads unscaled gradients under `torch.amp.GradScaler`, sees one step per optimizer step under accumulation,
    and works under DistributedDataParallel, FSDP2 and tensor parallelism: all processes make one, with the same
    settings, and the first one writes.

    Args:
        model: what is trained, as it is called in training: with its wrappers, if any.
        optimizer: of its parameters; a sequence if several step one after the other.
        out: folder of the record, `monitor.jsonl` in it; made when missing, appended to when there. None for none.
        probes: "default"; "all", which has the spectra of weights and curvature, too; "qi", the 15 quantities of each
            block; or a sequence of names and `Probe` objects, see `warmfree.monitor.PROBES`.
        batch: what probes run the network on: with `loss_fn` anything that it takes, else a tensor, tuple or dict that
            is passed to the model. None for the first samples of the first batch that training passes through it.
        loss_fn: `loss_fn(model, batch)` returns a scalar with a graph; goes with `batch`. Needed for curvature, unless
            the model's output is the loss or holds it as `.loss`, as in transformers.
        budget: time for measuring as a fraction of the training time, > 0; math.inf for no limit.
        total_steps: length of the run, if known: the budget of so many steps (else 200) may be spent early.
        batch_size: samples in the gradient of one optimizer step, over all micro-batches and processes; it makes
            critical batch sizes out of signal-to-noise ratios.
        probe_samples: how many samples of a batch that is taken from training.
        rules: to warn by. Alerts are logged (logger "warmfree"), recorded, and passed to sinks.
        sinks: take measurements as they are made, beside the record: `TensorBoard`, `Wandb`, or your own.
        first_step: number of the first step, for a resumed run.

    Attributes:
        step: number of the step that comes next.
        raised: alerts that were raised and not cleared yet.
        latest: the last values of every quantity.
        overhead: time that the monitor took relative to the training without it.
        costs: the same by probe.

    Raises:
        ValueError: a setting is out of range, a probe or rule has the name of another or is not known, or the
            optimizer has none of the model's parameters.
        TypeError: not an optimizer, probe or rule.

    Example:
        >>> import tempfile, torch
        >>> model = nn.Linear(4, 2)
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        >>> with Monitor(model, optimizer, out=tempfile.mkdtemp(), probes=["updates"]) as monitor:
        ...     for _ in range(3):
        ...         loss = model(torch.ones(8, 4)).square().mean()
        ...         loss.backward()
        ...         optimizer.step()
        ...         optimizer.zero_grad()
        ...         monitor.log(loss)
        >>> round(monitor.latest["update_rms"]["weight"], 2) > 0, monitor.step
        (True, 3)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        out: str | os.PathLike[str] | None = None,
        *,
        probes: Literal["default", "all", "qi"] | Sequence[str | Probe] = "default",
        batch: Any = None,
        loss_fn: Loss | None = None,
        budget: float = 0.02,
        total_steps: int | None = None,
        batch_size: float | None = None,
        probe_samples: int = 4,
        rules: Iterable[Rule] = DEFAULT_RULES,
        sinks: Sequence[Sink] = (),
        first_step: int = 0,
    ) -> None:
        for name, value, least in (("probe_samples", probe_samples, 1), ("first_step", first_step, 0)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an int >= {least}, got {value!r}")
        if batch_size is not None and not batch_size > 0:
            raise ValueError(f"batch_size must be > 0, got {batch_size}")
        if loss_fn is not None and batch is None:
            raise ValueError("loss_fn needs a batch to be called with: pass batch=, too")
        self.step = first_step
        self._called, self._model = model, plain(model)
        self._optimizers = unwrapped(optimizer)
        if not self._parameters():
            raise ValueError(
                "the optimizer has no trainable parameter of the model: are they those of another?"
            )
        self._probes = resolve(probes)
        self._batch = None if batch is None else ProbeBatch.given(batch, loss_fn, samples=probe_samples)
        self._samples, self._batch_size = probe_samples, batch_size
        shares = {probe.name: probe.weight for probe in self._probes}
        self._budget = Budget.over(
            shares, fraction=budget, horizon=EARLY_STEPS if total_steps is None else total_steps
        )
        self._snapshots: UpdateProbe | None = None
        if any("snapshot" in probe.needs for probe in self._probes):
            spectral = any(getattr(probe, "spectral", False) for probe in self._probes)
            self._snapshots = UpdateProbe(self._model, spectral=spectral)
        self._ranks = Ranks()
        self._outlet = Outlet(out, rules, sinks, writes=self._ranks.first)
        self._losses = Losses()
        self._hooks: StepHooks | None = None
        self._capture: Capture | None = None
        self._measuring: Measuring | None = None
        self._ready: list[Probe] = []
        self._is_over = False
        self._since = 0.0

    def attach(self) -> Self:
        """Start watching; `with` does it.

        Raises:
            RuntimeError: it is or was attached already.
            OSError: the folder of the record cannot be made.
        """
        if self._hooks is not None or self._is_over:
            raise RuntimeError("a monitor is attached once: make another one, with first_step=, to go on")
        self._outlet.open()
        wants_batch = self._batch is None and any(probe.needs & _RUNS for probe in self._probes)
        self._capture = Capture(self._called, samples=self._samples, keep_batch=wants_batch)
        self._hooks = StepHooks(self._optimizers, self._before_step, self._after_step)
        self._outlet.record("start", **self._header())
        self._look_ahead()
        self._since = time.perf_counter()
        return self

    def detach(self) -> None:
        """Stop watching, and take every hook off; leaving the `with` block does it."""
        if self._hooks is None:
            return
        assert self._capture is not None
        self._hooks.remove()
        self._capture.close()
        self._hooks, self._measuring, self._is_over = None, None, True
        for probe in self._probes:
            self._guarded(probe, probe.end)
        for step, loss, lr in self._losses.ready(last=True):
            self._outlet.loss(step, loss, lr)
        if self._capture.calls and not self._budget.steps:
            self._outlet.notice(self.step, "the optimizer made no step() that the monitor saw")
        seconds = self._budget.training_seconds
        self._outlet.record("end", step=self.step, seconds=seconds, overhead=self.overhead, probes=self.costs)
        self._outlet.close()

    def __enter__(self) -> Self:
        return self.attach()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def log(self, loss: float | Tensor) -> None:
        """Tell the monitor the training loss of a step. Not needed if the model's output holds it.

        It may be called before `optimizer.step()` or after it. Between the model's call and the step it is of the step
        to come, else of the step just made. Several calls for one step (micro-batches) are averaged; that of a step
        which a GradScaler skips counts with the next.

        Args:
            loss: a number or a tensor with one element, which is not waited for until the record is written.

        Raises:
            ValueError: it is not one number.
            RuntimeError: the monitor is not attached.
        """
        if self._capture is None:
            raise RuntimeError("the monitor is not attached: use `with Monitor(...) as monitor:` or attach()")
        begin = time.perf_counter()
        called = self._capture.fresh if self._capture.calls else None
        self._losses.log(loss, stepped=self._budget.steps, called=called)
        self._capture.seconds += time.perf_counter() - begin

    @property
    def latest(self) -> Values:
        """The last values of every quantity, by layer; those of the whole network are under the empty name."""
        return self._outlet.latest

    @property
    def raised(self) -> list[Alert]:
        """Alerts that were raised and not cleared yet."""
        return list(self._outlet.raised.values())

    @property
    def overhead(self) -> float:
        """Time that the monitor took relative to the training without it."""
        return self._budget.overhead

    @property
    def costs(self) -> dict[str, dict[str, float]]:
        """How often each probe has run, and the seconds that took in all."""
        accounts = self._budget.accounts.items()
        return {name: {"runs": account.runs, "seconds": account.seconds} for name, account in accounts}

    def _before_step(self, optimizer: Optimizer) -> None:
        begin = time.perf_counter()
        assert self._capture is not None
        self._losses.returned(self._capture.take_losses())
        self._losses.begin(self.step, lr_of(optimizer.param_groups[0]))
        due, waited = self._choose(), 0.0
        if due:
            waited = self._ranks.synchronize(self._model)
            self._measuring = Measuring(self._moment(optimizer), due)
            self._run(self._measuring.before)
        self._book(begin, waited)

    def _after_step(self) -> None:
        begin = time.perf_counter()
        measuring, self._measuring, waited = self._measuring, None, 0.0
        if measuring is not None:
            waited = self._ranks.synchronize(self._model)
            self._run(measuring.after)
            self._publish(measuring)
        for step, loss, lr in self._losses.ready():
            self._outlet.loss(step, loss, lr)
        self._budget.steps += 1
        self.step += 1
        self._look_ahead()
        self._book(begin, waited)

    def _run(self, stage: Callable[[], None]) -> None:
        """Run a stage of probes; what they make of the model is not training."""
        assert self._capture is not None
        self._capture.paused = True
        try:
            stage()
        finally:
            self._capture.paused = False

    def _book(self, begin: float, waited: float) -> None:
        """Book the time up to `begin` as the training's but for what seeing its calls took, and the rest as ours.

        What was waited for is work that the training had launched on an accelerator before: its own.
        """
        assert self._capture is not None
        now, between = time.perf_counter(), self._capture.seconds
        self._budget.training_seconds += begin - self._since + waited - between
        self._budget.overhead_seconds += now - begin - waited + between
        self._since, self._capture.seconds = now, 0.0

    def _choose(self) -> list[Probe]:
        """Return the probes of this step: those whose turn it is, as far as they can and may run."""
        turn = [probe for probe in self._turn() if not probe.ahead]
        if self._batch is None and any(probe.needs & _RUNS for probe in self._probes):
            self._batch = self._captured()
        able = [probe for probe in turn if self._batch is not None or not probe.needs & _RUNS]
        chosen = self._afforded(able) + self._ready
        return [probe for probe in self._probes if probe in chosen]

    def _look_ahead(self) -> None:
        """Tell the probes that have to know it that the next step will be measured."""
        for probe in self._ready:
            self._guarded(probe, probe.end)
        self._ready = self._afforded([probe for probe in self._turn() if probe.ahead])
        for probe in list(self._ready):
            self._guarded(probe, partial(probe.begin, self._parameters()))

    def _guarded(self, probe: Probe, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            self._switch_off(probe.name, error)

    def _switch_off(self, name: str, error: Exception) -> None:
        self._ready = [probe for probe in self._ready if probe.name != name]
        self._probes = [probe for probe in self._probes if probe.name != name]
        self._outlet.notice(self.step, f"probe {name} was switched off: {type(error).__name__}: {error}")

    def _turn(self) -> list[Probe]:
        return [probe for probe in self._probes if self.step % probe.every == 0 or self.step in EARLY]

    def _afforded(self, probes: Sequence[Probe]) -> list[Probe]:
        if not probes:
            return []
        names = [probe.name for probe in probes]
        allowed = self._ranks.agreed(names, self._budget.chosen(names))
        return [probe for probe in probes if probe.name in allowed]

    def _parameters(self) -> dict[str, Tensor]:
        owned = {
            id(weight)
            for optimizer in self._optimizers
            for group in optimizer.param_groups
            for weight in group["params"]
        }
        named = self._model.named_parameters()
        return {name: weight for name, weight in named if weight.requires_grad and id(weight) in owned}

    def _captured(self) -> ProbeBatch | None:
        """Return the batch that training has used, if any; say once why there is none."""
        capture = self._capture
        assert capture is not None
        if capture.batch is None and self._budget.steps == PATIENCE:
            if capture.problem is not None:
                reason = f"the batch of the training cannot be copied ({capture.problem})"
            elif capture.calls == 0 and capture.evaluating > 0:
                capture.accept_eval = True  # it trains with frozen statistics
                return None
            else:
                reason = (
                    "training has not called the model that the monitor was given: pass it as it is called (what "
                    "torch.compile or a wrapper returned, the module whose forward is used)"
                )
            self._outlet.notice(self.step, f"{reason}; or pass batch=")
        return capture.batch

    def _moment(self, optimizer: Optimizer) -> Moment:
        scale = getattr(
            optimizer, "grad_scale", None
        )  # set by GradScaler for optimizers that unscale by themselves
        group: Any = None
        if isinstance(self._called, DistributedDataParallel):
            group = self._called.process_group
        return Moment(
            step=self.step,
            model=self._model,
            optimizers=self._optimizers,
            parameters=self._parameters(),
            snapshots=self._snapshots,
            batch=self._batch,
            batch_size=self._batch_size,
            grad_scale=1.0 if scale is None else float(scale),
            ranks=1 if group is None else dist.get_world_size(group),
            group=group,
        )

    def _publish(self, measuring: Measuring) -> None:
        for name, values in measuring.found.items():
            begin, seconds = time.perf_counter(), measuring.seconds[name]
            if values:
                self._outlet.values(self.step, name, values, seconds=seconds)
            self._budget.accounts[name].charge(seconds + time.perf_counter() - begin)
        for name, error in measuring.failed.items():
            self._switch_off(name, error)

    def _header(self) -> dict[str, Any]:
        named = dict(self._model.named_parameters())
        quantities = sorted({name for probe in self._probes for name in probe.quantities})
        return {
            "version": VERSION,
            "time": time.time(),
            "first_step": self.step,
            "model": type(self._model).__name__,
            "parameters": sum(weight.numel() for weight in named.values()),
            "optimizer": " + ".join(type(optimizer).__name__ for optimizer in self._optimizers),
            "budget": self._budget.fraction,
            "layers": list(named),
            "modules": [name for name, _ in self._model.named_modules()],
            "quantities": {name: describe(name) for name in quantities},
        }
