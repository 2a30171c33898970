"""The critical learning rate where theory knows it, to 5 % and in at most 20 forward passes."""

import math

import pytest
import torch
from critical_cases import (
    OPTIMIZERS,
    OURS,
    Quadratic,
    after_step,
    crossings,
    flat,
    own_loss,
    random_quadratic,
    search,
    squares,
    train,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from warmfree.measure.curvature import effective_preconditioner, preconditioned_sharpness, sharpness

LEARNING_RATES = {
    "SGD": 0.3,
    "SGD, heavy ball": 0.05,
    "SGD, Nesterov": 0.05,
    "SGD, decay": 0.2,
    "Adadelta": 1.0,
}
RELATIVE = 1e-3  # the interpolation in the bracket is far better than the 5 % that are promised


def assert_found(found, theory, *, rel=RELATIVE):
    assert found.outcome == "found"
    for one in found.searches:
        assert one.low <= one.lr <= one.high <= 1.05 * one.low
    assert found.lr == pytest.approx(theory, rel=rel)


def displacement(model, optimizer, loss_fn, batch):
    """The optimizer's own step per unit of learning rate, at a small one."""
    lr = 1e-4 * optimizer.param_groups[0]["lr"]
    return (flat(model) - flat(after_step(model, optimizer, loss_fn, batch, lr)[0])) / lr


def along(step, gradient, hessian):
    """2 g.u / (u^T H u), where a quadratic loss is what it was."""
    return (2 * (gradient @ step) / (step @ hessian @ step)).item()


def dense_hessian(model, loss_fn, batch):
    named = dict(model.named_parameters())
    sizes = [weight.numel() for weight in named.values()]

    def loss(vector):
        pieces = zip(named, vector.split(sizes), named.values(), strict=True)
        weights = {name: piece.view(weight.shape) for name, piece, weight in pieces}
        return loss_fn(lambda *inputs: torch.func.functional_call(model, weights, inputs), batch)

    return torch.autograd.functional.hessian(loss, flat(model))


def gradient_of(model, loss_fn, batch):
    grads = torch.autograd.grad(loss_fn(model, batch), list(model.parameters()))
    return torch.cat([gradient.flatten() for gradient in grads])


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(list(OPTIMIZERS)),
    st.integers(2, 12),
    st.floats(0, 4),
    st.integers(0, 5),
    st.floats(-3, 3),
    st.integers(0, 1000),
)
def test_on_a_quadratic_it_is_twice_the_decrease_over_the_curvature(name, size, condition, steps, away, seed):
    model = random_quadratic(size, condition=10**condition, seed=seed)
    optimizer = OPTIMIZERS[name](list(model.parameters()), LEARNING_RATES.get(name, 0.05))
    train(model, optimizer, own_loss, None, steps=steps)
    step = displacement(model, optimizer, own_loss, None)
    theory = along(step, model.hessian @ flat(model), model.hessian)
    found = search(model, own_loss, [None], optimizer, start=abs(theory) * 10**away)
    if theory < 0:
        assert found.outcome == "uphill"
        assert found.searches[0].slope > 0
    else:
        assert_found(found, theory)
        assert found.forward_passes <= 10


@pytest.mark.parametrize("curvature", [1e-6, 1.0, 1e6])
def test_along_an_eigenvector_gradient_descent_can_bear_two_over_the_sharpness(curvature):
    hessian = torch.diag(torch.tensor([1.0, 0.3, 0.1], dtype=torch.float64)) * curvature
    for axis in range(3):
        model = Quadratic(hessian, torch.eye(3, dtype=torch.float64)[axis], floor=curvature)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        assert_found(search(model, own_loss, [None], optimizer), 2 / hessian[axis, axis].item(), rel=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.95])
