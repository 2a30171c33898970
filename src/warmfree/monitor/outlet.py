"""Where all that is measured goes: the record, the alerts, the sinks."""

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from warmfree.monitor.alerts import Alert, Alerts, Rule
from warmfree.monitor.journal import Journal
from warmfree.monitor.probe import Values
from warmfree.monitor.sinks import Sink, as_scalars

__all__ = ["Outlet"]

_LOGGER = logging.getLogger("warmfree")


class Outlet:
    """Write records, check them against rules, and pass them on to sinks.

    A sink that fails is dropped with a warning. Processes that do not write keep the last values, and nothing else.

    Args:
        folder: of the record, None for none.
        rules: to warn by.
        sinks: take what is measured.
        writes: whether this process is the one that writes.

    Attributes:
        latest: the last values of every quantity.
        raised: alerts that were raised and not cleared.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None,
        rules: Iterable[Rule],
        sinks: Sequence[Sink],
        *,
        writes: bool,
    ) -> None:
        self.latest: Values = {}
        self.raised: dict[tuple[str, str, str, int | None], Alert] = {}
        self._alerts = Alerts(rules)
        self._sinks = list(sinks) if writes else []
        self._writes = writes
        self._folder = folder if writes else None
        self._journal = Journal(None)

    def open(self) -> None:
        """Open the record.

        Raises:
            OSError: its folder cannot be made.
        """
        self._journal = Journal(self._folder)

    def record(self, kind: str, **entries: Any) -> None:
        """Write one line of another kind."""
        self._journal.write({"kind": kind, **entries})

    def loss(self, step: int, loss: float | None, lr: float) -> None:
        """Take the loss of a step."""
        if not self._writes:
            return
        known = {} if loss is None else {"loss": loss}
        self.record("step", step=step, lr=lr, **known)
        if loss is not None:
            self._check(step, {"loss": {"": loss}})
            self._send(lambda sink: sink.write(step, {"loss": loss, "lr": lr}))

    def values(self, step: int, probe: str, values: Values, *, seconds: float) -> None:
        """Take what a probe measured."""
        for quantity, layers in values.items():
            self.latest.setdefault(quantity, {}).update(layers)
        if not self._writes:
            return
        self.record("values", step=step, probe=probe, seconds=seconds, values=values)
        self._check(step, values)
        if self._sinks:
            scalars = as_scalars(values)
            self._send(lambda sink: sink.write(step, scalars))

    def notice(self, step: int, message: str) -> None:
        """Warn of something about the monitor itself."""
        warnings.warn(f"warmfree monitor, step {step}: {message}", RuntimeWarning, stacklevel=2)
        self.record("notice", step=step, message=message)

    def close(self) -> None:
        """Close the record and the sinks."""
        self._journal.close()
        self._send(lambda sink: sink.close())

    def _check(self, step: int, values: Mapping[str, Mapping[str, float | list[float]]]) -> None:
        for alert in self._alerts.check(step, values):
            key = (alert.rule, alert.quantity, alert.layer, alert.head)
            if alert.state == "raised":
                self.raised[key] = alert
                _LOGGER.warning(alert.message)
            else:
                self.raised.pop(key, None)
            self._journal.write(alert.as_record())
            self._send(lambda sink, alert=alert: sink.alert(alert))

    def _send(self, call: Callable[..., None]) -> None:
        for sink in list(self._sinks):
            try:
                call(sink)
            except Exception as error:
                self._sinks.remove(sink)
                message = f"sink {type(sink).__name__} was dropped: {type(error).__name__}: {error}"
                warnings.warn(f"warmfree monitor: {message}", RuntimeWarning, stacklevel=2)
                self.record("notice", step=-1, message=message)
