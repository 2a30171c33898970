"""Watch a training run: measure on some steps, keep a record, warn; and leave the run as it would have been."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Literal, Self

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from warmfree.measure.updates import UpdateProbe
from warmfree.monitor.alerts import DEFAULT_RULES, Alert, Rule
from warmfree.monitor.batch import Capture, Loss, ProbeBatch, plain
from warmfree.monitor.budget import Budget
from warmfree.monitor.losses import Losses
from warmfree.monitor.measuring import Measuring
from warmfree.monitor.outlet import Outlet
from warmfree.monitor.probe import Moment, Probe, Values
from warmfree.monitor.probes import resolve
from warmfree.monitor.quantities import describe
from warmfree.monitor.ranks import Ranks
from warmfree.monitor.sinks import Sink

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
        batch: what probes run the network on: with `loss` anything that it takes, else a tensor, tuple or dict that is
            passed to the model. None for the first samples of the first batch that training passes through it.
        loss: `loss(model, batch)` returns a scalar with a graph. Needed for curvature, unless the model's output is
            the loss or holds it as `.loss`, as in transformers.
        budget: time for measuring as a fraction of the training time, > 0; math.inf for no limit.
        steps: length of the run, if known: the budget of so many steps (else 200) may be spent early.
        batch_size: samples in the gradient of one optimizer step, over all micro-batches and processes; it makes
            critical batch sizes out of signal-to-noise ratios.
        samples: how many samples of a batch that is taken from training.
        alerts: rules to warn by.
        sinks: take measurements as they are made, beside the record: `TensorBoard`, `Wandb`, or your own.
        first_step: number of the first step, for a resumed run.

    Attributes:
        step: number of the step that comes next.
        raised: alerts that were raised and not cleared yet.
        latest: the last values of every quantity.
        overhead: time that the monitor took relative to the training without it.
        costs: the same by probe.

    Raises:
        ValueError: a setting is out of range, a probe or rule has the name of another, or is not known.
        TypeError: not an optimizer.
        OSError: the folder cannot be made.

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
        loss: Loss | None = None,
        budget: float = 0.02,
        steps: int | None = None,
        batch_size: float | None = None,
        samples: int = 4,
        alerts: Iterable[Rule] = DEFAULT_RULES,
        sinks: Sequence[Sink] = (),
        first_step: int = 0,
    ) -> None:
        if samples < 1 or first_step < 0 or (batch_size is not None and not batch_size > 0):
            raise ValueError(
                f"samples must be >= 1, first_step >= 0 and batch_size > 0, "
                f"got {samples}, {first_step} and {batch_size}"
            )
        self.step = first_step
        self._called, self._model = model, plain(model)
        self._optimizers = _optimizers(optimizer)
        self._probes = resolve(probes)
        self._batch = None if batch is None else ProbeBatch.given(batch, loss, samples=samples)
        self._samples, self._batch_size = samples, batch_size
        shares = {probe.name: probe.weight for probe in self._probes}
        self._budget = Budget.over(shares, fraction=budget, horizon=EARLY_STEPS if steps is None else steps)
        spectral = any(getattr(probe, "spectral", False) for probe in self._probes)
        self._snapshots = UpdateProbe(self._model, spectral=spectral)
        self._ranks = Ranks()
        self._outlet = Outlet(out, alerts, sinks, writes=self._ranks.first)
        self._losses = Losses()
        self._hooks: list[Any] = []
        self._capture: Capture | None = None
        self._measuring: Measuring | None = None
        self._ready: list[Probe] = []
        self._since = 0.0

    def attach(self) -> Self:
        """Start watching; `with` does it."""
        if self._hooks:
            raise RuntimeError("the monitor is attached already")
        wants_batch = self._batch is None and any(probe.needs & _RUNS for probe in self._probes)
        self._capture = Capture(self._called, samples=self._samples, keep_batch=wants_batch)
        self._hooks = [
            self._optimizers[0].register_step_pre_hook(self._on_step),
            self._optimizers[-1].register_step_post_hook(self._after_step),
        ]
        self._outlet.record("start", **self._header())
        self._look_ahead()
        self._since = time.perf_counter()
        return self

    def detach(self) -> None:
        """Stop watching, and take every hook off; leaving the `with` block does it."""
        if not self._hooks:
            return
        for hook in self._hooks:
            hook.remove()
        assert self._capture is not None
        self._capture.close()
        self._hooks, self._capture, self._measuring = [], None, None
        for probe in self._probes:
            probe.end()
        for step, loss, lr in self._losses.ready(last=True):
            self._outlet.loss(step, loss, lr)
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
        """Tell the monitor the training loss of a step.

        It may be called before `optimizer.step()` or after it, at the same place all through a run: if the first
        call comes before the first step, calls belong to the step that follows, else to the step just made. Several
        calls for one step (micro-batches) are averaged. Not needed if the model's output holds the loss.

        Args:
            loss: a number or a tensor with one element, which is not waited for until the record is written.

        Raises:
            ValueError: more than one number.
        """
        self._losses.log(loss, stepped=self._budget.steps)

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

    def _on_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        """Measure at once, or if there is a closure, which makes the gradients, after its first call."""
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._before_step(optimizer)
            return None
        called = False

        def then_measure() -> Any:
            nonlocal called
            loss = closure()
            if not called:
                called = True
                self._before_step(optimizer)
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": then_measure}
        return (args[0], then_measure, *args[2:]), kwargs

    def _before_step(self, optimizer: Optimizer) -> None:
        begin = time.perf_counter()
        assert self._capture is not None
        self._losses.returned(self._capture.take_losses())
        self._losses.begin(self.step, float(optimizer.param_groups[0]["lr"]))
        due, waited = self._choose(), 0.0
        if due:
            waited = self._ranks.synchronize(self._model)
            self._measuring = Measuring(self._moment(optimizer), due)
            self._measuring.before()
        self._book(begin, waited)

    def _after_step(self, *_: Any) -> None:
        begin = time.perf_counter()
        measuring, self._measuring, waited = self._measuring, None, 0.0
        if measuring is not None:
            waited = self._ranks.synchronize(self._model)
            measuring.after()
            self._publish(measuring)
        for step, loss, lr in self._losses.ready():
            self._outlet.loss(step, loss, lr)
        self._budget.steps += 1
        self.step += 1
        self._look_ahead()
        self._book(begin, waited)

    def _book(self, begin: float, waited: float) -> None:
        """Book the time up to `begin` as the training's, and what came after as ours.

        What was waited for is work that the training had launched on an accelerator before: its own.
        """
        now = time.perf_counter()
        self._budget.training_seconds += begin - self._since + waited
        self._budget.overhead_seconds += now - begin - waited
        self._since = now

    def _choose(self) -> list[Probe]:
        """Return the probes of this step: those whose turn it is, as far as they can and may run."""
        turn = [probe for probe in self._turn() if not probe.ahead]
        if turn and self._batch is None:
            self._batch = self._captured(self._budget.steps)
        able = [probe for probe in turn if self._batch is not None or not probe.needs & _RUNS]
        chosen = self._afforded(able) + self._ready
        return [probe for probe in self._probes if probe in chosen]

    def _look_ahead(self) -> None:
        """Tell the probes that have to know it that the next step will be measured."""
        for probe in self._ready:
            probe.end()
        self._ready = self._afforded([probe for probe in self._turn() if probe.ahead])
        for probe in self._ready:
            probe.begin(self._parameters())

    def _turn(self) -> list[Probe]:
        made = self._budget.steps
        return [probe for probe in self._probes if made % probe.every == 0 or made in EARLY]

    def _afforded(self, probes: Sequence[Probe]) -> list[Probe]:
        if not probes:
            return []
        names = [probe.name for probe in probes]
        allowed = self._ranks.agreed(names, self._budget.chosen(names))
        return [probe for probe in probes if probe.name in allowed]

    def _parameters(self) -> dict[str, Tensor]:
        return {name: weight for name, weight in self._model.named_parameters() if weight.requires_grad}

    def _captured(self, made: int) -> ProbeBatch | None:
        assert self._capture is not None
        if (
            made == PATIENCE
            and not self._capture.calls
            and any(probe.needs & _RUNS for probe in self._probes)
        ):
            message = "training has not called the model that the monitor was given"
            advice = "pass it as it is called (what torch.compile or a wrapper returned), or pass batch="
            self._outlet.notice(self.step, f"{message}: {advice}")
        return self._capture.batch

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
            self._budget.accounts[name].charge(measuring.seconds[name])
            if values:
                self._outlet.values(self.step, name, values, seconds=measuring.seconds[name])
        for name, error in measuring.failed.items():
            self._ready = [probe for probe in self._ready if probe.name != name]
            self._probes = [probe for probe in self._probes if probe.name != name]
            self._outlet.notice(self.step, f"probe {name} was switched off: {type(error).__name__}: {error}")

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


def _optimizers(given: Optimizer | Sequence[Optimizer]) -> tuple[Optimizer, ...]:
    optimizers: list[Any] = list(given) if isinstance(given, list | tuple) else [given]
    for index, optimizer in enumerate(optimizers):
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"the monitor needs a torch.optim.Optimizer, got {type(optimizer).__name__}")
        while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
            optimizer = inner  # accelerate's wrapper passes step() on
        optimizers[index] = optimizer
    if not optimizers:
        raise ValueError("the monitor needs at least one optimizer, got an empty sequence")
    return tuple(optimizers)
