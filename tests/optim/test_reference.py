"""The eager step against the formulas of `references.py`, in float64 over 50 steps."""

import numpy as np
import pytest
import torch
from references import AdamDirection, LionDirection, Plain, Rotational, Spectral

from warmfree import AdamW2, GIAdamW, LionA, LionAR, RotationalAdamW, SizedOptimizer
from warmfree.optim import Adam

SHAPES = [(7, 5), (3, 11), (4, 3, 2, 2), (6,), (1, 8)]
STEPS = 50
WD = 0.1

CASES = {
    "adamd": (
        lambda p, lr: SizedOptimizer(p, Adam(correct_momentum=False), lr=lr, weight_decay=WD),
        lambda: Plain(AdamDirection(correct=False), WD),
        1e-9,
    ),
    "gi-adamw": (
        lambda p, lr: GIAdamW(p, lr, weight_decay=WD),
        lambda: Plain(AdamDirection(gradient_start=True), WD),
        1e-9,
    ),
    "liona": (
        lambda p, lr: LionA(p, lr, 0.95, WD),
        lambda: Plain(LionDirection(0.95), WD),
        1e-9,
    ),
    "liona-plain": (
        lambda p, lr: LionA(p, lr, 0.9, WD, nesterov=False),
        lambda: Plain(LionDirection(0.9, nesterov=False), WD),
        1e-9,
    ),
    "adamw2": (
        lambda p, lr: AdamW2(p, lr, (0.9, 0.95), weight_decay=WD, tau=0.01),
        lambda: Spectral(AdamDirection(b2=0.95), WD, 0.01),
        1e-2,
    ),
    "lionar": (
        lambda p, lr: LionAR(p, lr, 0.9, WD, inverse_bias_correction=True, angle_schedule="sqrt"),
        lambda: Rotational(LionDirection(0.9), WD, 0.9, inverse=True),
        1e-9,
    ),
    "lionar-linear": (
        lambda p, lr: LionAR(p, lr, 0.98, WD, inverse_bias_correction=False, angle_schedule="linear"),
        lambda: Rotational(LionDirection(0.98), WD, 0.98, schedule="linear", peak=0.02),
        1e-9,
    ),
    "rotational-adamw": (
        lambda p, lr: RotationalAdamW(p, lr, weight_decay=WD),
        lambda: Rotational(AdamDirection(), WD, 0.9, norm_decay=0.9, eps=1e-8),
        1e-9,
    ),
    "rotational-adamw-zero-mean": (
        lambda p, lr: RotationalAdamW(p, lr, weight_decay=WD, update_norm_decay=0.0, zero_mean=True),
        lambda: Rotational(AdamDirection(), WD, 0.9, eps=1e-8, zero_mean=True),
        1e-9,
    ),
}


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_fifty_steps_equal_the_formula(name, foreach):
    build, make_reference, tolerance = CASES[name]
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=shape) for shape in SHAPES]
    starts = [w.copy() for w in weights]
    parameters = [torch.nn.Parameter(torch.tensor(w)) for w in weights]
    optimizer = build(parameters, 0.02)
    optimizer.param_groups[0]["foreach"] = foreach
    references = [make_reference() for _ in SHAPES]
    signals = [rng.normal(size=shape) for shape in SHAPES]
    for step in range(STEPS):
        lr = 0.02 * (1 - step / STEPS)
        optimizer.param_groups[0]["lr"] = lr
        for i, parameter in enumerate(parameters):
            gradient = signals[i] + rng.normal(size=SHAPES[i])
            parameter.grad = torch.tensor(gradient)
            weights[i] = references[i].step(weights[i], gradient, lr)
        optimizer.step()
    for parameter, weight, start in zip(parameters, weights, starts, strict=True):
        error = np.abs(parameter.detach().numpy() - weight).max() / np.abs(weight - start).max()
        assert error < tolerance


def test_gi_adamw_primed_from_a_separate_batch_starts_from_that_gradient():
    rng = np.random.default_rng(1)
    w0, g0 = rng.normal(size=(4, 3)), rng.normal(size=(4, 3))
    parameter = torch.nn.Parameter(torch.tensor(w0))
    optimizer = GIAdamW([parameter], 0.1, (0.9, 0.99), weight_decay=WD)
    parameter.grad = torch.tensor(g0)
    optimizer.prime()
    assert torch.equal(parameter.detach(), torch.tensor(w0))
    m, v, w = np.zeros_like(w0), g0**2, w0
    for t in range(1, 11):
        g = rng.normal(size=(4, 3))
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
        u = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8)
        w = w - 0.1 * u - 0.1 * WD * w
        parameter.grad = torch.tensor(g)
        optimizer.step()
    np.testing.assert_allclose(parameter.detach().numpy(), w, rtol=1e-9)


def test_liona_is_lion_with_squared_and_plain_beta():
    """Lion (Chen et al. 2023) with betas (b^2, b) at lr scaled by the equilibrium RMS."""
    b, lr = 0.9, 0.05
    rng = np.random.default_rng(2)
    w = rng.normal(size=(5, 4))
    parameter = torch.nn.Parameter(torch.tensor(w))
    optimizer = LionA([parameter], lr, b, 0.0)
    m = np.zeros_like(w)
    for _ in range(30):
        g = rng.normal(size=w.shape)
        w = w - lr * np.sqrt((1 - b) / (1 + b)) * np.sign(b**2 * m + (1 - b**2) * g)
        m = b * m + (1 - b) * g
        parameter.grad = torch.tensor(g)
        optimizer.step()
    np.testing.assert_allclose(parameter.detach().numpy(), w, rtol=1e-12)
