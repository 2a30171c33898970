"""Probes that look at the network while it computes, on a batch of their own, before the step."""

from contextlib import AbstractContextManager
from typing import Any

from warmfree.measure.activations import watch_activations
from warmfree.measure.attention import watch_attention
from warmfree.measure.inputs import watch_inputs
from warmfree.measure.representation import representation_changes
from warmfree.monitor.probe import Moment, Probe, Values

__all__ = ["Activations", "Attention", "Representation"]

_STATISTICS = {
    "attention_entropy": "entropy",
    "attention_entropy_ratio": "entropy_ratio",
    "attention_logit": "logit",
    "attention_rank": "rank",
    "collapse": "collapse",
}


class Attention(Probe):
    """Entropy, logits and rank of the attention maps, per head.

    Args:
        every: steps between measurements.
        samples: of the batch, at most.
        heads: of a layer, at most.
        queries: of a sample, at most.
    """

    name = "attention"
    weight = 2.0
    quantities = tuple(_STATISTICS)
    needs = frozenset(("batch",))
    watches = True

    def __init__(self, *, every: int = 20, samples: int = 4, heads: int = 32, queries: int = 32) -> None:
        self.every = every
        self._sampling = {"samples": samples, "heads": heads, "queries": queries}

    def watch(self, moment: Moment) -> AbstractContextManager[Any]:
        """Watch calls of attention."""
        return watch_attention(moment.model, **self._sampling)

    def before(self, moment: Moment) -> Values:
        """Read what was seen."""
        seen = moment.seen.get(self.name) or {}
        return {
            quantity: {layer: getattr(statistics, field) for layer, statistics in seen.items()}
            for quantity, field in _STATISTICS.items()
            if seen
        }


class Representation(Probe):
    """How far the step moves what linear, convolutional, embedding and attention projection layers compute.

    Args:
        every: steps between measurements.
        tokens: inputs of a layer to look at, at most.
    """

    name = "representation"
    weight = 2.0
    quantities = ("rrc", "rrc_predicted")
    needs = frozenset(("batch", "snapshot"))
    watches = True

    def __init__(self, *, every: int = 20, tokens: int = 64) -> None:
        self.every, self._tokens = every, tokens
        self._snr: dict[str, float] = {}

    def watch(self, moment: Moment) -> AbstractContextManager[Any]:
        """Keep inputs of layers under the old weights."""
        return watch_inputs(moment.model, tokens=self._tokens)

    def after(self, moment: Moment) -> Values:
        """Pass them through old and new weights."""
        inputs = moment.seen.get(self.name) or {}
        assert moment.snapshots is not None
        changes = representation_changes(moment.model, inputs, moment.snapshots)
        values: Values = {"rrc": {layer: change.rrc for layer, change in changes.items()}}
        measured = moment.found.get("snr", {})
        self._snr |= {name: snr for name, snr in measured.items() if isinstance(snr, float)}
        if moment.batch_size is not None and self._snr:
            values["rrc_predicted"] = {
                layer: change.predicted(samples=moment.batch_size, snr=self._snr[name])
                for layer, change in changes.items()
                if (name := _weight_of(layer)) in self._snr
            }
        return {quantity: found for quantity, found in values.items() if found}


class Activations(Probe):
    """Dead units, and the first module whose output is not finite.

    Args:
        every: steps between measurements.
    """

    name = "activations"
    quantities = ("dead_units", "nonfinite_output")
    needs = frozenset(("batch",))
    watches = True

    def __init__(self, *, every: int = 50) -> None:
        self.every = every
        self._bad: set[str] = set()

    def watch(self, moment: Moment) -> AbstractContextManager[Any]:
        """Watch activation functions and outputs."""
        return watch_activations(moment.model)

    def before(self, moment: Moment) -> Values:
        """Read what was seen."""
        seen = moment.seen.get(self.name)
        if seen is None:
            return {}
        bad = seen.first_nonfinite()
        values: Values = {
            "dead_units": dict(seen.dead_units()),
            "nonfinite_output": {bad: 1.0} if bad else {},
        }
        return {quantity: found for quantity, found in values.items() if found}


def _weight_of(layer: str) -> str:
    """Name the weight of a layer, of which a part in brackets is one projection."""
    return f"{layer.partition('[')[0]}.weight".lstrip(".")
