"""Sizes of updates: Adam's RMS by step, and the angle and norm at which weights settle under decay."""

import math

import pytest
import torch

from warmfree import GIAdamW, LionA, SizedOptimizer
from warmfree.optim import Adam


def update_rms(build, *, steps, signal_to_noise, dim=20_000):
    """RMS of u = -dw/lr at each step, gradients = constant signal + white noise of variance 1."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(dim, dtype=torch.float64))
    optimizer = build([weight])
    signal = 0.0 if signal_to_noise == math.inf else signal_to_noise**0.5
    noise = 0.0 if signal_to_noise == math.inf else 1.0
    signal = 1.0 if signal_to_noise == math.inf else signal
    sizes = []
    for _ in range(steps):
        before = weight.detach().clone()
        weight.grad = signal + noise * torch.randn(dim, generator=generator, dtype=torch.float64)
        optimizer.step()
        sizes.append((weight.detach() - before).square().mean().sqrt().item())
    return sizes


@pytest.mark.parametrize("beta2", [0.95, 0.999])
@pytest.mark.parametrize("snr", [0.0, 0.1, 10.0, math.inf])
def test_rms_of_bias_corrected_adam(beta2, snr):
    """sqrt((phi + rho_t)/(phi + 1)), rho_t = (1-b)(1+b^t)/((1+b)(1-b^t)): 1 at first, .229 in the end."""
    sizes = update_rms(
        lambda p: SizedOptimizer(p, Adam(betas=(0.9, beta2)), lr=1.0), steps=100, signal_to_noise=snr
    )
    for step in (1, 3, 10, 30, 100):
        rho = 0.1 * (1 + 0.9**step) / (1.9 * (1 - 0.9**step))
        expected = 1.0 if snr == math.inf else math.sqrt((snr + rho) / (snr + 1))
        assert sizes[step - 1] == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("beta2", [0.95, 0.999])
def test_rms_of_adamd_grows_from_one_minus_beta1(beta2):
    build = lambda p: SizedOptimizer(p, Adam(betas=(0.9, beta2), correct_momentum=False), lr=1.0)  # noqa: E731
    noise = update_rms(build, steps=50, signal_to_noise=0.0)
    signal = update_rms(build, steps=50, signal_to_noise=math.inf)
    for step in (1, 3, 10, 50):
        expected = math.sqrt(0.1 * (1 - 0.9 ** (2 * step)) / 1.9)
        assert noise[step - 1] == pytest.approx(expected, rel=0.05)
        assert signal[step - 1] == pytest.approx(1 - 0.9**step, rel=1e-6)


@pytest.mark.parametrize(
    ("beta2", "ratios"),
    [
        (0.999, {1: 0.0316, 2: 0.0445, 10: 0.135, 30: 0.235, 100: 0.395, 300: 0.590}),
        (0.95, {1: 0.224, 5: 0.508, 10: 0.669, 30: 0.890}),
    ],
)
def test_gi_adam_moves_the_typical_coordinate_by_the_tabled_part_of_adam(beta2, ratios):
    dim, generator = 20_000, torch.Generator().manual_seed(1)
    weights = [torch.nn.Parameter(torch.zeros(dim, dtype=torch.float64)) for _ in range(2)]
    optimizers = [
        GIAdamW([weights[0]], 1.0, (0.9, beta2), weight_decay=0.0),
        SizedOptimizer([weights[1]], Adam(betas=(0.9, beta2)), lr=1.0),
    ]
    for step in range(1, max(ratios) + 1):
        gradient = torch.randn(dim, generator=generator, dtype=torch.float64)
        before = [weight.detach().clone() for weight in weights]
        for weight, optimizer in zip(weights, optimizers, strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
        if step in ratios:
            ours, adam = (
                (w.detach() - b).abs().median().item() for w, b in zip(weights, before, strict=True)
            )
            assert ours / adam == pytest.approx(ratios[step], rel=0.05)


def test_liona_has_adams_equilibrium_rms_at_every_step():
    for momentum in (0.9, 0.95, 0.98):
        sizes = update_rms(lambda p, b=momentum: LionA(p, 1.0, b, 0.0), steps=5, signal_to_noise=0.3, dim=500)
        assert sizes == pytest.approx([math.sqrt((1 - momentum) / (1 + momentum))] * 5, rel=1e-9)


def settle(build, *, lr, weight_decay, dim=2000, steps=3000):
    """Return RMS angle a step and norm, averaged over the last third of a random walk under decay."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(dim, generator=generator) * (lr / (2 * weight_decay)) ** 0.5)
    optimizer = build([weight])
    angles, norms = [], []
    for step in range(steps):
        before = weight.detach().clone()
        weight.grad = torch.randn(dim, generator=generator)
        optimizer.step()
        if step > steps * 2 // 3:
            after = weight.detach()
            difference = after / after.norm() - before / before.norm()
            angles.append(difference.norm().item() ** 2)
            norms.append(after.norm().item() ** 2)
    return math.sqrt(sum(angles) / len(angles)), math.sqrt(sum(norms) / len(norms))


@pytest.mark.slow
@pytest.mark.parametrize("weight_decay", [0.5, 2.0])
def test_adamw_settles_at_the_angle_that_the_rotational_optimizers_start_with(weight_decay):
    lr, dim = 2e-3, 2000
    angle, norm = settle(
        lambda p: SizedOptimizer(p, Adam(betas=(0.9, 0.99)), lr=lr, weight_decay=weight_decay),
        lr=lr,
        weight_decay=weight_decay,
    )
    assert angle == pytest.approx(math.sqrt(2 * lr * weight_decay * 0.1 / 1.9), rel=0.05)
    assert norm == pytest.approx(math.sqrt(lr * dim / (2 * weight_decay)), rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("nesterov", [False, True])
def test_liona_settles_where_the_arcsine_law_says(nesterov):
    """Displacement of a sign walk: 1 + 2 sum_k (2/pi) arcsin(corr_k), corr_k of the averaged gradients."""
    lr, weight_decay, b = 5e-4, 0.5, 0.9
    angle, norm = settle(
        lambda p: LionA(p, lr, b, weight_decay, nesterov=nesterov),
        lr=lr,
        weight_decay=weight_decay,
        steps=9000,
    )
    # c = sum_j a_j g_{t-j}; plain: a_j = b^j. Nesterov: b*m + (1-b)*g, so a_0 gains (1-b).
    taps = [(1 - b) * b**j for j in range(400)]
    if nesterov:
        taps = [b * tap for tap in taps]
        taps[0] += 1 - b
    taps = torch.tensor(taps, dtype=torch.float64)
    power = (taps * taps).sum()
    correlations = [(taps[k:] * taps[: len(taps) - k]).sum() / power for k in range(1, 300)]
    displacement = 1 + 2 * sum(2 / math.pi * math.asin(correlation) for correlation in correlations)
    kappa = math.sqrt((1 - b) / (1 + b))
    # ||w||^2 = lr d kappa^2 displacement / (2 wd); the step's own length is lr kappa sqrt(d).
    assert norm == pytest.approx(
        math.sqrt(lr * 2000 * kappa**2 * displacement / (2 * weight_decay)), rel=0.05
    )
    assert angle == pytest.approx(math.sqrt(2 * lr * weight_decay / displacement), rel=0.05)
