"""Probes of the weights alone: their spectra, and those of what queries and keys make together."""

import torch

from warmfree.measure.attention import (
    each_query_key,
    spectral_energy_concentration,
    spectrum,
    stable_rank,
)
from warmfree.measure.health import StableRanks
from warmfree.monitor.probe import Moment, Probe, Values

__all__ = ["Spectra", "Weights"]


class Spectra(Probe):
    """Spectral energy concentration, stable rank and largest singular value of W_q^T W_k, per head.

    Args:
        every: steps between measurements.
        num: s, how many directions count as concentrated.
    """

    name = "spectra"
    quantities = ("qk_energy", "qk_stable_rank", "qk_sigma")

    def __init__(self, *, every: int = 50, num: int = 10) -> None:
        self.every, self._num = every, num

    @torch.no_grad()
    def before(self, moment: Moment) -> Values:
        """Decompose the weights of every attention layer, one after the other."""
        values: Values = {quantity: {} for quantity in self.quantities}
        for layer, weights in each_query_key(moment.model):
            sizes = spectrum(weights.query, weights.key)
            energy = spectral_energy_concentration(sizes, num=self._num)
            values["qk_energy"][layer] = energy.tolist()
            values["qk_stable_rank"][layer] = stable_rank(sizes).tolist()
            values["qk_sigma"][layer] = sizes[..., 0].tolist()
        return {quantity: found for quantity, found in values.items() if found}


class Weights(Probe):
    """Largest singular value and stable rank of every matrix.

    Args:
        every: steps between measurements.
    """

    name = "weights"
    quantities = ("sigma_weight", "stable_rank")

    def __init__(self, *, every: int = 50) -> None:
        self.every = every
        self._ranks = StableRanks()

    def before(self, moment: Moment) -> Values:
        """Go on with the power iteration of the last measurement."""
        found = self._ranks.measure(moment.parameters.items())
        if not found:
            return {}
        return {
            "sigma_weight": {name: rank.sigma for name, rank in found.items()},
            "stable_rank": {name: rank.stable_rank for name, rank in found.items()},
        }
