"""Thresholds decide whether the real optimizers contract a quadratic."""

import math

import pytest
import torch
from torch import nn

from warmfree import GIAdamW, SizedOptimizer
from warmfree.measure.curvature import (
    Hessian,
    Momentum,
    Preconditioned,
    effective_preconditioner,
    lanczos,
    regime,
    stability_threshold,
)
from warmfree.optim import SGD

SGDS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "less momentum": {"momentum": 0.5},
    "dampening": {"momentum": 0.9, "dampening": 0.5},
    "Nesterov": {"momentum": 0.9, "nesterov": True},
}


def descend(optimizer, parameters, curvatures, steps):
    """Minimise sum(curvature * w^2) / 2 and return the largest weight after each step."""
    sizes = []
    for _ in range(steps):
        for parameter, curvature in zip(parameters, curvatures, strict=True):
            parameter.grad = curvature * parameter.detach()
        optimizer.step()
        sizes.append(max(parameter.abs().max().item() for parameter in parameters))
    return sizes


def ours(parameters, lr, **options):
    return SizedOptimizer(parameters, SGD(**options), lr=lr)


@pytest.mark.parametrize(
    ("make", "name"),
    [(torch.optim.SGD, name) for name in SGDS] + [(ours, name) for name in ("plain", "momentum", "Nesterov")],
)
def test_sgd_contracts_below_and_diverges_above(make, name):
    for factor, stable in ((0.98, True), (1.02, False)):
        weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = make([weight], lr=0.1, **SGDS[name])
        curvature = factor * stability_threshold(optimizer).late
        sizes = descend(optimizer, [weight], [curvature], 2000)
        assert (sizes[-1] < 1e-4) == stable, sizes[-1]
        assert (sizes[-1] > 1e4) != stable


FIXED = {  # with eps so large that P is fixed
    "Adam": (torch.optim.Adam, {"betas": (0.9, 0.999)}),
    "Adam, 0.95": (torch.optim.Adam, {"betas": (0.95, 0.999)}),
    "AdamW": (torch.optim.AdamW, {"weight_decay": 0.0}),
    "NAdam": (torch.optim.NAdam, {"momentum_decay": 10.0}),
    "NAdam, young": (torch.optim.NAdam, {"momentum_decay": 0.0}),
    "GIAdamW": (GIAdamW, {"weight_decay": 0.0}),
}


@pytest.mark.parametrize("name", FIXED)
def test_adams_contract_below_and_diverge_above_with_a_fixed_preconditioner(name):
    make, options = FIXED[name]
    for factor, stable in ((0.98, True), (1.02, False)):
        weight = nn.Parameter(torch.full((1,), 1e-30, dtype=torch.float64))
        optimizer = make([weight], lr=0.1, eps=1e30, **options)
        descend(optimizer, [weight], [1.0], 500)  # past the bias corrections
        weight.grad = torch.zeros(1, dtype=torch.float64)
        (divisor,), lr = effective_preconditioner(optimizer, [weight])
        curvature = factor * stability_threshold(optimizer, lr=lr).late * divisor.item()
        before = weight.abs().item()
        sizes = descend(optimizer, [weight], [curvature], 2500)
        assert (sizes[-1] < 1e-3 * before) == stable, (sizes[-1], before)
        assert (sizes[-1] > 1e3 * before) != stable


