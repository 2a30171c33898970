"""P is what the real optimizer divides by: the displacement of its step, times P, is its momentum times the rate."""

import math

import pytest
import torch
from torch import nn

from warmfree import AdamW2, GIAdamW, LionA, RotationalAdamW, SizedOptimizer, wrap
from warmfree.measure.curvature import (
    UnsupportedOptimizerError,
    adam_preconditioner,
    effective_preconditioner,
)
from warmfree.measure.curvature.optimizers import recognise
from warmfree.measure.curvature.preconditioner import nadam_shares
from warmfree.optim import SGD, Adam, SpectralBound

LR = 1e-2
TORCH = {
    "Adam": (torch.optim.Adam, {}),
    "Adam, for each": (torch.optim.Adam, {"foreach": True}),
    "Adam, fused": (torch.optim.Adam, {"fused": True}),
    "Adam, amsgrad": (torch.optim.Adam, {"amsgrad": True}),
    "Adam, L2": (torch.optim.Adam, {"weight_decay": 0.3}),
    "AdamW": (torch.optim.AdamW, {"weight_decay": 0.3}),
    "AdamW, large eps": (torch.optim.AdamW, {"eps": 0.1}),
    "NAdam": (torch.optim.NAdam, {}),
    "NAdam, L2": (torch.optim.NAdam, {"weight_decay": 0.3}),
    "NAdam, decoupled": (torch.optim.NAdam, {"weight_decay": 0.3, "decoupled_weight_decay": True}),
    "RAdam": (torch.optim.RAdam, {}),
    "RAdam, decoupled": (torch.optim.RAdam, {"weight_decay": 0.3, "decoupled_weight_decay": True}),
    "GIAdamW": (GIAdamW, {"weight_decay": 0.3}),
    "AdamW2, without bound": (AdamW2, {"tau": math.inf}),
    "AdamD": (SizedOptimizer, {"direction": Adam(correct_momentum=False)}),
}


def weights():
    generator = torch.Generator().manual_seed(3)
    shapes = [(4, 3), (5,), ()]
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in shapes]


def set_gradients(parameters, step):
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in parameters:
        gradient = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.grad = gradient * 10 ** (step % 3)


def decayed(optimizer, parameter):
    """The weight after decoupled decay."""
    group = optimizer.param_groups[0]
    decoupled = group.get("decoupled_weight_decay", not type(optimizer).__module__.startswith("torch."))
    return parameter.detach() * (1 - group["lr"] * group["weight_decay"] * decoupled)


@pytest.mark.parametrize("name", TORCH)
def test_the_displacement_of_every_step_is_momentum_over_preconditioner(name):
    make, options = TORCH[name]
    parameters = weights()
    optimizer = make(parameters, lr=LR, **options)
    for step in range(12):  # RAdam adapts from the sixth on
        set_gradients(parameters, step)
        divisors = adam_preconditioner(optimizer, parameters)
        before = [decayed(optimizer, parameter) for parameter in parameters]
        group = optimizer.param_groups[0]
        shares = [(0.0, 1.0)] * 3
        if "NAdam" in name:
            shares = [nadam_shares(group, optimizer.state[parameter]) for parameter in parameters]
        optimizer.step()
        for parameter, divisor, old, (of_gradient, of_momentum) in zip(
            parameters, divisors, before, shares, strict=True
        ):
            gradient = parameter.grad
            if "L2" in name:  # the decay was added to it
                gradient = gradient + options["weight_decay"] * old
            direction = of_gradient * gradient + of_momentum * optimizer.state[parameter]["exp_avg"]
            # torch keeps NAdam's product of momentum constants in float32.
            rtol = 1e-6 if "NAdam" in name else 1e-10
            torch.testing.assert_close(parameter - old, -LR * direction / divisor, rtol=rtol, atol=1e-15)


def test_the_first_step_and_the_formula():
    parameters = weights()
    optimizer = torch.optim.Adam(parameters, lr=LR, betas=(0.8, 0.9), eps=1e-3)
    set_gradients(parameters, 0)
    for divisor, parameter in zip(adam_preconditioner(optimizer, parameters), parameters, strict=True):
        torch.testing.assert_close(divisor, 0.2 * (parameter.grad.abs() + 1e-3))
    optimizer.step()
    for divisor, parameter in zip(adam_preconditioner(optimizer, parameters), parameters, strict=True):
        square = 0.9 * 0.1 * parameter.grad**2 + 0.1 * parameter.grad**2
        torch.testing.assert_close(divisor, (1 - 0.8**2) * ((square / (1 - 0.9**2)).sqrt() + 1e-3))
    assert not optimizer.state[nn.Parameter(torch.ones(1))]


def test_nothing_is_changed_and_state_is_not_made():
    parameters = weights()
    optimizer = torch.optim.Adam(parameters)
    set_gradients(parameters, 0)
    gradients = [parameter.grad.clone() for parameter in parameters]
    adam_preconditioner(optimizer, parameters)
    assert len(optimizer.state) == 0
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)


def test_what_the_step_leaves_alone_has_an_infinite_p():
    parameters = weights()
    optimizer = torch.optim.Adam(parameters[:2])
    parameters[0].grad = torch.ones_like(parameters[0])
    parameters[2].grad = torch.ones_like(parameters[2])
    first, without_gradient, not_owned = adam_preconditioner(optimizer, parameters)
    assert torch.isfinite(first).all()
    assert torch.isinf(without_gradient).all()
    assert torch.isinf(not_owned).all()
    optimizer = torch.optim.Adam(parameters[:1], eps=0.0)
    parameters[0].grad[0, 0] = 0
    divisor = adam_preconditioner(optimizer, parameters[:1])[0]
    assert torch.isinf(divisor[0, 0])
    assert torch.isfinite(divisor).sum() == 11


