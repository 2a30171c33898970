"""Complex weights are pairs of real ones: a network of each kind that computes the same is measured the same."""

import math

import pytest
import torch
from torch import nn

from warmfree.measure import microbatches
from warmfree.measure.activations import watch_activations
from warmfree.measure.health import StableRanks, gradient_norms, weight_norms
from warmfree.measure.inputs import watch_inputs
from warmfree.measure.microbatches import watch_microbatches
from warmfree.measure.noise import MomentumNoise
from warmfree.measure.real import as_real
from warmfree.measure.representation import representation_changes
from warmfree.measure.undisturbed import undisturbed
from warmfree.measure.updates import UpdateProbe


class Filter(nn.Module):
    """A product in the frequency domain, with complex weights or with pairs of real ones."""

    def __init__(self, *, real):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        weight, shift = (
            torch.randn(*shape, dtype=torch.complex128, generator=generator) for shape in ((4, 3), (4,))
        )
        self.weight, self.shift = (
            nn.Parameter(torch.view_as_real(tensor) if real else tensor) for tensor in (weight, shift)
        )
        self.real = real

    def forward(self, x):
        weight, shift = self.weight, self.shift
        if self.real:
            weight, shift = torch.view_as_complex(weight), torch.view_as_complex(shift)
        return (torch.fft.rfft(x)[:, :3] @ weight.mT + shift).abs()


def both():
    return Filter(real=False), Filter(real=True)


def batches(count):
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(5, 6, dtype=torch.float64, generator=generator) for _ in range(count)]


def test_pairs_have_the_norm_and_conjugated_views_are_resolved():
    tensor = torch.randn(3, 2, dtype=torch.complex128)
    assert torch.linalg.vector_norm(as_real(tensor.conj())).item() == pytest.approx(tensor.norm().item())
    assert torch.equal(as_real(tensor.conj())[..., 1], -tensor.imag)


def test_norms():
    found = []
    for model in both():
        model(batches(1)[0]).square().mean().backward()
        found.append((gradient_norms(model.named_parameters()), weight_norms(model.named_parameters())))
    for complex_norms, real_norms in zip(*found, strict=True):
        assert complex_norms == pytest.approx(real_norms, rel=1e-12)
        assert min(complex_norms.values()) > 0
    weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64))
    weight.grad = torch.zeros_like(weight)
    assert gradient_norms([("weight", weight)])["weight"] == 0
    weight.grad[0, 0] = complex(1e25, -1e25)
    assert gradient_norms([("weight", weight)])["weight"] == pytest.approx(math.sqrt(2) * 1e25)
    weight.grad[0, 0] = complex(0, math.nan)
    assert math.isnan(gradient_norms([("weight", weight)])["weight"])


def test_updates():
    model, _ = both()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    probe = UpdateProbe(model, spectral=True)
    probe.snapshot()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn(weight.shape, dtype=weight.dtype, generator=generator)
    found = probe.compare(lr=0.5)
    for name, weight in model.named_parameters():
        new, old = as_real(weight.detach()).flatten(-2), as_real(before[name]).flatten(-2)
        change, update = weight.detach() - before[name], found[name]
        assert update.l2 == pytest.approx(change.norm().item())
        assert update.rms == pytest.approx(change.norm().item() / math.sqrt(change.numel()))
        assert update.relative == pytest.approx((change.norm() / before[name].norm()).item())
        cosine = torch.nn.functional.cosine_similarity(new.flatten(), old.flatten(), dim=0)
        assert update.angle == pytest.approx(cosine.acos().item())
        assert math.isnan(update.spectral_ratio)
        if weight.ndim > 1:
            turned = torch.nn.functional.cosine_similarity(new, old, dim=1).acos()
            assert update.neuron_angle == pytest.approx(turned.square().mean().sqrt().item())
        else:
            assert math.isnan(update.neuron_angle)


def test_noise_of_micro_batches():
    estimates = []
    for model in both():
        with watch_microbatches(model.named_parameters()) as seen:
            for batch in batches(4):
                (model(batch).square().mean() / 4).backward()
        estimates.append(seen.estimate(samples=5))
    for name, pair in estimates[1].items():
        assert estimates[0][name] == pytest.approx(pair, rel=1e-10)


def test_noise_from_momentum():
    found = []
    for model in both():
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        meter = MomentumNoise(batch_size=5)
        for batch in batches(6):
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            noise = meter.measure(optimizer, model.named_parameters())
            optimizer.step()
        found.append(noise)
    for name, noise in found[1].items():
        assert found[0][name].signal == pytest.approx(noise.signal, rel=1e-10)
        assert found[0][name].noise == pytest.approx(noise.noise, rel=1e-10)


def test_singular_values_are_left_out():
    named = [("complex", torch.ones(3, 2, dtype=torch.cfloat)), ("real", torch.ones(3, 2))]
    assert list(StableRanks().measure(named)) == ["real"]


def test_representation_changes():
    model, inputs = nn.Sequential(nn.Linear(3, 4, dtype=torch.cfloat)), torch.randn(8, 3, dtype=torch.cfloat)
    old, probe = model[0].weight.detach().clone(), UpdateProbe(model)
    probe.snapshot()
    with undisturbed(model), torch.no_grad(), watch_inputs(model) as seen:
        model(inputs)
    with torch.no_grad():
        model[0].weight.add_(1j * torch.randn(4, 3))
    change = representation_changes(model, seen, probe)["0"]
    step = model[0].weight.detach() - old
    assert change.rrc == pytest.approx(((inputs @ step.mT).norm() / (inputs @ old.mT).norm()).item())
    assert change.relative == pytest.approx((step.norm() / old.norm()).item())
    assert math.isnan(change.overlap)
    assert math.isfinite(change.predicted(samples=8))


@pytest.mark.parametrize("part", ["real", "imag"])
def test_a_module_that_is_not_finite_is_found(part):
    model = nn.Sequential(nn.Linear(3, 3, dtype=torch.cfloat), nn.Linear(3, 3, dtype=torch.cfloat))
    with torch.no_grad():
        getattr(model[1].weight, part)[0, 0] = math.inf
    with undisturbed(model), torch.no_grad(), watch_activations(model) as seen:
        model(torch.randn(2, 3, dtype=torch.cfloat))
    assert seen.first_nonfinite() == "1"


def test_a_gradient_that_cannot_be_read_does_not_end_the_backward_pass(monkeypatch):
    def fail(gradient, weight):
        raise NotImplementedError("a kind of tensor that nobody knows")

    monkeypatch.setattr(microbatches, "_part", fail)
    model, _ = both()
    with watch_microbatches(model.named_parameters()) as seen:
        for batch in batches(2):
            model(batch).square().mean().backward()
    assert model.weight.grad is not None
    with pytest.raises(RuntimeError, match="could not be read: a kind of tensor"):
        seen.estimate(samples=5)
