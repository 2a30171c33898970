"""Sharpness before the step against dense Hessians in float64, preconditioned by Adam's formula written out."""

import copy
from functools import partial

import pytest
import torch
from evidence_cases import CLASSES, FEATURES, Picture, batch, loss_fn, train
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F  # noqa: N812 (its usual name)
from torch.utils.checkpoint import checkpoint

from warmfree.advice import step_sharpness
from warmfree.advice.missing import NotMeasuredError
from warmfree.advice.step_sharpness import measure_sharpness
from warmfree.measure.curvature import NotTwiceDifferentiableError, UnsupportedOptimizerError
from warmfree.optim import AdamW2, GIAdamW, LionA

LR, BETA1, BETA2 = 0.01, 0.9, 0.99
EXACT = {"tolerance": 1e-9, "max_products": 100}


def small(*middle):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 4), *middle, nn.Tanh(), nn.Linear(4, CLASSES)).double()


def adam(model, **options):
    return torch.optim.Adam(model.parameters(), **{"lr": LR, "betas": (BETA1, BETA2), **options})


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def dense_hessian(model, batches):
    """The Hessian of the mean loss, in the mode that the model is in, every pass with the same random numbers."""
    model, state = copy.deepcopy(model), torch.get_rng_state()
    shapes = {name: weight.shape for name, weight in model.named_parameters()}

    def loss(vector):
        pieces = vector.split([shape.numel() for shape in shapes.values()])
        weights = {
            name: piece.view(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)
        }
        total = 0.0
        for each in batches:
            torch.set_rng_state(state)
            total = total + loss_fn(partial(functional_call, model, weights), each) / len(batches)
        return total

    found = torch.autograd.functional.hessian(loss, flat(model.parameters()))
    torch.set_rng_state(state)
    return found


def gradient(model, batches):
    """The gradient of a step on a copy, with the same random numbers for each batch."""
    model, state = copy.deepcopy(model), torch.get_rng_state()
    model.zero_grad()
    for each in batches:
        torch.set_rng_state(state)
        (loss_fn(model, each) / len(batches)).backward()
    torch.set_rng_state(state)
    return flat([weight.grad for weight in model.parameters()])


def adam_diagonal(model, optimizer, batches):
    """Eq. 6 of Kalra & Barkeshli as their code has it."""
    states = [optimizer.state[weight] for weight in model.parameters()]
    steps = float(states[0]["step"]) if states[0] else 0.0
    squares = flat([state["exp_avg_sq"] for state in states]) if states[0] else 0.0
    squares = BETA2 * squares + (1 - BETA2) * gradient(model, batches) ** 2
    return (1 - BETA1 ** (steps + 1)) * ((squares / (1 - BETA2 ** (steps + 1))).sqrt() + 1e-8)


def top(hessian, diagonal):
    roots = diagonal.rsqrt()
    return float(torch.linalg.eigvalsh(roots[:, None] * hessian * roots)[-1])


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("count", [1, 3])
def test_it_is_the_top_eigenvalue_of_the_preconditioned_hessian(steps, count):
    model = small()
    optimizer = adam(model)
    train(model, optimizer, steps)
    batches = [batch(12, seed=seed) for seed in range(count)]
    expected = top(dense_hessian(model, batches), adam_diagonal(model, optimizer, batches))
    picture = Picture(model, optimizer)
    found = measure_sharpness(model, loss_fn, batches, optimizer, lr=LR, **EXACT)
    picture.check()
    assert found.value == pytest.approx(expected, rel=1e-6)
    assert (found.threshold, found.early_threshold) == pytest.approx((38 / LR, 20 / LR))
    assert found.ratio == pytest.approx(expected * LR / 38, rel=1e-6)
    assert found.vector is None
    assert found.method == "exact"


def test_the_thresholds_are_those_of_the_target_and_stale_gradients_do_not_count():
    model = small()
    optimizer = adam(model)
    expected = measure_sharpness(model, loss_fn, [batch(12)], optimizer, lr=0.5)
    assert expected.threshold == pytest.approx(38 / 0.5)
    for weight in model.parameters():
        weight.grad = torch.randn_like(weight)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 100)
    assert optimizer.param_groups[0]["lr"] == 0
    picture = Picture(model, optimizer)
    found = measure_sharpness(model, loss_fn, [batch(12)], optimizer, lr=0.5)
    picture.check()
    assert found == expected


def test_groups_keep_their_proportions():
    model = small()
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": LR / 4}]
    optimizer = torch.optim.SGD(groups, lr=LR, momentum=0.9)
    found = measure_sharpness(model, loss_fn, [batch(12)], optimizer, lr=1.0, **EXACT)
    sizes = [sum(weight.numel() for weight in model[index].parameters()) for index in (0, 2)]
    diagonal = torch.cat([torch.ones(sizes[0]), 4 * torch.ones(sizes[1])]).double()
    assert found.value == pytest.approx(top(dense_hessian(model, [batch(12)]), diagonal), rel=1e-6)
    assert found.threshold == pytest.approx(3.8)


def test_batch_norm_is_measured_as_it_trains():
    model = small(nn.BatchNorm1d(4))
    model[0].weight.data.mul_(30)
    optimizer = adam(model)
    expected = top(dense_hessian(model, [batch(12)]), adam_diagonal(model, optimizer, [batch(12)]))
    picture = Picture(model, optimizer)
    found = measure_sharpness(model, loss_fn, [batch(12)], optimizer, lr=LR, **EXACT)
    picture.check()
    assert found.value == pytest.approx(expected, rel=1e-6)
    model.eval()
    other = measure_sharpness(model, loss_fn, [batch(12)], optimizer, lr=LR, **EXACT)
    assert abs(other.value / expected - 1) > 0.2
    assert not model.training


