"""Small problems that several test files train on."""

import torch
from torch import nn

from warmfree import AdamW2, GIAdamW, LionA, LionAR, RotationalAdamW, SizedOptimizer, wrap
from warmfree.optim import SGD, Adam, AngularControl, Lion, NoiseControl, SpectralBound

# One row an optimizer; every law of the contract runs over all rows.
OPTIMIZERS = {
    "AdamW2": lambda params, **kw: AdamW2(params, **{"lr": 1e-2, **kw}),
    "GIAdamW": lambda params, **kw: GIAdamW(params, **{"lr": 1e-2, **kw}),
    "LionA": lambda params, **kw: LionA(params, **{"lr": 1e-2, **kw}),
    "LionAR": lambda params, **kw: LionAR(params, **{"lr": 1e-2, "weight_decay": 0.5, **kw}),
    "LionAR-linear": lambda params, **kw: LionAR(
        params, **{"lr": 1e-2, "weight_decay": 0.5, "angle_schedule": "linear", "per_neuron": False, **kw}
    ),
    "RotationalAdamW": lambda params, **kw: RotationalAdamW(params, **{"lr": 1e-2, **kw}),
    "AdamD": lambda params, **kw: SizedOptimizer(
        params, Adam(correct_momentum=False), **{"lr": 1e-2, "weight_decay": 0.1, **kw}
    ),
    "SGD-spectral": lambda params, **kw: SizedOptimizer(
        params, SGD(momentum=0.9, nesterov=True), [SpectralBound()], **{"lr": 1e-2, "weight_decay": 0.1, **kw}
    ),
    "everything": lambda params, **kw: SizedOptimizer(
        params,
        Lion(momentum=0.95),
        [NoiseControl(batch_size=64), AngularControl(), SpectralBound()],
        **{"lr": 1e-2, "weight_decay": 0.1, **kw},
    ),
}
WRAPPED = {
    "wrapped-SGD": lambda params, **kw: wrap(
        torch.optim.SGD(params, **{"lr": 1e-2, "momentum": 0.9, **kw}), [SpectralBound()]
    ),
    "wrapped-AdamW": lambda params, **kw: wrap(
        torch.optim.AdamW(params, **{"lr": 1e-2, "weight_decay": 0.1, **kw}), [AngularControl()]
    ),
}


def make_model(dtype=torch.float32):
    generator_state = torch.get_rng_state()
    torch.manual_seed(7)
    model = nn.Sequential(
        nn.Conv1d(2, 6, 3),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(36, 12),
        nn.LayerNorm(12),
        nn.GELU(),
        nn.Linear(12, 5),
    ).to(dtype)
    torch.set_rng_state(generator_state)
    return model


def batch(step, dtype=torch.float32):
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(16, 2, 8, generator=generator)
    targets = (inputs[:, 0].sum(1) > 0).long() + 2 * (inputs[:, 1, 0] > 0).long()
    return inputs.to(dtype), targets


def backward(model, step):
    inputs, targets = batch(step, next(model.parameters()).dtype)
    loss = nn.functional.cross_entropy(model(inputs).float(), targets)
    model.zero_grad()
    loss.backward()
    return loss.item()


def train(model, optimizer, steps, *, start=0, scheduler=None):
    losses = []
    for step in range(start, start + steps):
        losses.append(backward(model, step))
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return losses


def weights(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


def assert_equal(left, right):
    assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
