"""What the tests of the critical learning rate share: losses with known Hessians, optimizers, exact crossings."""

import copy
import math

import torch
from torch import nn

import warmfree
from warmfree.schedule.critical import critical_lr

# Rows: an optimizer of one group of parameters; `adaptive` ones move by about lr in every coordinate.
OPTIMIZERS = {
    "SGD": lambda p, lr: torch.optim.SGD(p, lr=lr),
    "SGD, heavy ball": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9),
    "SGD, Nesterov": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9, nesterov=True),
    "SGD, decay": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.5, weight_decay=0.01),
    "Adam": lambda p, lr: torch.optim.Adam(p, lr=lr, betas=(0.9, 0.99)),
    "AMSGrad": lambda p, lr: torch.optim.Adam(p, lr=lr, amsgrad=True),
    "AdamW": lambda p, lr: torch.optim.AdamW(p, lr=lr, weight_decay=0.1),
    "NAdam": lambda p, lr: torch.optim.NAdam(p, lr=lr),
    "RAdam": lambda p, lr: torch.optim.RAdam(p, lr=lr),
    "Adamax": lambda p, lr: torch.optim.Adamax(p, lr=lr),
    "RMSprop": lambda p, lr: torch.optim.RMSprop(p, lr=lr, momentum=0.5, centered=True),
    "Adagrad": lambda p, lr: torch.optim.Adagrad(p, lr=lr),
    "Adadelta": lambda p, lr: torch.optim.Adadelta(p, lr=lr),
}
OURS = {
    "AdamW2": lambda p, lr: warmfree.AdamW2(p, lr, tau=0.5),
    "GIAdamW": lambda p, lr: warmfree.GIAdamW(p, lr),
    "LionA": lambda p, lr: warmfree.LionA(p, lr),
    "LionAR": lambda p, lr: warmfree.LionAR(p, lr, weight_decay=0.1),
    "RotationalAdamW": lambda p, lr: warmfree.RotationalAdamW(p, lr, weight_decay=0.1),
    "wrap(SGD)": lambda p, lr: warmfree.wrap(
        torch.optim.SGD(p, lr=lr, momentum=0.9), [warmfree.optim.SpectralBound(tau=0.5)]
    ),
}


class Quadratic(nn.Module):
    """The loss (w - w*)^T H (w - w*) / 2 + floor, its weights cut in two tensors."""

    def __init__(self, hessian, start, *, floor=1.0):
        super().__init__()
        cut = len(start) // 2
        self.first, self.second = nn.Parameter(start[:cut].clone()), nn.Parameter(start[cut:].clone())
        self.register_buffer("hessian", hessian)
        self.floor = floor

    def forward(self):
        weights = torch.cat([self.first, self.second])
        return 0.5 * weights @ self.hessian @ weights + self.floor


def random_quadratic(size, *, condition=100.0, seed=0):
    """A Hessian with eigenvalues spread over `condition`, and a start in no special direction."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator))
    values = torch.logspace(-math.log10(condition), 0, size, dtype=torch.float64)
    start = torch.randn(size, dtype=torch.float64, generator=generator)
    return Quadratic(basis @ values.diag() @ basis.T, start)


def own_loss(model, batch):
    """Take the loss that the model returns."""
    del batch
    return model()


def squares(model, batch):
    """Take half the mean squared error."""
    inputs, targets = batch
    return 0.5 * (model(inputs) - targets).square().mean()


def train(model, optimizer, loss_fn, batch, *, steps):
    """Make steps as training does."""
    for _ in range(steps):
        optimizer.zero_grad()
        loss_fn(model, batch).backward()
        optimizer.step()


def after_step(model, optimizer, loss_fn, batch, lr):
    """Return copies of model and optimizer after a step at another learning rate."""
    model, optimizer = copy.deepcopy((model, optimizer))
    for group in optimizer.param_groups:
        group["lr"] = lr
    train(model, optimizer, loss_fn, batch, steps=1)
    return model, optimizer


def flat(model):
    """Return all weights in one vector."""
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def rise(model, optimizer, loss_fn, batch, lr):
    """Return by how much the loss of a batch rises in a step."""
    stepped, _ = after_step(model, optimizer, loss_fn, batch, lr)
    before, after = loss_fn(model, batch).item(), loss_fn(stepped, batch).item()
    return (after if math.isfinite(after) else math.inf) - before


def crossings(model, optimizer, loss_fn, batch, *, lowest, highest, points=50):
    """Return all learning rates at which a step begins to raise the loss: on a grid, and then by bisection."""
    grid = torch.logspace(math.log10(lowest), math.log10(highest), points).tolist()
    signs = [rise(model, optimizer, loss_fn, batch, lr) >= 0 for lr in grid]
    found = []
    for low, high, before, after in zip(grid, grid[1:], signs, signs[1:], strict=False):
        if after and not before:
            for _ in range(15):
                middle = math.sqrt(low * high)
                if rise(model, optimizer, loss_fn, batch, middle) >= 0:
                    high = middle
                else:
                    low = middle
            found.append(math.sqrt(low * high))
    return found


def search(model, loss_fn, batches, optimizer, **options):
    """Call critical_lr, and count passes from outside."""
    calls = 0

    def counted(model, batch):
        nonlocal calls
        calls += 1
        return loss_fn(model, batch)

    found = critical_lr(model, counted, batches, optimizer, **options)
    assert calls == found.forward_passes == sum(one.forward_passes for one in found.searches)
    assert all(one.forward_passes == len(one.trials) + 2 for one in found.searches)
    assert all(one.forward_passes <= options.get("max_passes", 20) for one in found.searches)
    return found
