"""All probes by name, and what "default", "all" and "qi" mean."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from warmfree.monitor.loss_probes import Blocks, Curvature, Smoothness
from warmfree.monitor.pass_probes import Activations, Attention, Representation
from warmfree.monitor.probe import Probe
from warmfree.monitor.step_probes import Gradients, Microbatches, Noise, StepReports, Updates
from warmfree.monitor.weight_probes import Spectra, Weights

__all__ = ["ALL", "DEFAULT", "PROBES", "QI", "resolve"]

# In the order in which they run: representation goes on from what noise has found.
PROBES: Mapping[str, Callable[[], Probe]] = MappingProxyType(
    {
        probe.name: probe
        for probe in (
            StepReports,
            Updates,
            Gradients,
            Noise,
            Microbatches,
            Attention,
            Representation,
            Activations,
            Spectra,
            Weights,
            Curvature,
            Blocks,
            Smoothness,
        )
    }
)
DEFAULT = ("report", "updates", "gradients", "noise", "attention", "representation", "activations", "spectra")
ALL = (*DEFAULT, "weights", "curvature")
QI = ("blocks", "attention", "spectra")


def resolve(chosen: str | Sequence[str | Probe]) -> list[Probe]:
    """Make probes of names.

    Args:
        chosen: "default", "all", "qi" (what Qi et al. 2025 watch in each block), or names and probes.

    Raises:
        ValueError: a name is not known, or two probes have the same.
        TypeError: something else, such as a class.
    """
    if isinstance(chosen, str):
        presets: dict[str, Sequence[str | Probe]] = {"default": DEFAULT, "all": ALL, "qi": QI}
        if chosen not in presets:
            raise ValueError(f"probes must be 'default', 'all', 'qi' or a sequence of names, got {chosen!r}")
        chosen = presets[chosen]
    probes = []
    for one in chosen:
        if isinstance(one, str) and one not in PROBES:
            raise ValueError(f"there is no probe {one!r}; known are {', '.join(PROBES)}")
        if not isinstance(one, str | Probe):
            raise TypeError(
                f"a probe must be a name or a Probe object, such as Updates(every=5), got {one!r:.60}"
            )
        probes.append(PROBES[one]() if isinstance(one, str) else one)
    names = [probe.name for probe in probes]
    again = next((name for name in names if names.count(name) > 1), None)
    if again is not None:
        raise ValueError(f"two probes are called {again!r}; give one of them another name")
    if not probes:
        raise ValueError("probes is empty; name at least one, or do without a monitor")
    for probe in probes:
        if probe.every < 1:
            raise ValueError(f"every of probe {probe.name!r} must be >= 1, got {probe.every}")
    return probes
