"""What a CUDA graph needs, without CUDA: while "capturing" nothing is fetched, and replays go on counting."""

import pytest
import torch
from problems import OPTIMIZERS
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from warmfree import AdamW2
from warmfree.optim import Precision, controlled


class NothingFetched(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert "_local_scalar_dense" not in str(func), "a number was fetched while capturing"
        return func(*args, **(kwargs or {}))


def parameters():
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((6, 10), (7,))]


def give_gradients(params, step):
    generator = torch.Generator().manual_seed(step)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_that_fetch_nothing_equal_those_that_do(name, monkeypatch):
    expected, found = parameters(), parameters()
    reference = OPTIMIZERS[name](expected, foreach=True)
    lr = torch.tensor(1e-2)
    optimizer = OPTIMIZERS[name](found, lr=lr, capturable=True, nonfinite="ignore", foreach=True)
    for step in range(8):
        rate = 1e-2 if step < 5 else 5e-3  # replays see what was written to the lr tensor
        reference.param_groups[0]["lr"] = rate
        lr.fill_(rate)
        for params, stepper in ((expected, reference), (found, optimizer)):
            give_gradients(params, step)
            with monkeypatch.context() as patch:
                if stepper is optimizer and step >= 2:
                    patch.setattr(controlled, "is_capturing", lambda: True)
                    patch.setattr("warmfree.optim.base.is_capturing", lambda: True)
                    with NothingFetched():
                        stepper.step()
                else:
                    stepper.step()
    for one, other, start in zip(expected, found, parameters(), strict=True):
        assert (one - other).norm() <= 1e-5 * (one - start).norm() + 1e-6
    for param in found:
        assert optimizer.state[param]["step"].item() == 8


def test_what_needs_the_host_is_refused():
    for options in ({}, {"nonfinite": "ignore", "precision": Precision(bf16_moments=True)}):
        with pytest.raises(ValueError, match="capturable needs"):
            AdamW2([nn.Parameter(torch.ones(2, 2))], capturable=True, **options)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_replay_at_lr_zero_moves_nothing(name, monkeypatch):
    params, lr = parameters(), torch.tensor(1e-2)
    optimizer = OPTIMIZERS[name](params, lr=lr, capturable=True, nonfinite="ignore")
    for step in range(4):
        give_gradients(params, step)
        before = [param.detach().clone() for param in params]
        lr.fill_(0.0 if step == 2 else 1e-2)
        with monkeypatch.context() as patch:
            if step >= 2:
                patch.setattr(controlled, "is_capturing", lambda: True)
                patch.setattr("warmfree.optim.base.is_capturing", lambda: True)
            optimizer.step()
        for old, param in zip(before, params, strict=True):
            if step == 2:
                torch.testing.assert_close(old, param.detach(), rtol=1e-6, atol=0)
            assert param.isfinite().all()


def test_capture_before_an_eager_step_is_refused(monkeypatch):
    params = parameters()
    optimizer = AdamW2(params, capturable=True, nonfinite="ignore")
    give_gradients(params, 0)
    monkeypatch.setattr(controlled, "is_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="at least one eager step"):
        optimizer.step()
