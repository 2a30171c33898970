"""What our optimizers report of a step, against weights before and after it."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from warmfree import AdamW2, GIAdamW, LionA, LionAR, RotationalAdamW, SizedOptimizer
from warmfree.measure.updates import UpdateProbe, updates_from_report
from warmfree.optim import AngularControl, NoiseControl, SpectralBound
from warmfree.optim.wrap import wrap

REPORTING: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "AdamW2": lambda groups: AdamW2(groups, 3e-2, tau=0.02, weight_decay=0.0),
    "GIAdamW": lambda groups: GIAdamW(groups, 1e-2, weight_decay=0.0),
    "LionA": lambda groups: LionA(groups, 1e-2, weight_decay=0.0),
    "LionAR": lambda groups: LionAR(groups, 1e-2, weight_decay=0.5),
    "LionAR-whole": lambda groups: LionAR(groups, 1e-2, weight_decay=0.5, per_neuron=False),
    "RotationalAdamW": lambda groups: RotationalAdamW(groups, 1e-2, weight_decay=0.5, update_norm_decay=0.0),
    "noise": lambda groups: SizedOptimizer(groups, "adam", [NoiseControl(batch_size=8)], lr=1e-2),
    "noise-spectral": lambda groups: SizedOptimizer(
        groups, "adam", [NoiseControl(batch_size=8), SpectralBound(tau=0.01)], lr=1e-1
    ),
    "everything": lambda groups: SizedOptimizer(
        groups,
        "adam",
        [NoiseControl(batch_size=8), AngularControl(), SpectralBound()],
        lr=1e-2,
        weight_decay=0.1,
    ),
}


@pytest.mark.parametrize("name", REPORTING)
def test_what_optimizers_report_gives_the_same_updates_without_a_copy(name: str) -> None:
    model = nn.Sequential(nn.Linear(20, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    named = list(model.named_parameters())
    groups = [
        {"params": [pair for pair in named if pair[1].ndim >= 2]},
        {"params": [pair for pair in named if pair[1].ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = REPORTING[name](groups)
    optimizer.report_norms = True
    probe, lr = UpdateProbe(model, spectral=True), optimizer.param_groups[0]["lr"]
    rotational = name in ("LionAR", "LionAR-whole", "RotationalAdamW", "everything")
    for step in range(3):
        model(torch.randn(8, 20, dtype=torch.float64)).square().mean().backward()
        probe.snapshot()
        optimizer.step()
        optimizer.zero_grad()
        expected = probe.compare(lr=lr)
        got = updates_from_report(optimizer.step_report.fetch(), lr=lr)
        assert got.keys() == expected.keys()
        for key, update in got.items():
            matrix = key.endswith("weight")
            for field in ("l2", "rms", "rms_per_lr", "relative", "weight_norm"):
                assert getattr(update, field) == pytest.approx(getattr(expected[key], field), rel=1e-6), (
                    step,
                    field,
                )
            if rotational and matrix:
                whole = name == "LionAR-whole"
                assert update.angle == pytest.approx(
                    expected[key].angle if whole else expected[key].neuron_angle
                )
            if (
                name in ("AdamW2", "noise-spectral") and matrix
            ):  # up to what the power iterations of both miss
                assert update.spectral_ratio == pytest.approx(expected[key].spectral_ratio, rel=0.02)
            else:
                assert math.isnan(update.spectral_ratio)


def test_what_a_wrapped_optimizer_reports_holds_its_decay() -> None:
    model = nn.Linear(20, 12).double()
    inner = torch.optim.AdamW(model.named_parameters(), lr=1e-2, weight_decay=5.0)
    optimizer, probe = wrap(inner, [SpectralBound(tau=0.01)]), UpdateProbe(model, spectral=True)
    for _ in range(3):
        model(torch.randn(8, 20, dtype=torch.float64)).square().mean().backward()
        probe.snapshot()
        optimizer.step()
        assert optimizer.step_report is not None
        got = updates_from_report(optimizer.step_report.fetch(), lr=1e-2)
        expected = probe.compare(lr=1e-2)
        assert got["weight"].spectral_ratio == pytest.approx(expected["weight"].spectral_ratio, rel=0.02)
        assert math.isnan(got["weight"].l2)
        assert "bias" not in got


def test_decay_is_what_the_report_lacks() -> None:
    model = nn.Linear(20, 12).double()
    optimizer, probe = AdamW2(model.named_parameters(), 1e-2, weight_decay=0.1), UpdateProbe(model)
    optimizer.report_norms = True
    model(torch.randn(8, 20, dtype=torch.float64)).square().mean().backward()
    probe.snapshot()
    optimizer.step()
    assert optimizer.step_report is not None
    got, expected = updates_from_report(optimizer.step_report.fetch(), lr=1e-2), probe.compare(lr=1e-2)
    for name, update in got.items():
        assert 0 < abs(update.l2 - expected[name].l2) <= 1e-2 * 0.1 * update.weight_norm


def test_skipped_steps_learning_rates_and_zeros() -> None:
    assert updates_from_report({}, lr=0.1) == {}
    report = {"a": {"update_norm": 0.0, "update_rms": 0.0, "weight_norm": 0.0}, "b": {"update_norm": 2.0}}
    got = updates_from_report(report, lr={"a": 0.1, "b": 0.0})
    assert (got["a"].l2, got["a"].rms, got["a"].relative) == (0.0, 0.0, 0.0)
    assert got["b"].l2 == 0.0
    assert math.isnan(got["b"].rms_per_lr)
    assert math.isnan(updates_from_report(report, lr={})["a"].l2)
