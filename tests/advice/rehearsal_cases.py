"""A model with everything that a step may change beside weights, and training as it is really done."""

import copy

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import warmfree

FEATURES, CLASSES = 6, 3

OPTIMIZERS = {
    "SGD": lambda groups: torch.optim.SGD(groups),
    "SGD, momentum": lambda groups: torch.optim.SGD(groups, momentum=0.9, weight_decay=0.01),
    "AdamW": lambda groups: torch.optim.AdamW(groups, weight_decay=0.1),
    "Adam, amsgrad": lambda groups: torch.optim.Adam(groups, amsgrad=True),
    "NAdam": lambda groups: torch.optim.NAdam(groups),
    "AdamW2": lambda groups: warmfree.AdamW2(groups),
    "GIAdamW": lambda groups: warmfree.GIAdamW(groups),
    "LionA": lambda groups: warmfree.LionA(groups),
    "LionAR": lambda groups: warmfree.LionAR(groups, weight_decay=0.1),
    "wrap(SGD)": lambda groups: warmfree.wrap(
        torch.optim.SGD(groups, momentum=0.9), [warmfree.optim.SpectralBound()]
    ),
}


def network(dtype=torch.float64):
    torch.manual_seed(0)
    parts = [
        nn.Linear(FEATURES, 10),
        nn.BatchNorm1d(10),
        nn.Tanh(),
        nn.Dropout(0.2),
        nn.Linear(10, CLASSES),
    ]
    return nn.Sequential(*parts).to(dtype)


def groups_of(model, lr=0.01):
    """Two groups, the second at half the learning rate, which is exact in binary."""
    weights = list(model.parameters())
    return [{"params": weights[:2], "lr": lr}, {"params": weights[2:], "lr": lr / 2}]


def batches(count, size=8, *, seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, size, FEATURES, generator=generator, dtype=torch.float64).to(dtype)
    return [(rows, rows[:, :CLASSES].argmax(1)) for rows in inputs]


def loss_fn(model, pair):
    inputs, targets = pair
    return nn.functional.cross_entropy(model(inputs), targets)


def train(model, optimizer, steps):
    """Give an optimizer a state of its own."""
    for pair in batches(steps, seed=7, dtype=next(model.parameters()).dtype):
        optimizer.zero_grad()
        loss_fn(model, pair).backward()
        optimizer.step()


def losses_of_training(
    model, optimizer, steps_of_batches, *, length, multiplier, max_grad_norm=None, loss=loss_fn
):
    """Train copies as a training script does; return the loss of each step."""
    model, optimizer = copy.deepcopy((model, optimizer))
    scheduler = LambdaLR(optimizer, multiplier)
    losses = []
    with torch.random.fork_rng():
        for step in range(length):
            micro, total = steps_of_batches[step % len(steps_of_batches)], 0.0
            optimizer.zero_grad()
            for batch in micro:
                found = loss(model, batch)
                (found / len(micro)).backward()
                total += found.item()
            losses.append(total / len(micro))
            if max_grad_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
            optimizer.step()
            scheduler.step()
    return losses