@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_that_swings_along_the_top_eigenvector_bears_more(momentum, nesterov):
    if nesterov and not momentum:
        pytest.skip("torch has no Nesterov without momentum")
    model = random_quadratic(8)
    values, vectors = torch.linalg.eigh(model.hessian)
    top, start = values[-1].item(), vectors[:, -1]
    with torch.no_grad():
        model.first.copy_(start[:4]), model.second.copy_(start[4:])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum, nesterov=nesterov)
    train(model, optimizer, own_loss, None, steps=1)
    with torch.no_grad():
        model.first.copy_(start[:4]), model.second.copy_(start[4:])
    fresh = 2 / top
    # m swings from -s to s where s = -b s + lambda w, so that s = lambda w / (1 + b) is the step; with Nesterov's
    # gradient beside it the step is lambda w + b s.
    late = (2 + 2 * momentum) / ((1 + 2 * momentum) if nesterov else 1) / top
    for scale, theory in ((0.0, fresh / (1 + momentum if nesterov else 1)), (-top / (1 + momentum), late)):
        for weight, part in ((model.first, start[:4]), (model.second, start[4:])):
            if momentum:
                optimizer.state[weight]["momentum_buffer"] = scale * part
        assert_found(search(model, own_loss, [None], optimizer), theory)


