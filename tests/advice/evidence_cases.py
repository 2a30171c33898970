"""Models, losses and a complete picture of what a measurement must leave as it was."""

import copy
import random

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (its usual name)

FEATURES, CLASSES = 6, 3


def mlp(dtype=torch.float64, *, middle=None):
    torch.manual_seed(0)
    parts = [
        nn.Linear(FEATURES, 10),
        nn.Tanh(),
        *(middle or []),
        nn.Linear(10, 8),
        nn.Tanh(),
        nn.Linear(8, CLASSES),
    ]
    return nn.Sequential(*parts).to(dtype)


def batch(count, *, seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, FEATURES, generator=generator, dtype=torch.float64).to(dtype)
    return inputs, inputs[:, :CLASSES].argmax(1)


def loss_fn(model, pair):
    inputs, targets = pair
    return F.cross_entropy(model(inputs), targets)


def train(model, optimizer, steps=3, count=12):
    """Give an optimizer a state of its own."""
    for step in range(steps):
        optimizer.zero_grad()
        loss_fn(model, batch(count, seed=100 + step, dtype=next(model.parameters()).dtype)).backward()
        optimizer.step()
    optimizer.zero_grad()


class Picture:
    """Everything about a model, its optimizer and random numbers, to the bit."""

    def __init__(self, model, optimizer):
        self.model, self.optimizer = model, optimizer
        self.tensors = list(model.parameters()) + list(model.buffers())
        self.memory = [(tensor.data_ptr(), tensor._version) for tensor in model.parameters()]
        self.values = [tensor.detach().clone() for tensor in self.tensors]
        self.gradients = [weight.grad for weight in model.parameters()]
        self.gradient_values = [None if g is None else g.clone() for g in self.gradients]
        self.state = copy.deepcopy(optimizer.state_dict())
        self.entries = len(optimizer.state)
        self.flags = [module.training for module in model.modules()]
        self.hooks = [
            len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()
        ]
        self.random = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
        self.fired = []
        optimizer.register_step_pre_hook(lambda *_: self.fired.append("before"))
        optimizer.register_step_post_hook(lambda *_: self.fired.append("after"))

    def check(self):
        for tensor, value in zip(self.tensors, self.values, strict=True):
            assert torch.equal(tensor, value)
        assert [(t.data_ptr(), t._version) for t in self.model.parameters()] == self.memory
        for weight, gradient, value in zip(
            self.model.parameters(), self.gradients, self.gradient_values, strict=True
        ):
            assert weight.grad is gradient
            assert gradient is None or torch.equal(gradient, value)
        torch.testing.assert_close(self.optimizer.state_dict(), self.state, rtol=0, atol=0)
        assert len(self.optimizer.state) == self.entries
        assert [module.training for module in self.model.modules()] == self.flags
        assert [
            len(module._forward_pre_hooks) + len(module._forward_hooks) for module in self.model.modules()
        ] == self.hooks
        assert torch.equal(torch.get_rng_state(), self.random[0])
        assert random.getstate() == self.random[1]
        for now, before in zip(np.random.get_state(), self.random[2], strict=True):  # noqa: NPY002
            assert np.array_equal(now, before)
        assert self.fired == []
