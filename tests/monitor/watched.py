"""Small runs to watch: with everything that a monitor could disturb."""

import math

import torch
from torch import nn

from warmfree.lab.models.gpt import GPT, GPTConfig
from warmfree.monitor import Monitor
from warmfree.monitor.probes import PROBES
from warmfree.record import read_records

EVERYTHING = tuple(name for name, probe in PROBES.items() if "loss" not in probe.needs)


class Net(nn.Module):
    """Convolution, running statistics, dropout, attention, a frozen layer and a shared one."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm1d(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.frozen = nn.Linear(8, 8)
        self.frozen.requires_grad_(False)
        self.first, self.drop = nn.Linear(8, 8), nn.Dropout(0.3)
        self.second = self.first
        self.head = nn.Linear(8, 4)

    def forward(self, x, labels=None):
        x = self.norm(self.conv(x)).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = self.drop(torch.relu(self.second(torch.relu(self.first(self.frozen(x))))))
        y = self.head(x.mean(1))
        loss = None if labels is None else nn.functional.cross_entropy(y, labels)
        return {"loss": loss, "logits": y}


def net_batch(step):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, 3, 6, generator=generator), torch.randint(4, (16,), generator=generator)


def train(model, optimizer, steps, *, monitor=None, after=None):
    """Return the losses and what the global generator draws in the end."""
    losses = []
    for step in steps:
        x, labels = net_batch(step)
        loss = model(x, labels=labels)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if after is not None:
            after(step, monitor)
    return losses, torch.rand(1).item()


def tiny_gpt():
    torch.manual_seed(3)
    return GPT(GPTConfig(vocabulary=17, context=12, layers=2, width=16, heads=2))


def gpt_batch(step):
    tokens = torch.randint(17, (4, 13), generator=torch.Generator().manual_seed(step))
    return tokens[:, :-1], tokens[:, 1:]


def gpt_loss(model, batch):
    return model.loss(*batch)


def records(folder, kind=None):
    found = list(read_records(folder / "monitor.jsonl"))
    return [record for record in found if kind is None or record["kind"] == kind]


def watch(model, optimizer, folder=None, **settings):
    """A monitor of everything at every step, however long it takes."""
    probes = [PROBES[name]() for name in settings.pop("probes", EVERYTHING)]
    for probe in probes:
        probe.every = 1
    return Monitor(
        model, optimizer, folder, **{"probes": probes, "budget": math.inf, "batch_size": 16} | settings
    )