def test_adams_real_preconditioner_hovers_at_the_threshold():
    """P adapts on a quadratic: it settles where the preconditioned sharpness is what the optimizer can bear."""
    torch.manual_seed(0)
    matrix = torch.randn(30, 30, dtype=torch.float64)
    matrix = matrix @ matrix.T / 30
    weight = nn.Parameter(torch.randn(30, dtype=torch.float64))
    optimizer = torch.optim.Adam([weight], lr=1e-2, betas=(0.9, 0.99), eps=1e-12)
    ratios = []
    for step in range(3000):
        optimizer.zero_grad()
        loss = weight @ matrix @ weight / 2
        loss.backward()
        if step > 1000 and step % 100 == 0:
            divisors, lr = effective_preconditioner(optimizer, [weight])
            hessian = Hessian(lambda: weight @ matrix @ weight / 2, [weight])
            found = lanczos(Preconditioned(hessian, divisors), max_products=30, tolerance=1e-6)
            ratios.append(found.values[0] / stability_threshold(optimizer, lr=lr).late)
        optimizer.step()
    assert 0.7 < sorted(ratios)[len(ratios) // 2] < 1.3


def peak(eta_times_curvature, beta, step, steps=400):
    """Largest size of a displacement that appears at a step, D being fixed: P_t = (1 - beta^t) D."""
    z = eta_times_curvature * (1 - beta**step)
    w, m, largest = 1.0, 0.0, 1.0
    for now in range(step, step + steps):
        m = beta * m + (1 - beta) * w
        w -= z * m / (1 - beta**now)
        largest = max(largest, abs(w))
    return largest


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.95])
@pytest.mark.parametrize("step", [1, 3, 10, 100])
def test_below_the_early_threshold_nothing_is_enlarged_and_above_it_the_next_step_does(beta, step):
    momentum = Momentum(decay=beta, intake=1 - beta)
    assert momentum.early == pytest.approx(2 / (1 - beta))
    assert peak(0.999 * momentum.early, beta, step, steps=1) == 1.0
    assert peak(1.01 * momentum.early, beta, step, steps=1) > 1.0
    assert peak(0.99 * momentum.early, beta, step) < 1.2
    assert peak(0.99 * momentum.late, beta, step) < 2 / (1 - beta)


def test_numbers_of_the_paper():
    weight = nn.Parameter(torch.ones(1))
    adam = stability_threshold(torch.optim.AdamW([weight], lr=1.0))
    assert (round(adam.late, 6), round(adam.early, 6), adam.lr) == (38.0, 20.0, 1.0)
    assert stability_threshold(torch.optim.Adam([weight], lr=1.0, betas=(0.95, 0.9))).late == pytest.approx(
        78
    )
    sgd = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    assert stability_threshold(sgd).late == pytest.approx(38)
    assert stability_threshold(sgd).early == pytest.approx(20)
    assert stability_threshold(torch.optim.SGD([weight], lr=1.0, momentum=0.95)).late == pytest.approx(3.9)


def test_groups_and_zero_learning_rates():
    first, second = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    groups = [{"params": [first], "betas": (0.95, 0.99)}, {"params": [second], "lr": 0.5}]
    optimizer = torch.optim.Adam(groups, lr=0.1)
    both = stability_threshold(optimizer)
    assert (both.lr, round(both.late, 6)) == (0.5, 76.0)
    assert stability_threshold(optimizer, [first]).late == pytest.approx(780)
    still = stability_threshold(torch.optim.SGD([first], lr=0.0))
    assert (still.late, still.early, still.lr) == (math.inf, math.inf, 0.0)


def test_regimes_by_a_slope_that_wild_points_do_not_spoil():
    steps = list(range(0, 1000, 20))
    grows = [math.exp(step / 500) for step in steps]
    assert regime(steps, grows) == "progressive sharpening"
    assert regime(steps, [1 / value for value in grows]) == "sharpness reduction"
    assert regime(steps, [1 + 0.05 * math.sin(step) for step in steps]) == "constant"
    for index in range(0, 50, 5):
        grows[index] = 1e-6
    grows[7], grows[8], grows[9] = math.nan, math.inf, -1.0
    assert regime(steps, grows) == "progressive sharpening"
    assert regime([0, 1, 2], [1.0, 1.04, 1.08], tolerance=0.05) == "progressive sharpening"
    with pytest.raises(ValueError, match="3 steps"):
        regime([0, 1, 2], [1.0, -1.0, 2.0])
    with pytest.raises(ValueError, match="tolerance"):
        regime([0, 1, 2], [1.0, 1.0, 2.0], tolerance=0.0)
