"""Watch live runs: probes on a budget, a record, alerts, sinks."""

from warmfree.monitor.alerts import DEFAULT_RULES, Alert, Rule
from warmfree.monitor.loss_probes import Blocks, Curvature, Smoothness
from warmfree.monitor.monitor import Monitor
from warmfree.monitor.pass_probes import Activations, Attention, Representation
from warmfree.monitor.probe import Moment, Probe
from warmfree.monitor.probes import PROBES
from warmfree.monitor.sinks import Sink, TensorBoard, Wandb
from warmfree.monitor.step_probes import Gradients, Microbatches, Noise, StepReports, Updates
from warmfree.monitor.weight_probes import Spectra, Weights

__all__ = [
    "DEFAULT_RULES",
    "PROBES",
    "Activations",
    "Alert",
    "Attention",
    "Blocks",
    "Curvature",
    "Gradients",
    "Microbatches",
    "Moment",
    "Monitor",
    "Noise",
    "Probe",
    "Representation",
    "Rule",
    "Sink",
    "Smoothness",
    "Spectra",
    "StepReports",
    "TensorBoard",
    "Updates",
    "Wandb",
    "Weights",
]