@pytest.mark.parametrize("method", ["exact", "differences"])
def test_dropout_has_the_masks_of_the_gradient(method, monkeypatch):
    model = small(nn.Dropout(0.5))
    optimizer = adam(model)
    expected = top(dense_hessian(model, [batch(12)]), adam_diagonal(model, optimizer, [batch(12)]))
    search = step_sharpness.preconditioned_sharpness

    def chosen(*args, **options):
        return search(*args, **{**options, "method": method})

    monkeypatch.setattr(step_sharpness, "preconditioned_sharpness", chosen)
    picture = Picture(model, optimizer)
    found = measure_sharpness(model, loss_fn, [batch(12)], optimizer, lr=LR, **EXACT)
    picture.check()
    assert found.value == pytest.approx(expected, rel=1e-3 if method == "differences" else 1e-6)


class Checkpointed(nn.Module):
    """Runs its layers a second time in the backward pass, if it trains."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, inputs):
        if self.training:
            return checkpoint(self.model, inputs, use_reentrant=False)
        return self.model(inputs)


def test_layers_that_run_twice_do_so_in_the_same_mode():
    model = small(nn.BatchNorm1d(4), nn.Dropout(0.3))
    expected = measure_sharpness(model, loss_fn, [batch(12)], adam(model), lr=LR, **EXACT)
    twice = Checkpointed(model)
    optimizer = adam(twice)
    picture = Picture(twice, optimizer)
    found = measure_sharpness(twice, loss_fn, [batch(12)], optimizer, lr=LR, **EXACT)
    picture.check()
    assert found.value == pytest.approx(expected.value, rel=1e-6)


def test_clipping_scales_what_sgd_can_bear_and_not_adams_first_step():
    model, batches = small(), [batch(12)]
    norm = float(gradient(model, batches).norm())
    sgd = torch.optim.SGD(model.parameters(), lr=LR)
    whole, clipped = (
        measure_sharpness(model, loss_fn, batches, sgd, lr=LR, max_grad_norm=limit, **EXACT)
        for limit in (None, norm / 4)
    )
    assert clipped.value == pytest.approx(whole.value / 4, rel=1e-4)
    assert clipped.threshold == whole.threshold
    # Nothing is clipped below the limit, and Adam's first step is the same in any unit.
    loose = measure_sharpness(model, loss_fn, batches, sgd, lr=LR, max_grad_norm=2 * norm, **EXACT)
    assert loose.value == pytest.approx(whole.value, rel=1e-12)
    whole, clipped = (
        measure_sharpness(model, loss_fn, batches, adam(model), lr=LR, max_grad_norm=limit, **EXACT)
        for limit in (None, norm / 4)
    )
    assert clipped.value == pytest.approx(whole.value, rel=1e-4)


def test_gi_adam_starts_from_its_first_gradient():
    model, batches = small(), [batch(12)]
    optimizer = GIAdamW(model.parameters(), lr=LR, betas=(BETA1, BETA2))
    plain = measure_sharpness(model, loss_fn, batches, adam(model), lr=LR, **EXACT)
    picture = Picture(model, optimizer)
    found = measure_sharpness(model, loss_fn, batches, optimizer, lr=LR, **EXACT)
    picture.check()
    assert found.value == pytest.approx(plain.value * (1 - BETA2) ** 0.5, rel=1e-3)


def test_optimizers_without_a_threshold_say_so_before_anything_is_computed():
    def never(model, pair):
        raise AssertionError

    model = small()
    with pytest.raises(UnsupportedOptimizerError, match="Lion"):
        measure_sharpness(model, never, [batch(12)], LionA(model.parameters(), lr=LR), lr=LR)
    with pytest.raises(NotMeasuredError, match="AdamW2 shortens or turns the step itself"):
        measure_sharpness(model, never, [batch(12)], AdamW2(model.parameters(), lr=LR), lr=LR)


def test_what_does_not_fit_into_memory_is_measured_by_differences(monkeypatch):
    model = small()
    optimizer = adam(model)
    exact = measure_sharpness(model, loss_fn, [batch(12)], optimizer, lr=LR)
    search = step_sharpness.preconditioned_sharpness

    def scarce(*args, method, **options):
        if method != "differences":
            raise torch.OutOfMemoryError
        return search(*args, method=method, **options)

    monkeypatch.setattr(step_sharpness, "preconditioned_sharpness", scarce)
    picture = Picture(model, optimizer)
    found = measure_sharpness(model, loss_fn, [batch(12)], optimizer, lr=LR)
    picture.check()
    assert found.method == "differences"
    assert found.value == pytest.approx(exact.value, rel=1e-3)


class Once(torch.autograd.Function):
    """Has no second derivative."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient * 2


def test_without_a_second_derivative_narrow_weights_cannot_be_measured():
    def once(model, pair):
        return F.cross_entropy(Once.apply(model(pair[0])), pair[1])

    model = small()
    assert measure_sharpness(model, once, [batch(12)], adam(model), lr=LR).method == "differences"
    narrow = small().bfloat16()
    with pytest.raises(NotTwiceDifferentiableError):
        measure_sharpness(narrow, once, [batch(12, dtype=torch.bfloat16)], adam(narrow), lr=LR)


def test_an_eigenvalue_that_is_not_finite_is_not_one():
    model = small()
    with torch.no_grad():
        model[0].weight[0, 0] = 0.0

    def cusp(model, pair):  # of a finite gradient, and an infinite curvature
        return loss_fn(model, pair) + model[0].weight[0, 0].abs() ** 1.5

    optimizer = adam(model)
    picture = Picture(model, optimizer)
    with pytest.raises(NotMeasuredError, match="not finite"):
        measure_sharpness(model, cusp, [batch(12)], optimizer, lr=LR)
    picture.check()
