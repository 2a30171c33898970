"""The signal-to-noise estimate and the multiplier that is made of it."""

import math

import pytest
import torch

from warmfree import SizedOptimizer
from warmfree.optim import SGD, Adam, AngularControl, Lion, NoiseControl, representation_change_factor


def run(snr_batch, *, momentum, steps, batch_size=1.0, build=None, dim=(40, 500), **options):
    """Feed gradients of known signal-to-noise ratio to a matrix; return the reports of all steps."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(dim, generator=generator, dtype=torch.float64))
    signal = torch.randn(dim, generator=generator, dtype=torch.float64)
    control = NoiseControl(batch_size=batch_size, **options)
    build = build or (lambda p: SizedOptimizer(p, Lion(momentum=momentum), [control], lr=1e-3))
    optimizer = build([weight])
    reports = []
    for _ in range(steps):
        noise = torch.randn(dim, generator=generator, dtype=torch.float64)
        weight.grad = signal * snr_batch**0.5 + noise
        optimizer.step()
        reports.append(optimizer.step_report.fetch()["0.0"])
    return reports


@pytest.mark.parametrize("momentum", [0.9, 0.98])
@pytest.mark.parametrize("snr", [0.0, 0.01, 0.1, 1.0, 10.0])
def test_snr_is_recovered(momentum, snr):
    estimate = run(snr, momentum=momentum, steps=200)[-1]["snr"]
    assert estimate == pytest.approx(snr, rel=0.05, abs=2e-3)


def test_snr_is_recovered_from_the_second_step_on():
    for report in run(0.5, momentum=0.9, steps=20)[1:]:
        assert report["snr"] == pytest.approx(0.5, rel=0.06)


@pytest.mark.parametrize(
    "direction", [Adam(betas=(0.9, 0.99)), Lion(momentum=0.9, nesterov=False), SGD(momentum=0.9)]
)
def test_every_direction_hands_on_what_the_estimate_needs(direction):
    control = NoiseControl(batch_size=4.0)
    reports = run(
        0.4, momentum=0.9, steps=60, build=lambda p: SizedOptimizer(p, direction, [control], lr=1e-3)
    )
    assert reports[-1]["snr"] == pytest.approx(0.1, rel=0.06)  # per sample: a fourth of the batch's


def test_the_first_step_is_the_smallest():
    for dtype in (torch.float32, torch.float64):
        weight = torch.nn.Parameter(torch.zeros(10, 50, dtype=dtype))
        optimizer = SizedOptimizer([weight], Adam(betas=(0.9, 0.99)), [NoiseControl(batch_size=100)], lr=1.0)
        weight.grad = torch.randn(10, 50, dtype=dtype)
        optimizer.step()
        smallest = math.sqrt(1 / 100 + 1 / 50)
        assert optimizer.step_report.fetch()["0.0"]["factor"] == pytest.approx(smallest, rel=1e-6)
        assert weight.detach().abs().max().item() == pytest.approx(smallest, rel=1e-5)


def test_constant_gradients_are_all_signal_and_zero_ones_all_noise():
    for value, expected in ((1.0, math.sqrt(1 / 64 + 1 / 8)), (0.0, 1.0)):
        weight = torch.nn.Parameter(torch.ones(4, 8, dtype=torch.float64))
        optimizer = SizedOptimizer([weight], Lion(momentum=0.9), [NoiseControl(batch_size=64)], lr=1e-3)
        for _ in range(4):
            weight.grad = torch.full((4, 8), value, dtype=torch.float64)
            optimizer.step()
        assert optimizer.step_report.fetch()["0.0"]["factor"] == pytest.approx(expected, rel=1e-6)


def test_the_multiplier_against_its_formula_and_limits():
    for batch_size in (1, 16, 4096):
        for overlap in (0.0, 1 / 768, 0.5):
            for phi in (0.0, 1e-4, 0.1, 10.0):
                expected = math.sqrt(
                    (1 + phi) * (1 / batch_size + overlap) / (phi + 1 / batch_size + overlap)
                )
                factor = representation_change_factor(
                    torch.tensor(phi, dtype=torch.float64), batch_size=batch_size, input_overlap=overlap
                )
                assert factor.item() == pytest.approx(min(1.0, expected), rel=1e-12)
            limit = representation_change_factor(
                torch.tensor(math.inf), batch_size=batch_size, input_overlap=overlap
            )
            assert limit.item() == pytest.approx(min(1.0, math.sqrt(1 / batch_size + overlap)), rel=1e-6)


def test_the_multiplier_holds_the_representation_change_of_a_real_layer():
    """RRC^2 of a normalised update is (phi + 1/B + 1/C)/(1 + phi) times what it depends on otherwise."""
    torch.manual_seed(0)
    width, batch_size = 256, 512
    changes = []
    for phi in (0.0, 0.01, 0.1, 1.0):
        total = 0.0
        for _ in range(20):
            inputs = torch.randn(batch_size, width, dtype=torch.float64)
            direction = torch.randn(width, dtype=torch.float64)
            direction *= width**0.5 / direction.norm()
            # Per-sample gradients of one neuron: a shared signal and noise along the sample's own input.
            signs = torch.randn(batch_size, dtype=torch.float64).sign()
            samples = phi**0.5 * direction + signs[:, None] * inputs
            update = samples.mean(0)
            update /= update.norm()
            cosines = samples @ update / samples.norm(dim=1)
            factor = representation_change_factor(
                torch.tensor(phi, dtype=torch.float64), batch_size=batch_size, input_overlap=1 / width
            )
            total += (cosines.square().mean() * factor**2).item() / 20
        changes.append(total)
    assert changes == pytest.approx([changes[0]] * 4, rel=0.05)


@pytest.mark.parametrize("direction", [Adam(betas=(0.9, 0.99)), SGD(momentum=0.9)])
def test_after_an_angular_control_it_measures_the_same(direction):
    """The tangential update must not be written into the momentum that the ratio is measured on."""
    control = [AngularControl(), NoiseControl(batch_size=1.0)]
    reports = run(
        0.5,
        momentum=0.9,
        steps=60,
        build=lambda p: SizedOptimizer(p, direction, control, lr=1e-2, weight_decay=0.1),
    )
    assert reports[-1]["snr"] == pytest.approx(0.5, rel=0.06)


def test_averaged_batches_count_as_one():
    plain = run(0.5, momentum=0.9, steps=50, batch_size=10.0)[-1]
    averaged = run(0.5, momentum=0.9, steps=50, batch_size=10.0, averaged_batches=True)[-1]
    assert averaged["snr"] == pytest.approx(plain["snr"] / 19, rel=1e-9)


def test_before_an_angular_control_it_scales_the_angle():
    control = [NoiseControl(batch_size=10.0), AngularControl()]
    reports = run(
        1.0,
        momentum=0.9,
        steps=30,
        build=lambda p: SizedOptimizer(p, Lion(momentum=0.9), control, lr=1e-2, weight_decay=0.1),
    )
    full = math.sqrt(2 * 1e-2 * 0.1 * 0.1 / 1.9)
    for report in reports:
        assert math.tan(report["angle"]) == pytest.approx(full * report["factor"], rel=1e-9)
    assert reports[0]["factor"] < reports[-1]["factor"] < 0.9


def test_an_embedding_overlaps_as_its_rows():
    weight = torch.nn.Parameter(torch.zeros(1000, 4))
    group = {"params": [weight], "role": "embedding"}
    optimizer = SizedOptimizer([group], Lion(momentum=0.9), [NoiseControl(batch_size=1e6)], lr=1e-3)
    weight.grad = torch.ones(1000, 4)
    optimizer.step()
    assert optimizer.step_report.fetch()["0.0"]["factor"] == pytest.approx(math.sqrt(1e-3), rel=1e-2)


def test_no_momentum_no_estimate():
    weight = torch.nn.Parameter(torch.zeros(3, 3))
    with pytest.raises(ValueError, match="needs momentum"):
        SizedOptimizer([weight], SGD(), [NoiseControl(batch_size=4)], lr=0.1)