def test_heavy_ball_at_the_edge_of_stability_swings_by_itself():
    model = Quadratic(torch.tensor([[2.0]], dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([model.second], lr=3.8 / 2, momentum=0.9)
    model.first.requires_grad_(False)
    train(model, optimizer, own_loss, None, steps=300)
    assert_found(search(model, own_loss, [None], optimizer), (2 + 2 * 0.9) / 2, rel=0.01)


def adam_in_a_swing(beta1, *, size=6, seed=0):
    """Adam late in training, its momentum in a swing along the top eigenvector of D^-1 H, D of second moments."""
    model = random_quadratic(size, seed=seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(beta1, 0.999), eps=1e-12)
    train(model, optimizer, own_loss, None, steps=1)
    second = torch.rand(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.5
    roots = second.sqrt()
    values, vectors = torch.linalg.eigh(model.hessian / torch.outer(roots.sqrt(), roots.sqrt()))
    # Small, so that the gradient leaves the second moments as they are.
    start = 1e-6 * vectors[:, -1] / roots.sqrt()
    swing = -(1 - beta1) / (1 + beta1) * model.hessian @ start
    cut = size // 2
    for weight, piece in ((model.first, slice(None, cut)), (model.second, slice(cut, None))):
        with torch.no_grad():
            weight.copy_(start[piece])
        state = optimizer.state[weight]
        state["step"].fill_(1e6)
        state["exp_avg"].copy_(swing[piece])
        state["exp_avg_sq"].copy_(second[piece] / 0.999)
    model.floor = 1e-12
    return model, optimizer, values[-1].item()


@pytest.mark.parametrize("beta1", [0.0, 0.5, 0.9, 0.95])
def test_adam_in_a_swing_bears_what_it_bears_late_in_training(beta1):
    model, optimizer, top = adam_in_a_swing(beta1)
    theory = (2 + 2 * beta1) / ((1 - beta1) * top)
    assert_found(search(model, own_loss, [None], optimizer), theory)
    if beta1 == 0.9:
        assert theory * top == pytest.approx(38)


@pytest.mark.parametrize("beta1", [0.5, 0.9, 0.95])
def test_the_first_step_of_adam_bears_twenty_over_its_preconditioned_sharpness(beta1):
    # One weight. P holds 1 - beta1 at the first step: the threshold is 2 / (1 - beta1) / lambda(P^-1 H) = 2 |w|.
    model = Quadratic(torch.tensor([[3.0]], dtype=torch.float64), torch.tensor([0.7], dtype=torch.float64))
    model.first.requires_grad_(False)
    optimizer = torch.optim.Adam([model.second], lr=1e-3, betas=(beta1, 0.999), eps=1e-12)
    found = search(model, own_loss, [None], optimizer)
    assert_found(found, 2 * 0.7, rel=1e-6)
    model().backward()
    measured = preconditioned_sharpness(model, optimizer, model, tolerance=1e-6)
    assert found.lr == pytest.approx(2 / (1 - beta1) / measured.value, rel=1e-4)


class TwoLayers(nn.Module):
    """The model u.v of two vectors: its loss (u.v - 1)^2 / 2 is a quartic."""

    def __init__(self, width, *, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Parameter(torch.randn(width, dtype=torch.float64, generator=generator) / width**0.25)
        self.second = nn.Parameter(torch.randn(width, dtype=torch.float64, generator=generator) / width**0.25)

    def forward(self):
        return 0.5 * (self.first @ self.second - 1).square()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("start", [1e-4, 1.0, 100.0])
def test_two_layers_bear_two_over_their_sharpness_at_the_start(seed, start):
    model = TwoLayers(2000, seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=start)
    found = search(model, own_loss, [None], optimizer)
    assert_found(found, *crossings(model, optimizer, own_loss, None, lowest=1e-4, highest=10)[:1])
    top = sharpness(model, model, tolerance=1e-6).value
    assert found.lr == pytest.approx(2 / top, rel=0.05)


def make_mlp(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    return model, (torch.randn(20, 5).double(), torch.randn(20, 2).double())


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_a_network_displaced_along_its_top_eigenvector_bears_what_its_sharpness_says(name):
    model, batch = make_mlp()
    train(model, torch.optim.Adam(model.parameters(), lr=3e-3), squares, batch, steps=400)
    hessian = dense_hessian(model, squares, batch)
    gradient = gradient_of(model, squares, batch)
    values, vectors = torch.linalg.eigh(hessian)
    # To the minimum of its quadratic model in the sharp directions, and then aside along the sharpest.
    sharp = vectors[:, values > 0.05 * values[-1]]
    move = -sharp @ ((sharp.T @ gradient) / values[values > 0.05 * values[-1]])
    with torch.no_grad():
        move = move + 0.02 * vectors[:, -1]
        for weight, piece in zip(
            model.parameters(), move.split([p.numel() for p in model.parameters()]), strict=True
        ):
            weight.add_(piece.view(weight.shape))
    hessian, gradient = dense_hessian(model, squares, batch), gradient_of(model, squares, batch)
    top = torch.linalg.eigvalsh(hessian)[-1].item()
    build = OPTIMIZERS[name]
    optimizer = build(list(model.parameters()), 0.01)
    found = search(model, squares, [batch], optimizer)
    step = displacement(model, optimizer, squares, batch)
    assert found.lr == pytest.approx(along(step, gradient, hessian), rel=0.05)
    if name == "SGD":
        assert found.lr == pytest.approx(2 / top, rel=0.05)
    else:
        # Adam's first step makes all signs alike: it is not along any eigenvector, and bears more than the sharpest.
        squares(model, batch).backward()
        divisors, _ = effective_preconditioner(optimizer, list(model.parameters()))
        roots = torch.cat([divisor.flatten() for divisor in divisors]).rsqrt()
        sharpest = torch.linalg.eigvalsh(roots[:, None] * hessian * roots)[-1].item()
        assert found.lr > 20 / sharpest


def build_muon(weights, lr):
    return torch.optim.Muon([weight for weight in weights if weight.ndim == 2], lr=lr)


ALL = {**OPTIMIZERS, **OURS, "Muon": build_muon}


@pytest.mark.parametrize("steps", [0, 5])
@pytest.mark.parametrize("name", ALL)
def test_on_a_network_it_is_the_exact_crossing_of_the_optimizers_own_step(name, steps):
    model, batch = make_mlp(seed=steps)
    optimizer = ALL[name](list(model.parameters()), LEARNING_RATES.get(name, 0.01))
    train(model, optimizer, squares, batch, steps=steps)
    lr = optimizer.param_groups[0]["lr"]
    found = [search(model, squares, [batch], optimizer, start=away * lr) for away in (0.1, 1.0, 10.0)]
    assert all(math.isclose(one.target, lr) for one in found)
    nearby = found[0].lr
    exact = crossings(model, optimizer, squares, batch, lowest=1e-3 * nearby, highest=1.1 * nearby, points=15)
    for one in found:
        assert_found(one, exact[0], rel=5e-3)