def test_gi_adam_waits_for_a_gradient_that_is_not_zero():
    (parameter, *_) = weights()
    optimizer = GIAdamW([parameter], lr=LR)
    parameter.grad = torch.zeros_like(parameter)
    assert torch.isinf(adam_preconditioner(optimizer, [parameter])[0]).all()
    optimizer.step()
    parameter.grad = torch.full_like(parameter, 2.0)
    (divisor,) = adam_preconditioner(optimizer, [parameter])
    torch.testing.assert_close(divisor, torch.full_like(divisor, 0.1 * (2 / math.sqrt(1e-3) + 1e-8)))


def test_narrow_weights_get_a_float32_preconditioner():
    parameter = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.full_like(parameter, 1e-3)
    (divisor,) = adam_preconditioner(optimizer, [parameter])
    assert divisor.dtype == torch.float32
    torch.testing.assert_close(divisor, torch.full((3,), 1e-4), rtol=1e-2, atol=0)


def test_learning_rates_of_groups_are_folded_in():
    parameters = weights()
    groups = [
        {"params": parameters[:1], "lr": torch.tensor(0.3)},
        {"params": parameters[1:2], "lr": 0.1},
        {"params": parameters[2:], "lr": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups)
    set_gradients(parameters, 0)
    plain = adam_preconditioner(optimizer, parameters)
    scaled, lr = effective_preconditioner(optimizer, parameters)
    assert lr == pytest.approx(0.3)
    torch.testing.assert_close(scaled[0], plain[0])
    torch.testing.assert_close(scaled[1], 3 * plain[1])
    assert torch.isinf(scaled[2]).all()
    _, only = effective_preconditioner(optimizer, parameters[1:2])
    assert only == 0.1
    same, none = effective_preconditioner(optimizer, parameters[2:])
    assert none == 0
    torch.testing.assert_close(same, plain[2:])


def test_a_size_control_counts_by_what_it_left_of_the_last_step():
    (parameter, *_) = weights()
    for optimizer in (
        AdamW2([parameter], lr=1.0, weight_decay=0.0, tau=0.01),
        wrap(torch.optim.Adam([parameter], lr=1.0), [SpectralBound(tau=0.01)]),
    ):
        gradient = torch.randn(4, 3, dtype=torch.float64)
        for _ in range(3):
            parameter.grad = gradient.clone()  # the same, so that factors hardly change
            divisors, lr = effective_preconditioner(optimizer, [parameter])
            before = parameter.detach().clone()
            optimizer.step()
        state = getattr(optimizer, "inner", optimizer).state[parameter]
        factor = next(iter(optimizer.step_report.fetch().values()))["factor"]
        assert factor < 0.1
        torch.testing.assert_close(
            parameter - before, -lr * state["exp_avg"] / divisors[0], rtol=0.05, atol=1e-6
        )


def test_rotation_turns_along_the_plain_direction():
    (parameter, *_) = weights()
    optimizer = RotationalAdamW([parameter], lr=LR, weight_decay=1e-4, update_norm_decay=0.0)
    set_gradients([parameter], 0)
    (divisor,) = adam_preconditioner(optimizer, [parameter])
    before = parameter.detach().clone()
    optimizer.step()
    update = -optimizer.state[parameter]["exp_avg"] / divisor
    tangential = update - before * (update * before).sum(1, keepdim=True) / before.square().sum(
        1, keepdim=True
    )
    cosine = nn.functional.cosine_similarity(parameter.detach() - before, tangential)
    torch.testing.assert_close(cosine, torch.ones(4, dtype=torch.float64), rtol=1e-4, atol=0)


def test_sgd_is_the_identity():
    parameters = weights()
    set_gradients(parameters, 0)
    for optimizer in (
        torch.optim.SGD(parameters, lr=LR, momentum=0.9),
        SizedOptimizer(parameters, SGD(momentum=0.9), lr=LR),
    ):
        for divisor in adam_preconditioner(optimizer, parameters):
            assert torch.equal(divisor, torch.ones_like(divisor))


def test_wrappers_and_subclasses_are_looked_into():
    class Plain(torch.optim.AdamW):
        """As its parent."""

    class Own(torch.optim.AdamW):
        def step(self, closure=None):
            pass

    class Wrapper:
        def __init__(self, optimizer):
            self.optimizer = optimizer

    assert recognise(Wrapper(Plain(weights()))).family == "adam"
    stepped = Plain(parameters := weights())
    set_gradients(parameters, 0)
    torch.optim.lr_scheduler.ConstantLR(stepped)  # puts a wrapper around step
    stepped.step()
    assert recognise(stepped).family == "adam"
    with pytest.raises(UnsupportedOptimizerError, match="step of its own"):
        recognise(Own(weights()))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torch.optim.Adagrad(weights()), "Adagrad"),
        (lambda: torch.optim.Muon(weights()[:1]), "Muon"),
        (lambda: LionA(weights()), "direction Lion"),
        (lambda: torch.optim.Adam(weights(), maximize=True), "negative loss"),
        (lambda: torch.optim.SGD(weights(), maximize=True), "negative loss"),
    ],
)
def test_other_optimizers_are_refused_with_the_reason(make, words):
    with pytest.raises(UnsupportedOptimizerError, match=words):
        adam_preconditioner(make(), [])
