import math

import pytest
import torch
from torch import Tensor, nn

from warmfree.measure.updates import Update, UpdateProbe


def measure(before: Tensor, after: Tensor, *, lr: float = 0.1) -> Update:
    weight = nn.Parameter(before.clone())
    probe = UpdateProbe([("w", weight)])
    probe.snapshot()
    with torch.no_grad():
        weight.copy_(after)
    return probe.compare(lr=lr)["w"]


def exact_angle(before: Tensor, after: Tensor) -> float:
    """Kahan's formula on the stored weights, in float64."""
    u, v = before.double().flatten(), after.double().flatten()
    u, v = u / u.norm(), v / v.norm()
    return 2 * math.atan2(float((u - v).norm()), float((u + v).norm()))


@pytest.mark.parametrize("size", [1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_float32_agrees_with_float64_for_angles_of_any_size(size: float, scale: float) -> None:
    before = torch.randn(64, 32) * scale
    after = before + size * scale * torch.randn(64, 32)
    got = measure(before, after, lr=0.25)
    change = after.double() - before.double()
    rows = torch.tensor([exact_angle(b, a) for b, a in zip(before, after, strict=True)], dtype=torch.float64)
    assert got.angle == pytest.approx(exact_angle(before, after), rel=1e-5)
    assert got.neuron_angle == pytest.approx(float(rows.square().mean().sqrt()), rel=1e-5)
    assert got.l2 == pytest.approx(float(change.norm()), rel=1e-5)
    assert got.rms == pytest.approx(float(change.square().mean().sqrt()), rel=1e-5)
    assert got.rms_per_lr == pytest.approx(got.rms / 0.25)
    assert got.relative == pytest.approx(float(change.norm() / before.double().norm()), rel=1e-5)


def test_a_pure_rescaling_has_no_angle_and_a_reversal_has_pi() -> None:
    before = torch.randn(8, 8)
    assert measure(before, 0.9 * before).angle == pytest.approx(0.0, abs=1e-7)
    assert measure(before, -before).angle == pytest.approx(math.pi)
    assert measure(before, -before).neuron_angle == pytest.approx(math.pi)


def test_tensor_and_neuron_angles_differ_when_one_row_carries_the_norm() -> None:
    before = torch.tensor([[1e4, 0.0], [1.0, 0.0]])
    after = torch.tensor([[1e4, 0.0], [0.0, 1.0]])
    got = measure(before, after)
    assert got.angle == pytest.approx(1.4142e-4, rel=1e-3)
    assert got.neuron_angle == pytest.approx(math.sqrt((math.pi / 2) ** 2 / 2))


def test_zero_rows_are_left_out_and_zero_tensors_have_no_angle() -> None:
    before = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 2.0]])
    after = torch.tensor([[0.0, 1.0], [3.0, 3.0], [0.0, 0.0]])
    assert measure(before, after).neuron_angle == pytest.approx(math.pi / 2)
    moved = measure(torch.zeros(2, 2), torch.ones(2, 2))
    assert math.isnan(moved.angle)
    assert math.isnan(moved.neuron_angle)
    assert moved.relative == math.inf
    still = measure(torch.zeros(2, 2), torch.zeros(2, 2))
    assert (still.relative, still.l2) == (0.0, 0.0)


def test_an_unmoved_tensor_measures_zero() -> None:
    weight = torch.randn(3, 4)
    got = measure(weight, weight)
    assert (got.l2, got.rms, got.rms_per_lr, got.relative, got.angle, got.neuron_angle) == (0,) * 6


def test_vectors_have_no_neuron_angle_and_convolutions_have_one_per_output_channel() -> None:
    assert math.isnan(measure(torch.ones(4), torch.arange(4.0)).neuron_angle)
    before, after = torch.randn(5, 3, 2, 2), torch.randn(5, 3, 2, 2)
    flat = measure(before.flatten(1), after.flatten(1))
    assert measure(before, after) == flat


def test_lr_zero_has_no_update_per_lr() -> None:
    assert math.isnan(measure(torch.ones(2), torch.ones(2), lr=0.0).rms_per_lr)


def test_half_precision_is_compared_in_float32_and_double_in_double() -> None:
    before = torch.randn(16, 16, dtype=torch.float64)
    after = before + 1e-9 * torch.randn(16, 16, dtype=torch.float64)
    assert measure(before, after).angle == pytest.approx(exact_angle(before, after), rel=1e-6)
    low, high = before.bfloat16(), (before + 0.1).bfloat16()
    assert measure(low, high).angle == pytest.approx(exact_angle(low, high), rel=1e-5)


def test_probe_measures_every_step_anew_and_mixes_dtypes() -> None:
    a, b = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(3, dtype=torch.float64))
    probe = UpdateProbe([("a", a), ("b", b)])
    for step in (1.0, 2.0):
        probe.snapshot()
        with torch.no_grad():
            a.add_(step)
            b.add_(step)
        got = probe.compare(lr=1.0)
        assert got["a"].rms == pytest.approx(step)
        assert got["b"].rms == pytest.approx(step)


def test_frozen_parameters_are_left_out_and_nothing_is_an_error() -> None:
    model = nn.Linear(2, 2)
    model.weight.requires_grad_(False)
    probe = UpdateProbe(model)
    probe.snapshot()
    assert set(probe.compare(lr=1.0)) == {"bias"}
    model.bias.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        UpdateProbe(model)


def test_compare_needs_a_fresh_snapshot() -> None:
    probe = UpdateProbe(nn.Linear(2, 2))
    with pytest.raises(RuntimeError, match=r"call snapshot\(\)"):
        probe.compare(lr=1.0)
    probe.snapshot()
    probe.compare(lr=1.0)
    with pytest.raises(RuntimeError, match=r"call snapshot\(\)"):
        probe.compare(lr=1.0)
