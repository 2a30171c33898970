"""Without a bound that is active, torch's own optimizers come out, to the last bit."""

import pytest
import torch
from problems import assert_equal, make_model, train, weights

from warmfree import AdamW2, SizedOptimizer, wrap
from warmfree.optim import SGD, SpectralBound

BUILDS = {
    "AdamW2": lambda p: AdamW2(p, 1e-2, (0.9, 0.99), weight_decay=0.1, tau=1e9),
    "AdamW2-inf": lambda p: AdamW2(p, 1e-2, (0.9, 0.99), weight_decay=0.1, tau=float("inf"), foreach=True),
    "bare": lambda p: SizedOptimizer(p, "adam", lr=1e-2, weight_decay=0.1),
    "tensor-lr": lambda p: AdamW2(
        p, torch.tensor(1e-2, dtype=torch.float64), (0.9, 0.99), weight_decay=0.1, tau=1e9
    ),
    "wrapped": lambda p: wrap(
        torch.optim.AdamW(p, 1e-2, (0.9, 0.99), weight_decay=0.1), [SpectralBound(tau=1e9)]
    ),
}


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", BUILDS)
def test_a_huge_tau_is_adamw_bit_for_bit(name, dtype, maximize):
    ours, theirs = make_model(dtype), make_model(dtype)
    optimizer = BUILDS[name](ours.parameters())
    options = {"betas": (0.9, 0.999)} if name == "bare" else {"betas": (0.9, 0.99)}
    lr = torch.tensor(1e-2, dtype=torch.float64) if name == "tensor-lr" else 1e-2
    reference = torch.optim.AdamW(theirs.parameters(), lr, weight_decay=0.1, maximize=maximize, **options)
    for group in optimizer.param_groups:
        group["maximize"] = maximize
    train(ours, optimizer, 25)
    train(theirs, reference, 25)
    assert_equal(weights(ours), weights(theirs))


def test_an_active_tau_is_not_adamw():
    ours, theirs = make_model(), make_model()
    train(ours, AdamW2(ours.parameters(), 1e-2, tau=1e-3), 5)
    train(theirs, torch.optim.AdamW(theirs.parameters(), 1e-2), 5)
    assert not torch.equal(weights(ours)[0], weights(theirs)[0])


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_without_decay_is_torch_sgd(nesterov):
    ours, theirs = make_model(torch.float64), make_model(torch.float64)
    train(ours, SizedOptimizer(ours.parameters(), SGD(momentum=0.9, nesterov=nesterov), lr=0.05), 20)
    train(theirs, torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9, nesterov=nesterov), 20)
    for a, b in zip(weights(ours), weights(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
